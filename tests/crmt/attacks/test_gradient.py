"""Balls and gradient attacks: bounds as properties, closed forms on linear models, and the trap of tiny gradients."""

from __future__ import annotations

from typing import Literal, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from crmt.attacks import ATTACK_LOSSES, Ball, fgm, pgd
from crmt.attacks.balls import Epsilon
from crmt.errors import BadInputError
from crmt.heads import ConcatHead
from crmt.losses import logit_margin
from crmt.modality import Inputs
from crmt.model import MultiModalModel
from tests.crmt.tiny import (
    AUDIO,
    VIDEO,
    LinearEncoder,
    effective_weights,
    exact_distances,
    linear_model,
    mostly_right,
    random_inputs,
    trainable,
)

Norm = Literal["l2", "linf"]
NORMS: tuple[Norm, ...] = ("l2", "linf")
COUNT = 6


def lengths(deltas: Inputs, names: tuple[str, ...], norm: Norm) -> Tensor:
    """‖δ‖ over `names` together, `(B,)`."""
    joined = torch.cat([deltas[m].flatten(1) for m in names], dim=1)
    return joined.norm(dim=1) if norm == "l2" else joined.abs().amax(1)


def assert_inside(ball: Ball, model: MultiModalModel, clean: Inputs, found: Inputs) -> None:
    """Ball and box to rounding; the rest bit-equal."""
    deltas = {m: found[m] - x for m, x in clean.items()}
    for group in ball.groups:
        limit = torch.as_tensor(group.epsilon)
        assert bool((lengths(deltas, group.modalities, ball.norm) <= limit * (1 + 1e-5) + 1e-6).all())
    for name, m in model.modalities.items():
        assert bool(found[name].isfinite().all())
        if name not in ball.attacked:
            assert torch.equal(found[name], clean[name])
        if m.box is not None:
            assert float(found[name].min()) >= m.box[0] - 1e-6
            assert float(found[name].max()) <= m.box[1] + 1e-6


@st.composite
def balls(draw: st.DrawFn) -> Ball:
    """Joint, uni-modal and product balls over the tiny modalities; scalar and per-sample budgets, 0 among them."""
    norm = draw(st.sampled_from(NORMS))
    size = st.sampled_from([0.0, 1e-4, 0.1, 1.0, 5.0])

    def budget() -> Epsilon:
        if draw(st.booleans()):
            return draw(size)
        return torch.tensor(draw(st.lists(size, min_size=COUNT, max_size=COUNT)))

    kind = draw(st.sampled_from(["joint", "unimodal", "product", "groups"]))
    names = draw(st.permutations(["audio", "video", "flow"]))
    if kind == "joint":
        return Ball.joint(names, budget(), norm)
    if kind == "unimodal":
        return Ball.joint(names[:1], budget(), norm)
    if kind == "product":
        return Ball.product({m: budget() for m in names[: draw(st.integers(1, 3))]}, norm)
    joint, single = Ball.joint(names[:2], budget(), norm), Ball.joint(names[2:], budget(), norm)
    return Ball(joint.groups + single.groups, norm)


@settings(max_examples=60, deadline=None)
@given(ball=balls(), seed=st.integers(0, 1000), loss=st.sampled_from(list(ATTACK_LOSSES)), restarts=st.integers(1, 2))
def test_what_attacks_return_lies_inside_ball_and_box(ball: Ball, seed: int, loss: str, restarts: int) -> None:
    model = linear_model("orthogonal", 3, dtype=torch.float32, seed=seed % 3)
    clean = random_inputs(model, COUNT, seed)
    labels = mostly_right(model, clean)
    with torch.no_grad():
        before = logit_margin(model(clean).logits, labels)
    draw = torch.Generator().manual_seed(seed)
    start = random_inputs(model, COUNT, seed + 1)  # far outside the ball
    for result in (
        fgm(model, clean, labels, ball, loss=loss),
        pgd(model, clean, labels, ball, steps=4, restarts=restarts, loss=loss, generator=draw),
        pgd(model, clean, labels, ball, steps=3, start=start, loss=loss),
    ):
        assert_inside(ball, model, clean, result.inputs)
        assert bool((result.margin <= before + 1e-6).all())
        with torch.no_grad():  # the margin is that of the inputs returned
            torch.testing.assert_close(
                logit_margin(model(result.inputs).logits, labels), result.margin, atol=1e-4, rtol=1e-4
            )


@settings(max_examples=60, deadline=None)
@given(ball=balls(), seed=st.integers(0, 1000), scale=st.sampled_from([0.0, 1e-3, 1.0, 100.0]))
def test_projection_is_idempotent_and_never_lengthens(ball: Ball, seed: int, scale: float) -> None:
    model = linear_model("concat", 3, dtype=torch.float32)
    clean = random_inputs(model, COUNT, seed)
    draw = torch.Generator().manual_seed(seed)
    deltas = {m: scale * torch.randn(clean[m].shape, generator=draw) for m in ball.attacked}
    once = ball.project(deltas, clean, model.modalities)
    assert_inside(ball, model, clean, clean | {m: clean[m] + d for m, d in once.items()})
    twice = ball.project(once, clean, model.modalities)
    for m in ball.attacked:
        torch.testing.assert_close(twice[m], once[m], atol=1e-6, rtol=1e-5)
        assert bool((once[m].flatten(1).norm(dim=1) <= deltas[m].flatten(1).norm(dim=1) * (1 + 1e-5) + 2e-6).all())


@pytest.mark.parametrize("norm", NORMS)
def test_a_point_inside_is_left_where_it_is(norm: Norm) -> None:
    model = linear_model("concat", 2)
    clean = {m: torch.full_like(x, 0.5) for m, x in random_inputs(model, 4).items()}
    deltas = {m: 1e-3 * torch.randn_like(x) for m, x in clean.items()}
    projected = Ball.joint(deltas, 1.0, norm).project(deltas, clean, model.modalities)
    for m, d in deltas.items():
        torch.testing.assert_close(projected[m], d)


@pytest.mark.parametrize("norm", NORMS)
def test_random_starts_fill_the_ball(norm: Norm) -> None:
    like = {"audio": torch.zeros(4000, 2), "video": torch.zeros(4000, 1)}
    deltas = Ball.joint(like, 2.0, norm).random(like, torch.Generator().manual_seed(0))
    size = lengths(deltas, ("audio", "video"), norm)
    assert float(size.max()) <= 2 + 1e-5
    # uniform in 3 dimensions: the share inside half of the radius is 1/8
    assert float((size < 1).float().mean()) == pytest.approx(1 / 8, abs=0.02)
    assert float(torch.cat([d.flatten(1) for d in deltas.values()], 1).mean(0).abs().max()) < 0.06


@pytest.mark.parametrize("size", [1e-38, 1e-30, 1e-12, 1.0, 1e12, 1e30])
def test_the_steepest_direction_is_whole_for_a_gradient_of_any_size(size: float) -> None:
    gradients = {"audio": size * torch.randn(5, 7), "video": size * torch.randn(5, 3, 2)}
    gradients["audio"][0], gradients["video"][0] = 0, 0
    joint = Ball.joint(gradients, 1.0).steepest(gradients)
    assert lengths(joint, ("audio", "video"), "l2").tolist() == pytest.approx([0, 1, 1, 1, 1], abs=1e-5)
    product = Ball.product({"audio": 1.0, "video": 2.0}).steepest(gradients)
    for m in gradients:
        assert lengths(product, (m,), "l2").tolist() == pytest.approx([0, 1, 1, 1, 1], abs=1e-5)
    linf = Ball.joint(gradients, 1.0, "linf").steepest(gradients)
    assert lengths(linf, ("audio", "video"), "linf").tolist() == [0, 1, 1, 1, 1]


def unboxed(classes: int, seed: int = 0, scale: float = 1.0) -> MultiModalModel:
    """A linear model in float32 on modalities without a box, its weights scaled by `scale`."""
    modalities = (AUDIO, VIDEO.__class__(**{**VIDEO.__dict__, "box": None}))
    model = linear_model("concat", modalities, classes=classes, seed=seed, dtype=torch.float32)
    with torch.no_grad():
        model.head.bias.zero_()
        for m in model.head.modalities:
            model.head.weight(m).mul_(scale)
    return model


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("attacked", [("audio",), ("video",), ("audio", "video")], ids="+".join)
def test_two_classes_reach_the_closed_form_in_one_step(norm: Norm, attacked: tuple[str, ...]) -> None:
    """margin − ε ‖w_y − w_j‖_dual; both attacks find it exactly."""
    model = unboxed(classes=2)
    clean = random_inputs(model, 8)
    with torch.no_grad():
        logits = model(clean).logits
    labels = logits.argmax(1)
    weights = dict(zip(model.modalities, effective_weights(model), strict=True))
    difference = torch.cat([weights[m][0] - weights[m][1] for m in attacked])
    dual = difference.norm() if norm == "l2" else difference.abs().sum()
    clean_margin = logit_margin(logits, labels)
    epsilon = 0.5 * float((clean_margin / dual).min())
    ball = Ball.joint(attacked, epsilon, norm)
    expected = clean_margin - epsilon * dual
    for result in (fgm(model, clean, labels, ball), pgd(model, clean, labels, ball, steps=5)):
        torch.testing.assert_close(result.margin, expected, rtol=1e-4, atol=1e-5)


def test_product_balls_spend_every_budget_in_full() -> None:
    model = unboxed(classes=2)
    clean = random_inputs(model, 8)
    with torch.no_grad():
        logits = model(clean).logits
    labels = logits.argmax(1)
    lost = sum(e * (v[0] - v[1]).norm() for e, v in zip((0.01, 0.03), effective_weights(model), strict=True))
    result = fgm(model, clean, labels, Ball.product({"audio": 0.01, "video": 0.03}))
    torch.testing.assert_close(result.margin, logit_margin(logits, labels) - lost, rtol=1e-4, atol=1e-5)


def test_many_classes_reach_the_closed_form() -> None:
    """gap_j − ε ‖w_y − w_j‖ at some j is where PGD ends; the least of them is the best that ANY attack can do.

    The maximum over j of linear functions has several local maxima, so PGD need not end at the best one.
    """
    model = unboxed(classes=5)
    clean = random_inputs(model, 40)
    with torch.no_grad():
        logits = model(clean).logits
    labels = logits.argmax(1)
    joined = torch.cat(effective_weights(model), 1)
    gap = logits.gather(1, labels[:, None]) - logits
    epsilon = 0.7 * exact_distances(model, clean, labels)[0]
    reach = gap - epsilon[:, None] * (joined[labels][:, None] - joined[None]).norm(dim=2)
    best = reach.scatter(1, labels[:, None], float("inf")).amin(1)
    result = pgd(model, clean, labels, Ball.joint(model.modalities, epsilon), steps=40)
    clean_margin = logit_margin(logits, labels)
    assert bool((result.margin >= best - 1e-5).all())
    off = (result.margin[:, None] - reach).abs().amin(1) / (clean_margin - best)
    assert float(off.max()) < 0.02
    assert float((result.margin - best < 0.02 * (clean_margin - best)).float().mean()) > 0.7
    assert not bool(result.broken.any())
    over = pgd(model, clean, labels, Ball.joint(model.modalities, epsilon / 0.7 * 1.3), steps=40)
    assert float(over.broken.float().mean()) > 0.9


@pytest.mark.parametrize("gap", [30.0, 50.0, 69.0])
@pytest.mark.parametrize("norm", NORMS)
def test_the_trap_a_confident_model_is_broken_through_cross_entropy(gap: float, norm: Norm) -> None:
    """Gradients of 1e-13 to 1e-30 must still give full steps."""
    model = unboxed(classes=2)
    encoder = [cast(LinearEncoder, e) for e in model.encoders.values()]
    for m, e in zip(model.head.modalities, encoder, strict=True):
        with torch.no_grad():  # w_1 = −w_0: the gradient that is left in float32 points the right way
            model.head.weight(m)[1] = -model.head.weight(m)[0]
            e.linear.bias.zero_()
    clean = random_inputs(model, 8)
    with torch.no_grad():
        logits = model(clean).logits
    scale = gap / (logits[:, 0] - logits[:, 1]).abs()
    for m in clean:  # every sample gets the same margin
        mean = model.modalities[m].missing(clean[m])
        clean[m] = mean + (clean[m] - mean) * scale.reshape(-1, *[1] * (clean[m].ndim - 1))
    with torch.no_grad():
        logits = model(clean).logits
    labels = logits.argmax(1)
    assert logit_margin(logits, labels).tolist() == pytest.approx([gap] * 8, rel=1e-4)
    leaves = {m: x.clone().requires_grad_() for m, x in clean.items()}
    value = cross_entropy(model(leaves).logits, labels, reduction="sum")
    largest = max(float(g.abs().max()) for g in torch.autograd.grad(value, list(leaves.values())))
    assert 0 < largest < 1e-11
    difference = torch.cat([v[0] - v[1] for v in effective_weights(model)])
    dual = float(difference.norm() if norm == "l2" else difference.abs().sum())
    for loss in ATTACK_LOSSES:
        for factor in (0.98, 1.02):
            ball = Ball.joint(model.modalities, factor * gap / dual, norm)
            expected = [factor > 1] * 8
            assert fgm(model, clean, labels, ball, loss=loss).broken.tolist() == expected
            assert pgd(model, clean, labels, ball, loss=loss, steps=10).broken.tolist() == expected


def small() -> tuple[MultiModalModel, Inputs, Tensor]:
    """An untrained convolutional model with its own predictions as labels."""
    model = trainable(modalities=2)
    clean = random_inputs(model, 16)
    model.train()
    with torch.no_grad():
        for _ in range(20):  # sensible batch-norm statistics
            model(clean)
        labels = model.eval()(clean).logits.argmax(1)
    return model, clean, labels


@pytest.mark.parametrize("attacked", [("audio",), ("audio", "video")], ids="+".join)
@pytest.mark.parametrize("norm", NORMS)
def test_pgd_is_stronger_than_fgm_and_restarts_never_hurt(attacked: tuple[str, ...], norm: Norm) -> None:
    model, clean, labels = small()
    ball = Ball.joint(attacked, 0.3 if norm == "l2" else 0.03, norm)
    with torch.no_grad():
        before = logit_margin(model(clean).logits, labels)
    one = fgm(model, clean, labels, ball)
    many = pgd(model, clean, labels, ball, steps=20)
    again = pgd(model, clean, labels, ball, steps=20, restarts=3, generator=torch.Generator().manual_seed(0))
    assert float(many.margin.mean()) <= float(one.margin.mean())
    assert float(many.margin.mean()) < float(before.mean())
    assert bool((one.margin <= before + 1e-6).all())
    assert bool((many.margin <= before + 1e-6).all())
    assert bool((again.margin <= many.margin + 1e-6).all())


def test_a_start_is_used_and_the_generator_decides_the_restarts() -> None:
    model, clean, labels = small()
    ball = Ball.joint(model.modalities, 0.3)
    first = pgd(model, clean, labels, ball, steps=10)
    assert bool((pgd(model, clean, labels, ball, steps=1, start=first.inputs).margin <= first.margin + 1e-5).all())

    def run(seed: int) -> Inputs:
        draw = torch.Generator().manual_seed(seed)
        return pgd(model, clean, labels, ball, steps=2, restarts=3, generator=draw).inputs

    assert all(torch.equal(run(0)[m], run(0)[m]) for m in clean)
    assert any(not torch.equal(run(0)[m], run(1)[m]) for m in clean)


def test_per_sample_budgets_are_those_of_each_sample() -> None:
    model, clean, labels = small()
    epsilon = torch.linspace(0, 0.3, len(labels))
    together = pgd(model, clean, labels, Ball.joint(["audio"], epsilon), steps=3)
    for i in (0, 7, 15):
        row = torch.tensor([i])
        alone = pgd(
            model,
            {m: x[row] for m, x in clean.items()},
            labels[row],
            Ball.joint(["audio"], epsilon).select(row),
            steps=3,
        )
        if not bool(alone.broken):  # a broken batch stops early
            torch.testing.assert_close(alone.margin, together.margin[row], atol=1e-4, rtol=1e-3)
    assert torch.equal(together.inputs["audio"][0], clean["audio"][0])


class Constant(nn.Module):
    """An encoder that looks at nothing, or multiplies what it sees by zero."""

    def __init__(self, features: int, connected: bool) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.randn(features))
        self.connected = connected

    def forward(self, x: Tensor) -> Tensor:
        value = self.value.expand(len(x), -1)
        return value + 0 * x.flatten(1).sum(1, keepdim=True) if self.connected else value


@pytest.mark.parametrize("connected", [True, False])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("loss", list(ATTACK_LOSSES))
def test_zero_gradients_give_no_nan(connected: bool, norm: Norm, loss: str) -> None:
    torch.manual_seed(0)
    encoders: dict[str, nn.Module] = {"audio": Constant(6, connected), "video": LinearEncoder(96, 6)}
    model = MultiModalModel((AUDIO, VIDEO), encoders, ConcatHead({"audio": 6, "video": 6}, 3))
    clean = random_inputs(model, 5)
    with torch.no_grad():
        logits = model(clean).logits
    labels = logits.argmax(1)
    for ball in (Ball.joint(["audio"], 0.5, norm), Ball.joint(["audio", "video"], 0.01, norm)):
        draw = torch.Generator().manual_seed(0)
        result = pgd(model, clean, labels, ball, steps=3, restarts=2, loss=loss, generator=draw)
        assert_inside(ball, model, clean, result.inputs)
        assert bool(result.margin.isfinite().all())
    assert torch.allclose(
        fgm(model, clean, labels, Ball.joint(["audio"], 0.5, norm), loss=loss).margin, logit_margin(logits, labels)
    )


def test_one_class_cannot_be_broken() -> None:
    model = linear_model("orthogonal", 2, classes=1)
    clean = random_inputs(model, 3)
    result = pgd(model, clean, torch.zeros(3, dtype=torch.long), Ball.joint(model.modalities, 1.0), steps=2)
    assert not bool(result.broken.any())


def test_a_model_that_returns_nan_does_not_look_robust() -> None:
    model = linear_model("concat", 2)
    with torch.no_grad():
        model.head.bias.fill_(float("nan"))
    clean = random_inputs(model, 3)
    assert bool(pgd(model, clean, torch.zeros(3, dtype=torch.long), Ball.joint(["audio"], 1.0)).broken.all())


def test_attacks_leave_the_model_and_the_inputs_as_they_were() -> None:
    model, clean, labels = small()
    model.train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    copies = {m: x.clone() for m, x in clean.items()}
    with torch.no_grad():  # as callers may
        pgd(model, clean, labels, Ball.joint(model.modalities, 0.3), steps=2)
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(clean[m], copies[m]) and not clean[m].requires_grad for m in clean)


def test_an_empty_batch_is_fine() -> None:
    model = linear_model("concat", 2)
    clean = random_inputs(model, 0)
    result = pgd(model, clean, torch.zeros(0, dtype=torch.long), Ball.joint(model.modalities, torch.zeros(0)))
    assert len(result.margin) == 0


@pytest.mark.parametrize("epsilon", [-0.1, float("nan"), torch.tensor([0.1, -0.1]), torch.tensor([float("nan"), 1.0])])
@pytest.mark.parametrize("norm", NORMS)
def test_budgets_below_zero_are_refused(epsilon: Epsilon, norm: Norm) -> None:
    with pytest.raises(BadInputError, match=r"a budget must be 0 or more, not"):
        Ball.joint(["audio"], epsilon, norm)
    with pytest.raises(BadInputError, match=r"a budget must be 0 or more, not"):
        Ball.product({"audio": 1.0, "video": epsilon}, norm)


def test_bad_attacks_are_refused() -> None:
    model = linear_model("concat", 2)
    clean, labels = random_inputs(model, 3), torch.zeros(3, dtype=torch.long)
    with pytest.raises(BadInputError, match=r"every attacked modality once"):
        Ball.joint(["audio", "audio"], 1.0)
    with pytest.raises(BadInputError, match=r"every attacked modality once"):
        Ball.joint([], 1.0)
    with pytest.raises(BadInputError, match=r"no norm 'l1'. Valid: l2, linf"):
        Ball.joint(["audio"], 1.0, cast(Norm, "l1"))
    with pytest.raises(BadInputError, match=r"no modality flow; it has audio, video"):
        fgm(model, clean, labels, Ball.joint(["flow"], 1.0))
    with pytest.raises(BadInputError, match=r"no attack loss 'hinge'. Valid: margin, cross_entropy, dlr"):
        pgd(model, clean, labels, Ball.joint(["audio"], 1.0), loss="hinge")
    for steps, restarts, wrong in ((0, 1, "steps"), (5, 0, "restarts")):
        with pytest.raises(BadInputError, match=f"{wrong} must be 1 or more, not 0"):
            pgd(model, clean, labels, Ball.joint(["audio"], 1.0), steps=steps, restarts=restarts)
    with pytest.raises(BadInputError, match=r"no 'video'"):
        fgm(model, {"audio": clean["audio"]}, labels, Ball.joint(["audio"], 1.0))
    with pytest.raises(BadInputError, match=r"budget"):
        fgm(model, clean, labels, Ball.joint(["audio"], torch.ones(2)))
