"""Radii on linear encoders against exact distances, corner cases, and the audit that catches an overstated one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crmt.certificates.estimate import estimated_pair_constants, estimated_radii, gradient_constants
from crmt.certificates.radius import Radii, pairwise_radii, radii
from crmt.errors import BadInputError
from crmt.model import MultiModalModel
from tests.crmt.tiny import (
    effective_weights,
    estimate,
    exact_distances,
    in_batches,
    linear_model,
    mostly_right,
    random_inputs,
)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    head=st.sampled_from(["concat", "orthogonal"]),
    modalities=st.integers(1, 3),
    classes=st.integers(2, 6),
)
def test_on_linear_encoders_no_radius_exceeds_the_exact_distance(
    seed: int, head: str, modalities: int, classes: int
) -> None:
    model = linear_model(head, modalities, classes=classes, seed=seed)
    inputs = random_inputs(model, 20, seed)
    labels = mostly_right(model, inputs)
    found = estimate(model, inputs, labels)
    joint, single = exact_distances(model, inputs, labels)
    assert found.joint.shape == (20,)
    assert found.unimodal.shape == found.indicator.shape == (20, modalities)
    assert bool((found.joint <= joint * (1 + 1e-6)).all())
    assert bool((found.unimodal <= single * (1 + 1e-6)).all())
    assert torch.equal(found.joint > 0, joint > 0)
    if head == "concat":
        torch.testing.assert_close(found.joint, joint, rtol=1e-4, atol=1e-9)
        torch.testing.assert_close(found.unimodal, single, rtol=1e-4, atol=1e-9)


def test_in_single_precision_too() -> None:
    model = linear_model("concat", 2, dtype=torch.float32)
    inputs = random_inputs(model, 30)
    labels = mostly_right(model, inputs)
    torch.testing.assert_close(
        estimate(model, inputs, labels).joint, exact_distances(model, inputs, labels)[0], rtol=1e-4, atol=1e-6
    )


def test_it_is_zero_where_wrong_and_the_joint_radius_is_the_smallest(linear: MultiModalModel) -> None:
    inputs = random_inputs(linear, 40)
    labels = mostly_right(linear, inputs)
    found = estimate(linear, inputs, labels)
    with torch.no_grad():
        wrong = linear(inputs).logits.argmax(1) != labels
    assert bool(wrong.any())
    assert bool((found.joint[wrong] == 0).all())
    assert bool((found.unimodal[wrong] == 0).all())
    assert bool((found.joint[~wrong] > 0).all())
    assert bool((found.joint[:, None] <= found.unimodal * (1 + 1e-9)).all())
    assert found.certificate == "estimate"
    assert found.modalities == linear.head.modalities
    if len(linear.modalities) == 1:
        torch.testing.assert_close(found.unimodal[:, 0], found.joint)


def test_the_minimum_over_all_classes_is_at_most_the_runner_ups(linear: MultiModalModel) -> None:
    inputs = random_inputs(linear, 200)
    labels = mostly_right(linear, inputs)
    least, runner_up = estimate(linear, inputs, labels), estimate(linear, inputs, labels, runner_up_only=True)
    assert bool((least.joint <= runner_up.joint).all())
    assert bool((least.unimodal <= runner_up.unimodal).all())


def test_the_runner_up_can_overstate_the_radius() -> None:
    """Class 1 is nearer in logits, class 2 is nearer in distance: what the paper's form gets wrong."""
    contributions = torch.tensor([[[3.0, 2.0, 1.0]]])
    constants = torch.ones(1, 3, 3)
    constants[0, 0, 2] = constants[0, 2, 0] = 10
    arguments = ("x", ("a",), contributions, torch.zeros(3), torch.tensor([0]), constants)
    assert radii(*arguments).joint.tolist() == pytest.approx([0.2])
    assert radii(*arguments, runner_up_only=True).joint.tolist() == [1.0]
    assert radii(*arguments).indicator.tolist() == [[10.0]]


@pytest.mark.parametrize("head_name", ["concat", "orthogonal"])
def test_the_indicator_is_eta_at_the_class_that_attains_the_radius(head_name: str) -> None:
    model = linear_model(head_name, 3)
    inputs = random_inputs(model, 20)
    with torch.no_grad():
        output = model(inputs)
    labels = output.logits.argmax(1)
    constants = gradient_constants(model, in_batches(inputs, labels, 20))
    found = estimated_radii(model.head, output.scores, labels, constants)
    eta = estimated_pair_constants(model.head, constants)
    for i, y in enumerate(labels.tolist()):
        by_class = {
            j: float((output.logits[i, y] - output.logits[i, j]) / eta[:, y, j].norm()) for j in range(4) if j != y
        }
        j = min(by_class, key=by_class.__getitem__)
        assert float(found.joint[i]) == pytest.approx(by_class[j])
        torch.testing.assert_close(found.indicator[i], eta[:, y, j])


def test_eta_of_the_orthogonal_head_is_the_sum_of_both_classes() -> None:
    model = linear_model("orthogonal", 2)
    inputs = random_inputs(model, 3)
    constants = gradient_constants(model, in_batches(inputs, mostly_right(model, inputs), 3))
    eta, a = estimated_pair_constants(model.head, constants), model.head.integration.detach()
    for m in range(2):
        for y in range(4):
            for j in range(4):
                expected = abs(a[m, y]) * constants.tau[m, y] + abs(a[m, j]) * constants.tau[m, j]
                assert float(eta[m, y, j]) == pytest.approx(float(expected))


def test_the_pairwise_form_is_signed() -> None:
    contributions = torch.tensor([[[1.0, 3.0]]])
    r = pairwise_radii(contributions, torch.zeros(2), torch.tensor([0]), torch.full((1, 2, 2), 2.0))
    assert r.tolist() == [[float("inf"), -1.0]]


def test_corner_cases_of_the_quotient() -> None:
    def of(scores: list[float], eta: float) -> Radii:
        contributions = torch.tensor(scores)[None, None]
        size = len(scores)
        return radii("x", ("a",), contributions, torch.zeros(size), torch.tensor([0]), torch.full((1, size, size), eta))

    assert of([2.0, 1.0], 0.0).joint.tolist() == [float("inf")]  # nothing moves it
    assert of([1.0, 2.0], 0.0).joint.tolist() == [0.0]
    assert of([1.0, 1.0], 0.0).joint.tolist() == [0.0]  # a tie is wrong
    assert of([1.0, 1.0], 1.0).joint.tolist() == [0.0]
    assert of([1.0], 1.0).joint.tolist() == [float("inf")]  # one class
    assert of([float("nan"), 1.0], 1.0).joint.tolist() == [0.0]  # certifies nothing


def test_a_modality_with_tau_zero_cannot_be_attacked_alone() -> None:
    contributions = torch.tensor([[[2.0, 1.0], [1.0, 0.5]]])
    constants = torch.stack([torch.zeros(2, 2), torch.full((2, 2), 3.0)])
    found = radii("x", ("a", "b"), contributions, torch.zeros(2), torch.tensor([0]), constants)
    assert found.joint.tolist() == pytest.approx([0.5])
    assert found.unimodal.tolist() == [[float("inf"), pytest.approx(0.5)]]
    assert found.indicator.tolist() == [[0.0, 3.0]]


@pytest.mark.parametrize("wrong", [-1, 4])
def test_labels_out_of_range_are_refused(wrong: int) -> None:
    model = linear_model("orthogonal", 2)
    inputs = random_inputs(model, 4)
    labels = mostly_right(model, inputs)
    constants = gradient_constants(model, in_batches(inputs, labels, 4))
    labels[2] = wrong
    with pytest.raises(BadInputError, match=r"labels run from .*; the model's classes are 0 to 3"):
        estimated_radii(model.head, model(inputs).scores, labels, constants)
    with pytest.raises(BadInputError, match=r"labels are of type torch.float64: give class numbers in int64"):
        estimated_radii(model.head, model(inputs).scores, labels.double(), constants)


def test_a_concat_head_needs_pair_constants() -> None:
    model = linear_model("concat", 2)
    batches = in_batches(random_inputs(model, 3), torch.zeros(3, dtype=torch.long), 3)
    with pytest.raises(BadInputError, match=r"pairs=True"):
        estimated_pair_constants(model.head, gradient_constants(model, batches, pairs=False))


def test_the_closed_form_is_what_the_model_computes(linear: MultiModalModel) -> None:
    """Guards the helper of these tests: effective weights are the Jacobian of the logits."""
    inputs = {m: x.requires_grad_() for m, x in random_inputs(linear, 1).items()}
    logits = linear(inputs).logits[0]
    for k in range(4):
        gradients = torch.autograd.grad(logits[k], list(inputs.values()), retain_graph=True)
        for g, v in zip(gradients, effective_weights(linear), strict=True):
            torch.testing.assert_close(g.flatten(), v[k])


def test_a_constant_that_is_not_a_number_gives_no_radius() -> None:
    """Not an infinite one, which would count at every budget."""
    found = pairwise_radii(
        torch.tensor([[[2.0, 1.0, 0.0]]]), torch.zeros(3), torch.tensor([0]), torch.full((1, 3, 3), float("nan"))
    )
    assert bool(found[0, 1:].isnan().all()) and not bool((found[0, 1:] >= 0.1).any())
