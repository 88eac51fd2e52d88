"""Training methods, one file each, found by name: `create("crmt_jt", rho=2.0)`. A new file is a new method."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from crmt.errors import BadInputError
from crmt.methods.base import LossTerms, Method

__all__ = ["LossTerms", "Method", "create", "method_class", "method_names"]


def method_names() -> list[str]:
    """The names of all methods."""
    return sorted(m.name for m in iter_modules(__path__) if m.name != "base")


def method_class(name: str) -> type[Method]:
    """The class of a method.

    Raises:
        BadInputError: no such method; the message lists them.
    """
    if name not in method_names():
        raise BadInputError(f"no training method {name!r}. Valid: {', '.join(method_names())}")
    return import_module(f"crmt.methods.{name}").METHOD


def create(name: str, **settings: Any) -> Method:
    """The method `name`, given those of `settings` that it has; the others have no effect on it."""
    kind = method_class(name)
    return kind(**{k: v for k, v in settings.items() if k in kind.parameters()})
