"""Mixup: training on convex combinations of inputs and labels (Zhang et al., ICLR 2018, arXiv 1710.09412)."""

from __future__ import annotations

from dataclasses import dataclass

from crmt.losses import mixed_cross_entropy
from crmt.methods._shared import mixed
from crmt.methods.base import LossTerms, Method, Step
from crmt.settings import setting


@dataclass(frozen=True, kw_only=True)
class Mixup(Method):
    """L = λ CE(h(x), y_a) + (1−λ) CE(h(x), y_b) on x = λ x_a + (1−λ) x_b.

    Interpretation: one λ ~ Beta(α, α) a batch, over all workers, and one permutation of each worker's clips, the same
    for every modality, so that a mixed clip stays one clip. `train_accuracy` counts y_a on mixed inputs and is
    therefore low.
    """

    title = "Mixup"
    head = "concat"

    mixup_alpha: float = setting(1.0, above=0)
    """α of Beta(α, α): 1 draws λ uniformly, less keeps inputs nearer to one of the two."""

    def loss(self, step: Step) -> LossTerms:
        batch = mixed(step, self.mixup_alpha)
        output = step.forward(batch.inputs)
        entropy = mixed_cross_entropy(output.logits, batch.first, batch.second, batch.mix)
        return LossTerms(entropy, {"cross_entropy": entropy}, output)


METHOD = Mixup
