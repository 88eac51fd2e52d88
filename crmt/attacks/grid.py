"""One batch attacked in many balls: samples drop once broken, and larger balls start from smaller ones' results."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from crmt.attacks.balls import Ball, Group
from crmt.attacks.minimal import minimal_norm
from crmt.attacks.registry import ATTACKS, AttackSettings, Call, in_turn
from crmt.attacks.search import AttackResult
from crmt.modality import Batch, Inputs
from crmt.model import MultiModalModel

ONE_BUDGET = ("fgm", "noise")
"""Reported in each ball by itself: what they find in a smaller one says nothing about them in a larger one."""


class GridRun:
    """Attacks on one batch in each of some balls, where no ball comes before one that it contains.

    An attack's result depends on the seed, but not on which other attacks run.
    """

    def __init__(
        self, model: MultiModalModel, batch: Batch, balls: Sequence[Ball], settings: AttackSettings, seed: int
    ) -> None:
        self.model = model
        self.batch = batch
        self.balls = tuple(balls)
        self.settings = settings
        self.seed = seed
        self.inside = [[j for j in range(i) if ball.contains(self.balls[j])] for i, ball in enumerate(self.balls)]

    def attack(self, name: str) -> Tensor:
        """Which inputs that attack breaks in each ball, `(B, E)`."""
        if name in ONE_BUDGET:
            generator = self._generator()
            return torch.stack([ATTACKS[name](self._call(b, generator)).broken for b in self.balls], dim=1)
        if name == "minimal_norm" and self._one_budget():
            return self._nearest(torch.arange(len(self.batch.labels), device=self.batch.labels.device))
        return self._search(ATTACKS[name], self._nothing())

    def auto(self, known: Tensor, parts: Sequence[str]) -> Tensor:
        """`known`, `(B, E)`, and what these attacks, one after the other, break of the rest."""
        broken = known.clone()
        rest = list(parts)
        if "minimal_norm" in rest and self._one_budget():  # one pass settles most budgets of most inputs
            rest.remove("minimal_norm")
            rows = (~broken.all(1)).nonzero().squeeze(1)
            if len(rows):
                broken[rows] |= self._nearest(rows)

        return self._search((lambda call: in_turn(call, rest)) if rest else None, broken)

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)

    def _call(self, ball: Ball, generator: torch.Generator, start: Inputs | None = None) -> Call:
        return Call(self.model, self.batch.inputs, self.batch.labels, ball, self.settings, start, generator)

    def _nothing(self) -> Tensor:
        labels = self.batch.labels
        return torch.zeros(len(labels), len(self.balls), dtype=torch.bool, device=labels.device)

    def _one_budget(self) -> bool:
        return all(len(b.groups) == 1 for b in self.balls)

    def _nearest(self, rows: Tensor) -> Tensor:
        """One pass of the minimal-norm attack for all budgets."""
        group = self.balls[0].groups[0]
        call = self._call(Ball((Group(group.modalities, 1.0),), self.balls[0].norm), self._generator()).on(rows)
        found = minimal_norm(
            *call.given,
            steps=self.settings.steps,
            restarts=self.settings.restarts,
            generator=call.generator,
        )
        budgets = torch.tensor([float(b.groups[0].epsilon) for b in self.balls]).to(found.radius)
        return found.radius[:, None] <= budgets

    def _search(self, attack: Callable[[Call], AttackResult] | None, known: Tensor) -> Tensor:
        broken = known.clone()
        generator = self._generator()
        reached: dict[int, Inputs | None] = {}
        for i, (ball, inside) in enumerate(zip(self.balls, self.inside, strict=True)):
            broken[:, i] |= broken[:, inside].any(1)
            start = reached.get(inside[-1]) if inside else None
            rows = (~broken[:, i]).nonzero().squeeze(1)
            if attack is not None and len(rows):
                found = attack(self._call(ball, generator, start).on(rows))
                broken[rows, i] = found.broken
                start = self._updated(start, rows, found.inputs)
            reached[i] = start
            later = {before[-1] for before in self.inside[i + 1 :] if before}
            reached = {j: inputs for j, inputs in reached.items() if j in later}
        return broken

    def _updated(self, start: Inputs | None, rows: Tensor, found: Inputs) -> Inputs:
        """Where every input of the batch stands, for a larger ball to start from."""
        source = self.batch.inputs if start is None else start
        whole = {m: source[m].detach().clone() for m in self.model.modalities}
        for m, x in whole.items():
            x[rows] = found[m]
        return whole
