"""Heads: orthonormal rows, integration, and what they refuse."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from torch import Tensor

from crmt.errors import BadInputError
from crmt.heads import HEADS, ConcatHead, OddOneOutHead, OrthogonalHead


def gram_error(head: OrthogonalHead) -> float:
    """Largest entry of |W̃ W̃ᵀ − I| over all modalities."""
    with torch.no_grad():
        weights = [head.weight(m) for m in head.modalities]
    return max(float((w @ w.T - torch.eye(len(w))).abs().max()) for w in weights)


@pytest.mark.parametrize(("classes", "width"), [(1, 8), (8, 8), (8, 64), (31, 64), (309, 512)])
def test_rows_are_orthonormal_from_the_start(classes: int, width: int) -> None:
    head = OrthogonalHead({"a": width}, classes)
    assert head.weight("a").shape == (classes, width)
    assert gram_error(head) < 1e-5


def test_rows_stay_orthonormal_under_large_random_steps() -> None:
    torch.manual_seed(0)
    head = OrthogonalHead({"a": 16, "b": 12}, 8)
    optimizer = torch.optim.SGD(head.parameters(), lr=1.0, momentum=0.9)
    first = head.weight("a").detach().clone()
    for _ in range(30):
        loss = sum((head.weight(m) * torch.randn_like(head.weight(m))).sum() for m in head.modalities)
        assert isinstance(loss, Tensor)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert gram_error(head) < 1e-5
    assert not torch.allclose(first, head.weight("a"), atol=0.1)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("width", [4, 16])
def test_weight_decay_does_not_harm_the_rows(kind: type[torch.optim.Optimizer], width: int) -> None:
    """In somebody's own training loop: torch's parametrisation alone turns every row to 0 after one such step."""
    torch.manual_seed(0)
    head = OrthogonalHead({"a": width}, 4)
    optimizer = kind(head.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        head.logits(head.scores({"a": torch.randn(3, width)})).square().sum().backward()
        optimizer.step()
        assert gram_error(head) < 1e-5


@pytest.mark.parametrize("name", [n for n, h in HEADS.items() if h.additive])
@pytest.mark.parametrize("modalities", [1, 2, 3])
def test_logits_are_the_weighted_sum_of_scores(name: str, modalities: int) -> None:
    torch.manual_seed(0)
    widths = {f"m{i}": 6 + i for i in range(modalities)}
    head = HEADS[name](widths, 4)
    if isinstance(head, OrthogonalHead):
        head.set_integration(torch.rand(modalities, 4) + 0.1)
    torch.nn.init.normal_(head.bias)
    features = {m: torch.randn(5, d) for m, d in widths.items()}
    scores = head.scores(features)
    assert scores.shape == (5, modalities, 4)
    expected = head.bias.expand(5, 4)
    for i, m in enumerate(widths):
        torch.testing.assert_close(scores[:, i], features[m] @ head.weight(m).T)
        expected = expected + head.integration[i] * scores[:, i]
    torch.testing.assert_close(head.logits(scores), expected)


def test_concat_head_is_a_linear_layer_on_concatenated_features() -> None:
    torch.manual_seed(0)
    head = ConcatHead({"a": 3, "b": 5}, 4)
    features = {"a": torch.randn(6, 3), "b": torch.randn(6, 5)}
    joined = torch.cat([head.weight("a"), head.weight("b")], 1)
    expected = torch.cat([features["a"], features["b"]], 1) @ joined.T + head.bias
    torch.testing.assert_close(head.logits(head.scores(features)), expected)


def odd_one_out_head(modalities: int) -> tuple[OddOneOutHead, dict[str, Tensor]]:
    """One with random weights and expert biases, and features of five inputs."""
    torch.manual_seed(modalities)
    widths = {f"m{i}": 6 + i for i in range(modalities)}
    head = OddOneOutHead(widths, 4)
    for b in head.expert_biases:
        torch.nn.init.normal_(b)
    return head, {m: torch.randn(5, d) for m, d in widths.items()}


@pytest.mark.parametrize("modalities", [1, 2, 3])
def test_the_odd_one_out_head_is_the_gated_sum_of_experts_that_each_miss_a_modality(modalities: int) -> None:
    head, features = odd_one_out_head(modalities)
    assert not head.additive
    assert torch.equal(head.integration, torch.ones(modalities, 4))
    scores = head.scores(features)
    assert scores.shape == (5, modalities, 4)
    gates = head.odd_one_out(features).softmax(1)
    assert gates.shape == (5, modalities + 1)
    expected = torch.zeros(5, 4)
    for i in range(modalities + 1):  # the last expert ignores nothing
        expert = head.expert_biases[i].expand(5, 4)
        for j, m in enumerate(features):
            if j != i:
                position = i if i < j else i - 1  # among the experts that see m
                weight = cast(Tensor, head.linears[m].weight)[4 * position : 4 * position + 4]
                expert = expert + features[m] @ weight.T
        expected = expected + gates[:, i : i + 1] * expert
    torch.testing.assert_close(head.logits(scores), expected)
    assert not head.bias.any()


@pytest.mark.parametrize("modalities", [1, 2, 3])
def test_a_modality_that_is_called_odd_has_no_say(modalities: int) -> None:
    head, features = odd_one_out_head(modalities)
    with torch.no_grad():
        for parameter in head.detector.parameters():
            parameter.zero_()
        cast(torch.nn.Linear, head.detector[2]).bias[0] = 200
    other = {**features, "m0": torch.randn_like(features["m0"])}
    torch.testing.assert_close(head.logits(head.scores(other)), head.logits(head.scores(features)))
    if modalities == 1:  # nothing is left but that expert's bias
        torch.testing.assert_close(head.logits(head.scores(features)), head.expert_biases[0].expand(5, 4))


def test_the_odd_one_out_head_has_no_weight_of_a_modality_and_no_trained_bias() -> None:
    head, _ = odd_one_out_head(2)
    with pytest.raises(BadInputError, match=r"no single weight of 'm1': use a concat or orthogonal head"):
        head.weight("m1")
    assert not head.bias.requires_grad
    assert all(p.requires_grad for n, p in head.named_parameters() if n != "bias")


def test_integration_starts_at_one_and_can_be_set() -> None:
    head = OrthogonalHead({"a": 6, "b": 6}, 4)
    torch.testing.assert_close(head.integration, torch.ones(2, 4))
    wanted = torch.rand(2, 4) + 0.01
    head.set_integration(wanted)
    torch.testing.assert_close(head.integration, wanted)
    assert head.log_integration.requires_grad


@pytest.mark.parametrize(
    "weights", [torch.zeros(2, 4), -torch.ones(2, 4), torch.ones(4, 2), torch.full((2, 4), float("nan"))]
)
def test_integration_must_be_positive(weights: Tensor) -> None:
    with pytest.raises(BadInputError, match=r"positive, shape \(2, 4\)"):
        OrthogonalHead({"a": 6, "b": 6}, 4).set_integration(weights)


def test_more_classes_than_features_are_refused_with_a_way_out() -> None:
    with pytest.raises(BadInputError, match=r"9 orthonormal rows.*'b', not 8: raise model.features or .* concat head"):
        OrthogonalHead({"a": 16, "b": 8}, 9)
    ConcatHead({"a": 8}, 9)


def test_a_head_needs_modalities_and_classes() -> None:
    with pytest.raises(BadInputError, match=r"at least one modality"):
        ConcatHead({}, 3)
    with pytest.raises(BadInputError, match=r"at least one class, not 0"):
        OrthogonalHead({"a": 8}, 0)
