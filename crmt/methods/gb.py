"""GB, gradient blending: losses weighted by the ratio of generalisation to overfitting.

Wang, Tran, Feiszli, "What Makes Training Multi-Modal Classification Networks Hard?", CVPR 2020 (arXiv 1905.12681).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crmt.distributed import sum_over_ranks
from crmt.methods.base import Epoch, LossTerms, Method, Step
from crmt.model import MultiModalModel, Output
from crmt.settings import setting

LEAST_CHANGE = 0.01
"""Nats. Smaller changes of a loss count as this much, so that noise decides no weight."""


class Blend(nn.Module):
    """Uni-modal classifiers and the weights of the M + 1 losses; the joint loss comes last in every tensor."""

    weights: Tensor
    """w, `(M + 1,)`."""
    total: Tensor
    """Sum of this epoch's training losses, `(M + 1,)`."""
    steps: Tensor
    """Number of this epoch's training steps."""
    before: Tensor
    """Training and held-out losses at the last change of the weights, `(2, M + 1)`."""

    def __init__(self, widths: dict[str, int], classes: int) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({m: nn.Linear(d, classes) for m, d in widths.items()})
        for parameter in self.heads.parameters():  # 0: the same on every worker, with the loss log K as in `before`
            nn.init.zeros_(parameter)
        losses = len(widths) + 1
        self.register_buffer("weights", torch.full((losses,), 1 / losses))
        self.register_buffer("total", torch.zeros(losses))
        self.register_buffer("steps", torch.zeros(()))
        self.register_buffer("before", torch.full((2, losses), log(classes)))

    def losses(self, output: Output, labels: Tensor) -> Tensor:
        """Cross-entropy of each modality alone and, last, of the joint classifier, `(M + 1,)`.

        Args:
            output: of a forward pass.
            labels: y, `(B,)`.
        """
        each = [F.cross_entropy(head(output.features[m]), labels) for m, head in self.heads.items()]
        return torch.stack([*each, F.cross_entropy(output.logits, labels)])


@dataclass(frozen=True, kw_only=True)
class GB(Method):
    """L = Σ_m w_m CE(uni-modal head of m, y) + w CE(h, y), Σ w = 1, w ∝ ΔG / ΔO².

    ΔG is how far the held-out loss fell during a super-epoch, ΔO how far the gap of held-out to training loss grew.

    Interpretation: this is the paper's online form, with one change. w comes from the joint training itself, from its
    M + 1 losses at the ends of super-epochs; the paper trains every classifier by itself for a super-epoch first, at
    M + 1 times the cost. Before training every loss counts as log K. The training loss is the mean over the last
    epoch's batches. |ΔO| and ΔG are at least 0.01 nats, so that noise alone neither drops a loss nor gives it all the
    weight. Without held-out clips the weights stay equal. The uni-modal heads are in the companion, not in the saved
    model.
    """

    title = "GB"
    head = "concat"

    gb_super_epoch: int = setting(5, at_least=1)
    """Epochs between two estimates of the weights; the paper has 5 to 20."""

    def prepare(self, model: MultiModalModel) -> nn.Module:
        widths = {m: model.head.weight(m).shape[1] for m in model.modalities}
        return Blend(widths, model.head.classes).to(model.head.bias.dtype)

    def loss(self, step: Step) -> LossTerms:
        blend = cast(Blend, step.companion)
        output = step.forward(step.inputs)
        losses = blend.losses(output, step.labels)
        blend.total.add_(losses.detach())
        blend.steps.add_(1)
        parts = {"cross_entropy": losses[-1], "unimodal_cross_entropy": losses[:-1].sum()}
        return LossTerms((blend.weights * losses).sum(), parts, output)

    def after_epoch(self, epoch: Epoch) -> None:
        blend = cast(Blend, epoch.companion)
        train = sum_over_ranks(blend.total) / sum_over_ranks(blend.steps).clamp_min(1)
        blend.total.zero_()
        blend.steps.zero_()
        if epoch.epoch % self.gb_super_epoch:
            return
        held_out = _held_out_losses(epoch, blend)
        if held_out is not None:
            now = torch.stack([train, held_out])
            blend.weights.copy_(blend_weights(blend.before, now))
            blend.before.copy_(now)


def _held_out_losses(epoch: Epoch, blend: Blend) -> Tensor | None:
    """Mean over the held-out clips of all workers, `(M + 1,)`; None where there are none."""
    total, count = torch.zeros_like(blend.total), torch.zeros_like(blend.steps)
    for batch in epoch.held_out():
        total += blend.losses(epoch.model(batch.inputs), batch.labels) * len(batch.labels)
        count += len(batch.labels)
    total, count = sum_over_ranks(total), sum_over_ranks(count)
    return total / count if float(count) else None


def blend_weights(before: Tensor, now: Tensor) -> Tensor:
    """The weights of the losses after a super-epoch.

    Args:
        before: training and held-out losses at its beginning, `(2, M + 1)`.
        now: the same at its end.

    Returns: w, `(M + 1,)`, with sum 1.
    """
    gain = (before[1] - now[1]).clamp_min(LEAST_CHANGE)
    overfit = ((now[1] - now[0]) - (before[1] - before[0])).abs().clamp_min(LEAST_CHANGE)
    ratio = gain / overfit.square()
    return ratio / ratio.sum()


METHOD = GB
