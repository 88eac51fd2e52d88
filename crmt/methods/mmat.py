"""MMAT, multi-modal adversarial training: Madry et al.'s training (ICLR 2018, arXiv 1706.06083) over all modalities."""

from __future__ import annotations

from dataclasses import dataclass

from crmt.methods._shared import cross_entropy_loss, joint_adversarial
from crmt.methods.base import LossTerms, Method, Step
from crmt.settings import setting


@dataclass(frozen=True, kw_only=True)
class MMAT(Method):
    """L = CE(h(x'), y) on inputs x' that maximise it in the joint ball Σ_m ‖δ^(m)‖² ≤ ε².

    Interpretation: CRMT's paper names the method without settings; ours are those of CRMT-AT, so that the two differ
    by head, regulariser and step 2 alone. The attack starts at x, without a random start.
    """

    title = "MMAT"
    head = "concat"

    epsilon: float = setting(0.7, above=0)
    """Joint ℓ2 budget of the training attack, in the inputs' own spaces. 0.7 suits avdigits; the released code has 0.1
    in ImageNet-normalised pixels, about 0.02 here."""
    attack_steps: int = setting(5, at_least=1)
    """Gradient steps of the training attack."""

    def loss(self, step: Step) -> LossTerms:
        inputs = joint_adversarial(step, self.epsilon, self.attack_steps)
        return cross_entropy_loss(step.forward(inputs), step.labels)


METHOD = MMAT
