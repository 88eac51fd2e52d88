"""Settings of the parts that a configuration names: default, range, meaning; and reading them from a file's text.

torch takes seconds to import, and a configuration should be refused sooner: what a training method or a certificate of
ours takes is read from the text of its file, which is not run. No torch here.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from inspect import getdoc
from math import inf, isfinite
from typing import Any, ClassVar, Literal, NamedTuple, get_origin, get_type_hints

from crmt.doors import Door
from crmt.errors import BadInputError

Precision = Literal["fp32", "bf16"]
"""`fp32`: float32, convolutions on a GPU in TF32 as torch has it by default; `bf16`: torch's autocast to bfloat16, with
weights, head, scores, losses and the optimiser in float32."""

_TYPES = {t.__name__: t for t in (bool, dict, float, int, list, str, tuple)} | {
    "Any": Any,
    "ClassVar": ClassVar,
    "Literal": Literal,
    "Precision": Precision,
}
"""What the type of a setting may be written with, for it to be read from text."""


class Range(NamedTuple):
    """Which numbers a setting takes."""

    at_least: float = -inf
    above: float = -inf
    """A bound that is not allowed itself."""
    below: float = inf
    """A bound that is not allowed itself."""

    def holds(self, value: float) -> bool:
        """Whether a number is finite and inside."""
        return isfinite(value) and value >= self.at_least and self.above < value < self.below

    def within(self, other: Range) -> Range:
        """The numbers that are in both."""
        return Range(max(self.at_least, other.at_least), max(self.above, other.above), min(self.below, other.below))

    def __str__(self) -> str:
        limits = {"at least": self.at_least, "above": self.above, "below": self.below}
        return " and ".join(f"{word} {limit:g}" for word, limit in limits.items() if isfinite(limit))


def setting(default: Any, *, at_least: float = -inf, above: float = -inf, below: float = inf) -> Any:
    """A dataclass field of a method or certificate, with the range of its numbers.

    Args:
        default: its value; one of its own for each object where it is a list or mapping.
        at_least: the smallest number allowed (in a mapping: of its values).
        above: a bound that is not allowed itself.
        below: a bound that is not allowed itself.
    """
    metadata = {"range": Range(at_least, above, below)}
    if isinstance(default, (dict, list)):
        return field(default_factory=lambda: copy.copy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def check_ranges(part: Any, section: str) -> None:
    """Refuse settings that are not finite or outside their ranges.

    Args:
        part: a dataclass whose fields `setting` made.
        section: where the configuration has them: `train`.

    Raises:
        BadInputError: names the setting, its value and its range.
    """
    for one in fields(part):
        limits, given = one.metadata.get("range"), getattr(part, one.name)
        for value in given.values() if isinstance(given, Mapping) else [given]:
            if limits is not None and value is not None and not limits.holds(value):
                raise BadInputError(
                    f"{one.name} must be a finite number {limits}, not {value}: change {section}.{one.name}"
                )


@dataclass(frozen=True)
class Setting:
    """A setting as its class declares it."""

    kind: Any
    """Its type."""
    default: Any
    limits: Range
    meaning: str
    """The text below it in the file."""


@dataclass(frozen=True)
class Declaration:
    """What a part's class declares."""

    settings: Mapping[str, Setting]
    constants: Mapping[str, Any]
    """Names that the class gives a plain value: `title`, `head`, `step2`."""


class _NotPlainError(Exception):
    """The class is not written so that its text tells everything."""


def declared(door: Door, name: str, bases: tuple[str, ...]) -> Declaration:
    """What a part of ours declares, from the text of its file; where that does not tell, the file is imported.

    Args:
        door: that finds parts of its kind.
        name: the part's; one of `door.names()`.
        bases: the base classes that have no settings of their own.
    """
    try:
        return _read(ast.parse(door.file(name).read_text(encoding="utf-8")), door.attribute, bases)
    except (_NotPlainError, SyntaxError):
        return declaration_of_class(door.find(name))


def declaration_of_class(part: type) -> Declaration:
    """What a class declares, from the class itself.

    Args:
        part: a dataclass.
    """
    hints = get_type_hints(part)
    settings = {}
    for one in fields(part):
        default = one.default_factory() if one.default_factory is not MISSING else one.default
        settings[one.name] = Setting(hints[one.name], default, one.metadata.get("range", Range()), getdoc(part) or "")
    constants = {name: value for name, value in vars(part).items() if isinstance(value, (str, int, float))}
    return Declaration(settings, constants)


def _read(file: ast.Module, attribute: str, bases: tuple[str, ...]) -> Declaration:
    classes = {node.name: node for node in file.body if isinstance(node, ast.ClassDef)}
    named = [
        node.value.id
        for node in file.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Name) and _target(node) == attribute
    ]
    part = classes.get(named[0]) if len(named) == 1 else None
    if part is None or [b.id if isinstance(b, ast.Name) else "" for b in part.bases] not in [[b] for b in bases]:
        raise _NotPlainError
    settings: dict[str, Setting] = {}
    constants: dict[str, Any] = {}
    for node, after in zip(part.body, [*part.body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            if get_origin(kind := _type(node.annotation)) is not ClassVar:
                settings[node.target.id] = _setting(kind, node.value, _text(after))
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            constants[_target(node)] = node.value.value
    return Declaration(settings, constants)


def _target(node: ast.Assign) -> str:
    return node.targets[0].id if len(node.targets) == 1 and isinstance(node.targets[0], ast.Name) else ""


def _type(annotation: ast.expr) -> Any:
    try:
        return eval(compile(ast.Expression(annotation), "", "eval"), {"__builtins__": {}}, _TYPES)  # of our own files
    except NameError:
        raise _NotPlainError from None


def _setting(kind: Any, value: ast.expr | None, meaning: str) -> Setting:
    limits: dict[str, float] = {}
    try:
        if isinstance(value, ast.Call):
            if not isinstance(value.func, ast.Name) or value.func.id != setting.__name__ or len(value.args) != 1:
                raise _NotPlainError
            limits = {str(k.arg): ast.literal_eval(k.value) for k in value.keywords}
            value = value.args[0]
        if value is None:
            raise _NotPlainError
        return Setting(kind, ast.literal_eval(value), Range(**limits), meaning)
    except ValueError:  # what a name or a sum stands for is not in the text
        raise _NotPlainError from None


def _text(node: ast.stmt | None) -> str:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        return " ".join(node.value.value.split())
    return ""
