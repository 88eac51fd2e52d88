"""What attacks maximise, per sample: losses from logits and labels, and losses towards a target class."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from crmt.arguments import said
from crmt.errors import BadInputError
from crmt.losses import logit_margin


def _margin(logits: Tensor, labels: Tensor) -> Tensor:
    return -logit_margin(logits, labels)


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """u = log Σ_{k≠y} exp(h_k) − h_y. Cross-entropy is log(1 + e^u): the same order and the same direction of ascent,
    but its gradient carries a factor that is exactly 0 for a confident model, and this one's never fades."""
    right = logits.gather(1, labels[:, None]).squeeze(1)
    if logits.shape[1] == 1:
        return torch.full_like(right, float("-inf"))
    return logits.scatter(1, labels[:, None], float("-inf")).logsumexp(1) - right


def _dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """−(h_y − max_{k≠y} h_k) / (h_π1 − h_π3), arXiv 2003.01690, equation 6. Below 3 classes: the margin."""
    if logits.shape[1] < 3:
        return _margin(logits, labels)
    top = logits.topk(3, dim=1).values
    return _margin(logits, labels) / (top[:, 0] - top[:, 2]).clamp_min(1e-12)


def _margin_to(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    pair = logits.gather(1, torch.stack([labels, targets], dim=1))
    return pair[:, 1] - pair[:, 0]


def _dlr_to(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """−(h_y − h_t) / (h_π1 − (h_π3 + h_π4) / 2), arXiv 2003.01690, equation 7. Below 4 classes: the margin."""
    if logits.shape[1] < 4:
        return _margin_to(logits, labels, targets)
    top = logits.topk(4, dim=1).values
    return _margin_to(logits, labels, targets) / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2).clamp_min(1e-12)


ATTACK_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "margin": _margin,
    "cross_entropy": _cross_entropy,
    "dlr": _dlr,
}
"""Name to loss: from logits `(B, K)` and labels `(B,)` to `(B,)`."""

TARGETED_LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {"margin": _margin_to, "dlr": _dlr_to}
"""Name to targeted loss: from logits `(B, K)`, labels `(B,)` and target classes `(B,)` to `(B,)`."""


def check_loss(loss: str, targeted: bool = False) -> None:
    """Refuse an unknown loss.

    Args:
        loss: its name.
        targeted: whether it must be one towards a target class.

    Raises:
        BadInputError: names the valid ones.
    """
    valid = TARGETED_LOSSES if targeted else ATTACK_LOSSES
    if not isinstance(loss, str) or loss not in valid:
        kind = "targeted attack loss" if targeted else "attack loss"
        raise BadInputError(f"no {kind} {said(loss)}. Valid: {', '.join(valid)}")


def attack_loss(loss: str, logits: Tensor, labels: Tensor, targets: Tensor | None) -> Tensor:
    """The loss of that name, `(B,)`.

    Args:
        loss: its name.
        logits: h, `(B, K)`.
        labels: y, `(B,)`.
        targets: classes that the attack wants, `(B,)`; None: any class but y.
    """
    if targets is None:
        return ATTACK_LOSSES[loss](logits, labels)
    return TARGETED_LOSSES[loss](logits, labels, targets)


def likely_targets(logits: Tensor, labels: Tensor, count: int) -> Tensor:
    """The most likely other classes, most likely first, `(B, ≤ count)`.

    Args:
        logits: h, `(B, K)`.
        labels: y, `(B,)`.
        count: how many; no more than K − 1 are given.
    """
    others = logits.scatter(1, labels[:, None], float("-inf"))
    return others.topk(max(0, min(count, logits.shape[1] - 1)), dim=1).indices
