"""What is no search: random noise of the ball's radius, and modalities that are missing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from crmt.attacks.balls import Ball
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
    """The worst of `draws` random δ: ℓ2: Gaussian, stretched to length ε in every group; ℓ∞: uniform in the ball.

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


def missing(
    model: MultiModalModel, inputs: Mapping[str, Tensor], labels: Tensor, modalities: Iterable[str]
) -> AttackResult:
    """These modalities replaced by their means. No ball bounds it.

    The result is that of the replaced inputs, whether worse for the prediction or better.

    Raises:
        BadInputError: as `pgd`.
    """
    gone = tuple(modalities)
    with evaluating(model), torch.no_grad():
        search = Search(model, inputs, labels, Ball.joint(gone, 0.0))
        replaced = search.clean | {m: model.modalities[m].missing(search.clean[m]) for m in gone}
        margin = search.evaluate({m: replaced[m] - search.clean[m] for m in gone})
    return AttackResult(replaced, margin)
