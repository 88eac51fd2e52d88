"""Parts of a sweep that others wrote: search algorithms, schedulers and loggers, made with their options."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any

from crmt.doors import import_path, is_path
from crmt.errors import BadInputError

METRIC, MODE, TIME = "selected", "max", "epoch"
"""What every trial reports and is compared by, and what its time is counted in."""
SET_BY_THE_SWEEP = ("metric", "mode", "time_attr", "space", "points_to_evaluate", "max_concurrent")


def find(name: str, known: Mapping[str, Callable[[], Any]], what: str, field: str) -> Any:
    """The class or factory of a part.

    Args:
        name: one of `known`, or `package.module:Name`.
        known: name to what imports it.
        what: with its article, for errors: "a scheduler".
        field: the field of the configuration that names it, for errors.

    Raises:
        BadInputError: no such part, or one whose package cannot be imported.
    """
    if is_path(name):
        return import_path(name, what)
    if name not in known:
        near = get_close_matches(name, known, n=1, cutoff=0.4)
        hint = f". Did you mean {near[0]!r}?" if near else ""
        raise BadInputError(
            f"{field}: no {what.split(' ', 1)[-1]} {name!r}. Valid: {', '.join(known)}, or package.module:Name{hint}"
        )
    try:
        return known[name]()
    except ImportError as error:
        raise BadInputError(f"{field}: {name} cannot be imported: {_one_line(error)}") from None


def build(part: Any, name: str, options: Mapping[str, Any], ours: Mapping[str, Any], field: str) -> Any:
    """A part from its class or factory; one that is an object already stays as it is.

    Args:
        part: as `find` gave it.
        name: the part's name, for errors.
        options: the user's arguments.
        ours: the sweep's arguments, of which it gets those that it names and the user does not give.
        field: the field of the configuration that holds the options, for errors.

    Raises:
        BadInputError: options that it does not take or that the sweep sets, or a part that cannot be built.
    """
    for option in options:
        if option in SET_BY_THE_SWEEP:
            raise BadInputError(f"{field}: {option} is set by the sweep: leave it out")
    if not callable(part):
        if options:
            raise BadInputError(f"{field}: {name} is an object, which takes no options: name its class")
        return part
    named, takes_any = parameters(part)
    for option in options:
        if option not in named and not takes_any:
            near = get_close_matches(option, named, n=1, cutoff=0.5)
            valid = [p for p in named if p not in SET_BY_THE_SWEEP]
            hint = f" Did you mean {near[0]!r}?" if near else f" Valid: {', '.join(valid) or 'none'}."
            raise BadInputError(f"{field}: {name} takes no {option!r}.{hint}")
    given = {k: v for k, v in ours.items() if k in named} | dict(options)
    try:
        return part(**given)
    except BadInputError:
        raise
    except Exception as error:  # of whatever class: a package that is missing, a value out of range
        raise BadInputError(f"{field}: {name} cannot be made: {_one_line(error)}") from error


def parameters(part: Any) -> tuple[list[str], bool]:
    """The arguments that a class or factory names, and whether it takes any others."""
    try:
        found = inspect.signature(part).parameters.values()
    except (TypeError, ValueError):  # a builtin
        return [], True
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [p.name for p in found if p.kind in kinds], any(p.kind is p.VAR_KEYWORD for p in found)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def explained(error: Exception, field: str, name: str) -> BadInputError:
    """What a part raised when it saw the search space, as an error of the configuration."""
    return BadInputError(f"{field}: {name} cannot search this space: {_one_line(error)}")
