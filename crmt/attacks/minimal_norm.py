"""A minimal-norm attack: the smallest adversarial radius of every sample, hence a whole accuracy-radius curve."""

from __future__ import annotations

from collections.abc import Mapping
from math import cos, pi
from typing import NamedTuple

import torch
from torch import Tensor

from crmt.attacks.balls import LARGEST, Ball, chosen, clamped, columns, moved, wide
from crmt.attacks.base import Attack, Call
from crmt.attacks.losses import likely_targets
from crmt.attacks.search import AttackResult, Search, check_counts
from crmt.modality import Inputs
from crmt.model import MultiModalModel, evaluating

OVERSHOOT = 1e-3
"""How far a step goes past a linearised boundary, as a share of its length."""
BISECTIONS = 10
TARGETS = 9
"""Most likely other classes whose linearised distances are compared at x; all of them up to ten classes."""


class MinimalResult(NamedTuple):
    """The nearest adversarial inputs of a batch."""

    inputs: Inputs
    """`(B, *shape)` of every modality, inside its box; x itself where none was found."""
    radius: Tensor
    """`(B,)`: how large the ball must be, in multiples of its budgets (with a budget of 1: the radius itself).
    0 where the prediction is wrong to begin with, inf where no adversarial input was found."""


def minimal_norm(
    model: MultiModalModel,
    inputs: Mapping[str, Tensor],
    labels: Tensor,
    ball: Ball,
    *,
    steps: int = 20,
    restarts: int = 1,
    start: Mapping[str, Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> MinimalResult:
    """The smallest t for which an input inside t times the ball changes the prediction.

    As FMN (Pintor et al., arXiv 2102.12827): gradient steps on the margin, projected to a ball that shrinks where the
    point is adversarial and grows where it is not. Ours starts at the class whose linearised boundary is nearest, as in
    DeepFool and FAB, which makes it exact on linear models, and ends with a bisection towards x.

    Args:
        model: attacked in evaluation mode, and left as it was.
        inputs: x, `(B, *shape)` of every modality, in its space and inside its box.
        labels: y, `(B,)`, int64.
        ball: the shape of the ball. Its budgets are the units of t: with 1.0, t is the radius; those of a product ball
            give the ratio of its sides.
        steps: gradient steps of every run.
        restarts: the first run takes any wrong class; run i > 0 aims at the i-th nearest class, from a random start.
            Where the gradient at x is exactly 0, all start at random, within the length of x or the unit ball.
        start: adversarial inputs to start from, where they are nearer than the first run's own.
        generator: for the random starts.

    Raises:
        BadInputError: as `pgd`.
    """
    check_counts(steps=steps, restarts=restarts)
    with evaluating(model):
        search = Search(model, inputs, labels, ball)
        best = _Nearest(search)
        if search.begin():
            # the samples of a run stay: that one is broken does not mean that it is done
            if start is not None:
                given = search.from_inputs(start)
                given = _project(search, given, search.ball.gauge(given))
                best.offer(given, search.evaluate(given))
            nearest, distance, step = _linearised(search)
            for run in range(restarts):
                deltas = step
                target = None
                if run:
                    target = nearest[:, min(run, nearest.shape[1] - 1)] if nearest.shape[1] else None
                unknown = ~distance.isfinite()  # the gradient at x is 0
                if run or bool(unknown.any()):
                    reach = search.ball.gauge(search.attacked).clamp_min(1)  # infinite where there is no budget
                    reach = torch.where(reach <= LARGEST, reach, torch.zeros_like(reach))
                    scale = torch.where(unknown, reach, distance)
                    drawn = search.ball.scaled(scale).random(search.attacked, generator)
                    drawn = _project(search, drawn, search.ball.gauge(drawn))
                    deltas = drawn if run else chosen(unknown, drawn, step)
                _run(search, best, deltas, steps, target)
            best.bisect(search)
            best.confirm()
    found = {m: moved(search.clean[m], d) for m, d in best.deltas.items()}
    rounded = ball.gauge({m: wide(x) - wide(search.clean[m]) for m, x in found.items()})
    return MinimalResult(search.clean | found, torch.maximum(best.radius, rounded))


class _Nearest:
    """The nearest adversarial δ of every sample of the batch."""

    def __init__(self, search: Search) -> None:
        self.search = search
        self.deltas = {m: torch.zeros_like(d) for m, d in search.best.items()}
        wrong = ~(search.margin > 0)
        self.radius = torch.full_like(search.margin, float("inf")).masked_fill(wrong, 0.0)

    def offer(self, deltas: Inputs, margin: Tensor) -> None:
        rows = self.search.rows
        radius = self.search.ball.gauge(deltas)
        better = ~(margin > 0) & (radius < self.radius[rows])
        self.radius[rows] = torch.where(better, radius, self.radius[rows])
        for m, d in deltas.items():
            self.deltas[m][rows] = torch.where(columns(better, d), d, self.deltas[m][rows])

    def bisect(self, search: Search) -> None:
        """Pull every δ back towards x as far as it stays adversarial; the box is convex, so it holds."""
        self.before = {m: d.clone() for m, d in self.deltas.items()}, self.radius.clone()
        far = {m: d[search.rows] for m, d in self.deltas.items()}
        low = torch.zeros_like(self.radius[search.rows])
        high = torch.ones_like(low)
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            deltas = {m: columns(middle, d) * d for m, d in far.items()}
            margin = search.evaluate(deltas)
            self.offer(deltas, margin)
            high, low = torch.where(margin > 0, high, middle), torch.where(margin > 0, middle, low)

    def confirm(self) -> None:
        """Look once more, at the whole batch. Rounding differs with the size of a batch, and these points lie on the
        boundary: where the prediction holds, the point before the bisection is taken, and where it holds there, none.
        """
        unmoved = {m: torch.zeros_like(d) for m, d in self.deltas.items()}, torch.full_like(self.radius, float("inf"))
        for deltas, radius in (self.before, unmoved):
            held = (self.search.margins(self.deltas) > 0) & self.radius.isfinite()
            if not bool(held.any()):
                return
            self.radius = torch.where(held, radius, self.radius)
            self.deltas = chosen(held, deltas, self.deltas)


def _linearised(search: Search) -> tuple[Tensor, Tensor, Inputs]:
    """Other classes by linearised distance `(R, T)`, the least such distance `(R,)`, and the step to it."""
    zero = {m: torch.zeros_like(x) for m, x in search.attacked.items()}
    targets = likely_targets(search.logits[search.rows], search.labels, TARGETS)
    least = torch.full_like(search.margin[search.rows], float("inf"))
    step, distances = zero, []
    for target in targets.T:
        gradients, value = search.gradients(zero, "margin", target)
        gradients = _free(search, zero, gradients)
        distance = _distance(search.ball, gradients, -value)
        nearer = distance < least
        moved = _moved(search, zero, gradients, distance)
        step = chosen(nearer, moved, step)
        least = torch.where(nearer, distance, least)
        distances.append(distance)
    order = torch.stack(distances, 1).argsort(1) if distances else targets
    return targets.gather(1, order), least, step


def _distance(ball: Ball, gradients: Inputs, margin: Tensor) -> Tensor:
    """How much further, in multiples of the ball, a linear margin reaches 0; inf where nothing moves it."""
    gain = ball.gain(gradients)
    far = margin * (1 + OVERSHOOT) / gain.clamp_min(torch.finfo(gain.dtype).tiny)
    return torch.where(gain > 0, far, torch.full_like(far, float("inf")))


def _moved(search: Search, deltas: Inputs, gradients: Inputs, length: Tensor) -> Inputs:
    """δ after a step of `length` times the budgets along the steepest direction, clamped to the box."""
    length = torch.where(length.isfinite(), length, torch.zeros_like(length))
    moved = search.ball.stepped(deltas, gradients, length)
    return _project(search, moved, search.ball.gauge(moved))


def _project(search: Search, deltas: Inputs, factor: Tensor) -> Inputs:
    """Onto the box, then onto the ball whose budgets are `factor` times as large: the second step only shrinks δ
    towards 0, so it stays in the box, and no budget is spent on what the box cuts off."""
    finite = torch.where(factor.isfinite(), factor, torch.zeros_like(factor))
    boxed = clamped(deltas, search.inputs, search.model.modalities)
    return search.ball.scaled(finite).project(boxed, search.attacked, search.model.modalities)


def _free(search: Search, deltas: Inputs, gradients: Inputs) -> Inputs:
    """Gradients without what points out of the box from its edge."""
    free = {}
    for m, g in gradients.items():
        box, point = search.model.modalities[m].box, search.inputs[m] + deltas[m]
        free[m] = g if box is None else g.masked_fill(((point <= box[0]) & (g < 0)) | ((point >= box[1]) & (g > 0)), 0)
    return free


def _run(search: Search, best: _Nearest, deltas: Inputs, steps: int, target: Tensor | None) -> None:
    size = search.ball.gauge(deltas)
    found = torch.zeros_like(size, dtype=torch.bool)
    for step in range(steps):
        gradients, value = search.gradients(deltas, "margin", target)
        gradients, margin = _free(search, deltas, gradients), -value
        best.offer(deltas, margin)
        least = best.radius[search.rows]
        anneal = (1 + cos(pi * step / steps)) / 2
        shrink = 0.001 + 0.049 * anneal
        inside = ~(margin > 0)
        found |= inside
        estimate = search.ball.gauge(deltas) + _distance(search.ball, gradients, margin)
        outward = torch.where(found, size * (1 + shrink), estimate)
        size = torch.where(inside, torch.minimum(size, least) * (1 - shrink), torch.minimum(outward, least))
        size = torch.where(size.isfinite(), size, search.ball.gauge(deltas))
        reach = 0.01 + 0.99 * anneal
        deltas = _project(search, search.ball.stepped(deltas, gradients, reach * size), size)
    best.offer(deltas, search.evaluate(deltas))


class MinimalNorm(Attack):
    """The nearest adversarial input where it is inside the ball, otherwise its projection."""

    title = "minimal-norm"
    settings = ("steps", "restarts")
    random = True
    place_in_auto = 30

    def run(self, call: Call) -> AttackResult:
        found = self._nearest(call)
        with evaluating(call.model):
            search = Search(*call.target)
            if search.begin():
                search.evaluate(search.start(found.inputs))
        return search.result()

    def smallest_radii(self, call: Call) -> Tensor:
        return self._nearest(call).radius

    def _nearest(self, call: Call) -> MinimalResult:
        s = call.settings
        return minimal_norm(
            *call.target, steps=s.steps, restarts=s.restarts, start=call.start, generator=call.generator
        )


ATTACK = MinimalNorm
