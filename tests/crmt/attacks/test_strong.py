"""APGD, minimal-norm, Square, noise, missing and auto: bounds as properties, and exact answers on linear models."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crmt.attacks import (
    AttackSettings,
    Ball,
    apgd,
    attack,
    attack_names,
    auto,
    fgm,
    minimal_norm,
    missing,
    noise,
    parts_of_auto,
    pgd,
    square,
)
from crmt.attacks.apgd import checkpoints
from crmt.errors import BadInputError
from crmt.heads import ConcatHead
from crmt.losses import logit_margin
from crmt.modality import Inputs
from crmt.model import MultiModalModel
from tests.crmt.attacks.test_gradient import COUNT, NORMS, Constant, Norm, assert_inside, balls, lengths
from tests.crmt.tiny import (
    AUDIO,
    VIDEO,
    LinearEncoder,
    effective_weights,
    exact_distances,
    linear_model,
    mostly_right,
    random_inputs,
)

QUICK = AttackSettings(steps=3, targets=1, queries=8, draws=2)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def without_boxes(model: MultiModalModel) -> MultiModalModel:
    model.modalities = {name: replace(m, box=None) for name, m in model.modalities.items()}
    return model


def margins(model: MultiModalModel, inputs: Inputs, labels: Tensor) -> Tensor:
    with torch.no_grad():
        return logit_margin(model(inputs).logits, labels)


@pytest.mark.parametrize("name", attack_names())
@settings(max_examples=15, deadline=None)
@given(ball=balls(), seed=st.integers(0, 1000), started=st.booleans())
def test_what_every_attack_returns_lies_inside_ball_and_box(name: str, ball: Ball, seed: int, started: bool) -> None:
    model = linear_model("orthogonal", 3, dtype=torch.float32, seed=seed % 3)
    clean = random_inputs(model, COUNT, seed)
    labels = mostly_right(model, clean)
    start = random_inputs(model, COUNT, seed + 1) if started else None  # far outside the ball
    result = attack(name, model, clean, labels, ball, settings=QUICK, start=start, generator=seeded(seed))
    assert_inside(ball, model, clean, result.inputs)
    assert bool((result.margin <= margins(model, clean, labels) + 1e-6).all())
    torch.testing.assert_close(margins(model, result.inputs, labels), result.margin, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("head", ["concat", "orthogonal"])
@pytest.mark.parametrize("classes", [2, 5, 10])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_minimal_norm_is_the_exact_distance_on_linear_models(
    head: str, classes: int, modalities: int, dtype: torch.dtype
) -> None:
    model = without_boxes(linear_model(head, modalities, classes=classes, features=12, dtype=dtype))
    inputs = random_inputs(model, 40)
    labels = mostly_right(model, inputs)
    joint, single = exact_distances(model, inputs, labels)
    for attacked, exact in [
        (tuple(model.modalities), joint),
        *((((m,), single[:, i])) for i, m in enumerate(model.modalities)),
    ]:
        found = minimal_norm(model, inputs, labels, Ball.joint(attacked, 1.0), steps=5)
        torch.testing.assert_close(found.radius, exact, rtol=0.01, atol=0.0)
        deltas = {m: found.inputs[m] - x for m, x in inputs.items()}
        torch.testing.assert_close(lengths(deltas, attacked, "l2"), found.radius, rtol=1e-3, atol=1e-5)
        assert bool((margins(model, found.inputs, labels) <= 1e-5).all())


@pytest.mark.parametrize("norm", NORMS)
def test_minimal_norms_in_product_balls_and_in_linf_are_exact_too(norm: Norm) -> None:
    """t = min_j gap_j / Σ_groups ε ‖v_y − v_j‖_dual."""
    model = without_boxes(linear_model("orthogonal", 3, classes=5))
    inputs = random_inputs(model, 30)
    labels = mostly_right(model, inputs)
    with torch.no_grad():
        logits = model(inputs).logits
    gap = logits.gather(1, labels[:, None]) - logits
    differences = [v[labels][:, None] - v[None] for v in effective_weights(model)]
    order = 2 if norm == "l2" else 1
    own = torch.nn.functional.one_hot(labels, 5).bool()
    for ball, parts in (
        (
            Ball.product({"audio": 0.5, "video": 2.0}, norm),
            (0.5 * differences[0].norm(order, 2), 2 * differences[1].norm(order, 2)),
        ),
        (Ball.joint(model.modalities, 1.0, norm), (torch.cat(differences, 2).norm(order, 2),)),
    ):
        exact = (gap / sum(parts)).masked_fill(own, float("inf")).amin(1).clamp_min(0)
        torch.testing.assert_close(minimal_norm(model, inputs, labels, ball).radius, exact, rtol=0.01, atol=0.0)


def boxed_distance(model: MultiModalModel, inputs: Inputs, labels: Tensor) -> Tensor:
    """Exact joint ℓ2 distance of a linear model within its boxes: δ = clip(x − λ v) − x, bisected over λ."""
    with torch.no_grad():
        logits = model(inputs).logits
    x = torch.cat([inputs[m].flatten(1) for m in model.modalities], 1)
    inf = float("inf")
    low = torch.cat(
        [torch.full_like(inputs[n].flatten(1), m.box[0] if m.box else -inf) for n, m in model.modalities.items()], 1
    )
    high = torch.cat(
        [torch.full_like(inputs[n].flatten(1), m.box[1] if m.box else inf) for n, m in model.modalities.items()], 1
    )
    weights = torch.cat(effective_weights(model), 1)
    best = torch.full_like(logits[:, 0], inf)
    for j in range(logits.shape[1]):
        v = weights[labels] - weights[j]
        gap = logits.gather(1, labels[:, None]).squeeze(1) - logits[:, j]
        left, right = torch.zeros_like(gap), torch.full_like(gap, 1e4)

        def step(scale: Tensor, v: Tensor = v) -> Tensor:
            return (x - scale[:, None] * v).clamp(low, high) - x

        reachable = (labels != j) & (gap + (v * step(right)).sum(1) <= 0)
        for _ in range(80):
            middle = (left + right) / 2
            over = gap + (v * step(middle)).sum(1) <= 0
            left, right = torch.where(over, left, middle), torch.where(over, middle, right)
        best = torch.where(reachable, torch.minimum(best, step(right).norm(dim=1)), best)
    return best


@pytest.mark.parametrize("classes", [2, 6])
def test_minimal_norms_within_boxes(classes: int) -> None:
    """Inside the box, never below the exact boxed distance, and within 2 % of it for nearly all."""
    model = linear_model("concat", (VIDEO, AUDIO), classes=classes)
    inputs = random_inputs(model, 40)
    with torch.no_grad():
        labels = model(inputs).logits.argmax(1)
    exact = boxed_distance(model, inputs, labels)
    ball = Ball.joint(model.modalities, 1.0)
    found = minimal_norm(model, inputs, labels, ball, steps=40)
    ratio = found.radius / exact
    assert bool((ratio > 1 - 1e-6).all())
    assert float((ratio < 1.02).double().mean()) > 0.95
    assert_inside(Ball.joint(model.modalities, found.radius), model, inputs, found.inputs)


def test_the_minimal_norm_is_zero_where_wrong_and_infinite_where_nothing_moves() -> None:
    model = without_boxes(linear_model("concat", 2, dtype=torch.float32))
    inputs = random_inputs(model, 10)
    labels = mostly_right(model, inputs)
    wrong = margins(model, inputs, labels) <= 0
    found = minimal_norm(model, inputs, labels, Ball.joint(["audio"], 1.0))
    assert torch.equal(found.radius == 0, wrong)
    with torch.no_grad():
        model.head.weight("audio").zero_()
    labels = mostly_right(model, inputs)
    wrong = margins(model, inputs, labels) <= 0
    found = minimal_norm(model, inputs, labels, Ball.joint(["audio"], 1.0), restarts=2, generator=seeded())
    assert torch.equal(found.radius.isinf(), ~wrong)
    assert torch.equal(found.inputs["audio"], inputs["audio"])
    untouched = minimal_norm(model, inputs, labels, Ball.product({"audio": 1.0, "video": 0.0}))
    assert torch.equal(untouched.radius.isinf(), ~wrong)
    alone = linear_model("concat", 2, classes=1)
    assert (
        minimal_norm(alone, random_inputs(alone, 2), torch.zeros(2, dtype=torch.long), Ball.joint(["audio"], 1.0))
        .radius.isinf()
        .all()
    )


def test_targets_find_the_class_that_the_runner_up_hides() -> None:
    """Just beyond the exact distance: targeted APGD breaks all of a linear model, as PGD on the margin does not."""
    model = without_boxes(linear_model("concat", 2, classes=5))
    inputs = random_inputs(model, 60)
    with torch.no_grad():
        labels = model(inputs).logits.argmax(1)
    exact, _ = exact_distances(model, inputs, labels)
    for loss in ("margin", "dlr"):
        found = apgd(model, inputs, labels, Ball.joint(model.modalities, 1.05 * exact), loss=loss, steps=20, targets=4)
        assert float(found.broken.double().mean()) > 0.97
    assert bool(
        auto(model, inputs, labels, Ball.joint(model.modalities, 1.02 * exact), generator=seeded()).broken.all()
    )
    assert not bool(
        auto(model, inputs, labels, Ball.joint(model.modalities, 0.99 * exact), settings=QUICK).broken.any()
    )


@pytest.mark.parametrize("name", ["fgm", "pgd", "apgd_ce", "minimal_norm", "auto"])
@pytest.mark.parametrize("scale", [1e-8, 1e4])
def test_the_scale_of_the_logits_does_not_matter(name: str, scale: float) -> None:
    """Logits × 1e4: cross-entropy and its gradient are exactly 0 in float32, and the model no harder to break."""
    model = without_boxes(linear_model("concat", 2, classes=4, dtype=torch.float32))
    inputs = random_inputs(model, 30)
    with torch.no_grad():
        labels = model(inputs).logits.argmax(1)
    exact, _ = exact_distances(model, inputs, labels)
    chosen = AttackSettings(loss="cross_entropy", steps=20, queries=10)
    with torch.no_grad():
        for m in model.head.modalities:
            model.head.weight(m).mul_(scale)
        model.head.bias.mul_(scale)
    result = attack(
        name, model, inputs, labels, Ball.joint(model.modalities, 1.5 * exact), settings=chosen, generator=seeded()
    )
    assert float(result.broken.double().mean()) > 0.9
    result = attack(
        name, model, inputs, labels, Ball.joint(model.modalities, 0.98 * exact), settings=chosen, generator=seeded()
    )
    assert not bool(result.broken.any())


@pytest.mark.parametrize("connected", [True, False])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", attack_names())
def test_zero_gradients_give_no_nan_in_any_attack(name: str, norm: Norm, connected: bool) -> None:
    torch.manual_seed(0)
    encoders: dict[str, torch.nn.Module] = {"audio": Constant(6, connected), "video": LinearEncoder(96, 6)}
    model = MultiModalModel((AUDIO, VIDEO), encoders, ConcatHead({"audio": 6, "video": 6}, 4))
    clean = random_inputs(model, 5)
    labels = mostly_right(model, clean)
    for ball in (Ball.joint(["audio"], 0.5, norm), Ball.joint(["audio", "video"], 0.01, norm)):
        result = attack(name, model, clean, labels, ball, settings=replace(QUICK, restarts=2), generator=seeded())
        assert_inside(ball, model, clean, result.inputs)
        assert bool(result.margin.isfinite().all())


@pytest.mark.parametrize("norm", NORMS)
def test_square_needs_no_gradient_and_reaches_most_of_what_a_gradient_does(norm: Norm) -> None:
    model = without_boxes(linear_model("concat", 2, classes=3, dtype=torch.float32))
    inputs = random_inputs(model, 20)
    with torch.no_grad():
        labels = model(inputs).logits.argmax(1)
    clean = margins(model, inputs, labels)
    ball = Ball.joint(model.modalities, 0.05 if norm == "l2" else 0.005, norm)
    best = fgm(model, inputs, labels, ball).margin
    few, many = (square(model, inputs, labels, ball, queries=q, generator=seeded()).margin for q in (10, 600))
    rest = clean > 0.3 * (clean - best) + best.clamp_min(0)
    assert bool(((many <= few + 1e-6) | (few <= 0)).all())
    gained = ((clean - many) / (clean - best))[rest]
    assert float(gained.mean()) > (0.4 if norm == "l2" else 0.6)
    again = square(model, inputs, labels, ball, queries=10, generator=seeded()).margin
    assert torch.equal(again, few)


@settings(max_examples=25, deadline=None)
@given(ball=balls(), seed=st.integers(0, 1000))
def test_minimal_norms_stay_in_the_box_from_any_start(ball: Ball, seed: int) -> None:
    """Inputs at the box's edges; starts: none, and the nearest adversarial inputs if there were no box."""
    model = linear_model("orthogonal", 3, dtype=torch.float32, seed=seed % 3)
    inputs = {m: x.round() for m, x in random_inputs(model, COUNT, seed).items()}
    labels = mostly_right(model, inputs)
    free = without_boxes(linear_model("orthogonal", 3, dtype=torch.float32, seed=seed % 3))
    for start in (None, minimal_norm(free, inputs, labels, ball, steps=3).inputs):
        found = minimal_norm(model, inputs, labels, ball, steps=1, restarts=3, start=start, generator=seeded(seed))
        far = torch.where(found.radius.isfinite(), found.radius, torch.zeros_like(found.radius))
        assert_inside(ball.scaled(far), model, inputs, found.inputs)


def test_an_input_just_outside_its_box_is_left_there() -> None:
    """Rounding may leave it there; a budget of 0 changes nothing."""
    model = linear_model("concat", (VIDEO,), dtype=torch.float32)
    inputs = random_inputs(model, 4)
    inputs["video"][0, 0, 0, 0, 0], inputs["video"][1, 0, 0, 0, 0] = -5e-5, 1 + 5e-5
    labels = mostly_right(model, inputs)
    for name in ("fgm", "pgd", "minimal_norm", "apgd_ce", "square", "noise"):
        found = attack(name, model, inputs, labels, Ball.joint(["video"], 0.0), settings=QUICK, generator=seeded())
        assert torch.equal(found.inputs["video"], inputs["video"]), name
    moved = Ball.joint(["video"], 1.0).project({"video": torch.ones_like(inputs["video"])}, inputs, model.modalities)
    assert float((inputs["video"] + moved["video"]).max()) <= 1 + 6e-5
    zero = {"video": torch.zeros_like(inputs["video"])}
    assert not Ball.joint(["video"], 1.0).project(zero, inputs, model.modalities)["video"].any()


def test_noise_has_the_length_of_the_budget() -> None:
    model = without_boxes(linear_model("concat", 2))
    inputs = random_inputs(model, 20)
    with torch.no_grad():
        labels = model(inputs).logits.argmax(1)
    result = noise(model, inputs, labels, Ball.joint(model.modalities, 0.01), draws=5, generator=seeded())
    length = lengths({m: result.inputs[m] - x for m, x in inputs.items()}, ("audio", "video"), "l2")
    assert all(v == pytest.approx(0.01) or v == 0 for v in length.tolist())
    assert float((length > 0).double().mean()) > 0.9


def test_a_missing_modality_is_its_mean() -> None:
    model = linear_model("concat", 3)
    inputs = random_inputs(model, 12)
    labels = mostly_right(model, inputs)
    gone = ("audio", "flow")
    result = missing(model, inputs, labels, gone)
    expected = {n: m.missing(inputs[n]) if n in gone else inputs[n] for n, m in model.modalities.items()}
    for m, x in expected.items():
        torch.testing.assert_close(result.inputs[m], x)
    torch.testing.assert_close(result.margin, margins(model, expected, labels))
    with pytest.raises(BadInputError, match=r"no modality smell"):
        missing(model, inputs, labels, ["smell"])


def test_checkpoints_are_the_papers() -> None:
    assert sorted(checkpoints(100))[:6] == [22, 41, 57, 70, 80, 87]


def test_bad_calls_are_refused_by_every_attack() -> None:
    model = linear_model("concat", 2)
    inputs, labels = random_inputs(model, 3), torch.tensor([0, 1, 3])
    nan = {**inputs, "video": inputs["video"].clone()}
    nan["video"][1, 0, 0, 0, 0] = float("nan")
    ball = Ball.joint(["audio"], 1.0)
    refused: tuple[tuple[Inputs, Any, Ball, str], ...] = (
        (nan, labels, ball, r"'video' has NaN or infinite values"),
        (
            {**inputs, "video": 255 * inputs["video"]},
            labels,
            ball,
            r"'video' has values in .*outside its box \[0.0, 1.0\]",
        ),
        (inputs, torch.tensor([0, 1, 4]), ball, r"labels run from 0 to 4; the model's classes are 0 to 3"),
        (inputs, torch.tensor([0, -1, 3]), ball, r"labels run from -1 to 3"),
        (inputs, torch.tensor([0, 1]), ball, r"give 3 class numbers"),
        (inputs, labels.double(), ball, r"give 3 class numbers"),
        ({"audio": inputs["audio"]}, labels, ball, r"no 'video'"),
        ({**inputs, "audio": inputs["audio"][:, :, 1:]}, labels, ball, r"'audio' has shape"),
        (inputs, labels, Ball.joint(["flow"], 1.0), r"no modality flow; it has audio, video"),
        (inputs, labels, Ball.joint(["audio"], torch.ones(2)), r"budgets of shape \(2,\) do not fit 3 inputs"),
    )
    for name in attack_names():
        for given_inputs, given_labels, given_ball, message in refused:
            with pytest.raises(BadInputError, match=message):
                attack(name, model, given_inputs, given_labels, given_ball, settings=QUICK)
    with pytest.raises(BadInputError, match=r"no attack 'cw'. Valid: apgd_ce, apgd_dlr, auto, fgm"):
        attack("cw", model, inputs, labels, ball)
    with pytest.raises(BadInputError, match=r"no targeted attack loss 'cross_entropy'. Valid: margin, dlr"):
        apgd(model, inputs, labels, ball, targets=2)
    with pytest.raises(BadInputError, match=r"targets must be 0 or more, not -1"):
        apgd(model, inputs, labels, ball, targets=-1)
    for size in (0.0, -0.1, float("nan"), float("inf")):
        with pytest.raises(BadInputError, match=f"step_size must be a finite number above 0, not {size}"):
            pgd(model, inputs, labels, ball, step_size=size)
    short, right = {m: x[:2] for m, x in inputs.items()}, mostly_right(model, inputs)
    for name in ("pgd", "minimal_norm", "apgd_ce", "square"):
        with pytest.raises(BadInputError, match=r"the start has another number of inputs than the batch, 3"):
            attack(name, model, inputs, right, ball, settings=QUICK, start=short)
        with pytest.raises(BadInputError, match=r"'audio' has shape"):
            attack(name, model, inputs, right, ball, settings=QUICK, start={"audio": inputs["audio"][:, :, 1:]})
    with pytest.raises(BadInputError, match=r"draws must be 1 or more, not 0"):
        AttackSettings(draws=0)
    for epsilon in (float("inf"), torch.tensor([1.0, float("inf")])):
        with pytest.raises(BadInputError, match=r"a budget must be at most 1e\+15, not inf"):
            Ball.joint(["audio"], epsilon)


def test_a_ball_contains_what_fits_into_it() -> None:
    joint, audio = Ball.joint(["audio", "video"], 1.0), Ball.joint(["audio"], 1.0)
    corner = Ball.product({"audio": 0.6, "video": 0.8})
    assert joint.contains(joint) and joint.contains(audio) and not audio.contains(joint)
    assert joint.contains(corner) and not Ball.joint(["audio", "video"], 0.99).contains(corner)
    assert Ball.product({"audio": 1.0, "video": 1.0}).contains(joint) and not corner.contains(joint)
    assert corner.contains(Ball.joint(["video"], 0.8)) and not corner.contains(Ball.joint(["video"], 0.9))
    assert Ball.joint(["audio", "video"], 1.0, "linf").contains(Ball.product({"audio": 1.0, "video": 1.0}, "linf"))
    assert not joint.contains(Ball.joint(["flow"], 0.1)) and joint.contains(Ball.product({"audio": 1.0, "flow": 0.0}))


def test_parts_are_attacks() -> None:
    assert set(parts_of_auto()) < set(attack_names())
