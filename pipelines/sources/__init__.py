"""One file a data set: lists on disk to a clip index. A new file with `load(data) -> ClipIndex` is a new data set."""

from __future__ import annotations

import importlib
from pathlib import Path

from crmt.errors import BadInputError
from pipelines.config.run_config import nearest
from pipelines.config.schema import DataConfig
from pipelines.sources.index import ClipIndex, check_column, with_validation

__all__ = ["ClipIndex", "load", "names"]

_SHARED = ("__init__", "check", "files", "index", "lists")
"""Files of this folder that are no data sets."""


def names() -> list[str]:
    """Names of the data sets, as `--dataset` takes them."""
    return sorted(p.stem for p in Path(__file__).parent.glob("*.py") if p.stem not in _SHARED)


GENERATED = ("avdigits",)
"""Data sets that make their clips themselves, for which they need a running Ray."""


def load_without_ray(data: DataConfig) -> ClipIndex | None:
    """The clip index, where that needs no Ray: a missing list should not wait for it to start. Else None.

    Raises:
        BadInputError: as `load` does.
    """
    check_name(data.dataset)
    return None if data.dataset in GENERATED else load(data)


def check_name(name: str) -> None:
    """Refuse an unknown data set, with the nearest valid name."""
    if name not in names():
        raise BadInputError(f"unknown data set {name!r}.{nearest(name, names())}")


def load(data: DataConfig) -> ClipIndex:
    """The clip index of `data.dataset`, with validation carved from train and `data.limit` applied.

    avdigits makes its clips on first use and then needs a running Ray; the others only read lists.

    Raises:
        BadInputError: unknown data set, or lists that are missing or malformed.
    """
    check_name(data.dataset)
    _check_fields(data)
    index: ClipIndex = importlib.import_module(f"pipelines.sources.{data.dataset}").load(data)
    for name, declared in data.declared.items():
        check_column(index, name, declared.column)
    index = with_validation(index, data.validation_share, data.seed)
    if data.limit is not None:
        index = index.limited(data.limit, data.seed)
        _check_limit(index, data.limit)
    return index


def _check_fields(data: DataConfig) -> None:
    """Refuse settings that the data set does not read: an option without effect would mislead."""
    if data.split != 1 and data.dataset != "ucf101":
        raise BadInputError(
            f"data.split {data.split} takes no effect with {data.dataset}: only ucf101 has three splits"
        )
    if data.lists and data.dataset in (*GENERATED, "manifest"):
        raise BadInputError(f"data.lists takes no effect with {data.dataset}: leave it out")


def _check_limit(index: ClipIndex, limit: int) -> None:
    present = index.clips.loc[index.clips["split"] == "train", "label"].nunique()
    if present < len(index.classes):
        raise BadInputError(
            f"data.limit {limit} leaves train with {present} of {len(index.classes)} classes of {index.name}. "
            f"Give at least {len(index.classes)}"
        )
