"""What an attack is: a title, the settings that it takes, and `run`. A new one is one file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import ClassVar

import torch
from torch import Tensor

from crmt.arguments import check_kind
from crmt.attacks.balls import Ball
from crmt.attacks.losses import check_loss
from crmt.attacks.search import AttackResult, check_counts, check_targets
from crmt.model import MultiModalModel


@dataclass(frozen=True, kw_only=True)
class AttackSettings:
    """How hard the attacks try; each takes what concerns it."""

    loss: str = "margin"
    """The loss that FGM and PGD raise: `margin` or `cross_entropy`; APGD's is in its name."""
    steps: int = 20
    """Steps of PGD and of the minimal-norm attack; APGD takes twice as many in every run."""
    restarts: int = 1
    """Runs of PGD, APGD and the minimal-norm attack: the first from x, the others from random points. With 1, `auto`
    ends with one run of APGD-DLR from a random point."""
    targets: int = 3
    """Classes that apgd_dlr aims at, each in its own run, after one untargeted run."""
    queries: int = 500
    """Forward passes of Square, for each batch and ball."""
    draws: int = 10
    """Random δ that `noise` tries."""

    def __post_init__(self) -> None:
        check_loss(self.loss)
        check_counts(steps=self.steps, restarts=self.restarts, queries=self.queries, draws=self.draws)
        check_targets(self.targets)

    def chosen(self, names: Sequence[str]) -> dict[str, str | int]:
        """Some of the settings by name, in the order in which they are declared."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name in names}


DEFAULT_SETTINGS = AttackSettings()


@dataclass(frozen=True)
class Call:
    """What one attack on one batch is given."""

    model: MultiModalModel
    inputs: Mapping[str, Tensor]
    """x, `(B, *shape)` of every modality, in its space and box."""
    labels: Tensor
    """`(B,)`."""
    ball: Ball
    settings: AttackSettings = DEFAULT_SETTINGS
    start: Mapping[str, Tensor] | None = None
    """Adversarial inputs to start from, such as those of a smaller radius."""
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        check_kind("settings", self.settings, AttackSettings, "AttackSettings(...)")

    @property
    def target(self) -> tuple[MultiModalModel, Mapping[str, Tensor], Tensor, Ball]:
        """What is attacked: model, inputs, labels and ball, as `pgd(...)` and the others take them first."""
        return self.model, self.inputs, self.labels, self.ball

    def on(self, rows: Tensor) -> Call:
        """The same attack on some of the inputs.

        Args:
            rows: their indices, `(R,)`.
        """
        return replace(
            self,
            inputs={m: self.inputs[m][rows] for m in self.model.modalities},
            labels=self.labels[rows.to(self.labels.device)],
            ball=self.ball.select(rows),
            start=None if self.start is None else {m: x[rows] for m, x in self.start.items()},
        )


class Attack(ABC):
    """An attack that stays inside a ball. It keeps nothing between calls."""

    title: ClassVar[str]
    """Its name in tables and figures: "APGD-DLR"."""
    settings: ClassVar[tuple[str, ...]] = ()
    """The fields of `AttackSettings` that it uses; results are stored with these alone."""
    random: ClassVar[bool] = False
    """Whether it takes random numbers from `Call.generator`."""
    uses_start: ClassVar[bool] = True
    """Whether it goes on from `Call.start`, what it reached in another ball. If not, it is reported in each ball by
    itself: what it finds in one says nothing about another."""
    place_in_auto: ClassVar[int | None] = None
    """Where it stands among the attacks that `auto` runs, cheap ones first; None leaves it out."""

    @abstractmethod
    def run(self, call: Call) -> AttackResult:
        """The attack on one batch.

        Args:
            call: model, inputs, labels, ball and settings.

        Returns: the inputs with the smallest margins that it saw, inside ball and box.
        """

    def smallest_radii(self, call: Call) -> Tensor | None:  # noqa: ARG002
        """How large the ball must be for each input to be broken, `(B,)`, in multiples of its budgets: one run then
        serves every budget. None where the attack cannot tell.

        Args:
            call: as in `run`.
        """
        return None

    def in_each(self, call: Call, balls: Sequence[Ball]) -> Tensor | None:  # noqa: ARG002
        """Which inputs it breaks in each of E balls that bound the same modalities, `(B, E)`, bool, where that costs
        less than E runs and finds the same. None where it does not.

        Args:
            call: as in `run`; its ball is the first.
            balls: all of them.
        """
        return None

    def parts(self) -> tuple[str, ...]:
        """The attacks that it is made of, by name. A plan that lists some of them runs those once."""
        return ()


def run_in_turn(call: Call, attacks: Sequence[Attack]) -> AttackResult:
    """These attacks one after the other, each on the inputs that those before it did not break.

    Args:
        call: what the first attack is given.
        attacks: at least one.
    """
    found = attacks[0].run(call)
    for attack in attacks[1:]:
        found = improved(found, call, attack.run)
    return found


def improved(
    found: AttackResult, call: Call, run: Callable[[Call], AttackResult], among: Tensor | None = None
) -> AttackResult:
    """`found`, improved by another attack on the inputs that are not broken yet.

    It starts where it would alone, not at the best point so far: so what it breaks alone is broken afterwards.

    Args:
        found: the result of an earlier attack for all inputs of `call`.
        call: what that attack was given.
        run: the other attack.
        among: the inputs that it may run on, `(B,)`, bool; None: all.
    """
    rows = (~found.broken if among is None else ~found.broken & among).nonzero().squeeze(1)
    if not len(rows):
        return found
    more = run(call.on(rows))
    chosen = more.margin < found.margin[rows]
    better = rows[chosen]
    inputs = {m: x.clone() for m, x in found.inputs.items()}
    margin = found.margin.clone()
    for m in call.ball.attacked:
        inputs[m][better] = more.inputs[m][chosen]
    margin[better] = more.margin[chosen]
    return AttackResult(inputs, margin)
