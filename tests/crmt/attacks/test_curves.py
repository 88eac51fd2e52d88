"""Curves of accuracy under attack: bookkeeping of dropped samples, guarantees between attacks and budgets."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import pytest
import torch

from crmt.attacks import Ball, fgm, pgd
from crmt.attacks.base import Attack, AttackSettings, Call
from crmt.attacks.curves import AttackPlan, attack_curves
from crmt.attacks.grid import GridRun
from crmt.attacks.search import AttackResult, Search
from crmt.errors import BadInputError
from crmt.fit import Batch
from crmt.model import MultiModalModel
from tests.crmt.tiny import PLAN, exact_distances, in_batches, linear_model, mostly_right, random_inputs


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_pgd_accuracy_never_rises_with_the_budget(
    trained: tuple[MultiModalModel, Batch], norm: Literal["l2", "linf"]
) -> None:
    model, whole = trained
    plan = replace(PLAN, norm=norm, epsilons=tuple(e / (1 if norm == "l2" else 16) for e in PLAN.epsilons))
    seen: list[int] = []
    curves = attack_curves(model, in_batches(whole.inputs, whole.labels, 10), plan, seen.append)
    assert {(c.attack, c.ball) for c in curves} == {(a, b) for a in ("fgm", "pgd") for b in ("joint", "audio", "video")}
    assert sum(seen) == 24 * 3
    by_name = {(c.attack, c.ball): c for c in curves}
    for curve in curves:
        assert curve.epsilons == tuple(sorted(plan.epsilons))
        assert curve.robust.shape == (24, 4)
        if curve.attack == "pgd":
            assert bool((curve.robust[:, 1:] <= curve.robust[:, :-1]).all())
            assert float(curve.robust.float().mean()) <= float(by_name["fgm", curve.ball].robust.float().mean()) + 1e-9
    joint = by_name["pgd", "joint"].robust.float().mean(0)
    assert float(joint[0]) > float(joint[-1])


def test_fgm_equals_a_direct_call_and_wrong_clips_are_never_robust(trained: tuple[MultiModalModel, Batch]) -> None:
    model, whole = trained
    labels = whole.labels.clone()
    labels[::4] = (labels[::4] + 1) % 4
    batch = Batch(whole.inputs, labels)
    curves = attack_curves(model, [batch], replace(PLAN, balls=("joint", "audio")))
    with torch.no_grad():
        wrong = model.eval()(whole.inputs).logits.argmax(1) != labels
    assert bool(wrong.any())
    for curve in curves:
        assert not bool(curve.robust[wrong].any())
        if curve.attack == "fgm":
            attacked = tuple(model.modalities) if curve.ball == "joint" else (curve.ball,)
            for column, epsilon in enumerate(curve.epsilons):
                direct = fgm(model, batch.inputs, labels, Ball.joint(attacked, epsilon))
                assert torch.equal(curve.robust[:, column], ~direct.broken)


@pytest.mark.parametrize(("count", "size"), [(40, 40), (40, 9), (8, 1)])
def test_dropping_broken_clips_changes_nothing_where_pgd_is_exact(count: int, size: int) -> None:
    """Two classes, linear, no box: robust at ε exactly where ε is below the distance, whatever the batches are."""
    model = linear_model("concat", 2, classes=2)
    model.modalities = {name: replace(m, box=None) for name, m in model.modalities.items()}
    inputs = random_inputs(model, count)
    labels = mostly_right(model, inputs)
    joint, single = exact_distances(model, inputs, labels)
    epsilons = tuple(float(joint.max()) * s for s in (0.1, 0.3, 0.5, 0.7, 0.9, 1.1))
    curves = attack_curves(
        model, in_batches(inputs, labels, size), AttackPlan(epsilons=epsilons, settings=AttackSettings(steps=5))
    )
    budgets = torch.tensor(epsilons, dtype=torch.float64)
    for curve in curves:
        distance = joint if curve.ball == "joint" else single[:, list(model.modalities).index(curve.ball)]
        assert torch.equal(curve.robust, budgets[None] < distance[:, None])
        if size == 40 and curve.ball == "joint":
            for column, epsilon in enumerate(epsilons):
                direct = pgd(model, inputs, labels, Ball.joint(model.modalities, epsilon), steps=5)
                assert torch.equal(curve.robust[:, column], ~direct.broken)


def test_each_row_belongs_to_its_clip(trained: tuple[MultiModalModel, Batch]) -> None:
    model, whole = trained
    plan = replace(PLAN, names=("fgm",), balls=("joint",))
    (forth,) = attack_curves(model, in_batches(whole.inputs, whole.labels, 5), plan)
    order = torch.arange(23, -1, -1)
    (back,) = attack_curves(
        model, in_batches({m: x[order] for m, x in whole.inputs.items()}, whole.labels[order], 8), plan
    )
    assert torch.equal(back.robust[order], forth.robust)


def test_the_seed_decides_the_restarts(trained: tuple[MultiModalModel, Batch]) -> None:
    model, whole = trained
    plan = replace(PLAN, names=("pgd",), settings=AttackSettings(restarts=2, steps=2))
    first, second = (attack_curves(model, [whole], plan) for _ in range(2))
    assert all(torch.equal(a.robust, b.robust) for a, b in zip(first, second, strict=True))


def test_plans_name_their_balls() -> None:
    names = ["audio", "video", "flow"]
    assert AttackPlan().attacked(names) == {"joint": tuple(names), **{m: (m,) for m in names}}
    assert AttackPlan(balls=("flow",)).attacked(names) == {"flow": ("flow",)}
    with pytest.raises(BadInputError, match=r"'smell' is not joint, each or one of audio, video, flow"):
        AttackPlan(balls=("smell",)).attacked(names)


def test_bad_plans_are_refused() -> None:
    model = linear_model("concat", 2)
    inputs = random_inputs(model, 2)
    batches = in_batches(inputs, mostly_right(model, inputs), 2)
    refused: tuple[tuple[dict[str, Any], str], ...] = (
        (
            {"names": ("apgd",)},
            r"no attack 'apgd'. Valid: apgd_ce, apgd_dlr, auto, fgm, minimal_norm, noise, pgd, square",
        ),
        ({"epsilons": (0.1, -1.0)}, r"a budget must be 0 or more, not -1.0"),
        ({"epsilons": (float("nan"),)}, r"a budget must be 0 or more, not nan"),
        ({"norm": "l1"}, r"no norm 'l1'"),
        ({"loss": "hinge"}, r"no attack loss 'hinge'"),
        ({"steps": 0, "names": ("pgd",)}, r"steps must be 1 or more, not 0"),
        ({"balls": ("smell",)}, r"'smell' is not joint"),
        ({"epsilons": ()}, r"attack.epsilons is empty"),
        ({"epsilons": (float("inf"),)}, r"a budget must be at most 1e\+15, not inf"),
        ({"queries": 0}, r"queries must be 1 or more, not 0"),
        ({"targets": -1}, r"targets must be 0 or more, not -1"),
        ({"product": {"smell": (1.0,)}}, r"attack.product: 'smell' is not one of audio, video"),
        ({"product": {"audio": ()}}, r"attack.product: 'audio' has no budgets"),
    )
    for bad, message in refused:
        how = {k: bad.pop(k) for k in ("loss", "steps", "queries", "targets") if k in bad}
        with pytest.raises(BadInputError, match=message):
            attack_curves(model, batches, replace(PLAN, **bad, settings=AttackSettings(**how)))


FULL = ("fgm", "pgd", "minimal_norm", "apgd_ce", "apgd_dlr", "square", "noise", "auto")
GRID = {"audio": (0.3, 0.0, 1.0), "video": (0.2, 0.6)}


@pytest.mark.parametrize("names", [FULL, ("fgm", "noise", "auto")], ids=["all", "some"])
def test_auto_is_never_above_any_other_attack_in_any_ball(
    trained: tuple[MultiModalModel, Batch], names: tuple[str, ...]
) -> None:
    model, whole = trained
    plan = AttackPlan(
        names=names, epsilons=(0.2, 0.6, 1.2), product=GRID, settings=AttackSettings(steps=1, queries=2, targets=1)
    )
    curves = attack_curves(model, in_batches({m: x[:6] for m, x in whole.inputs.items()}, whole.labels[:6], 4), plan)
    by_name = {(c.attack, c.ball): c for c in curves}
    assert set(by_name) == {(a, b) for a in names for b in ("joint", "audio", "video", "product")}
    for (attack, ball), curve in by_name.items():
        best = by_name["auto", ball].robust
        assert bool((best <= curve.robust).all())
        if ball == "product":
            assert curve.epsilons == ()
            assert [(b["audio"], b["video"]) for b in curve.budgets if isinstance(b, dict)] == [
                (0.0, 0.2), (0.0, 0.6), (0.3, 0.2), (0.3, 0.6), (1.0, 0.2), (1.0, 0.6),
            ]  # fmt: skip
        if attack not in ("fgm", "noise"):
            pairs = [(0, 1), (0, 2), (0, 5), (2, 3), (1, 3), (2, 4), (4, 5)] if ball == "product" else [(0, 1), (1, 2)]
            for small, large in pairs:
                assert bool((curve.robust[:, large] <= curve.robust[:, small]).all())
    strongest = {ball: by_name["auto", ball].robust for ball in ("joint", "audio", "video", "product")}
    for m in ("audio", "video"):
        assert bool((strongest["joint"] <= strongest[m]).all())
    assert bool((strongest["product"][:, 0] >= strongest["product"][:, 5]).all())
    assert bool((strongest["product"][:, 0] >= strongest["video"][:, 0]).all())  # (0, 0.2) lies in video's ball of 0.2
    assert not bool(strongest["joint"].all())


def test_what_one_attack_finds_does_not_depend_on_the_others(trained: tuple[MultiModalModel, Batch]) -> None:
    model, whole = trained
    plan = replace(
        PLAN, names=("square", "pgd"), balls=("joint",), settings=AttackSettings(restarts=2, queries=5, steps=2)
    )
    both = {c.attack: c.robust for c in attack_curves(model, [whole], plan)}
    (alone,) = attack_curves(model, [whole], replace(plan, names=("pgd",)))
    assert torch.equal(alone.robust, both["pgd"])


def test_minimal_norm_and_auto_curves_are_exact_on_linear_models() -> None:
    """Five classes: one pass of the minimal-norm attack gives the whole curve."""
    model = linear_model("orthogonal", 2, classes=5)
    model.modalities = {name: replace(m, box=None) for name, m in model.modalities.items()}
    inputs = random_inputs(model, 40)
    labels = mostly_right(model, inputs)
    joint, single = exact_distances(model, inputs, labels)
    top = float(joint.max())
    plan = AttackPlan(
        names=("minimal_norm", "auto"),
        epsilons=(0.2 * top, 0.5 * top, 0.8 * top),
        settings=AttackSettings(steps=5, queries=2),
    )
    for curve in attack_curves(model, in_batches(inputs, labels, 20), plan):
        exact = joint if curve.ball == "joint" else single[:, list(model.modalities).index(curve.ball)]
        budgets = torch.tensor(curve.epsilons, dtype=torch.float64)
        clear = ((budgets / exact[:, None]) - 1).abs() > 0.01
        assert torch.equal(curve.robust[clear], (budgets < exact[:, None])[clear])


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_whole_grid_is_attacked_no_weaker_than_each_ball_by_itself(
    trained: tuple[MultiModalModel, Batch], norm: Literal["l2", "linf"]
) -> None:
    model, whole = trained
    scale = 1.0 if norm == "l2" else 1 / 16
    epsilons = tuple(scale * e for e in (0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.3, 1.6, 2.0, 2.4))
    plan = AttackPlan(names=("pgd",), epsilons=epsilons, norm=norm, settings=AttackSettings(steps=10))
    for curve in attack_curves(model, [whole], plan):
        attacked = tuple(model.modalities) if curve.ball == "joint" else (curve.ball,)
        alone = [pgd(model, *whole[:2], Ball.joint(attacked, e, norm), steps=10).broken for e in epsilons]
        plain = ~torch.stack(alone, dim=1)
        assert bool((curve.robust.float().mean(0) <= plain.float().mean(0) + 0.005).all()), curve.ball
        assert 0.05 < float(plain.float().mean()) < 0.95  # budgets where strength shows


def test_a_whole_grid_costs_fewer_gradients_than_its_balls(
    trained: tuple[MultiModalModel, Batch], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, whole = trained
    rows: list[int] = []
    gradients = Search.gradients

    def counted(self: Search, *args: Any) -> Any:
        rows.append(len(self.rows))
        return gradients(self, *args)

    monkeypatch.setattr(Search, "gradients", counted)
    plan = AttackPlan(names=("pgd",), balls=("joint",), epsilons=tuple(0.25 * i for i in range(1, 11)))
    attack_curves(model, [whole], plan)
    assert 2 * sum(rows) <= 10 * 20 * len(whole.labels)


def test_a_point_found_in_a_larger_ball_breaks_every_ball_that_holds_it() -> None:
    class Far(Attack):
        """One step of a third of the budget."""

        title = "far"

        def run(self, call: Call) -> AttackResult:
            return pgd(*call.target, steps=1, step_size=1.0 / 3.0, start=call.start)

    model = linear_model("concat", 2, classes=2)
    model.modalities = {name: replace(m, box=None) for name, m in model.modalities.items()}
    inputs = random_inputs(model, 12)
    labels = mostly_right(model, inputs)
    joint, _ = exact_distances(model, inputs, labels)
    balls = [Ball.joint(model.modalities, e) for e in (0.25, 0.5, 1.0, 3.0)]
    run = GridRun(model, Batch(inputs, labels), balls, AttackSettings(), 0)
    broken = run.attack(Far())
    # one step of length ε / 3 from where the last ended: the largest ball's reaches 1
    assert torch.equal(broken[:, 3], joint <= 1) and torch.equal(broken[:, 2], joint <= 1)
    assert bool((broken[:, :-1] <= broken[:, 1:]).all())


def test_fgm_takes_one_gradient_for_a_whole_grid(trained: tuple[MultiModalModel, Batch]) -> None:
    model, whole = trained
    plan = replace(PLAN, names=("fgm",), balls=(), product=GRID)
    (curve,) = attack_curves(model, [whole], plan)
    for column, budget in enumerate(curve.budgets):
        assert isinstance(budget, dict)
        direct = fgm(model, whole.inputs, whole.labels, Ball.product(budget))
        assert torch.equal(curve.robust[:, column], ~direct.broken)
