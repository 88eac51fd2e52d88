"""Every attack by name, with one calling convention: ours, one file each, and the user's own by path."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from crmt.attacks.balls import Ball
from crmt.attacks.base import DEFAULT_SETTINGS, Attack, AttackSettings, Call
from crmt.attacks.search import AttackResult
from crmt.doors import ATTACKS
from crmt.errors import BadInputError
from crmt.model import MultiModalModel


def attack_names() -> list[str]:
    """The names of the attacks in this folder."""
    return ATTACKS.names()


def parts_of_auto() -> tuple[str, ...]:
    """What `auto` runs, cheapest first."""
    places = {name: find_attack(name).place_in_auto for name in attack_names()}
    return tuple(sorted((n for n, place in places.items() if place is not None), key=lambda n: (places[n], n)))


def find_attack(name: str) -> Attack:
    """The attack of that name.

    Args:
        name: one of `attack_names()`, or `package.module:Name` of a class that derives from `Attack`.

    Raises:
        BadInputError: no such attack, or a class that is none.
    """
    kind = ATTACKS.find(name)
    if not (isinstance(kind, type) and issubclass(kind, Attack)):
        raise BadInputError(f"{name} is no attack: make it a class that derives from crmt.attacks.Attack")
    try:
        return kind()
    except TypeError as error:  # it asks for arguments, or lacks `run`
        raise BadInputError(f"{name} cannot be made an attack: {error}") from None


def attack(
    name: str,
    model: MultiModalModel,
    inputs: Mapping[str, Tensor],
    labels: Tensor,
    ball: Ball,
    *,
    settings: AttackSettings = DEFAULT_SETTINGS,
    start: Mapping[str, Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> AttackResult:
    """The attack of that name on a batch.

    Args:
        name: one of `attack_names()`, or `package.module:Name` of the user's own code.
        model: attacked in evaluation mode, and left as it was.
        inputs: x, `(B, *shape)` of every modality, in its space and inside its box.
        labels: y, `(B,)`, int64.
        ball: where the attack may go; one budget for all, or `(B,)`.
        settings: how hard it tries.
        start: adversarial inputs to start from. FGM and noise do not use it.
        generator: for random starts, Square and noise.

    Raises:
        BadInputError: an unknown attack, and as `pgd`.
    """
    return find_attack(name).run(Call(model, inputs, labels, ball, settings, start, generator))
