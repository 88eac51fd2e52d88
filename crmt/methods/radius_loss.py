"""Radius loss: a step 1 for 1-Lipschitz encoders that penalises margins below a target, the shift."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from crmt.errors import BadInputError
from crmt.heads import OrthogonalHead
from crmt.losses import margin_regulariser
from crmt.methods.base import LossTerms, Method, Step
from crmt.model import MultiModalModel
from crmt.settings import setting

NO_FLOOR = 1e-30
"""The margin term's floor, too small to matter: a 1-Lipschitz model's scores cannot simply scale up."""


@dataclass(frozen=True, kw_only=True)
class RadiusLoss(Method):
    """L = CE(T (h − shift · onehot_y)) / T + ρ · margin term(T s) / T, with integration weights a = 1 in step 1.

    For encoders of Lipschitz constant 1, whose margins are radii: the shift asks for a margin of that size in h, the
    temperature T makes the cross-entropy care about margins of that size. The form is that of tempered
    cross-entropies for 1-Lipschitz networks (Béthune et al., NeurIPS 2022; Prach & Lampert, ECCV 2022) and of the
    margin regulariser of CRMT (arXiv 2402.06244). Meant for `lipschitz_conv`; with other encoders h only scales up.
    """

    title = "radius loss"
    head = "orthogonal"
    step2 = True

    temperature: float = setting(8.0, above=0)
    """T: a larger one makes the cross-entropy care about smaller margins."""
    shift: float = setting(5.0, at_least=0)
    """The margin asked for, in the unit of h, which is that of radii. On avdigits the radii grew from 2 to 3 to 5 at no
    cost in accuracy; 8 gave nothing more."""
    rho: float = setting(0.5, at_least=0)
    """Weight of the margin regulariser."""

    def prepare(self, model: MultiModalModel) -> nn.Module:
        """Set a to 1 and freeze it for step 1; `fit` makes it trainable again.

        Raises:
            BadInputError: a model without an orthogonal head.
        """
        head = model.head
        if not isinstance(head, OrthogonalHead):
            raise BadInputError(f"radius_loss needs an orthogonal head, not a {type(head).__name__}")
        head.set_integration(torch.ones_like(head.integration))
        head.log_integration.requires_grad_(False)
        return nn.Module()

    def loss(self, step: Step) -> LossTerms:
        output = step.forward(step.inputs)
        shifted = output.logits - self.shift * F.one_hot(step.labels, output.logits.shape[1])
        entropy = F.cross_entropy(self.temperature * shifted, step.labels) / self.temperature
        margin = margin_regulariser(self.temperature * output.scores, step.labels, NO_FLOOR) / self.temperature
        return LossTerms(entropy + self.rho * margin, {"cross_entropy": entropy, "margin_term": margin}, output)


METHOD = RadiusLoss
