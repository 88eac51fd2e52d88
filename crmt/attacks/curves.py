"""Accuracy under attack over grids of budgets, and audits of radii, over batches and per sample.

The parts that several workers computed only need to be put one after the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Literal

import torch
from torch import Tensor

from crmt.attacks.balls import Ball
from crmt.attacks.base import DEFAULT_SETTINGS, AttackSettings
from crmt.attacks.grid import GridRun
from crmt.attacks.registry import find_attack
from crmt.errors import BadInputError
from crmt.modality import Batch
from crmt.model import MultiModalModel
from crmt.precision import computing
from crmt.progress import Progress, silent
from crmt.settings import Precision

Budget = float | dict[str, float]
"""ε of a joint or uni-modal ball, or ε by modality of a product ball."""


@dataclass(frozen=True)
class Grid:
    """One kind of ball at every budget; no ball comes before one that it contains."""

    budgets: tuple[Budget, ...]
    balls: tuple[Ball, ...]


@dataclass(frozen=True, kw_only=True)
class AttackPlan:
    """Which attacks run, in which balls, with which budgets."""

    names: tuple[str, ...] = ("fgm", "pgd")
    """Names out of `crmt.attacks.attack_names()`, or `package.module:Name` of the user's own code."""
    balls: tuple[str, ...] = ("joint", "each")
    """`joint`, `each` (every modality alone), or modalities' names."""
    epsilons: tuple[float, ...] = (0.1, 0.4, 0.7, 1, 1.5, 2, 2.5, 3, 3.5, 4)
    product: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """A grid of product balls: modality to its budgets; every combination of them is attacked. Empty: no grid."""
    norm: Literal["l2", "linf"] = "l2"
    settings: AttackSettings = DEFAULT_SETTINGS
    """How hard the attacks try."""
    precision: Precision = "fp32"
    """Of the search; the points that it ends with are judged in float32."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in self.names:
            find_attack(name)
        for modality, budgets in self.product.items():
            if not budgets:
                raise BadInputError(f"attack.product: {modality!r} has no budgets: give at least one")
        if self.balls and not self.epsilons:
            raise BadInputError("attack.epsilons is empty: give at least one budget")

    def settings_of(self, attack: str) -> dict[str, str | int]:
        """The settings of this plan that an attack takes; results are stored with them.

        Args:
            attack: by name, or `package.module:Name`.
        """
        found = find_attack(attack)
        chosen = self.settings.chosen(found.settings) | ({"seed": self.seed} if found.random else {})
        return chosen | ({} if self.precision == "fp32" else {"precision": self.precision})

    def attacked(self, modalities: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """Ball name to the modalities that it attacks. With one modality, `joint` and `each` are the same ball.

        Args:
            modalities: names of the model's modalities.

        Raises:
            BadInputError: a ball that is neither `joint`, `each` nor a modality of the model, or a grid over others.
        """
        balls: dict[str, tuple[str, ...]] = {}
        for ball in self.balls:
            if ball == "joint":
                balls["joint"] = tuple(modalities)
            elif ball == "each":
                balls |= {m: (m,) for m in modalities}
            elif ball in modalities:
                balls[ball] = (ball,)
            else:
                raise BadInputError(f"attack.balls: {ball!r} is not joint, each or one of {', '.join(modalities)}")
        for m in self.product:
            if m not in modalities:
                raise BadInputError(f"attack.product: {m!r} is not one of {', '.join(modalities)}")
        return balls | ({"product": tuple(self.product)} if self.product else {})

    def grids(self, modalities: Sequence[str]) -> dict[str, Grid]:
        """Ball name to its balls at every budget.

        Args:
            modalities: names of the model's modalities.

        Raises:
            BadInputError: as `attacked`.
        """
        grids = {}
        for name, attacked in self.attacked(modalities).items():
            if name == "product" and self.product:
                sides = [sorted({float(e) for e in self.product[m]}) for m in attacked]
                budgets: list[Budget] = [dict(zip(attacked, chosen, strict=True)) for chosen in product(*sides)]
                balls = [Ball.product(dict(zip(attacked, c, strict=True)), self.norm) for c in product(*sides)]
            else:
                epsilons = sorted({float(e) for e in self.epsilons})
                budgets, balls = list(epsilons), [Ball.joint(attacked, e, self.norm) for e in epsilons]
            grids[name] = Grid(tuple(budgets), tuple(balls))
        return grids


@dataclass(frozen=True)
class Robustness:
    """Whether each of N predictions withstood an attack."""

    attack: str
    ball: str
    """`joint`, `product` or a modality's name."""
    budgets: tuple[Budget, ...]
    """E budgets: ε, or for `product` ε by modality."""
    robust: Tensor
    """`(N, E)`, bool."""

    @property
    def epsilons(self) -> tuple[float, ...]:
        """The budgets of a joint or uni-modal ball."""
        return tuple(b for b in self.budgets if isinstance(b, float))


def attack_curves(
    model: MultiModalModel, batches: Iterable[Batch], plan: AttackPlan, progress: Progress = silent
) -> list[Robustness]:
    """Attack every input in every ball at every budget.

    An attack leaves an input as soon as it is broken. In joint and uni-modal balls it goes down from the largest, each
    time from x and from the point that it found before, until the input withstands it and one smaller budget; in a grid
    of product balls it goes up from the smallest. So its accuracy never rises with the budget; FGM and noise are at
    each budget by themselves. An attack that is made of others, as `auto` is, goes up in every ball and
    attacks what stands at every budget: it counts as broken whatever any attack of the plan broke in that ball or in
    one that it contains, and runs those of its parts on the rest that the plan does not list.

    Args:
        model: attacked in evaluation mode, and left as it was.
        batches: labelled inputs, on the model's device; N inputs in all.
        plan: attacks, balls, budgets and settings.
        progress: called with the number of inputs after each batch and ball.

    Returns: one entry an attack and ball, in the order of the plan.

    Raises:
        BadInputError: a plan or a batch that does not fit the model, and as `pgd`.
    """
    found: dict[tuple[str, str], list[Tensor]] = {}
    budgets: dict[str, tuple[Budget, ...]] = {}
    for number, batch in enumerate(batches):
        grids = plan.grids(list(model.modalities))
        budgets = {name: grid.budgets for name, grid in grids.items()}
        with computing(plan.precision, batch.labels.device):
            broken = _batch(model, batch, grids, plan, plan.seed + number, progress)
        for name in grids:
            for attack in plan.names:
                found.setdefault((attack, name), []).append(~broken[attack, name].cpu())
    return [Robustness(attack, name, budgets[name], torch.cat(parts)) for (attack, name), parts in found.items()]


def _batch(
    model: MultiModalModel, batch: Batch, grids: Mapping[str, Grid], plan: AttackPlan, seed: int, progress: Progress
) -> dict[tuple[str, str], Tensor]:
    """Which inputs every attack of the plan breaks in every ball: `(B, E)` by attack and ball."""
    attacks = {name: find_attack(name) for name in plan.names}
    single = {name: attack for name, attack in attacks.items() if not attack.parts()}
    made_of = {
        name: [p for p in attack.parts() if p not in single] for name, attack in attacks.items() if attack.parts()
    }
    broken: dict[tuple[str, str], Tensor] = {}
    by_ball: dict[str, dict[str, Tensor]] = {name: {} for name in made_of}
    # small balls first: what breaks one of them breaks the balls that contain it
    for ball in sorted(grids, key=lambda n: (n == "product", len(grids[n].balls[0].attacked))):
        run = GridRun(model, batch, grids[ball].balls, plan.settings, seed)
        for name, attack in single.items():
            broken[name, ball] = run.attack(attack)
        for name, parts in made_of.items():
            known = _contained(grids, ball, by_ball[name], batch)
            for other in single:
                known |= broken[other, ball]
            by_ball[name][ball] = run.made_of([find_attack(p) for p in parts], known)
        progress(len(batch.labels))
    for name, found in by_ball.items():
        for ball, tensor in found.items():
            broken[name, ball] = tensor | _contained(grids, ball, found, batch)
    return broken


def _contained(grids: Mapping[str, Grid], name: str, broken: Mapping[str, Tensor], batch: Batch) -> Tensor:
    """Which inputs are broken in any ball that those of `name` contain, `(B, E)`."""
    result = torch.zeros(len(batch.labels), len(grids[name].balls), dtype=torch.bool, device=batch.labels.device)
    for i, ball in enumerate(grids[name].balls):
        for other, found in broken.items():
            inner = [j for j, b in enumerate(grids[other].balls) if ball.contains(b)]
            result[:, i] |= found[:, inner].any(1)
    return result
