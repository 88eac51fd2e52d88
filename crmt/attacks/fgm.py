"""The fast gradient method: one step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from crmt.attacks.balls import Ball
from crmt.attacks.base import Attack, Call
from crmt.attacks.pgd import pgd
from crmt.attacks.search import AttackResult, Search
from crmt.model import MultiModalModel, evaluating


def fgm(
    model: MultiModalModel, inputs: Mapping[str, Tensor], labels: Tensor, ball: Ball, *, loss: str = "margin"
) -> AttackResult:
    """The fast gradient method: one step of length ε along the steepest direction (Goodfellow et al., 2015).

    Args:
        model: attacked in evaluation mode, and left as it was.
        inputs: x, `(B, *shape)` of every modality, in its space and inside its box.
        labels: y, `(B,)`, int64.
        ball: which modalities may move, and how far.
        loss: as in `pgd`.

    Raises:
        BadInputError: as `pgd`.
    """
    return pgd(model, inputs, labels, ball, steps=1, step_size=1.0, loss=loss)


class Fgm(Attack):
    """FGM as a part that is found by name: the arguments of `fgm` from a `Call`."""

    title = "FGM"
    settings = ("loss",)
    uses_start = False
    place_in_auto = 10

    def run(self, call: Call) -> AttackResult:
        return fgm(*call.target, loss=call.settings.loss)

    def in_each(self, call: Call, balls: Sequence[Ball]) -> Tensor:
        """The gradient at x is the same in every ball, so it is computed once."""
        broken = []
        with evaluating(call.model):
            search = Search(*call.target)
            zero = search.start(None)
            gradients, _ = search.gradients(zero, call.settings.loss)
            for ball in balls:
                search.enter(ball)
                search.evaluate(search.project(search.ball.stepped(zero, gradients, 1.0)))
                broken.append(search.result().broken)
        return torch.stack(broken, dim=1)


ATTACK = Fgm
