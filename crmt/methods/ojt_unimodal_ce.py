"""Control: OJT with cross-entropy on each modality's scores. Compares it with CRMT's log term."""

from __future__ import annotations

from dataclasses import dataclass

from torch.nn import functional as F

from crmt.methods.base import LossTerms, Method, Step
from crmt.settings import setting


@dataclass(frozen=True, kw_only=True)
class OJTUnimodalCE(Method):
    """L = CE(h(x), y) + weight · Σ_m CE(s^(m), y) on an OrthogonalHead; s without integration weights and bias.

    Not from a paper. Like CRMT's log term it trains every modality to tell the classes apart, but in the usual form.
    """

    title = "OJT + uni-modal CE"
    head = "orthogonal"

    unimodal_weight: float = setting(1.0, at_least=0)
    """Weight of the sum of uni-modal cross-entropies."""

    def loss(self, step: Step) -> LossTerms:
        output = step.forward(step.inputs)
        entropy = F.cross_entropy(output.logits, step.labels)
        modalities = output.scores.shape[1]
        each = F.cross_entropy(output.scores.flatten(0, 1), step.labels.repeat_interleave(modalities))
        unimodal = modalities * each
        parts = {"cross_entropy": entropy, "unimodal_cross_entropy": unimodal}
        return LossTerms(entropy + self.unimodal_weight * unimodal, parts, output)


METHOD = OJTUnimodalCE
