"""CRMT-AT: CRMT's step 1 on joint-PGD adversarial inputs, then step 2 (arXiv 2402.06244)."""

from __future__ import annotations

from dataclasses import dataclass

from crmt.methods._shared import joint_adversarial, margin_loss
from crmt.methods.base import LossTerms, Method, Step
from crmt.settings import setting


@dataclass(frozen=True, kw_only=True)
class CRMTAT(Method):
    """L1 = CE(h(x'), y) + ρ · log Σ_m Σ_{k≠y} exp(s_k^(m)(x') − s_y^(m)(x')) on adversarial x'.

    Interpretation: x' maximises the cross-entropy alone, in ONE ball over all modalities, Σ_m ‖δ^(m)‖² ≤ ε²; the
    encoders are in evaluation mode during the attack. Clean inputs take no part, as in MMAT.
    """

    title = "CRMT-AT"
    head = "orthogonal"
    step2 = True

    rho: float = setting(2.0, at_least=0)
    """Weight of the margin regulariser; 2 to 5 is good, below 0.5 it stays half trained."""
    epsilon: float = setting(0.7, above=0)
    """Joint ℓ2 budget of the training attack, in the inputs' own spaces. 0.7 suits avdigits; the released code has 0.1
    in ImageNet-normalised pixels, about 0.02 here."""
    attack_steps: int = setting(5, at_least=1)
    """Gradient steps of the training attack."""

    def loss(self, step: Step) -> LossTerms:
        inputs = joint_adversarial(step, self.epsilon, self.attack_steps)
        return margin_loss(step.forward(inputs), step.labels, self.rho)


METHOD = CRMTAT
