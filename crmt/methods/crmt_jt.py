"""CRMT-JT: joint training with the margin regulariser in the orthogonal frame, then step 2 (arXiv 2402.06244)."""

from __future__ import annotations

from dataclasses import dataclass

from crmt.methods._shared import margin_loss
from crmt.methods.base import LossTerms, Method, Step
from crmt.settings import setting


@dataclass(frozen=True, kw_only=True)
class CRMTJT(Method):
    """L1 = CE(h(x), y) + ρ · log Σ_m Σ_{k≠y} exp(s_k^(m) − s_y^(m)), on clean inputs.

    Interpretation: the sum inside the logarithm has the smooth floor 1e-5 of the released code, which the paper
    does not write; without it the features only scale up.
    """

    title = "CRMT-JT"
    head = "orthogonal"
    step2 = True

    rho: float = setting(2.0, at_least=0)
    """Weight of the margin regulariser; 2 to 5 is good, below 0.5 it stays half trained."""

    def loss(self, step: Step) -> LossTerms:
        return margin_loss(step.forward(step.inputs), step.labels, self.rho)


METHOD = CRMTJT
