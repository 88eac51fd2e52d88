"""Training methods, one file each, found by name: `create("crmt_jt", rho=2.0)`. A new file is a new method, and so is a
class of the user's own: `create("mymethods:LabelSmoothing")`.

Files whose names start with `_` are what several methods share.
"""

from __future__ import annotations

from typing import Any

from crmt.doors import Door
from crmt.errors import BadInputError
from crmt.methods.base import Epoch, LossTerms, Method, Step

__all__ = ["Epoch", "LossTerms", "Method", "Step", "create", "method_class", "method_names", "parameters_of_all"]

DOOR = Door("a training method", "crmt.methods", "METHOD", shared=("base",))


def method_names() -> list[str]:
    """The names of all methods of this folder."""
    return DOOR.names()


def method_class(name: str) -> type[Method]:
    """The class of a method.

    Args:
        name: one of `method_names()`, or `package.module:Name` of the user's own.

    Raises:
        BadInputError: no such method, or no class that derives from `Method`; the message lists ours.
    """
    kind: type[Method] = DOOR.find(name)
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
    """Make a method.

    Args:
        name: as in `method_class`.
        settings: hyperparameters by name. Those that the method does not have, and those that are None, are ignored, so
            that one configuration serves all methods.

    Raises:
        BadInputError: no such method, or a value that it does not take.
    """
    kind = method_class(name)
    return kind(**{k: v for k, v in settings.items() if k in kind.parameters() and v is not None})
