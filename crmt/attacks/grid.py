"""One batch attacked in many balls: samples drop once broken, and what is found in one ball serves the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from crmt.attacks.balls import Ball, Group, wide
from crmt.attacks.base import Attack, AttackSettings, Call, improved, run_in_turn
from crmt.attacks.search import AttackResult
from crmt.modality import Batch, Inputs
from crmt.model import MultiModalModel

PATIENCE = 1
"""How many smaller balls an input is attacked in after it withstood one."""


class GridRun:
    """Attacks on one batch in several balls, E of them; no ball comes before one that it contains.

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

    def attack(self, attack: Attack) -> Tensor:
        """Which inputs that attack breaks in each ball, `(B, E)`, bool."""
        if not attack.uses_start:
            generator = self._generator()
            found = attack.in_each(self._call(self.balls[0], generator), self.balls)
            if found is not None:
                return found
            return torch.stack([attack.run(self._call(b, generator)).broken for b in self.balls], dim=1)
        everywhere = torch.arange(len(self.batch.labels), device=self.batch.labels.device)
        nearest = self._within_radii(attack, everywhere)
        if nearest is not None:
            return nearest
        nested = all(inside == list(range(i)) for i, inside in enumerate(self.inside))
        return self._descend(attack.run) if nested else self._ascend(attack.run, self._none_broken())

    def made_of(self, parts: Sequence[Attack], known: Tensor) -> Tensor:
        """Which inputs are broken in each ball by any of these attacks, `(B, E)`; each runs on what is left.

        Args:
            parts: the attacks, cheap ones first.
            known: which inputs are known to be broken, `(B, E)`, bool.
        """
        broken = known.clone()
        rest = []
        for part in parts:
            rows = (~broken.all(1)).nonzero().squeeze(1)
            nearest = self._within_radii(part, rows)  # one run answers for most budgets of most inputs
            if nearest is None:
                rest.append(part)
            else:
                broken[rows] |= nearest

        return self._ascend((lambda call: run_in_turn(call, rest)) if rest else None, broken)

    def _generator(self) -> torch.Generator:
        return torch.Generator(self.batch.labels.device).manual_seed(self.seed)

    def _call(self, ball: Ball, generator: torch.Generator, start: Inputs | None = None) -> Call:
        return Call(self.model, self.batch.inputs, self.batch.labels, ball, self.settings, start, generator)

    def _none_broken(self) -> Tensor:
        labels = self.batch.labels
        return torch.zeros(len(labels), len(self.balls), dtype=torch.bool, device=labels.device)

    def _within_radii(self, attack: Attack, rows: Tensor) -> Tensor | None:
        """Which of these inputs are broken in each ball, `(R, E)`, by one run for all budgets. None where the attack
        finds no smallest radii, or where a ball has more than one budget."""
        if type(attack).smallest_radii is Attack.smallest_radii or any(len(b.groups) > 1 for b in self.balls):
            return None
        budgets = [float(b.groups[0].epsilon) for b in self.balls]
        if not len(rows):
            return torch.zeros(0, len(budgets), dtype=torch.bool, device=rows.device)
        unit = Ball((Group(self.balls[0].groups[0].modalities, 1.0),), self.balls[0].norm)
        radius = attack.smallest_radii(self._call(unit, self._generator()).on(rows))
        return None if radius is None else radius[:, None] <= torch.tensor(budgets).to(radius)

    def _ascend(self, attack: Callable[[Call], AttackResult] | None, known: Tensor) -> Tensor:
        """Which inputs an attack breaks in each ball, `(B, E)`: every input goes up from the smallest ball, each time
        from the best point of the balls inside. What stands is attacked in every ball: stronger than `_descend`, and as
        dear as all the balls one by one."""
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

    def _descend(self, attack: Callable[[Call], AttackResult]) -> Tensor:
        """The same in balls each of which contains the one before: every input goes down from the largest ball.

        What breaks it there breaks it in every ball that holds the point that was found; next comes the largest that
        does not. There the attack starts at x, as it would alone, and where that fails at the point from above. Where
        an input withstands both, the next smaller balls are tried as well, from x (`PATIENCE`): steps in proportion
        to the budget sometimes pass over what shorter ones find.
        """
        labels = self.batch.labels
        smallest = torch.full_like(labels, len(self.balls))  # ball that is known to break the input
        tried, patience = smallest - 1, torch.full_like(smallest, PATIENCE)
        generator, above = self._generator(), None
        while True:
            rows = ((tried >= 0) & (patience >= 0)).nonzero().squeeze(1)
            if not len(rows):
                break
            balls = self._of_each(tried.clamp_min(0))
            call = self._call(balls, generator, above).on(rows)
            found = attack(replace(call, start=None))
            if above is not None:
                found = improved(found, call, attack, patience[rows] == PATIENCE)
            above = self._updated(above, rows, found.inputs)
            fell, before = found.broken, tried[rows]
            first = torch.minimum(before, self._first_around(rows, found.inputs))
            smallest[rows] = torch.where(fell, first, smallest[rows])
            tried[rows] = torch.where(fell, first, before) - 1
            patience[rows] = torch.where(fell, PATIENCE, patience[rows] - 1)
        return torch.arange(len(self.balls), device=labels.device) >= smallest[:, None]

    def _of_each(self, numbers: Tensor) -> Ball:
        """One ball for each input: that of these numbers, `(B,)`."""
        groups = []
        for i, group in enumerate(self.balls[0].groups):
            all_budgets = [float(b.groups[i].epsilon) for b in self.balls]
            budgets = torch.tensor(all_budgets, dtype=torch.float64, device=numbers.device)
            groups.append(Group(group.modalities, budgets[numbers]))
        return Ball(tuple(groups), self.balls[0].norm)

    def _first_around(self, rows: Tensor, found: Inputs) -> Tensor:
        """The number of the first ball that holds each of these points, `(R,)`."""
        first = self.balls[0]
        deltas = {m: wide(found[m]) - wide(self.batch.inputs[m][rows]) for m in first.attacked}
        outside = []
        lengths = first.lengths(deltas)
        for ball in self.balls:
            over = [n > float(g.epsilon) for n, g in zip(lengths, ball.groups, strict=True)]
            outside.append(torch.stack(over).any(0))
        return torch.stack(outside).sum(0)

    def _updated(self, start: Inputs | None, rows: Tensor, found: Inputs) -> Inputs:
        """Every input's best point so far, for the attack in another ball to start from."""
        source = self.batch.inputs if start is None else start
        whole = {m: source[m].detach().clone() for m in self.model.modalities}
        for m, x in whole.items():
            x[rows] = found[m]
        return whole
