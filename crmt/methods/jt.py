"""JT, joint training: cross-entropy on the plain joint classifier. The baseline of every comparison."""

from __future__ import annotations

from dataclasses import dataclass

from crmt.methods._shared import cross_entropy_loss
from crmt.methods.base import LossTerms, Method, Step


@dataclass(frozen=True, kw_only=True)
class JT(Method):
    """L = CE(h(x), y) on a ConcatHead."""

    title = "JT"
    head = "concat"

    def loss(self, step: Step) -> LossTerms:
        return cross_entropy_loss(step.forward(step.inputs), step.labels)


METHOD = JT
