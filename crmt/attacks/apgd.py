"""Auto-PGD (Croce and Hein, arXiv 2003.01690): momentum, and steps that halve where they stop paying."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor

from crmt.attacks.balls import Ball, chosen
from crmt.attacks.losses import check_loss, likely_targets
from crmt.attacks.search import AttackResult, Search, check_counts, check_targets
from crmt.modality import Inputs
from crmt.model import MultiModalModel, evaluating

MOMENTUM = 0.75
PAYING = 0.75
"""The paper's α and ρ."""


def apgd(
    model: MultiModalModel,
    inputs: Mapping[str, Tensor],
    labels: Tensor,
    ball: Ball,
    *,
    loss: str = "cross_entropy",
    steps: int = 50,
    restarts: int = 1,
    targets: int = 0,
    start: Mapping[str, Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> AttackResult:
    """Auto-PGD in any ball: a joint ball takes its modalities as one vector, a product ball steps in each group.

    Where the whole gradient is exactly 0 there is no direction: it goes on from a random point.

    Args:
        model: attacked in evaluation mode, and left as it was.
        inputs: x, `(B, *shape)` of every modality, in its space and inside its box.
        labels: y, `(B,)`, int64.
        ball: which modalities may move, and how far.
        loss: `cross_entropy`, `dlr` (below 3 classes it is the margin) or `margin`.
        steps: steps of every run.
        restarts: the first run starts at `start` (or at x), the others at random points of the ball.
        targets: above 0, each restart is one run towards each of the `targets` most likely other classes, with the
            targeted `dlr` (below 4 classes it is the margin) or `margin` loss: the paper's APGD-T.
        start: adversarial inputs to start from, such as those of a smaller radius.
        generator: for the random starts.

    Raises:
        BadInputError: targets below 0, and as `pgd`.
    """
    check_counts(steps=steps, restarts=restarts)
    check_targets(targets)
    check_loss(loss, targeted=targets > 0)
    with evaluating(model):
        search = Search(model, inputs, labels, ball)
        wanted = list(likely_targets(search.logits, labels, targets).T) if targets else [None]
        for restart in range(restarts):
            for target in wanted:
                if not search.begin():
                    return search.result()
                deltas = search.random(generator) if restart else search.start(start)
                _run(search, deltas, loss, steps, None if target is None else target[search.rows], generator)
    return search.result()


def checkpoints(steps: int) -> set[int]:
    """The steps after which the size of the next is decided on (paper, section 3.1)."""
    shares = [0.0, 0.22]
    while shares[-1] < 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    return {ceil(round(s * steps, 6)) for s in shares[1:] if s <= 1}


@dataclass
class _State:
    """Where the R samples of one run stand; every field is `(R, ...)` or a dictionary of such tensors."""

    deltas: Inputs
    gradients: Inputs
    loss: Tensor
    before: Inputs
    best: Inputs
    best_gradients: Inputs
    best_loss: Tensor
    size: Tensor
    """η in units of ε."""
    rises: Tensor
    """Steps since the last checkpoint that raised the loss."""
    halved: Tensor
    """Whether the step was halved at the last checkpoint."""
    checked_loss: Tensor
    """Best loss at the last checkpoint."""
    targets: Tensor | None

    def select(self, kept: Tensor) -> _State:
        def rows_of(value: Inputs | Tensor | None) -> Inputs | Tensor | None:
            if isinstance(value, dict):
                return {m: v[kept] for m, v in value.items()}
            return None if value is None else value[kept]

        return _State(**{name: rows_of(value) for name, value in vars(self).items()})  # type: ignore[arg-type]


def _run(
    search: Search,
    deltas: Inputs,
    loss: str,
    steps: int,
    targets: Tensor | None,
    generator: torch.Generator | None,
) -> None:
    gradients, value = search.gradients(deltas, loss, targets)
    s = _State(
        deltas, gradients, value, deltas, deltas, gradients, value, torch.full_like(value, 2.0),
        torch.zeros_like(value), torch.ones_like(value, dtype=torch.bool), value, targets,
    )  # fmt: skip
    marks, last = checkpoints(steps), 0
    for step in range(1, steps + 1):
        kept = search.narrowed()
        if kept is not None:
            if not len(kept):
                return
            s = s.select(kept)
        _move(search, s, 1.0 if step == 1 else MOMENTUM, generator)
        if step == steps:
            search.evaluate(s.deltas)
            return
        s.gradients, value = search.gradients(s.deltas, loss, s.targets)
        s.rises = s.rises + (value > s.loss)
        s.loss = value
        _keep_best(s)
        if step in marks:
            _rethink(s, step - last)
            last = step


def _move(search: Search, s: _State, momentum: float, generator: torch.Generator | None) -> None:
    """The paper's z and x^(k+1)."""
    there = search.moved(s.deltas, s.gradients, s.size, generator)
    if momentum < 1:
        there = search.project(
            {m: d + momentum * (there[m] - d) + (1 - momentum) * (d - s.before[m]) for m, d in s.deltas.items()}
        )
    s.before, s.deltas = s.deltas, there


def _keep_best(s: _State) -> None:
    better = s.loss > s.best_loss
    s.best = chosen(better, s.deltas, s.best)
    s.best_gradients = chosen(better, s.gradients, s.best_gradients)
    s.best_loss = torch.where(better, s.loss, s.best_loss)


def _rethink(s: _State, steps: int) -> None:
    """Halve the step and go back to the best point where few steps raised the loss, or none since the last
    checkpoint led to a better point."""
    few_rises = s.rises < PAYING * steps
    stuck = ~s.halved & (s.best_loss <= s.checked_loss)
    halve = few_rises | stuck
    s.size = torch.where(halve, s.size / 2, s.size)
    s.deltas = chosen(halve, s.best, s.deltas)
    s.before = chosen(halve, s.best, s.before)
    s.gradients = chosen(halve, s.best_gradients, s.gradients)
    s.loss = torch.where(halve, s.best_loss, s.loss)
    s.halved, s.checked_loss, s.rises = halve, s.best_loss, torch.zeros_like(s.rises)
