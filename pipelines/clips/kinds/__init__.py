"""Kinds of modalities, one file each: how one is read, kept, and made an input of a model. The door to them.

A new kind is a class derived from `Kind`: here as a file with `KIND`, or anywhere as `package.module:Name`.
"""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import ValidationError

from crmt.doors import Door
from crmt.errors import BadInputError
from crmt.modality import check_name
from pipelines.clips.kinds._base import Kind, ModalityMeta
from pipelines.config.hints import nearest
from pipelines.config.schema import DataConfig
from pipelines.decoding.errors import DecodeError
from pipelines.sources.index import ClipIndex, check_column

__all__ = ["KINDS", "Kind", "ModalityMeta", "check_files", "kinds_of"]

KINDS = Door("a modality kind", "pipelines.clips.kinds", "KIND")
_LOOKED_AT = 3  # files of one kind: one may be wrong, a setting is wrong where all are


def kinds_of(data: DataConfig) -> dict[str, Kind]:
    """The modalities that a configuration declares, in its order, each with its settings.

    Raises:
        BadInputError: a name that torch refuses, an unknown kind, or a setting that it does not take; the message says
            which modality.
    """
    kinds: dict[str, Kind] = {}
    for name, declared in data.declared.items():
        where = f"data.modalities.{name}"
        check_name(name)
        try:
            kind = KINDS.find(declared.kind)
        except BadInputError as error:
            raise BadInputError(f"{where}.kind: {error}") from None
        if not (isinstance(kind, type) and issubclass(kind, Kind)):
            raise BadInputError(
                f"{where}.kind: {declared.kind} is no class that derives from pipelines.clips.kinds.Kind"
            )
        try:
            kinds[name] = kind(name, declared.column, declared.kind, kind.settings_of(declared, data), data)
        except ValidationError as error:
            raise BadInputError(_one_line(where, error, kind)) from None
        except BadInputError as error:
            raise BadInputError(f"{where}: {error}") from None
    return kinds


def _one_line(where: str, error: ValidationError, kind: type[Kind]) -> str:
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"{where}: its kind has no setting {field!r}.{nearest(field, kind.setting_names())}"
    message = first["msg"].removeprefix("Value error, ")
    shown = f", not {first['input']!r}" if field and not isinstance(first["input"], dict) else ""
    return f"{where}{'.' * bool(field)}{field}: {message}{shown}"


def check_files(index: ClipIndex, kinds: Iterable[Kind]) -> None:
    """Refuse what can be seen of a set's files without decoding any: columns, and the headers of the first few.

    Raises:
        BadInputError: a column that the list lacks, or files that are all not what the configuration says.
    """
    for kind in kinds:
        check_column(index, kind.name, kind.column)
        _check_headers(index, kind)


def _check_headers(index: ClipIndex, kind: Kind) -> None:
    problems: list[str] = []
    for file in index.clips[kind.column]:
        if len(problems) == _LOOKED_AT:
            break
        try:
            if file:
                kind.check_header(file)
                return
        except DecodeError as error:
            if error.reason != "missing":
                problems.append(f"{file}: {error.detail}")
    if problems:
        raise BadInputError(f"data.modalities.{kind.name}: {problems[0]}")
