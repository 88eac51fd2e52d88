"""Random noise of the ball's radius: what an attack must beat to be one."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from crmt.attacks.balls import Ball
from crmt.attacks.base import Attack, Call
from crmt.attacks.search import AttackResult, Search, check_counts
from crmt.model import MultiModalModel, evaluating


def noise(
    model: MultiModalModel,
    inputs: Mapping[str, Tensor],
    labels: Tensor,
    ball: Ball,
    *,
    draws: int = 10,
    generator: torch.Generator | None = None,
) -> AttackResult:
    """The worst of several random δ: in ℓ2 Gaussian, stretched to length ε in every group; in ℓ∞ uniform in the ball.

    Args:
        model: attacked in evaluation mode, and left as it was.
        inputs: x, `(B, *shape)` of every modality, in its space and inside its box.
        labels: y, `(B,)`, int64.
        ball: which modalities may move, and how far.
        draws: how many δ are tried.
        generator: gives the random numbers.

    Raises:
        BadInputError: as `pgd`.
    """
    check_counts(draws=draws)
    with evaluating(model):
        search = Search(model, inputs, labels, ball)
        for _ in range(draws):
            if not search.begin():
                break
            drawn = search.ball.random(search.attacked, generator)
            if ball.norm == "l2":
                epsilons = search.ball.epsilons(drawn)
                drawn = {m: epsilons[m] * d for m, d in search.ball.steepest(drawn).items()}
            search.evaluate(search.project(drawn))
    return search.result()


class Noise(Attack):
    """Random noise as a part that is found by name; `auto` leaves it out, since every gradient attack is stronger."""

    title = "Gaussian noise"
    settings = ("draws",)
    random = True
    uses_start = False

    def run(self, call: Call) -> AttackResult:
        return noise(*call.target, draws=call.settings.draws, generator=call.generator)


ATTACK = Noise
