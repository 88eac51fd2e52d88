"""MSEFM, robust fusion against a single perturbed source: odd-one-out network and mixture of experts.

Yang, Lin, Barman, Condessa, Kolter, "Defending Multimodal Fusion Models against Single-Source Adversaries", CVPR 2021
(arXiv 2206.12714).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch.nn import functional as F

from crmt.attacks import Ball
from crmt.heads import OddOneOutHead
from crmt.methods._shared import adversarial
from crmt.methods.base import LossTerms, Method, Step
from crmt.model import Output
from crmt.randomness import generator_on
from crmt.settings import setting


@dataclass(frozen=True, kw_only=True)
class MSEFM(Method):
    """L = CE(h, y) + weight · CE(odd-one-out, which modality was perturbed), over clean and perturbed inputs.

    Interpretation: the paper adds to the clean inputs one perturbed copy for EVERY modality; we add one copy whose
    perturbed modality is drawn for each clip, so a step costs the same for any number of modalities, and clean and
    perturbed inputs weigh the same. Perturbations are ℓ2 PGD on the cross-entropy, with the budget of MMAT on that
    modality alone. Encoders, gates and experts train together from scratch; the paper starts from trained encoders.
    The experts and the odd-one-out network are those of `OddOneOutHead`: linear, and one hidden layer.
    """

    title = "MSEFM"
    head = "odd_one_out"

    epsilon: float = setting(0.7, above=0)
    """ℓ2 budget of the training attack, on one modality, in its own space. 0.7 suits avdigits."""
    attack_steps: int = setting(5, at_least=1)
    """Gradient steps of the training attack."""
    msefm_weight: float = setting(1.0, at_least=0)
    """Weight of the odd-one-out loss."""

    def loss(self, step: Step) -> LossTerms:
        names, labels, count = tuple(step.model.modalities), step.labels, len(step.labels)
        generator = generator_on(labels.device, step.generator)
        odd = torch.randint(len(names), (count,), generator=generator, device=labels.device)
        ball = Ball.product({m: self.epsilon * (odd == i).to(step.inputs[m].dtype) for i, m in enumerate(names)})
        perturbed = adversarial(step.model, step.inputs, labels, ball, self.attack_steps, step.attacked)
        both = step.forward({m: torch.cat([step.inputs[m], perturbed[m]]) for m in names})
        entropy = F.cross_entropy(both.logits, labels.repeat(2))
        guesses = cast(OddOneOutHead, step.model.head).odd_one_out(both.features)
        found = F.cross_entropy(guesses, torch.cat([torch.full_like(odd, len(names)), odd]))
        clean = Output(both.logits[:count], both.scores[:count], {m: z[:count] for m, z in both.features.items()})
        parts = {"cross_entropy": entropy, "odd_one_out_loss": found}
        return LossTerms(entropy + self.msefm_weight * found, parts, clean)


METHOD = MSEFM
