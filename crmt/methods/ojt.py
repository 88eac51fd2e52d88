"""OJT, orthogonal joint training: cross-entropy on CRMT's head (arXiv 2402.06244). The control for the head alone."""

from __future__ import annotations

from dataclasses import dataclass

from crmt.methods._shared import cross_entropy_loss
from crmt.methods.base import LossTerms, Method, Step


@dataclass(frozen=True, kw_only=True)
class OJT(Method):
    """L = CE(h(x), y) on an OrthogonalHead, whose integration weights are trained along with everything else.

    Interpretation: the rows are orthonormal, where the released code only centres and normalises each.
    """

    title = "OJT"
    head = "orthogonal"

    def loss(self, step: Step) -> LossTerms:
        return cross_entropy_loss(step.forward(step.inputs), step.labels)


METHOD = OJT
