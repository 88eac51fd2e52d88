"""The margin regulariser and the margin, against float64 references and at extreme scores."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from crmt.losses import FLOOR, logit_margin, margin_regulariser, mixed_cross_entropy, mixed_margin_regulariser


def naive(scores: Tensor, labels: Tensor, floor: float = FLOOR) -> Tensor:
    """The formula of the paper, term by term."""
    terms = []
    for s, y in zip(scores, labels.tolist(), strict=True):
        total = s.new_tensor(floor)
        for row in s:
            for k in range(len(row)):
                if k != y:
                    total = total + torch.exp(row[k] - row[y])
        terms.append(total.log())
    return torch.stack(terms).mean()


def naive_mixed(scores: Tensor, first: Tensor, second: Tensor, mix: float, floor: float = FLOOR) -> Tensor:
    """The formula of CRMT-Mix, term by term, with exponentials multiplied and not their arguments added."""
    terms = []
    for s, a, b in zip(scores, first.tolist(), second.tolist(), strict=True):
        total = s.new_tensor(floor)
        for row in s:
            for k in set(range(len(row))) - {a, b}:
                total = total + row[k].exp() / (row[a].exp() ** mix * row[b].exp() ** (1 - mix))
        terms.append(total.log())
    return torch.stack(terms).mean()


def assert_same(value: Tensor, expected: Tensor, scores: Tensor, reference: Tensor) -> None:
    """Values and gradients to 1e-6 of the largest score (1e-10 in float64)."""
    tolerance = max(1.0, float(scores.detach().abs().max())) * (1e-6 if scores.dtype == torch.float32 else 1e-10)
    torch.testing.assert_close(value.double(), expected, rtol=0, atol=tolerance)
    if expected.requires_grad:
        (gradient,) = torch.autograd.grad(value, scores)
        (wanted,) = torch.autograd.grad(expected, reference)
        torch.testing.assert_close(gradient.double(), wanted, rtol=0, atol=tolerance)


CASES = {
    "seed": st.integers(0, 2**31),
    "batch": st.integers(1, 4),
    "modalities": st.integers(1, 3),
    "classes": st.integers(1, 5),
    "scale": st.sampled_from([0.0, 1e-3, 0.5, 3.0, 30.0]),
    "floor": st.sampled_from([FLOOR, 1e-2, 1e-12]),
    "dtype": st.sampled_from([torch.float32, torch.float64]),
}


def drawn(seed: int, shape: tuple[int, ...], scale: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The same scores in `dtype` and, as the reference, in float64."""
    scores = (scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))).to(dtype)
    return scores.requires_grad_(), scores.detach().double().requires_grad_()


@settings(max_examples=60, deadline=None)
@given(**CASES)
def test_regulariser_equals_the_formula(
    seed: int, batch: int, modalities: int, classes: int, scale: float, floor: float, dtype: torch.dtype
) -> None:
    scores, reference = drawn(seed, (batch, modalities, classes), scale, dtype)
    labels = torch.randint(classes, (batch,), generator=torch.Generator().manual_seed(seed))
    assert_same(margin_regulariser(scores, labels, floor), naive(reference, labels, floor), scores, reference)


@settings(max_examples=60, deadline=None)
@given(**CASES, mix=st.sampled_from([0.0, 1.0, 0.5]) | st.floats(0, 1))
def test_mixed_forms_equal_their_formulas(
    seed: int, batch: int, modalities: int, classes: int, scale: float, floor: float, dtype: torch.dtype, mix: float
) -> None:
    scores, reference = drawn(seed, (batch, modalities, classes), scale, dtype)
    first, second = torch.randint(classes, (2, batch), generator=torch.Generator().manual_seed(seed))
    value = mixed_margin_regulariser(scores, first, second, mix, floor)
    assert_same(value, naive_mixed(reference, first, second, mix, floor), scores, reference)
    logs = [h - h.exp().sum().log() for h in reference.sum(1)]
    parts = [-mix * p[a] - (1 - mix) * p[b] for p, a, b in zip(logs, first.tolist(), second.tolist(), strict=True)]
    entropy = mixed_cross_entropy(scores.sum(1), first, second, mix)
    assert_same(entropy, torch.stack(parts).mean(), scores, reference)


@pytest.mark.parametrize("mix", [0.0, 0.3, 1.0])
def test_two_clips_of_one_class_mix_to_the_plain_regulariser(mix: float) -> None:
    scores, _ = drawn(0, (5, 2, 4), 3.0, torch.float64)
    labels = torch.tensor([0, 1, 2, 3, 0])
    torch.testing.assert_close(
        mixed_margin_regulariser(scores, labels, labels.clone(), mix), margin_regulariser(scores, labels)
    )


def test_the_fused_form_is_that_of_one_modality() -> None:
    logits, _ = drawn(0, (5, 4), 3.0, torch.float64)
    labels = torch.tensor([0, 1, 2, 3, 0])
    rest = torch.stack([torch.cat([h[:y], h[y + 1 :]]) - h[y] for h, y in zip(logits, labels.tolist(), strict=True)])
    expected = (FLOOR + rest.exp().sum(1)).log().mean()
    torch.testing.assert_close(margin_regulariser(logits[:, None], labels), expected)


@pytest.mark.parametrize("modalities", [1, 2, 3])
@pytest.mark.parametrize("classes", [1, 2, 8])
@pytest.mark.parametrize("size", [1e4, 1e2, 0.0])
def test_losses_are_finite_at_any_score(modalities: int, classes: int, size: float) -> None:
    draw = torch.Generator().manual_seed(0)
    for signs in (torch.ones(6, modalities, classes), torch.randn(6, modalities, classes, generator=draw).sign()):
        for direction in (1, -1):
            scores = (direction * size * signs).requires_grad_()
            labels = torch.arange(6) % classes
            others = labels.flip(0)
            for value in (
                margin_regulariser(scores, labels),
                margin_regulariser(scores.sum(1, keepdim=True), labels),
                mixed_margin_regulariser(scores, labels, others, 0.3),
                F.cross_entropy(scores.sum(1), labels),
                mixed_cross_entropy(scores.sum(1), labels, others, 0.3),
            ):
                (gradient,) = torch.autograd.grad(value, scores)
                assert bool(value.isfinite())
                assert bool(gradient.isfinite().all())


def test_extreme_values_are_right_and_not_only_finite() -> None:
    scores = torch.zeros(1, 2, 3)
    scores[0, 1, 2] = 1e4
    assert float(margin_regulariser(scores, torch.tensor([0]))) == pytest.approx(1e4)
    assert float(margin_regulariser(scores, torch.tensor([2]))) == pytest.approx(0.6931, abs=1e-3)  # log 2: modality 0


def test_the_floor_is_smooth_and_ends_the_reward() -> None:
    """Well beyond the floor the value is log(floor) and the gradient dies out; at the floor it is half its size."""
    labels = torch.tensor([0])
    gradients = []
    for margin in (0.0, -torch.tensor(FLOOR).log().item(), 40.0):
        scores = torch.tensor([[[margin, 0.0]]], dtype=torch.float64, requires_grad=True)
        value = margin_regulariser(scores, labels)
        gradients.append(torch.autograd.grad(value, scores)[0][0, 0, 0].item())
    assert gradients[0] == pytest.approx(-1, abs=1e-4)
    assert gradients[1] == pytest.approx(-0.5, abs=1e-4)
    assert -1e-9 < gradients[2] < 0
    assert value.item() == pytest.approx(torch.tensor(FLOOR, dtype=torch.float64).log().item(), abs=1e-9)


def test_margin_is_positive_exactly_where_the_prediction_is_right() -> None:
    draw = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(200, 5, generator=draw), torch.randint(5, (200,), generator=draw)
    margin = logit_margin(logits, labels)
    assert torch.equal(margin > 0, logits.argmax(1) == labels)
    for h, y, value in zip(logits, labels, margin, strict=True):
        rest = torch.cat([h[:y], h[y + 1 :]])
        assert float(value) == pytest.approx(float(h[y] - rest.max()))


def test_margin_of_one_class_is_infinite() -> None:
    assert logit_margin(torch.tensor([[3.0], [-2.0]]), torch.tensor([0, 0])).tolist() == [float("inf")] * 2
