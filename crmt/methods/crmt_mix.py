"""CRMT-Mix: CRMT's step 1 on mixed inputs, then step 2 (arXiv 2402.06244; Mixup: ICLR 2018, arXiv 1710.09412)."""

from __future__ import annotations

from dataclasses import dataclass

from crmt.losses import mixed_cross_entropy, mixed_margin_regulariser
from crmt.methods._shared import mixed
from crmt.methods.base import LossTerms, Method, Step
from crmt.settings import setting


@dataclass(frozen=True, kw_only=True)
class CRMTMix(Method):
    """L = mixed CE + ρ · log Σ_m Σ_{k∉{y_a,y_b}} exp(s_k^(m) − λ s_{y_a}^(m) − (1−λ) s_{y_b}^(m)).

    Interpretation: the released code subtracts raw scores where exponentials belong, so the regulariser follows the
    form above, with the floor of CRMT-JT; λ and permutation as in Mixup.
    """

    title = "CRMT-Mix"
    head = "orthogonal"
    step2 = True

    rho: float = setting(2.0, at_least=0)
    """Weight of the margin regulariser; 2 to 5 is good, below 0.5 it stays half trained."""
    mixup_alpha: float = setting(1.0, above=0)
    """α of Beta(α, α): 1 draws λ uniformly, less keeps inputs nearer to one of the two."""

    def loss(self, step: Step) -> LossTerms:
        batch = mixed(step, self.mixup_alpha)
        output = step.forward(batch.inputs)
        entropy = mixed_cross_entropy(output.logits, batch.first, batch.second, batch.mix)
        margin = mixed_margin_regulariser(output.scores, batch.first, batch.second, batch.mix)
        return LossTerms(entropy + self.rho * margin, {"cross_entropy": entropy, "margin_term": margin}, output)


METHOD = CRMTMix
