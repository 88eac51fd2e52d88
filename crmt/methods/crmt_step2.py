"""CRMT-step-2: plain joint training in the orthogonal frame, then step 2 alone (arXiv 2402.06244, ablation)."""

from __future__ import annotations

from dataclasses import dataclass

from crmt.methods._shared import cross_entropy_loss
from crmt.methods.base import LossTerms, Method, Step


@dataclass(frozen=True, kw_only=True)
class CRMTStep2(Method):
    """L = CE(h(x), y) on an OrthogonalHead; then the integration weights are optimised for the radius.

    Interpretation: see `crmt.integration` for that of step 2.
    """

    title = "CRMT-step-2"
    head = "orthogonal"
    step2 = True

    def loss(self, step: Step) -> LossTerms:
        return cross_entropy_loss(step.forward(step.inputs), step.labels)


METHOD = CRMTStep2
