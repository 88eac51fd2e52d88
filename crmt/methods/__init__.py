"""Training methods, one file each, found by name: `create("crmt_jt", rho=2.0)`. A new file is a new method, and so is a
class of the user's own: `create("mymethods:LabelSmoothing")`.

Files whose names start with `_` are what several methods share.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any

from crmt.arguments import shown
from crmt.doors import METHODS
from crmt.errors import BadInputError, CRMTWarning
from crmt.methods.base import Epoch, LossTerms, Method, Step

__all__ = ["Epoch", "LossTerms", "Method", "Step", "create", "method_class", "method_names", "parameters_of_all"]


def method_names() -> list[str]:
    """The names of all methods of this folder."""
    return METHODS.names()


def method_class(name: str) -> type[Method]:
    """The class of a method.

    Args:
        name: one of `method_names()`, or `package.module:Name` of the user's own.

    Raises:
        BadInputError: no such method, or no class that derives from `Method`; the message lists ours.
    """
    kind: type[Method] = METHODS.find(name)
    if not (isinstance(kind, type) and issubclass(kind, Method)):
        raise BadInputError(f"{name} is no training method: make it a class that derives from crmt.methods.Method")
    return kind


def parameters_of_all() -> dict[str, list[str]]:
    """Each hyperparameter of our methods, to the titles of the methods that have it."""
    found: dict[str, list[str]] = {}
    for name in method_names():
        for parameter in method_class(name).parameters():
            found.setdefault(parameter, []).append(method_class(name).title)
    return found


def create(name: str, **settings: Any) -> Method:
    """The method `name`, given those of `settings` that it has.

    None leaves a setting at the method's default. What another method has and this one does not has no effect; a
    `CRMTWarning` says so.

    Args:
        name: one of `method_names()`, or `package.module:Name` of the user's own code.
        settings: its hyperparameters: `method_class(name).parameters()`.

    Raises:
        BadInputError: no such method, a setting that no method has, or a value that the method does not take.
    """
    kind = method_class(name)
    own = kind.parameters()
    others = parameters_of_all() if settings.keys() - set(own) else {}
    for unknown in (s for s in settings if s not in own and s not in others):
        raise BadInputError(
            f"no training method has a setting {unknown!r}{_nearest(unknown, kind) or '.'} {_valid(kind)}"
        )
    idle = [s for s, value in settings.items() if s not in own and value is not None]
    if idle:
        warnings.warn(f"{name} takes no {', '.join(idle)}: left out. {_valid(kind)}", CRMTWarning, stacklevel=2)
    given = {s: value for s, value in settings.items() if s in own and value is not None}
    _check_types(kind, given)
    return kind(**given)


SHORT_NAMES = {"eps": "epsilon", "steps": "attack_steps", "alpha": "mixup_alpha", "lambda": "rho"}
"""Other names that people use for a setting."""


def _nearest(unknown: str, kind: type[Method]) -> str:
    """The setting that may have been meant, of this method or else of any."""
    everything = parameters_of_all()
    for valid in (kind.parameters(), tuple(everything)):
        short = SHORT_NAMES.get(unknown.lower())
        near = [short] if short in valid else get_close_matches(unknown.lower(), valid, 1)
        if near:
            return f". Did you mean {near[0]!r}?"
    return ""


def _valid(kind: type[Method]) -> str:
    return f"Settings of {kind.title}: {', '.join(kind.parameters()) or 'none'}"


def _check_types(kind: type[Method], given: Mapping[str, Any]) -> None:
    """Refuse what is no number where one is wanted."""
    for field in fields(kind):
        wanted = _NUMBERS.get(field.type if isinstance(field.type, str) else field.type.__name__)
        value = given.get(field.name)
        if value is None or wanted is None:
            continue
        number, words = wanted
        if isinstance(value, bool) or not isinstance(value, number):
            raise BadInputError(f"{field.name} must be {words}, not {shown(value)}: change train.{field.name}")


_NUMBERS: dict[str, tuple[type, str]] = {"int": (Integral, "a whole number"), "float": (Real, "a number")}
