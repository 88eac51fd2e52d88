"""One file a data set: lists on disk to a clip index. A new file with a `SOURCE` is a new data set.

Another person's own is `package.module:Name`: a `Source`, an object or class with `load(data) -> ClipIndex`, or that
function itself.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from crmt.doors import Door, is_path
from crmt.errors import BadInputError
from pipelines.config.hints import nearest
from pipelines.sources.text import alike, one_text

if TYPE_CHECKING:
    from pipelines.config.schema import DataConfig
    from pipelines.sources.base import Source
    from pipelines.sources.index import ClipIndex

__all__ = ["ClipIndex", "Source", "alike", "find", "load", "names"]

_DOOR = Door("a data set", "pipelines.sources", "SOURCE", ("base", "check", "files", "index", "lists", "text"))


def __getattr__(name: str) -> Any:
    """`Source` and `ClipIndex` when they are asked for: the names of data sets need no pandas."""
    if name == "Source":
        from pipelines.sources.base import Source

        return Source
    if name == "ClipIndex":
        from pipelines.sources.index import ClipIndex

        return ClipIndex
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def check_name(name: str) -> None:
    """Refuse a name that is none of ours; what a path names is not imported.

    Raises:
        BadInputError: no such data set, with the nearest valid name.
    """
    if not is_path(name) and name not in names():
        raise BadInputError(f"unknown data set {name!r}.{nearest(name, names())}")


def names() -> list[str]:
    """Names of the data sets of this folder, as `--dataset` takes them."""
    return _DOOR.names()


def find(name: str) -> Source:
    """The data set of that name.

    Args:
        name: one of `names()`, or `package.module:Name`.

    Raises:
        BadInputError: no such data set, with the nearest valid name, or a part that cannot load clips.
    """
    from pipelines.sources.base import Source

    check_name(name)
    part = _DOOR.find(name)
    if isinstance(part, Source):
        return part
    if isinstance(part, type) and hasattr(part, "load"):
        part = part()
    load = getattr(part, "load", part)
    if isinstance(part, type) or not callable(load):
        raise BadInputError(f"{name} is no data set: it has no load(data)")
    return Source(load, bool(getattr(part, "makes_clips", False)), tuple(getattr(part, "takes", ())))


def look(data: DataConfig) -> None:
    """Find a data set and its lists; nothing is read.

    Raises:
        BadInputError: no such data set, or lists that are not where they should be.
    """
    source = find(data.dataset)
    if source.look is not None:
        source.look(data)


def lists_before_making(name: str) -> bool:
    """Whether a data set makes its clips, and lists them without."""
    return find(name).listed is not None


def load_without_ray(data: DataConfig) -> ClipIndex | None:
    """The clip index, as `load` with `or_decoded`, where that needs no Ray: a missing list should not wait for it.

    Raises:
        BadInputError: as `load` does.
    """
    return None if find(data.dataset).makes_clips else load(data, or_decoded=True)


def load(data: DataConfig, or_decoded: bool = False, make: bool = True) -> ClipIndex:
    """The clip index of `data.dataset`, with validation carved from train and `data.limit` applied.

    One that makes its clips itself does so on first use and then needs a running Ray; the others only read lists.

    Args:
        data: the section of the configuration.
        make: False for the list of clips that are yet to be made, where the data set can give it.
        or_decoded: let pass a list none of whose clips is there, for they may be decoded (`Listing.nothing_there`).

    Raises:
        BadInputError: unknown data set, lists that are missing or malformed, or no clip that they name is there.
    """
    from pipelines.sources.index import check_column, with_validation

    source = find(data.dataset)
    _check_fields(source, data)
    index = source.listed(data) if source.listed is not None and not make else source.load(data)
    if is_path(data.dataset):
        _check_foreign(index, data.dataset)
        index = _one_class_each(index)
    if index.listing.nothing_there and not or_decoded:
        raise BadInputError(index.listing.nothing_there)
    for name, declared in data.declared.items():
        check_column(index, name, declared.column)
    index = with_validation(index, data.validation_share, data.seed)
    if data.limit is not None:
        index = index.limited(data.limit, data.seed)
        _check_limit(index, data.limit)
    return index


def _check_fields(source: Source, data: DataConfig) -> None:
    """Refuse settings that the data set does not read: an option without effect would mislead."""
    if data.split != 1 and "split" not in source.takes:
        raise BadInputError(
            f"data.split {data.split} takes no effect with {data.dataset}: only ucf101 has three splits"
        )
    if data.lists and "lists" not in source.takes:
        raise BadInputError(f"data.lists takes no effect with {data.dataset}: leave it out")


def _check_foreign(index: object, path: str) -> None:
    """Refuse what is no list of clips, or has a name that no folder can have."""
    from pipelines.sources.index import ClipIndex

    if not isinstance(index, ClipIndex):
        raise BadInputError(f"{path}: load gave {type(index).__name__}, not a pipelines.sources.ClipIndex")
    if not re.fullmatch(r"\w[\w.-]*", index.name):
        raise BadInputError(f"{path}: the index is named {index.name!r}: use letters, digits, `_`, `-` and `.` alone")


def _one_class_each(index: ClipIndex) -> ClipIndex:
    """The index with one class for names that are one text in several Unicode forms."""
    names = [one_text(name) for name in index.classes]
    classes = tuple(dict.fromkeys(names))
    if len(classes) == len(names):
        return index
    labels = index.clips["label"].map(lambda label: classes.index(names[label]))
    return replace(index, classes=classes, clips=index.clips.assign(label=labels))


def _check_limit(index: ClipIndex, limit: int) -> None:
    present = index.clips.loc[index.clips["split"] == "train", "label"].nunique()
    if present < len(index.classes):
        raise BadInputError(
            f"data.limit {limit} leaves train with {present} of {len(index.classes)} classes of {index.name}. "
            f"Give at least {len(index.classes)}"
        )
