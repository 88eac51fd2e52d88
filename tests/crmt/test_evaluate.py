"""The evaluation protocol: order, bookkeeping of dropped samples, and the whole chain for one to three modalities."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from crmt.attacks import Ball, fgm, pgd
from crmt.certificates.estimate import estimated_radii
from crmt.errors import BadInputError
from crmt.evaluate import AttackPlan, Predictions, attack_curves, audit_batches, predict
from crmt.fit import Batch, FitSettings, fit
from crmt.heads import OrthogonalHead
from crmt.integration import optimise_integration
from crmt.lipschitz import gradient_constants
from crmt.methods import create
from crmt.modality import Inputs
from crmt.model import MultiModalModel, build_model
from tests.crmt.tiny import exact_distances, in_batches, learnable, linear_model, mostly_right, random_inputs, spec

PLAN = AttackPlan(epsilons=(2.4, 0.2, 0.6, 1.2), steps=5)


@pytest.fixture(scope="module")
def trained() -> tuple[MultiModalModel, Batch]:
    """A quickly trained model and clips of its own kind."""
    model = build_model(spec(classes=4))
    epochs = learnable(model, batches=6)
    list(fit(model, create("crmt_jt"), epochs, FitSettings(epochs=4, lr=0.05)))
    parts = list(epochs(99))
    inputs = {m: torch.cat([b.inputs[m] for b in parts])[:24] for m in model.modalities}
    return model, Batch(inputs, torch.cat([b.labels for b in parts])[:24])


def test_predictions_are_the_models_in_the_order_given(trained: tuple[MultiModalModel, Batch]) -> None:
    model, whole = trained
    seen: list[int] = []
    found = predict(model, in_batches(whole.inputs, whole.labels, 7), seen.append)
    assert found.ids == tuple(f"clip-{i}" for i in range(24))
    assert torch.equal(found.labels, whole.labels)
    assert seen == [7, 7, 7, 3]
    with torch.no_grad():
        output = model.eval()(whole.inputs)
        torch.testing.assert_close(found.scores, output.scores)
        torch.testing.assert_close(found.logits(model.head), output.logits)
        contributions = model.head.integration * output.scores
        reference = contributions.mean(0)
        for i in range(2):
            alone = contributions[:, i] + reference[1 - i] + model.head.bias
            assert torch.equal(found.unimodal(model.head, reference)[:, i], alone.argmax(1))
        for i, (name, m) in enumerate(model.modalities.items()):
            without = model({**whole.inputs, name: m.missing(whole.inputs[name])}).logits.argmax(1)
            assert torch.equal(found.missing[:, i], without)


def test_logits_follow_the_integration_weights_of_the_head_now() -> None:
    model = linear_model("orthogonal", 2)
    inputs = random_inputs(model, 5)
    found = predict(model, in_batches(inputs, mostly_right(model, inputs), 5))
    assert isinstance(model.head, OrthogonalHead)
    model.head.set_integration(3 * model.head.integration)
    with torch.no_grad():
        torch.testing.assert_close(found.logits(model.head), model(inputs).logits)


def test_missing_modalities_can_be_left_out_and_parts_put_together() -> None:
    model = linear_model("concat", 3)
    inputs = random_inputs(model, 10)
    batches = in_batches(inputs, mostly_right(model, inputs), 4)
    whole = predict(model, batches)
    parts = Predictions.concatenated([predict(model, batches[:2]), predict(model, batches[2:])])
    assert parts.ids == whole.ids
    for a, b in ((parts.labels, whole.labels), (parts.scores, whole.scores), (parts.missing, whole.missing)):
        assert torch.equal(a, b)
    without = predict(model, batches, missing=False)
    assert without.missing.shape == (10, 0)
    assert torch.equal(without.scores, whole.scores)


def test_nothing_to_evaluate_is_refused() -> None:
    with pytest.raises(BadInputError, match=r"the split is empty"):
        predict(linear_model("concat"), [])


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


@pytest.mark.parametrize("size", [40, 9, 1])
def test_dropping_broken_clips_changes_nothing_where_pgd_is_exact(size: int) -> None:
    """Two classes, linear, no box: robust at ε exactly where ε is below the distance, whatever the batches are."""
    model = linear_model("concat", 2, classes=2)
    model.modalities = {name: replace(m, box=None) for name, m in model.modalities.items()}
    inputs = random_inputs(model, 40)
    labels = mostly_right(model, inputs)
    joint, single = exact_distances(model, inputs, labels)
    epsilons = tuple(float(joint.max()) * s for s in (0.1, 0.3, 0.5, 0.7, 0.9, 1.1))
    curves = attack_curves(model, in_batches(inputs, labels, size), AttackPlan(epsilons=epsilons, steps=5))
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
    plan = replace(PLAN, names=("pgd",), restarts=2, steps=2)
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
        ({"names": ("apgd",)}, r"no attack 'apgd'. Valid: fgm, pgd"),
        ({"epsilons": (0.1, -1.0)}, r"a budget must be 0 or more, not -1.0"),
        ({"epsilons": (float("nan"),)}, r"a budget must be 0 or more, not nan"),
        ({"norm": "l1"}, r"no norm 'l1'"),
        ({"loss": "dlr"}, r"no attack loss 'dlr'"),
        ({"steps": 0, "names": ("pgd",)}, r"steps and restarts must be 1 or more"),
        ({"balls": ("smell",)}, r"'smell' is not joint"),
    )
    for bad, message in refused:
        with pytest.raises(BadInputError, match=message):
            attack_curves(model, batches, replace(PLAN, **bad))


def whole_chain(name: str, modalities: int, device: str) -> None:
    """fit ▸ τ ▸ step 2 ▸ predictions ▸ radii ▸ curves ▸ audit."""
    method = create(name)
    model = build_model(spec(method.head, modalities, classes=4)).to(device)

    def batches(epoch: int) -> list[Batch]:
        return [
            Batch({m: x.to(device) for m, x in b.inputs.items()}, b.labels.to(device), tuple(map(str, range(16))))
            for b in learnable(build_model(spec(method.head, modalities, classes=4)), batches=4)(epoch)
        ]

    list(fit(model, method, batches, FitSettings(epochs=6, lr=0.05)))
    training, test = batches(50), batches(51)[:2]
    constants = gradient_constants(model, training)
    assert constants.tau.shape == (modalities, 4)
    if method.step2:
        scores = predict(model, training)
        assert isinstance(model.head, OrthogonalHead)
        found = optimise_integration(
            scores.scores.to(device), scores.labels.to(device), model.head.bias, constants.tau, model.head.integration,
            steps=50,
        )  # fmt: skip
        assert found.mean_radius_after >= found.mean_radius_before > 0
        model.head.set_integration(found.weights)
    predictions = predict(model, test)
    assert predictions.missing.shape == (32, modalities)
    accuracy = (predictions.logits(model.head).argmax(1) == predictions.labels).float().mean()
    assert float(accuracy) > 0.5
    radii = estimated_radii(model.head, predictions.scores, predictions.labels, constants)
    assert radii.joint.device == predictions.scores.device
    assert torch.equal(radii.joint > 0, predictions.logits(model.head).argmax(1) == predictions.labels)
    curves = attack_curves(model, test, replace(PLAN, restarts=2))
    assert {c.ball for c in curves} == {"joint", *model.modalities}
    for curve in curves:
        assert bool((~curve.robust | (radii.joint > 0)[:, None]).all())
    seen: list[int] = []
    audits = audit_batches(model, test, radii, steps=5, restarts=2, progress=seen.append)
    assert set(audits) == {"joint", *model.modalities}
    assert seen == [16, 16]
    for result in audits.values():
        assert torch.equal(result.audited, radii.joint > 0)
        assert not bool((result.violated & ~result.audited).any())


@pytest.mark.parametrize("name", ["jt", "crmt_jt"])
def test_one_two_and_three_modalities_go_through_the_whole_chain(name: str, modalities: int) -> None:
    whole_chain(name, modalities, "cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["jt", "crmt_jt"])
def test_the_whole_chain_runs_on_a_gpu(name: str) -> None:
    whole_chain(name, 2, "cuda")


def test_audits_in_batches_equal_one_audit() -> None:
    model = linear_model("concat", 2, classes=2)
    model.modalities = {name: replace(m, box=None) for name, m in model.modalities.items()}
    inputs: Inputs = random_inputs(model, 20)
    labels: Tensor = mostly_right(model, inputs)
    constants = gradient_constants(model, in_batches(inputs, labels, 20))
    scores = predict(model, in_batches(inputs, labels, 20)).scores
    true = estimated_radii(model.head, scores, labels, constants)
    factors = torch.linspace(0.5, 1.5, 20, dtype=torch.float64)
    mixed = replace(true, joint=true.joint * factors, unimodal=true.unimodal * factors[:, None])
    for size in (20, 6):
        audits = audit_batches(model, in_batches(inputs, labels, size), mixed, steps=10)
        for result in audits.values():
            assert torch.equal(result.violated, (0.99 * factors > 1) & (true.joint > 0))
