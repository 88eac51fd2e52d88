"""Every field of the configuration in words: `sweep.py --fields`. The schema's own docstrings; no torch here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from crmt.errors import BadInputError
from pipelines.config.hints import nearest
from pipelines.config.run_config import SEARCHED, RunConfig, all_fields, value_at
from pipelines.config.trial_schema import METHOD_DECLARATIONS

_NAMES: dict[Any, str] = {str: "text", bool: "true | false", Path: "path", Any: "anything", NoneType: "null"}
_SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


@dataclass(frozen=True)
class Taken:
    """What one or several training methods say of a hyperparameter."""

    methods: tuple[str, ...]
    default: Any
    meaning: str


@dataclass(frozen=True)
class FieldWords:
    """One field, as it is shown."""

    path: str
    kind: str
    """Its type and range."""
    default: str
    """As YAML writes it; empty where each method has its own."""
    meaning: str
    taken: tuple[Taken, ...]
    """Of a method's hyperparameter: by whom, in groups that say the same. Empty: it is not a method's."""

    @property
    def searched(self) -> bool:
        """Whether a search may have it."""
        return self.path.startswith(SEARCHED)


def words_of_fields(path: str = "") -> list[FieldWords]:
    """The fields of a section, or one field; in the order of the schema.

    Args:
        path: dotted; empty: every field.

    Raises:
        BadInputError: no such field or section, with the nearest.
    """
    known = all_fields()
    chosen = [p for p in known if not path or p == path or p.startswith(f"{path}.")]
    if not chosen:
        sections = dict.fromkeys(p.rpartition(".")[0] for p in known if "." in p)
        raise BadInputError(f"unknown configuration field {path!r}.{nearest(path, [*known, *sections])}")
    defaults = RunConfig()
    return [_words(p, known[p], value_at(defaults, p)) for p in chosen]


def print_fields(path: str, console: Console) -> None:
    """Print them: a line with path, type and default, and below it what the field means.

    Args:
        path: as `words_of_fields` takes it.
        console: where to.

    Raises:
        BadInputError: no such field or section.
    """
    for field in words_of_fields(path):
        head = Text.assemble((field.path, "bold"), (f"  {field.kind}", "cyan"))
        if field.default:
            head.append(f"  default {field.default}")
        if field.searched:
            head.append("  [search]", "green")
        console.print(head)
        if not field.taken:
            console.print(Padding(Text(field.meaning), (0, 0, 0, 4)))
        for taken in field.taken:
            by = f"{', '.join(taken.methods)} (default {_yaml(taken.default)}): "
            console.print(Padding(Text.assemble((by, "dim"), taken.meaning), (0, 0, 0, 4)))


def _words(path: str, field: FieldInfo, default: Any) -> FieldWords:
    taken, meaning = _taken(path), " ".join((field.description or "").split())
    if path.startswith("train.step2."):
        with_step2 = [name for name, method in METHOD_DECLARATIONS.items() if method.constants.get("step2")]
        meaning += f" Taken by the methods with step 2: {', '.join(with_step2)}."
    if taken:
        meaning = " ".join(dict.fromkeys(t.meaning for t in taken))
    kind = _kind(field.annotation, field.metadata).removesuffix(" | null" if taken else "")
    return FieldWords(path, kind, "" if taken else _yaml(default), meaning, taken)


def _taken(path: str) -> tuple[Taken, ...]:
    groups: dict[tuple[str, str], list[str]] = {}
    section, _, name = path.rpartition(".")
    for method, declaration in METHOD_DECLARATIONS.items():
        if section == "train" and name in declaration.settings:
            setting = declaration.settings[name]
            groups.setdefault((_yaml(setting.default), setting.meaning), []).append(method)
    return tuple(Taken(tuple(names), yaml.safe_load(said), text) for (said, text), names in groups.items())


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000).removesuffix("...\n").strip()


def _kind(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """A type in words: `int ≥ 1`, `cosine | step`, `list of text`."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(inner[0], [*annotation.__metadata__, *metadata])
    if origin is Literal:
        return " | ".join(map(str, inner))
    if origin in (Union, UnionType):
        return " | ".join(_kind(part, metadata if part is not NoneType else ()) for part in inner)
    if origin is list:
        return f"list of {_kind(inner[0])}"
    if origin is tuple:
        return f"[{', '.join(map(_kind, inner))}]"
    if origin is dict:
        return f"{{{_kind(inner[0])}: {_kind(inner[1])}}}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "{field: value}"
    return f"{_NAMES.get(annotation, getattr(annotation, '__name__', ''))} {_bounds(metadata)}".strip()


def _bounds(metadata: Sequence[Any]) -> str:
    limits = [one for m in metadata for one in (m.metadata if isinstance(m, FieldInfo) else [m])]
    return " and ".join(
        f"{sign} {getattr(m, name)}" for m in limits for name, sign in _SIGNS.items() if hasattr(m, name)
    )
