"""PMR: prototypical modal rebalance.

Fan, Xu, Wang, Wang, Guo, "PMR: Prototypical Modal Rebalance for Multimodal Learning", CVPR 2023 (arXiv 2211.07089).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crmt.distributed import mean_over_ranks, sum_over_ranks
from crmt.methods.base import Epoch, LossTerms, Method, Step
from crmt.model import MultiModalModel
from crmt.settings import setting


class Prototypes(nn.Module):
    """The prototype of each class in one modality, its mean feature in earlier epochs; and this epoch's sums."""

    mean: Tensor
    """The prototypes, `(K, d)`."""
    seen: Tensor
    """Whether a class has a prototype yet, `(K,)`."""
    total: Tensor
    """Sum of this epoch's features by class, `(K, d)`."""
    count: Tensor
    """Number of this epoch's features by class, `(K,)`."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(classes, width))
        self.register_buffer("seen", torch.zeros(classes, dtype=torch.bool))
        self.register_buffer("total", torch.zeros(classes, width))
        self.register_buffer("count", torch.zeros(classes))

    def gather(self, features: Tensor, labels: Tensor) -> None:
        """Add a batch to this worker's sums.

        Args:
            features: `(B, d)`.
            labels: `(B,)`.
        """
        self.total.index_add_(0, labels, features.detach().to(self.total))  # autocast gives less precise features
        self.count.index_add_(0, labels, torch.ones_like(labels, dtype=self.count.dtype))

    def refresh(self, momentum: float) -> None:
        """Move the prototypes towards this epoch's means over all workers, and start new sums.

        Args:
            momentum: the weight of the old prototype, in [0, 1).
        """
        total, count = sum_over_ranks(self.total), sum_over_ranks(self.count)
        found = count > 0
        fresh = total / count.clamp_min(1)[:, None]
        # a class seen for the first time has no old prototype to keep a part of
        kept = torch.where(self.seen[:, None], momentum * self.mean + (1 - momentum) * fresh, fresh)
        self.mean.copy_(torch.where(found[:, None], kept, self.mean))
        self.seen.logical_or_(found)
        self.total.zero_()
        self.count.zero_()

    def log_probabilities(self, features: Tensor) -> Tensor:
        """log softmax of −‖φ − c_k‖₂ over the K' classes seen so far, `(B, K')`.

        Args:
            features: φ, `(B, d)`.
        """
        distances = torch.cdist(
            features.to(self.mean), self.mean[self.seen], compute_mode="donot_use_mm_for_euclid_dist"
        )
        return (-distances).log_softmax(1)


@dataclass(frozen=True, kw_only=True)
class PMR(Method):
    """L = CE(h, y) + α Σ_m slow_m · PCE_m − weight Σ_m fast_m · H_m, the last term in the first epochs only.

    With p^(m) = softmax_k(−‖φ^(m) − c_k^(m)‖) over class prototypes c: PCE_m = −log p_y^(m), H_m its entropy, and with
    ρ^(m) the confidence Σ_i p_{y_i}^(m) over the other modality's: slow_m = clip(1/ρ^(m) − 1, 0, 1),
    fast_m = clip(ρ^(m) − 1, 0, 1).

    Interpretation: with M > 2 modalities ρ is the ratio to the MEAN confidence of the others; with one modality both
    weights are 0. Prototypes are class means of the features that the last epoch's training steps computed, with
    momentum over epochs; the released code makes an extra pass over a tenth of the training set instead. The first
    epoch has no prototypes and trains CE alone. A clip of a class not seen before adds 0 to PCE.
    """

    title = "PMR"
    head = "concat"

    pmr_alpha: float = setting(1.0, at_least=0)
    """α: weight of the prototypical cross-entropy of the slow modalities."""
    pmr_momentum: float = setting(0.5, at_least=0, below=1)
    """Weight of the old prototypes from epoch to epoch; 0 takes the class means of the last epoch alone."""
    pmr_entropy: float = setting(0.1, at_least=0)
    """Weight of the entropy that keeps the fast modalities from early convergence; 0 leaves it out."""
    pmr_entropy_epochs: int = setting(5, at_least=0)
    """Number of epochs, from the first one, that have this entropy term."""

    def prepare(self, model: MultiModalModel) -> nn.Module:
        widths = {m: model.head.weight(m).shape[1] for m in model.modalities}
        prototypes = nn.ModuleDict({m: Prototypes(model.head.classes, d) for m, d in widths.items()})
        return prototypes.to(model.head.bias.dtype)

    def loss(self, step: Step) -> LossTerms:
        output = step.forward(step.inputs)
        entropy = F.cross_entropy(output.logits, step.labels)
        prototypes = {m: cast(Prototypes, cast(nn.ModuleDict, step.companion)[m]) for m in step.model.modalities}
        seen = next(iter(prototypes.values())).seen
        prototypical, spread = torch.zeros_like(entropy), torch.zeros_like(entropy)
        if bool(seen.any()):
            known = seen[step.labels]
            # the place of each label among the classes seen; unseen ones get any place and are masked by `known`
            target = (seen.long().cumsum(0) - 1)[step.labels].clamp_min(0)
            logs = [p.log_probabilities(output.features[m]) for m, p in prototypes.items()]
            right = torch.stack([log.gather(1, target[:, None]).squeeze(1) for log in logs])  # (M, B)
            slow, fast = imbalance(mean_over_ranks((right.detach().exp() * known).mean(1)))
            prototypical = (slow[:, None] * -right * known).sum(0).mean()
            if step.epoch <= self.pmr_entropy_epochs:
                spread = (fast * torch.stack([-(log.exp() * log).sum(1).mean() for log in logs])).sum()
        for m, p in prototypes.items():
            p.gather(output.features[m], step.labels)
        total = entropy + self.pmr_alpha * prototypical - self.pmr_entropy * spread
        return LossTerms(total, {"cross_entropy": entropy, "prototype_term": prototypical}, output)

    def after_epoch(self, epoch: Epoch) -> None:
        for prototypes in epoch.companion.children():
            cast(Prototypes, prototypes).refresh(self.pmr_momentum)


def imbalance(confidences: Tensor) -> tuple[Tensor, Tensor]:
    """How far each modality is behind and how far ahead of the mean of the others.

    Args:
        confidences: mean probability of the right class by each modality, `(M,)`.

    Returns: slow and fast, `(M,)` each, in [0, 1].
    """
    if len(confidences) == 1:
        return torch.zeros_like(confidences), torch.zeros_like(confidences)
    tiny = torch.finfo(confidences.dtype).tiny
    own = confidences.clamp_min(tiny)
    others = ((confidences.sum() - confidences) / (len(confidences) - 1)).clamp_min(tiny)
    return (others / own - 1).clamp(0, 1), (own / others - 1).clamp(0, 1)


METHOD = PMR
