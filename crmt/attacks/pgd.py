"""Projected gradient descent with a fixed step. It returns the best input that it saw."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite

import torch
from torch import Tensor

from crmt.arguments import check_number
from crmt.attacks.balls import Ball
from crmt.attacks.base import Attack, Call
from crmt.attacks.losses import check_loss
from crmt.attacks.search import AttackResult, Search, check_counts
from crmt.errors import BadInputError
from crmt.modality import Inputs
from crmt.model import MultiModalModel, evaluating


def pgd(
    model: MultiModalModel,
    inputs: Mapping[str, Tensor],
    labels: Tensor,
    ball: Ball,
    *,
    steps: int = 20,
    step_size: float | None = None,
    restarts: int = 1,
    loss: str = "margin",
    start: Mapping[str, Tensor] | None = None,
    generator: torch.Generator | None = None,
    drop_broken: bool = False,
) -> AttackResult:
    """Projected gradient descent (Madry et al., 2018) in any ball, on any modalities.

    Where the whole gradient is exactly 0 there is no direction: with more than one step it goes on from a random point.

    Args:
        model: attacked in evaluation mode, and left as it was.
        inputs: x, `(B, *shape)` of every modality, in its space and inside its box.
        labels: y, `(B,)`, int64.
        ball: which modalities may move, and how far.
        steps: steps of every run.
        step_size: the length of a step, in units of ε; default 2.5 / steps.
        restarts: the first run starts at `start` (or at x), the others at random points of the ball.
        loss: `margin` or `cross_entropy`, or `dlr`.
        start: adversarial inputs to start from, such as those of a smaller radius.
        generator: for the random starts.
        drop_broken: leave a sample as soon as its prediction is wrong: faster, for accuracies. Otherwise every run goes
            on towards the smallest margin.

    Raises:
        BadInputError: an unknown modality or loss, steps or restarts below 1, a step_size that is not above 0, inputs,
            labels, budgets or a start that do not fit.
    """
    check_loss(loss)
    check_counts(steps=steps, restarts=restarts)
    size = 2.5 / steps if step_size is None else step_size
    check_number("step_size", size)
    if not (isfinite(size) and size > 0):
        raise BadInputError(f"step_size must be a finite number above 0, not {size}")
    with evaluating(model):
        search = Search(model, inputs, labels, ball)
        for restart in range(restarts):
            if not search.begin(drop_broken):
                break
            deltas = search.random(generator) if restart else search.start(start)
            _run(search, deltas, loss, steps, size, drop_broken, generator)
    return search.result()


def _run(
    search: Search,
    deltas: Inputs,
    loss: str,
    steps: int,
    size: float,
    drop_broken: bool,
    generator: torch.Generator | None,
) -> None:
    for _ in range(steps):
        gradients, _ = search.gradients(deltas, loss)
        kept = search.narrowed() if drop_broken else None
        if kept is not None:
            if not len(kept):
                return
            deltas, gradients = ({m: v[kept] for m, v in d.items()} for d in (deltas, gradients))
        if steps == 1:  # FGM is from x by its definition
            deltas = search.project(search.ball.stepped(deltas, gradients, size))
        else:
            deltas = search.moved(deltas, gradients, size, generator)
    search.evaluate(deltas)


class Pgd(Attack):
    """PGD as a part that is found by name: the arguments of `pgd` from a `Call`."""

    title = "PGD"
    settings = ("loss", "steps", "restarts")
    random = True
    place_in_auto = 20

    def run(self, call: Call) -> AttackResult:
        s = call.settings
        return pgd(
            *call.target,
            steps=s.steps,
            restarts=s.restarts,
            loss=s.loss,
            start=call.start,
            generator=call.generator,
            drop_broken=True,
        )


ATTACK = Pgd
