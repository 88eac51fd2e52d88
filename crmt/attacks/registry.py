"""Every attack by name with one calling convention, and `auto`, which runs them cheapest first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from crmt.attacks.apgd import apgd
from crmt.attacks.balls import Ball
from crmt.attacks.gradient import fgm, pgd
from crmt.attacks.losses import check_loss
from crmt.attacks.minimal import minimal_norm
from crmt.attacks.random import noise
from crmt.attacks.search import AttackResult, Search, check_counts
from crmt.attacks.square import square
from crmt.errors import BadInputError
from crmt.model import MultiModalModel, evaluating


@dataclass(frozen=True, kw_only=True)
class AttackSettings:
    """How hard the attacks try; each takes what concerns it."""

    loss: str = "margin"
    """Of FGM and PGD; APGD's is in its name."""
    steps: int = 20
    """Of PGD and the minimal-norm attack; APGD takes twice as many in every run."""
    restarts: int = 1
    """Of PGD, APGD and the minimal-norm attack: the first from x, the others from random points. With 1, `auto` ends
    with one run of APGD-DLR from a random point."""
    targets: int = 3
    """Classes that apgd_dlr aims at, each in its own run, after one untargeted run."""
    queries: int = 500
    """Of Square."""
    draws: int = 10
    """Of noise."""

    def __post_init__(self) -> None:
        check_loss(self.loss)
        check_counts(steps=self.steps, restarts=self.restarts, queries=self.queries, draws=self.draws)
        if self.targets < 0:
            raise BadInputError(f"targets must be 0 or more, not {self.targets}")


@dataclass(frozen=True)
class Call:
    """One attack on one batch."""

    model: MultiModalModel
    inputs: Mapping[str, Tensor]
    labels: Tensor
    ball: Ball
    settings: AttackSettings = AttackSettings()
    start: Mapping[str, Tensor] | None = None
    """Adversarial inputs to start from, such as those of a smaller radius."""
    generator: torch.Generator | None = None

    @property
    def given(self) -> tuple[MultiModalModel, Mapping[str, Tensor], Tensor, Ball]:
        return self.model, self.inputs, self.labels, self.ball

    def on(self, rows: Tensor) -> Call:
        """The same on some of the inputs."""
        return replace(
            self,
            inputs={m: self.inputs[m][rows] for m in self.model.modalities},
            labels=self.labels[rows.to(self.labels.device)],
            ball=self.ball.select(rows),
            start=None if self.start is None else {m: x[rows] for m, x in self.start.items()},
        )


def _fgm(call: Call) -> AttackResult:
    return fgm(*call.given, loss=call.settings.loss)


def _pgd(call: Call) -> AttackResult:
    s = call.settings
    return pgd(
        *call.given,
        steps=s.steps,
        restarts=s.restarts,
        loss=s.loss,
        start=call.start,
        generator=call.generator,
        drop_broken=True,
    )


def _apgd_ce(call: Call) -> AttackResult:
    s = call.settings
    return apgd(
        *call.given,
        loss="cross_entropy",
        steps=2 * s.steps,
        restarts=s.restarts,
        start=call.start,
        generator=call.generator,
    )


def _apgd_dlr(call: Call) -> AttackResult:
    """Untargeted, then towards each of the most likely classes."""

    def run(part: Call, targets: int) -> AttackResult:
        s = part.settings
        return apgd(
            *part.given,
            loss="dlr",
            steps=2 * s.steps,
            restarts=s.restarts,
            targets=targets,
            start=part.start,
            generator=part.generator,
        )

    found = run(call, 0)
    return then(call, found, lambda rest: run(rest, call.settings.targets)) if call.settings.targets else found


def _minimal_norm(call: Call) -> AttackResult:
    """The nearest adversarial input where it is inside the ball, otherwise its projection."""
    s = call.settings
    found = minimal_norm(*call.given, steps=s.steps, restarts=s.restarts, start=call.start, generator=call.generator)
    with evaluating(call.model):
        search = Search(*call.given)
        if search.begin():
            search.evaluate(search.start(found.inputs))
    return search.result()


def _square(call: Call) -> AttackResult:
    return square(*call.given, queries=call.settings.queries, start=call.start, generator=call.generator)


def _noise(call: Call) -> AttackResult:
    return noise(*call.given, draws=call.settings.draws, generator=call.generator)


def _auto(call: Call) -> AttackResult:
    """All parts; those that began at x alone see nothing that lies behind a coordinate without a gradient there."""
    found = in_turn(call, tuple(PARTS))
    return then(call, found, _apgd_from_random) if call.settings.restarts == 1 else found


def _apgd_from_random(call: Call) -> AttackResult:
    """APGD on DLR, not aimed, from a random point of the ball."""
    attacked = {m: call.inputs[m] for m in call.ball.attacked}
    drawn = call.ball.random(attacked, call.generator)
    start = {m: x + drawn[m] for m, x in attacked.items()}
    return apgd(*call.given, loss="dlr", steps=2 * call.settings.steps, start=start, generator=call.generator)


def in_turn(call: Call, names: Sequence[str]) -> AttackResult:
    """These attacks, each on what the ones before it left standing."""
    found = ATTACKS[names[0]](call)
    for name in names[1:]:
        found = then(call, found, ATTACKS[name])
    return found


def then(call: Call, found: AttackResult, attack: Callable[[Call], AttackResult]) -> AttackResult:
    """`found`, bettered by another attack on the inputs that still stand.

    It starts where it would alone, not at the best point so far: so what it breaks alone is broken afterwards.
    """
    rows = (~found.broken).nonzero().squeeze(1)
    if not len(rows):
        return found
    more = attack(call.on(rows))
    chosen = more.margin < found.margin[rows]
    better = rows[chosen]
    inputs = {m: x.clone() for m, x in found.inputs.items()}
    margin = found.margin.clone()
    for m in call.ball.attacked:
        inputs[m][better] = more.inputs[m][chosen]
    margin[better] = more.margin[chosen]
    return AttackResult(inputs, margin)


PARTS: dict[str, Callable[[Call], AttackResult]] = {
    "fgm": _fgm,
    "pgd": _pgd,
    "minimal_norm": _minimal_norm,
    "apgd_ce": _apgd_ce,
    "apgd_dlr": _apgd_dlr,
    "square": _square,
}
"""Of `auto`, cheapest first."""

ATTACKS: dict[str, Callable[[Call], AttackResult]] = {**PARTS, "noise": _noise, "auto": _auto}
"""Every attack that stays inside a ball, by name."""


def check_attack(name: str) -> None:
    """Refuse an unknown attack."""
    if name not in ATTACKS:
        raise BadInputError(f"no attack {name!r}. Valid: {', '.join(ATTACKS)}")


def attack(
    name: str,
    model: MultiModalModel,
    inputs: Mapping[str, Tensor],
    labels: Tensor,
    ball: Ball,
    *,
    settings: AttackSettings | None = None,
    start: Mapping[str, Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> AttackResult:
    """The attack of that name on a batch.

    Args:
        inputs: x, `(B, *shape)` of every modality, inside its box. labels: `(B,)`. ball: where the attack may go; one
            budget for all, or `(B,)`.
        start: adversarial inputs to start from. FGM and noise take no notice of it.
        generator: for random starts, Square and noise.

    Raises:
        BadInputError: an unknown attack, and as `pgd`.
    """
    check_attack(name)
    return ATTACKS[name](Call(model, inputs, labels, ball, settings or AttackSettings(), start, generator))


auto = partial(attack, "auto")
"""The strongest attack: FGM, PGD, minimal-norm, APGD-CE, APGD-DLR with targets, Square, each on what stands.

Where no part has a random restart, APGD-DLR from a random point comes last: coordinates without a gradient at x, such
as those that a threshold cuts off, move from there only. Every part starts where it would alone, so no part that draws
nothing at random breaks more by itself. Arguments and errors as `attack`.
"""
