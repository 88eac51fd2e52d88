"""Control: JT with CRMT's log term on the FUSED logits. Shows what the term gains without the orthogonal head."""

from __future__ import annotations

from dataclasses import dataclass

from torch.nn import functional as F

from crmt.losses import margin_regulariser
from crmt.methods.base import LossTerms, Method, Step
from crmt.settings import setting


@dataclass(frozen=True, kw_only=True)
class JTLogTerm(Method):
    """L = CE(h(x), y) + ρ · log(1e-5 + Σ_{k≠y} exp(h_k − h_y)) on a ConcatHead.

    Not from a paper: it keeps CRMT's log term and its floor, but neither orthogonal rows nor a sum over modalities.
    """

    title = "JT + log term"
    head = "concat"

    rho: float = setting(2.0, at_least=0)
    """Weight of the margin regulariser; 2 to 5 is good, below 0.5 it stays half trained."""

    def loss(self, step: Step) -> LossTerms:
        output = step.forward(step.inputs)
        entropy = F.cross_entropy(output.logits, step.labels)
        margin = margin_regulariser(output.logits[:, None], step.labels)
        return LossTerms(entropy + self.rho * margin, {"cross_entropy": entropy, "margin_term": margin}, output)


METHOD = JTLogTerm
