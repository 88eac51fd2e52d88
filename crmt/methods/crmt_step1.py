"""CRMT-step-1: joint training with the margin regulariser, without step 2 (arXiv 2402.06244, ablation)."""

from __future__ import annotations

from dataclasses import dataclass

from crmt.methods._shared import margin_loss
from crmt.methods.base import LossTerms, Method, Step
from crmt.settings import setting


@dataclass(frozen=True, kw_only=True)
class CRMTStep1(Method):
    """L1 = CE(h(x), y) + ρ · log Σ_m Σ_{k≠y} exp(s_k^(m) − s_y^(m)), on clean inputs.

    Interpretation: as in CRMT-JT, whose step 1 this is; the same seed gives the same weights.
    """

    title = "CRMT-step-1"
    head = "orthogonal"

    rho: float = setting(2.0, at_least=0)
    """Weight of the margin regulariser; 2 to 5 is good, below 0.5 it stays half trained."""

    def loss(self, step: Step) -> LossTerms:
        return margin_loss(step.forward(step.inputs), step.labels, self.rho)


METHOD = CRMTStep1
