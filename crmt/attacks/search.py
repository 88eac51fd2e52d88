"""What all attacks share: the checks, the best δ of every sample, and the samples that are not broken yet."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import NamedTuple

import torch
from torch import Tensor

from crmt.arguments import check_kind, check_model, check_whole
from crmt.attacks.balls import Ball, chosen, columns, moved, wide
from crmt.attacks.losses import attack_loss
from crmt.errors import BadInputError
from crmt.gradients import check_grad_mode, input_gradients
from crmt.losses import logit_margin
from crmt.modality import Inputs, check_inputs, check_labels
from crmt.model import MultiModalModel, evaluating, in_parts
from crmt.precision import without_autocast
from crmt.randomness import warn_if_random

OUTSIDE = 1e-4
"""How far an input may lie outside its box, because of rounding."""
TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Types that inputs may have. Below float32 the model sees x + δ in their type; the search computes in float32."""
_ROUNDING = 1e-5
"""Share of the budget by which a point may lie outside the ball."""
_SHORTENED = 4
"""How often a δ is shortened before x itself is returned."""
_WORTH_DROPPING = 1 / 8
"""Share of a run's samples that must be broken before they are dropped: the rest is copied then."""


class AttackResult(NamedTuple):
    """The best adversarial inputs of a batch."""

    inputs: Inputs
    """`(B, *shape)` of every modality, inside ball and box."""
    margin: Tensor
    """h_y − max_{k≠y} h_k there, `(B,)`; −inf where it is NaN."""

    @property
    def broken(self) -> Tensor:
        """Whether the prediction is wrong, `(B,)`. A tie counts as wrong, and so does NaN."""
        return ~(self.margin > 0)


def check_counts(**counts: int) -> None:
    """Refuse counts below 1.

    Raises:
        BadInputError: names the count.
    """
    for name, count in counts.items():
        check_whole(name, count)
        if count < 1:
            raise BadInputError(f"{name} must be 1 or more, not {count}")


def check_targets(targets: int) -> None:
    """Refuse a number of target classes below 0.

    Raises:
        BadInputError: says so.
    """
    check_whole("targets", targets)
    if targets < 0:
        raise BadInputError(f"targets must be 0 or more, not {targets}")


def _check(model: MultiModalModel, inputs: Mapping[str, Tensor], labels: Tensor, ball: Ball) -> None:
    check_model(model)
    check_kind("ball", ball, Ball, "a Ball, such as Ball.joint(['video'], 0.5)")
    check_kind("labels", labels, Tensor, "a tensor of class numbers in int64, one an input")
    unknown = set(ball.attacked) - set(model.modalities)
    if unknown:
        raise BadInputError(f"the model has no modality {', '.join(unknown)}; it has {', '.join(model.modalities)}")
    check_inputs(model.modalities, inputs)
    count = len(inputs[next(iter(model.modalities))])
    if labels.shape != (count,) or labels.dtype != torch.int64:
        raise BadInputError(
            f"labels are {tuple(labels.shape)} of {labels.dtype}: give {count} class numbers in int64, one an input"
        )
    for name, modality in model.modalities.items():
        kind = inputs[name].dtype
        if kind not in TYPES:
            raise BadInputError(
                f"{name!r} is {str(kind).removeprefix('torch.')}: attacks take float16, bfloat16, float32 and float64"
            )
        if not inputs[name].numel():
            continue
        low, high = (float(v) for v in torch.aminmax(inputs[name].detach()))
        if not isfinite(low) or not isfinite(high):
            raise BadInputError(f"{name!r} has NaN or infinite values: leave these inputs out")
        box = modality.box
        if box is None:
            continue
        rounding = max(OUTSIDE, torch.finfo(kind).eps * max(map(abs, box)))
        if low < box[0] - rounding or high > box[1] + rounding:
            raise BadInputError(
                f"{name!r} has values in [{low:.4g}, {high:.4g}], outside its box {list(box)}: scale it"
            )


class Search:
    """An attack on one batch, to be used under `evaluating(model)`. Modalities that stay as they are are encoded once.

    `best` and `margin` are of the whole batch; `deltas` given to its methods are of `rows`, the samples of this run.

    Raises:
        BadInputError: an unknown or missing modality, inputs that are not finite, or outside their box, or do not fit
            the model or the budgets, labels out of range.
    """

    def __init__(self, model: MultiModalModel, inputs: Mapping[str, Tensor], labels: Tensor, ball: Ball) -> None:
        _check(model, inputs, labels, ball)
        labels = labels.to(inputs[next(iter(model.modalities))].device)
        self.model = model
        self.clean = {m: inputs[m].detach() for m in model.modalities}
        self.best = {m: torch.zeros_like(wide(self.clean[m])) for m in ball.attacked}
        self._all = (labels, ball)
        self._in_parts = in_parts(model)
        self._still: Inputs = {}
        self._select(torch.arange(len(labels), device=labels.device))
        ball.epsilons(self.attacked)  # refuses budgets that do not fit
        if len(labels):
            warn_if_random(model, self.clean)
        with torch.no_grad(), without_autocast(labels.device):
            clean = model(self.clean)
            self.logits = wide(clean.logits)
        if self._in_parts:
            self._still = self.still = {m: clean.features[m] for m in model.modalities if m not in self.best}
        check_labels(labels, self.logits.shape[1])
        self.margin = _nan_is_wrong(logit_margin(self.logits, labels))

    def enter(self, ball: Ball) -> None:
        """Begin anew, in another ball around the same inputs: nothing better than x has been seen.

        Args:
            ball: of the same modalities.
        """
        self.best = {m: torch.zeros_like(d) for m, d in self.best.items()}
        self._all = (self._all[0], ball)
        self._select(torch.arange(len(self.margin), device=self.margin.device))
        self.margin = _nan_is_wrong(logit_margin(self.logits, self.labels))

    def _select(self, rows: Tensor) -> None:
        labels, ball = self._all
        self.rows = rows
        whole = len(rows) == len(labels)
        self.inputs = self.clean if whole else {m: x[rows] for m, x in self.clean.items()}
        self.still = self._still if whole else {m: f[rows] for m, f in self._still.items()}
        self.labels = labels if whole else labels[rows]
        self.ball = ball if whole else ball.select(rows)

    @property
    def attacked(self) -> Inputs:
        """x of the attacked modalities, of `rows`, in float32 or better."""
        return {m: wide(self.inputs[m]) for m in self.best}

    def begin(self, drop_broken: bool = True) -> bool:
        """Start a run; returns whether there is any sample to attack.

        Args:
            drop_broken: leave out the samples that are broken already.
        """
        wanted = (self.margin > 0) if drop_broken else torch.ones_like(self.margin, dtype=torch.bool)
        self._select(wanted.nonzero().squeeze(1))
        return len(self.rows) > 0

    def narrowed(self) -> Tensor | None:
        """Drop the broken samples once they are an eighth of `rows` or more (copying the rest at every step would cost
        more than it saves). Returns the places in the former `rows` that are kept; None if nothing changed."""
        kept = (self.margin[self.rows] > 0).nonzero().squeeze(1)
        if len(kept) > (1 - _WORTH_DROPPING) * len(self.rows):
            return None
        self._select(self.rows[kept])
        return kept

    def start(self, start: Mapping[str, Tensor] | None) -> Inputs:
        """δ of the first run: from adversarial inputs of the whole batch, or 0."""
        if start is None:
            return {m: torch.zeros_like(x) for m, x in self.attacked.items()}
        return self.project(self.from_inputs(start))

    def from_inputs(self, start: Mapping[str, Tensor]) -> Inputs:
        """δ of adversarial inputs of the whole batch, without projection.

        Args:
            start: `(B, *shape)` of every attacked modality.

        Raises:
            BadInputError: they do not fit the model or the batch.
        """
        check_kind("start", start, Mapping, "a dictionary of modality to adversarial inputs")
        check_inputs({m: self.model.modalities[m] for m in self.best}, start)
        count = len(self.margin)
        if any(len(start[m]) != count for m in self.best):
            raise BadInputError(f"the start has another number of inputs than the batch, {count}: give one for each")
        return {m: wide(start[m].detach()[self.rows]) - x for m, x in self.attacked.items()}

    def random(self, generator: torch.Generator | None) -> Inputs:
        """A random δ in ball and box, from which a later run starts."""
        return self.project(self.ball.random(self.attacked, generator))

    def project(self, deltas: Inputs) -> Inputs:
        """δ inside the ball, and x + δ in the box."""
        return self.ball.project(deltas, self.attacked, self.model.modalities)

    @torch.no_grad()
    def evaluate(self, deltas: Inputs) -> Tensor:
        """The margins at x + δ, `(R,)`; what is better than all before is kept."""
        return self.keep(deltas, self._logits(self._points(deltas)))

    def _logits(self, points: Inputs) -> Tensor:
        """The logits of `rows` where the attacked modalities are at these points."""
        if not self._in_parts:
            # a first layer that works in place may not be given a leaf; `encode` makes a new tensor anyway
            return self.model(self.inputs | {m: x.clone() for m, x in points.items()}).logits
        return self.model.decide(self.still | {m: self.model.encode(m, x) for m, x in points.items()}).logits

    def _points(self, deltas: Inputs) -> Inputs:
        return {m: moved(self.inputs[m], d) for m, d in deltas.items()}

    def keep(self, deltas: Inputs, logits: Tensor) -> Tensor:
        """The margins of these logits; what is better than all before is kept."""
        margin = _nan_is_wrong(logit_margin(wide(logits), self.labels))
        if len(self.rows) == len(self.margin):  # all of them, in order
            better = margin < self.margin
            self.margin = torch.where(better, margin, self.margin)
            self.best = chosen(better, {m: wide(deltas[m]) for m in self.best}, self.best)
            return margin
        best = self.margin[self.rows]
        better = margin < best
        self.margin[self.rows] = torch.where(better, margin, best)
        for m, d in deltas.items():
            self.best[m][self.rows] = torch.where(columns(better, d), wide(d), self.best[m][self.rows])
        return margin

    def gradients(self, deltas: Inputs, loss: str, targets: Tensor | None = None) -> tuple[Inputs, Tensor]:
        """Gradients by δ of the loss at x + δ, and the loss, `(R,)`; what is better than all before is kept.

        Args:
            deltas: δ, `(R, *shape)` of every attacked modality.
            loss: its name.
            targets: classes that the attack wants, `(R,)`; None: any wrong class.
        """
        # by x + δ, which is the same as by δ
        leaves = {m: x.detach().requires_grad_() for m, x in self._points(deltas).items()}
        check_grad_mode()
        with torch.enable_grad():
            logits = wide(self._logits(leaves))
            value = attack_loss(loss, logits, self.labels, targets)
            self.keep(deltas, logits.detach())
            if logits.shape[1] < 2:  # there is no other class
                return {m: torch.zeros_like(d) for m, d in deltas.items()}, value
            found = input_gradients(self.model, self.inputs, value.sum(), leaves)
        # a norm at 0 has a NaN gradient in many models: that direction is left out
        return {m: wide(torch.nan_to_num(g)) for m, g in found.items()}, value.detach()

    def moved(
        self, deltas: Inputs, gradients: Inputs, size: float | Tensor, generator: torch.Generator | None
    ) -> Inputs:
        """δ after a step; a random δ where the whole gradient is exactly 0.

        Args:
            deltas: δ, `(R, *shape)` of every attacked modality.
            gradients: of the same shapes.
            size: the length of the step in units of ε: one for all, or `(R,)`.
            generator: for the random δ.
        """
        there = self.project(self.ball.stepped(deltas, gradients, size))
        flat = torch.stack([(g == 0).flatten(1).all(1) for g in gradients.values()]).all(0)
        return chosen(flat, self.random(generator), there) if bool(flat.any()) else there

    def result(self) -> AttackResult:
        """The best points, seen once more by the model, without autocast.

        Where x + δ, rounded, lies outside the ball, δ is shortened first. Margins are those of the search, but where
        the model, given the whole batch, decides otherwise: rounding differs with the size of a batch. Of a search
        under autocast no margin is kept.
        """
        ball = self._all[1]
        best = {m: moved(self.clean[m], d) for m, d in self.best.items()}
        shortened = torch.zeros_like(self.margin, dtype=torch.bool)
        for attempt in range(_SHORTENED + 1):
            length = ball.gauge({m: wide(x) - wide(self.clean[m]) for m, x in best.items()})
            rows = (length > 1 + _ROUNDING).nonzero().squeeze(1)
            if not len(rows):
                break
            shortened[rows] = True
            factor = (1 - _ROUNDING) / length[rows] if attempt < _SHORTENED else torch.zeros_like(length[rows])
            for m, d in self.best.items():
                d[rows] = d[rows] * columns(factor, d[rows])
                best[m][rows] = moved(self.clean[m][rows], d[rows])
        inputs = self.clean | best
        with evaluating(self.model):
            seen = self._seen(inputs)
        rough = torch.is_autocast_enabled(seen.device.type)
        self.margin = torch.where(rough | shortened | ((seen > 0) != (self.margin > 0)), seen, self.margin)
        return AttackResult(inputs, self.margin)

    def margins(self, deltas: Inputs) -> Tensor:
        """The margins at x + δ of the whole batch, `(B,)`; nothing is kept."""
        return self._seen(self.clean | {m: moved(self.clean[m], d) for m, d in deltas.items()})

    @torch.no_grad()
    def _seen(self, inputs: Inputs) -> Tensor:
        with without_autocast(self._all[0].device):
            return _nan_is_wrong(logit_margin(wide(self.model(inputs).logits), self._all[0]))


def _nan_is_wrong(margin: Tensor) -> Tensor:
    return torch.where(margin.isnan(), torch.full_like(margin, float("-inf")), margin)
