"""White-box gradient attacks: FGM (one step) and PGD. Both return the best input that they saw, not the last."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from crmt.attacks.balls import Ball
from crmt.errors import BadInputError
from crmt.losses import logit_margin
from crmt.modality import Inputs, check_inputs
from crmt.model import MultiModalModel, evaluating

ATTACK_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "margin": lambda logits, labels: -logit_margin(logits, labels),
    "cross_entropy": lambda logits, labels: F.cross_entropy(logits, labels, reduction="none"),
}
"""What an attack maximises, per sample. Cross-entropy fades on confident models; margin does not."""


class AttackResult(NamedTuple):
    """The best adversarial inputs of a batch."""

    inputs: Inputs
    """`(B, *shape)` of every modality, inside ball and box."""
    margin: Tensor
    """h_y − max_{k≠y} h_k there, `(B,)`."""

    @property
    def broken(self) -> Tensor:
        """Whether the prediction is wrong, `(B,)`. A tie counts as wrong, and so does NaN."""
        return ~(self.margin > 0)


def _gradients(
    model: MultiModalModel, inputs: Mapping[str, Tensor], deltas: Inputs, labels: Tensor, loss: str
) -> tuple[Inputs, Tensor]:
    """Gradients of the loss by δ, and the margins, at x + δ."""
    leaves = {m: d.detach().requires_grad_() for m, d in deltas.items()}
    with torch.enable_grad():
        logits = model({m: x + leaves[m] if m in leaves else x for m, x in inputs.items()}).logits
        value = ATTACK_LOSSES[loss](logits, labels).sum()
        if not value.requires_grad:  # one class, or encoders that ignore what is attacked
            return {m: torch.zeros_like(d) for m, d in deltas.items()}, logit_margin(logits.detach(), labels)
        gradients = torch.autograd.grad(value, list(leaves.values()), materialize_grads=True)
    return dict(zip(leaves, gradients, strict=True)), logit_margin(logits.detach(), labels)


@torch.no_grad()
def _margin(model: MultiModalModel, inputs: Mapping[str, Tensor], deltas: Inputs, labels: Tensor) -> Tensor:
    return logit_margin(model({m: x + deltas[m] if m in deltas else x for m, x in inputs.items()}).logits, labels)


def _check(model: MultiModalModel, ball: Ball, loss: str) -> None:
    unknown = set(ball.attacked) - set(model.modalities)
    if unknown:
        raise BadInputError(f"the model has no modality {', '.join(unknown)}; it has {', '.join(model.modalities)}")
    if loss not in ATTACK_LOSSES:
        raise BadInputError(f"no attack loss {loss!r}. Valid: {', '.join(ATTACK_LOSSES)}")


def fgm(
    model: MultiModalModel, inputs: Mapping[str, Tensor], labels: Tensor, ball: Ball, *, loss: str = "margin"
) -> AttackResult:
    """The fast gradient method: one step of length ε along the steepest direction (Goodfellow et al., 2015)."""
    return pgd(model, inputs, labels, ball, steps=1, step_size=1.0, loss=loss)


def pgd(
    model: MultiModalModel,
    inputs: Mapping[str, Tensor],
    labels: Tensor,
    ball: Ball,
    *,
    steps: int = 20,
    step_size: float | None = None,
    restarts: int = 1,
    loss: str = "margin",
    start: Mapping[str, Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> AttackResult:
    """Projected gradient descent (Madry et al., 2018) in any ball, on any modalities.

    Args:
        inputs: x, `(B, *shape)` of every modality, inside its box. labels: `(B,)`.
        step_size: of one step, in units of ε; default 2.5 / steps.
        restarts: the first run starts at `start` (or at x), the others at random points of the ball.
        start: adversarial inputs to start from, such as those of a smaller radius.
        generator: for the random starts.

    Raises:
        BadInputError: an unknown modality or loss, steps or restarts below 1, inputs or budgets that do not fit.
    """
    _check(model, ball, loss)
    if steps < 1 or restarts < 1:
        raise BadInputError(f"steps and restarts must be 1 or more, not {steps} and {restarts}")
    check_inputs(model.modalities, inputs)
    size = 2.5 / steps if step_size is None else step_size
    clean = {m: inputs[m].detach() for m in model.modalities}
    attacked = {m: clean[m] for m in ball.attacked}
    best = {m: torch.zeros_like(x) for m, x in attacked.items()}
    epsilons = ball.epsilons(attacked)
    with evaluating(model):
        best_margin = _margin(model, clean, best, labels)
        for restart in range(restarts):
            if bool((best_margin <= 0).all()):
                break
            if restart:
                deltas = ball.random(attacked, generator)
            elif start is not None:
                deltas = {m: start[m].detach() - x for m, x in attacked.items()}
            else:
                deltas = best
            deltas = ball.project(deltas, attacked, model.modalities)
            for _ in range(steps):
                gradients, margin = _gradients(model, clean, deltas, labels, loss)
                best, best_margin = _keep_better(best, best_margin, deltas, margin)
                if bool((best_margin <= 0).all()):
                    break
                direction = ball.steepest(gradients)
                moved = {m: deltas[m] + size * epsilons[m] * direction[m] for m in deltas}
                deltas = ball.project(moved, attacked, model.modalities)
            else:
                best, best_margin = _keep_better(best, best_margin, deltas, _margin(model, clean, deltas, labels))
    return AttackResult(clean | {m: clean[m] + d for m, d in best.items()}, best_margin)


def _keep_better(best: Inputs, best_margin: Tensor, deltas: Inputs, margin: Tensor) -> tuple[Inputs, Tensor]:
    """Per sample, the δ with the smaller margin."""
    better = margin < best_margin
    kept = {m: torch.where(better.reshape(-1, *([1] * (d.ndim - 1))), d, best[m]) for m, d in deltas.items()}
    return kept, torch.where(better, margin, best_margin)
