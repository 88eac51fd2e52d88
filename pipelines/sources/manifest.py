"""`manifest`: anybody's own clips, from one table.

Layout: a CSV (or Parquet) with the header `path,label,split`, one row a clip; `--data-root` names that file, or a
folder with `manifest.csv` in it. Paths are relative to the file (absolute ones are taken as they are); any container
that ffmpeg reads. Labels are any text (one text in two Unicode forms is one
label); classes are the sorted labels. Splits are train, validation and test; without
validation rows a share of train is carved out. An optional column `group` names the source video, so that cuts of one
video stay together; a group in two splits is refused, or train's part of it left out (data.on_overlap), and so is one
file under two names (a link). Other columns
are kept in the index, as text. Those that data.modalities names hold files, relative to the folder of the table like
`path`: a sound file, a .npy, a folder of pictures; an empty cell says that the clip has none. Where no modality is read
from `path`, that is but the clip's name. Origin and licence: the user's own. A clip that is missing on disk is
quarantined.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow

from crmt.errors import BadInputError
from pipelines.config.hints import nearest
from pipelines.config.modality import PATH
from pipelines.config.schema import DataConfig
from pipelines.sources.base import Source
from pipelines.sources.files import check_names, missing_by_column, on_disk, one_group_a_file
from pipelines.sources.index import COLUMNS, SPLITS, ClipIndex, Listing, without_overlap
from pipelines.sources.text import one_text

REQUIRED = ("path", "label", "split")
_CSV: dict[str, Any] = {"dtype": str, "keep_default_na": False, "skipinitialspace": True, "encoding": "utf-8-sig"}
_FORM = "Write a header `path,label,split` and one row a clip, for example `clips/a.mp4,dog,train`"


def load(data: DataConfig) -> ClipIndex:
    """Read the table that `data.root` names.

    Raises:
        BadInputError: no table, missing columns, no rows, empty cells, unknown splits, duplicate paths, a single class,
            no train or no test rows, or a group in more than one split.
    """
    file = _find(data.root)
    table = _read(file)
    missing = [c for c in REQUIRED if c not in table]
    if missing:
        found = ", ".join(map(str, table.columns)) or "nothing"
        raise BadInputError(f"{file} has no column {', '.join(missing)} (found {found}). {_FORM}")
    if table.empty:
        raise BadInputError(f"{file} has a header but no rows. {_FORM}")
    _check_columns(file, table, data)
    _check_rows(file, table)
    classes = tuple(sorted(set(table["label"])))
    if len(classes) < 2:
        raise BadInputError(f"{file}: every clip has the label {classes[0]!r}; training needs two classes at least")
    ids = table["path"].map(lambda path: _below(file.parent, path))
    group = table["group"].where(table["group"] != "", ids) if "group" in table else ids
    clips = pd.DataFrame(
        {
            "id": ids,
            "path": [str(file.parent / path) for path in table["path"]],
            "label": table["label"].map({name: i for i, name in enumerate(classes)}).astype(int),
            "split": table["split"],
            "group": group,
            **_extra(table),
            **{column: _files(file, table, column) for column in data.columns if column != PATH},
        }
    )
    for column in {PATH, *data.columns}:
        check_names(clips[column].tolist())
        clips[column] = on_disk(clips[column])
    clips = one_group_a_file(clips, data.columns)
    kept, left_out = without_overlap("manifest", clips, data.on_overlap)
    _check_classes(file, kept.assign(label=table["label"]))
    return ClipIndex("manifest", classes, kept, _listing(file, clips, kept, left_out, data))


def _below(folder: Path, path: str) -> str:
    """A path as a clip's id: relative to the table's folder where it lies below it, so that a moved set is the same."""
    return path.removeprefix(f"{folder}{os.sep}") or path


def _extra(table: pd.DataFrame) -> dict[str, pd.Series]:
    """The user's own columns, as text; one with a name that means something else here is called `manifest_<name>`."""
    own = [c for c in table.columns if c not in (*REQUIRED, "group")]
    taken = {*COLUMNS, "fingerprint"}
    return {f"manifest_{c}" if c in taken else str(c): table[c].astype(str) for c in own}


def _files(file: Path, table: pd.DataFrame, column: str) -> list[str]:
    """The files that a column names, absolute; nothing where the cell is empty."""
    cells = table[column].where(table[column].notna(), "").astype(str)
    return [str(file.parent / cell) if cell.strip() else "" for cell in cells]


def _check_columns(file: Path, table: pd.DataFrame, data: DataConfig) -> None:
    """Refuse a modality whose column the table lacks, or that names no files."""
    for name, declared in data.declared.items():
        if declared.column not in table or declared.column in {*REQUIRED, "group"} - {PATH}:
            usable = [str(c) for c in table if c == PATH or c not in (*REQUIRED, "group")]
            raise BadInputError(
                f"data.modalities.{name}.column: {file} has no column {declared.column!r} that names files; it has "
                f"{', '.join(usable)}"
            )


def _listing(file: Path, clips: pd.DataFrame, kept: pd.DataFrame, left_out: pd.DataFrame, data: DataConfig) -> Listing:
    missing, beside = missing_by_column(clips, data.columns)
    listed, left = set(clips[PATH]), set(kept["id"])
    return Listing(
        lists={str(file): hashlib.sha256(file.read_bytes()).hexdigest()},
        missing=missing.pop(PATH, frozenset()) & left,
        missing_in_columns={column: ids & left for column, ids in missing.items()},
        unlisted=tuple(path for path in beside if path not in listed),
        left_out=left_out,
    )


def _find(root: Path | None) -> Path:
    if root is None:
        raise BadInputError(f"manifest needs your table: give --data-root FILE.csv (or data.root). {_FORM}")
    root = root.expanduser().absolute()
    candidates = [root / "manifest.csv", root / "manifest.parquet"] if root.is_dir() else [root]
    for file in candidates:
        if file.is_file():
            return file
    raise BadInputError(f"manifest: no file {' or '.join(map(str, candidates))}. {_FORM}")


def _read(file: Path) -> pd.DataFrame:
    try:
        if file.suffix == ".parquet":
            table = pd.read_parquet(file)
            named = {*REQUIRED, "group"} & set(table.index.names)  # an index that pandas stored is a column, or no news
            table = table.reset_index(drop=not named)
            own = [c for c in (*REQUIRED, "group") if c in table]
            table[own] = table[own].astype(object).where(table[own].notna(), "").astype(str)
        else:
            table = pd.read_csv(file, **_CSV)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError, pyarrow.ArrowException) as error:
        raise BadInputError(f"{file} cannot be read: {' '.join(str(error).split())}. {_FORM}") from None
    except OSError as error:
        raise BadInputError(f"{file} cannot be read: {error.strerror or error}") from None
    if not isinstance(table.index, pd.RangeIndex):  # pandas takes the cells in front for the names of rows
        raise BadInputError(
            f"{file}: rows have more cells than the header: drop commas at their ends, quote texts with one. {_FORM}"
        )
    for column in ("label", "split", "group"):  # a path may end in a space
        if column in table:
            table[column] = table[column].map(one_text, na_action="ignore").str.strip()
    return table


def _check_rows(file: Path, table: pd.DataFrame) -> None:
    for column in REQUIRED:
        empty = table.index[table[column].str.strip() == ""]
        if len(empty):
            raise BadInputError(f"{file}: row {empty[0] + 1} has no {column}")
    for row, split in enumerate(table["split"]):
        if split not in SPLITS:
            raise BadInputError(f"{file}: row {row + 1}: unknown split {split!r}.{nearest(split, list(SPLITS))}")
    files = table["path"].map(lambda path: os.path.normpath(file.parent / path))  # ./a.mp4 is a.mp4
    twice = table.index[files.duplicated()]
    if len(twice):
        raise BadInputError(f"{file}: row {twice[0] + 1}: {table['path'][twice[0]]!r} is listed a second time")
    for split in ("train", "test"):
        if not (table["split"] == split).any():
            raise BadInputError(f"{file}: no row has the split `{split}`; training and the final numbers need both")


def _check_classes(file: Path, table: pd.DataFrame) -> None:
    unseen = sorted(set(table["label"]) - set(table["label"][table["split"] == "train"]))
    if unseen:
        raise BadInputError(f"{file}: label {unseen[0]!r} has no clip in train, so it cannot be learned")


SOURCE = Source(load, look=lambda data: _find(data.root))
