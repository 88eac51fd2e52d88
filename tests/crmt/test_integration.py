"""Step 2: it never loses mean radius, keeps the weights positive, and survives degenerate scores."""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crmt.certificates.radius import radii
from crmt.errors import BadInputError
from crmt.integration import Integration, Objective, Pair, optimise_integration

OBJECTIVES: tuple[Objective, ...] = ("clipped", "min", "runner_up")
PAIRS: tuple[Pair, ...] = ("sum", "orthogonal")


class Scores(NamedTuple):
    """Arguments of step 2."""

    scores: Tensor
    labels: Tensor
    bias: Tensor
    tau: Tensor
    start: Tensor


def drawn(seed: int, modalities: int = 2, classes: int = 4, count: int = 60, right: float = 2.0) -> Scores:
    """Noisy scores, raised by about `right` at the label; modality 0 the more fragile one."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=g)
    scores = torch.randn(count, modalities, classes, generator=g)
    scores += right * torch.nn.functional.one_hot(labels, classes)[:, None]
    tau = torch.rand(modalities, classes, generator=g) + 0.2
    tau[0] *= 5
    return Scores(scores, labels, 0.05 * torch.randn(classes, generator=g), tau, torch.full((modalities, classes), 0.1))


def mean_radius(given_scores: Scores, weights: Tensor, pair: Pair = "sum") -> float:
    """Mean r by the certificate's own code, without infinite ones."""
    single = weights * given_scores.tau
    constants = single[:, :, None] + single[:, None, :]
    if pair == "orthogonal":
        constants = (single[:, :, None].square() + single[:, None, :].square()).sqrt()
    found = radii(
        "estimate",
        tuple(f"m{i}" for i in range(len(weights))),
        weights * given_scores.scores,
        given_scores.bias,
        given_scores.labels,
        constants,
    ).joint
    finite = found[found.isfinite()]
    return float(finite.mean()) if len(finite) else 0.0


def accuracy(given_scores: Scores, weights: Tensor) -> float:
    logits = (weights * given_scores.scores).sum(1) + given_scores.bias
    return float((logits.argmax(1) == given_scores.labels).float().mean())


def assert_sound(given_scores: Scores, found: Integration, guarded: bool = True, pair: Pair = "sum") -> None:
    assert found.weights.shape == given_scores.start.shape
    assert found.weights.dtype == torch.float32
    assert bool(found.weights.isfinite().all())
    assert bool((found.weights > 0).all())
    assert float(found.weights.mean()) == pytest.approx(float(given_scores.start.mean()), rel=1e-5)
    if guarded:
        assert found.mean_radius_after >= found.mean_radius_before
    before, after = (mean_radius(given_scores, a, pair) for a in (given_scores.start, found.weights))
    assert before == pytest.approx(found.mean_radius_before, rel=1e-4, abs=1e-6)
    assert after == pytest.approx(found.mean_radius_after, rel=1e-4, abs=1e-6)
    assert accuracy(given_scores, given_scores.start) == pytest.approx(found.accuracy_before)
    assert accuracy(given_scores, found.weights) == pytest.approx(found.accuracy_after, abs=1e-3)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    modalities=st.integers(1, 3),
    classes=st.integers(1, 5),
    objective=st.sampled_from(OBJECTIVES),
    lr=st.sampled_from([0.02, 0.5]),
    right=st.sampled_from([-5.0, 0.0, 2.0, 20.0]),
    uneven=st.booleans(),
    pair=st.sampled_from(PAIRS),
)
def test_mean_radius_never_falls_but_with_the_papers_objective(
    seed: int, modalities: int, classes: int, objective: Objective, lr: float, right: float, uneven: bool, pair: Pair
) -> None:
    g = drawn(seed, modalities, classes, count=25, right=right)
    if uneven:
        g = g._replace(start=torch.rand(modalities, classes, generator=torch.Generator().manual_seed(seed)) + 0.01)
    if pair == "orthogonal":
        g = g._replace(tau=g.tau[:, :1].expand_as(g.tau))
    found = optimise_integration(*g, objective=objective, pair=pair, steps=30, lr=lr)
    assert_sound(g, found, objective != "runner_up", pair)


@pytest.mark.parametrize("objective", ["clipped", "min"])
def test_mean_radius_rises_where_one_modality_is_fragile(objective: Objective) -> None:
    g = drawn(0)
    found = optimise_integration(*g, objective=objective)
    assert_sound(g, found)
    assert found.mean_radius_after > 1.2 * found.mean_radius_before
    assert float(found.weights[1].mean()) > 1.2 * float(found.weights[0].mean())


def test_clipping_cares_for_the_many_and_not_for_the_far() -> None:
    """Accuracy after the clipped objective is not below that after the plain minimum."""
    g = drawn(3, count=400, right=1.5)
    clipped, plain = (optimise_integration(*g, objective=o).weights for o in ("clipped", "min"))
    assert accuracy(g, clipped) >= accuracy(g, plain) - 0.005


def test_it_is_deterministic_and_leaves_its_arguments_alone() -> None:
    g = drawn(1)
    copies = [t.clone() for t in g]
    first = optimise_integration(*g, steps=50)
    torch.manual_seed(99)
    assert torch.equal(optimise_integration(*g, steps=50).weights, first.weights)
    assert all(torch.equal(t, c) and not t.requires_grad for t, c in zip(g, copies, strict=True))


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("constant", ["tau", "tau and scores"])
def test_a_constant_modality(objective: Objective, constant: str) -> None:
    g = drawn(2)
    g.tau[1] = 0
    if constant == "tau and scores":
        g.scores[:, 1] = 0.3
    assert_sound(g, optimise_integration(*g, objective=objective, steps=50), objective != "runner_up")


def test_classes_that_nothing_moves_do_not_stop_the_rest() -> None:
    """τ = 0 for two classes in every modality: r is infinite between them, and step 2 still helps the others."""
    g = drawn(5)
    g.tau[:, :2] = 0
    found = optimise_integration(*g, steps=100)
    assert_sound(g, found)
    assert found.mean_radius_after > 1.05 * found.mean_radius_before


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_degenerate_scores(objective: Objective) -> None:
    everything_constant = drawn(2)
    everything_constant.tau[:] = 0
    absent = drawn(2, classes=6)
    absent = absent._replace(labels=absent.labels % 2)
    same = drawn(2)
    same.scores[:] = 0
    cases = {
        "one class": drawn(2, classes=1),
        "one sample": drawn(2, count=1),
        "no sample": drawn(2, count=0),
        "all wrong": drawn(2, right=-50),
        "absent classes": absent,
        "all constant": everything_constant,
        "all scores zero": same,
        "huge": drawn(2, right=1e4),
    }
    for (name, g), pair in product(cases.items(), PAIRS):
        if pair == "orthogonal":
            g = g._replace(tau=g.tau[:, :1].expand_as(g.tau))
        found = optimise_integration(*g, objective=objective, pair=pair, steps=20)
        assert bool((found.weights > 0).all()), name
        assert bool(found.weights.isfinite().all()), name
        assert found.mean_radius_before >= 0, name
        if objective != "runner_up":
            assert found.mean_radius_after >= found.mean_radius_before, name


def test_no_step_leaves_the_weights() -> None:
    g = drawn(4)
    found = optimise_integration(*g, steps=0)
    assert torch.equal(found.weights, g.start)
    assert found.steps == 0


def test_the_tighter_pair_bound_gives_larger_radii_and_other_weights() -> None:
    g = drawn(6)
    g = g._replace(tau=g.tau[:, :1].expand_as(g.tau))
    loose, tight = (optimise_integration(*g, pair=pair) for pair in PAIRS)
    assert tight.mean_radius_before > 1.3 * loose.mean_radius_before  # sqrt 2 where both a are equal
    assert tight.mean_radius_after > tight.mean_radius_before
    assert mean_radius(g, tight.weights, "orthogonal") >= mean_radius(g, loose.weights, "orthogonal")


def test_a_subset_of_samples_does_as_well_and_everything_is_measured_on_all() -> None:
    g = drawn(7, count=3000)
    everything = optimise_integration(*g, samples=None, steps=100)
    some = optimise_integration(*g, samples=500, steps=100)
    assert (everything.samples, some.samples) == (3000, 500)
    assert_sound(g, some)
    assert some.mean_radius_before == everything.mean_radius_before
    gained, gained_by_some = (f.mean_radius_after - f.mean_radius_before for f in (everything, some))
    assert gained_by_some > 0.9 * gained > 0
    assert torch.equal(optimise_integration(*g, samples=500, steps=100).weights, some.weights)
    assert not torch.equal(optimise_integration(*g, samples=500, steps=100, seed=1).weights, some.weights)


def test_a_misleading_subset_does_not_lower_the_mean_radius_of_all() -> None:
    """One sample whose only good modality is the bad one of all others."""
    g = drawn(8, count=400)
    g.scores[:, 0] = 0.01 * g.scores[:, 0]
    chosen = int(torch.randperm(400, generator=torch.Generator().manual_seed(0))[0])
    g.scores[chosen] = g.scores[chosen].flip(0)
    own = torch.nn.functional.one_hot(g.labels[chosen], 4)
    g.scores[chosen, 0], g.scores[chosen, 1] = 50.0 * own, 0.0 * own
    found = optimise_integration(*g, samples=1, objective="min")
    assert found.mean_radius_after == found.mean_radius_before
    assert torch.equal(found.weights, g.start)
    assert found.steps == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tau": torch.rand(2, 3)}, r"τ \(2, 3\): they do not fit weights \(2, 4\)"),
        ({"labels": torch.zeros(7, dtype=torch.int64)}, r"labels \(7,\)"),
        ({"bias": torch.zeros(3)}, r"bias \(3,\)"),
        ({"start": torch.zeros(2, 4)}, r"all above 0"),
        ({"tau": torch.full((2, 4), float("nan"))}, r"finite τ"),
        ({"tau": -torch.ones(2, 4)}, r"τ of 0 or more"),
        ({"labels": torch.full((60,), 4)}, r"labels run from 4 to 4; the model's classes are 0 to 3"),
        ({"labels": torch.full((60,), -1)}, r"labels run from -1 to -1"),
        ({"scores": torch.full((60, 2, 4), float("nan"))}, r"NaN scores"),
    ],
)
def test_bad_input(change: dict[str, Tensor], message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        optimise_integration(*drawn(0)._replace(**change))


def test_bad_options() -> None:
    with pytest.raises(BadInputError, match=r"one τ a modality, that of its encoder: use pair 'sum'"):
        optimise_integration(*drawn(0), pair="orthogonal")
    with pytest.raises(BadInputError, match=r"no objective 'max' with pair 'sum'. Valid: clipped, min, runner_up"):
        optimise_integration(*drawn(0), objective="max")  # type: ignore[arg-type]
