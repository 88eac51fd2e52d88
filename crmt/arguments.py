"""Checks of what callers pass: the wrong type is one line that says what to give, not a traceback from inside.

torch is imported where a tensor is looked for: names are checked, and refused, without it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from inspect import signature
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from crmt.errors import BadInputError


def check_callable(name: str, value: object, wanted: str) -> None:
    """Refuse a value that cannot be called.

    Raises:
        BadInputError: names the argument, its type and what to give.
    """
    if not callable(value):
        raise BadInputError(f"{name} is {shown(value)}: give {wanted}")


def check_kind(name: str, value: object, kind: Any, wanted: str) -> None:
    """Refuse a value that is no instance of `kind`.

    Args:
        name: the argument's, for the message.
        kind: as `isinstance` takes it.
        wanted: what to give, with its article.

    Raises:
        BadInputError: names the argument, its type and what to give.
    """
    if not isinstance(value, kind):
        raise BadInputError(f"{name} is {shown(value)}: give {wanted}")


def check_whole(name: str, value: object) -> None:
    """Refuse what is no whole number.

    Raises:
        BadInputError: as `check_kind`.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise BadInputError(f"{name} is {shown(value)}: give a whole number")


def check_number(name: str, value: object) -> None:
    """Refuse what is no number.

    Raises:
        BadInputError: as `check_kind`.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise BadInputError(f"{name} is {shown(value)}: give a number")


def check_names(name: str, value: object) -> tuple[str, ...]:
    """The names in a list of names; a text alone, whose letters would be taken one by one, is refused.

    Raises:
        BadInputError: as `check_kind`.
    """
    if isinstance(value, str):
        raise BadInputError(f"{name} is {value!r}: give a list of names, [{value!r}]")
    from torch import Tensor

    names = tuple(value) if isinstance(value, Iterable) and not isinstance(value, Tensor) else None
    if names is None or not all(isinstance(n, str) for n in names):
        raise BadInputError(f"{name} is {shown(value)}: give a list of modalities' names")
    return names


def check_tensors(**given: object) -> None:
    """Refuse what is no tensor.

    Raises:
        BadInputError: as `check_kind`.
    """
    from torch import Tensor

    for name, value in given.items():
        hint = f" (did you mean its .{name}?)" if hasattr(value, name) else ""
        check_kind(name, value, Tensor, f"a tensor{hint}")


def check_model(model: object) -> None:
    """Refuse what is no model of ours.

    Raises:
        BadInputError: as `check_kind`.
    """
    from torch import nn

    # no isinstance: what attacks take for a model, such as the stand-in for a smoothed one, has this in common
    if not isinstance(model, nn.Module) or not isinstance(getattr(model, "modalities", None), Mapping):
        raise BadInputError(
            f"the model is {shown(model)}: give a crmt.MultiModalModel; MultiModalModel.around(encoders, inputs, "
            "classes) makes one of your own encoders"
        )


def check_batches(batches: object) -> None:
    """Refuse what does not hold batches.

    Raises:
        BadInputError: as `check_kind`.
    """
    if callable(batches) and not isinstance(batches, Iterable):
        raise BadInputError("batches is a function: give the batches themselves, such as batches(1)")
    if hasattr(batches, "inputs"):
        raise BadInputError("batches is one batch: give a list, [batch]")
    from torch import Tensor

    if not isinstance(batches, Iterable) or isinstance(batches, (str, Mapping, Tensor)):
        raise BadInputError(f"batches is {shown(batches)}: give a list or generator of crmt.Batch(inputs, labels)")


def check_factory(batches: object, argument: str) -> None:
    """Refuse what gives no batches when it is called with one argument.

    Args:
        argument: what it is called with, in a word: `epoch`.

    Raises:
        BadInputError: as `check_kind`, or a function that does not take one argument.
    """
    example = f"such as lambda {argument}: [batch]"
    if not callable(batches):
        raise BadInputError(f"batches is {shown(batches)}: give a function from {argument} to batches, {example}")
    try:
        signature(batches).bind(1)
    except TypeError:
        raise BadInputError(
            f"batches does not take the {argument}: give a function of one argument, {example}"
        ) from None
    except ValueError:  # a built-in function that does not say what it takes
        return


def folder_of(value: object) -> Path:
    """A folder as a path.

    Raises:
        BadInputError: neither a path nor text.
    """
    check_kind("folder", value, (str, Path), "a path")
    return Path(value)  # type: ignore[arg-type]


def shown(value: Any) -> str:
    """A value in an error's line: its type with an article, and what it is where that is short."""
    if value is None:
        return "None"
    kind = type(value).__name__
    if isinstance(value, type):
        return f"the class {value.__name__}"
    article = "an" if kind[0].lower() in "aeiou" else "a"
    short = repr(value) if isinstance(value, (int, float, str)) else ""
    return f"{article} {kind}" + (f" ({short})" if short and len(short) <= 40 else "")


def said(value: Any) -> str:
    """A value in an error's line that says which are valid: as it was written, where that is text or a number."""
    return repr(value) if isinstance(value, (str, int, float)) else shown(value)
