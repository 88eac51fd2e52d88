"""CRMT-JT: joint training with the margin regulariser in the orthogonal frame, then step 2 (arXiv 2402.06244)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from crmt.losses import margin_regulariser
from crmt.methods.base import Forward, LossTerms, Method


@dataclass(frozen=True, kw_only=True)
class CRMTJT(Method):
    """L1 = CE(h(x), y) + ρ · log Σ_m Σ_{k≠y} exp(s_k^(m) − s_y^(m)), on clean inputs.

    Interpretation: the sum inside the logarithm has the smooth floor 1e-5 of the released code, which the paper
    does not write; without it the features only scale up.
    """

    title = "CRMT-JT"
    head = "orthogonal"
    step2 = True

    rho: float = 2.0
    """Weight of the margin regulariser; 2 to 5 is good, below 0.5 it stays half trained."""

    def loss(self, forward: Forward, inputs: Mapping[str, Tensor], labels: Tensor) -> LossTerms:
        output = forward(inputs)
        entropy = F.cross_entropy(output.logits, labels)
        margin = margin_regulariser(output.scores, labels)
        return LossTerms(entropy + self.rho * margin, {"cross_entropy": entropy, "margin_term": margin}, output)


METHOD = CRMTJT
