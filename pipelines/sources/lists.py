"""What the loaders of published lists share: finding the lists, reading their lines, and matching them with files."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from crmt.errors import BadInputError
from pipelines.config.hints import nearest
from pipelines.config.schema import DataConfig
from pipelines.sources.files import CONTAINERS, check_names, clip_files
from pipelines.sources.index import LEFT_OUT, SPLITS, ClipIndex, Listing, without_overlap

_SHOWN = 80


class Row(NamedTuple):
    """One clip as a list names it; `key` is what its file is found by."""

    id: str
    label: str
    split: str
    group: str
    key: Hashable
    line: str
    """Where it stands, for messages: `FILE line N`."""


Matcher = Callable[[list[str]], Callable[[Row], list[str]]]
"""From all clip files to what finds a row's among them, the best first."""


@dataclass(frozen=True)
class Layout:
    """What a data set looks like on disk.

    `forms`: the sets of list files that are looked for, each by role, the first that is complete winning over what it
    contains; `optional`: further roles; `folders`: where below the root lists may lie; `text`: all of it in one line.
    """

    name: str
    forms: tuple[dict[str, str], ...]
    text: str
    optional: tuple[tuple[str, str], ...] = ()
    folders: tuple[str, ...] = (".",)


def root_of(layout: Layout, data: DataConfig) -> Path:
    """The folder that `--data-root` names.

    Raises:
        BadInputError: none was given, or it is no folder.
    """
    if data.root is None:
        raise BadInputError(f"{layout.name} needs its clips on disk: give --data-root DIR. {layout.text}")
    root = data.root.expanduser().absolute()
    if not root.is_dir():
        raise BadInputError(f"{layout.name}: {root} is not a folder. {layout.text}")
    return root


def find_lists(layout: Layout, data: DataConfig) -> dict[str, Path]:
    """The list files by role: those of `data.lists`, else those of the one form that is complete below the root.

    Raises:
        BadInputError: none, or more than one; the message names every file that was looked for.
    """
    root = root_of(layout, data)
    if data.lists:
        return _given(layout, data, root)
    folders = [root / folder for folder in layout.folders]
    found: list[dict[str, Path]] = []
    for form in layout.forms:
        for folder in folders:
            files = {role: folder / name for role, name in form.items()}
            if all(file.is_file() for file in files.values()):
                found.append(files)
                break
    found = [a for a in found if not any(set(a.values()) < set(b.values()) for b in found)]
    if not found:
        tried = "; or ".join(" and ".join(form.values()) for form in layout.forms)
        where = " or ".join(str(folder) for folder in folders)
        raise BadInputError(f"{layout.name}: looked for {tried}; not found in {where}. {layout.text}")
    if len(found) > 1:
        names = " or ".join(" + ".join(file.name for file in files.values()) for files in found)
        role, file = next(iter(found[0].items()))
        raise BadInputError(
            f"{layout.name}: {root} holds several lists, {names}. Say which with data.lists, for example "
            f"--set data.lists.{role}={file.name} for each file of it"
        )
    return found[0] | _beside(layout, root, found[0])


def _given(layout: Layout, data: DataConfig, root: Path) -> dict[str, Path]:
    files = {role: root / path.expanduser() for role, path in data.lists.items()}
    for role, file in files.items():
        if not file.is_file():
            raise BadInputError(f"{layout.name}: data.lists.{role} names {file}, which is no file. {layout.text}")
    known = (
        {role for form in layout.forms for role in form}
        | {"train", "validation", "test"}
        | dict(layout.optional).keys()
    )
    unused = sorted(set(files) - known)
    if unused:
        raise BadInputError(f"{layout.name} reads no list with the role {unused[0]!r}. {layout.text}")
    roles = set(files) - {"classes"}
    if "all" in roles and len(roles) > 1:
        raise BadInputError(f"{layout.name}: data.lists has `all` and other roles; give `all`, or one file a split")
    if "all" not in roles and not ("train" in roles and roles & {"test", "validation"}):
        raise BadInputError(f"{layout.name}: data.lists needs `all`, or `train` and `test`. {layout.text}")
    chosen: dict[str, Path] = {role: files[role] for role in sorted(files)}
    return chosen | _beside(layout, root, chosen)


def _beside(layout: Layout, root: Path, chosen: Mapping[str, Path]) -> dict[str, Path]:
    """The optional lists that are not chosen yet and lie where lists are looked for."""
    found: dict[str, Path] = {}
    for role, name in layout.optional:
        for folder in layout.folders:
            file = root / folder / name
            if role not in chosen and role not in found and file.is_file():
                found[role] = file
    return found


def text_of(file: Path) -> str:
    """A text file, in UTF-8 with or without a mark.

    Raises:
        BadInputError: it cannot be read, or is no such text.
    """
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise BadInputError(f"{file} cannot be read: it is not UTF-8 text") from None
    except OSError as error:
        raise BadInputError(f"{file} cannot be read: {error.strerror or error}") from None
    if "\0" in text:
        raise BadInputError(f"{file} cannot be read: it is not text")
    return text


def lines(file: Path) -> Iterator[tuple[str, str]]:
    """Every line of a plain list with where it stands; empty ones are passed over.

    Raises:
        BadInputError: it cannot be read.
    """
    for number, text in enumerate(text_of(file).split("\n")):
        if text.strip():
            yield f"{file.name} line {number + 1}", text.strip()


def csv_rows(file: Path) -> Iterator[tuple[str, list[str]]]:
    """Every row of a comma-separated list with where it stands; empty lines are passed over, quotes are strict.

    Raises:
        BadInputError: it cannot be read, or a quote is out of place; the line is named.
    """
    reader = csv.reader(io.StringIO(text_of(file), newline=""), strict=True, skipinitialspace=True)
    try:
        for row in reader:
            if row:
                yield f"{file.name} line {reader.line_num}", [cell.strip() for cell in row]
    except csv.Error as error:
        raise BadInputError(f"{file} line {reader.line_num}: {error}") from None


def shown(text: str) -> str:
    """Text of a list as a message shows it: in quotes, and not longer than can be read."""
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")


def whole_number(text: str, what: str, line: str) -> int:
    """A number of seconds or a label, 0 or more.

    Raises:
        BadInputError: it is none.
    """
    if is_number(text):
        return int(text)
    raise BadInputError(f"{line}: {what} must be a whole number, 0 or more, not {shown(text)}")


def is_number(text: str) -> bool:
    """Whether it is a whole number of at most nine digits: no second and no label is larger."""
    return len(text) <= 9 and text.isascii() and text.isdecimal()


def split_named(text: str, line: str) -> str:
    """The split that a list means by `text`; `val` and `validate` are validation.

    Raises:
        BadInputError: no such split.
    """
    split = {"val": "validation", "validate": "validation"}.get(text, text)
    if split not in SPLITS:
        raise BadInputError(f"{line}: unknown split {shown(text)}.{nearest(text[:_SHOWN], list(SPLITS))}")
    return split


def assemble(
    layout: Layout,
    data: DataConfig,
    lists: dict[str, Path],
    rows: Sequence[Row],
    *,
    match: Matcher,
    expected: Callable[[Row], str],
    classes: tuple[str, ...] | None = None,
    notes: Iterable[str] = (),
) -> ClipIndex:
    """Rows of a list, matched with the files below the root.

    Args:
        expected: a row's file name where there is no such file.
        classes: in order; the sorted labels when left out.

    Raises:
        BadInputError: no rows, one clip or file with two labels, an overlap that data.on_overlap refuses, a class
            without train clips, or no file for any row.
    """
    root = root_of(layout, data)
    kept, table, left_out = _table(layout, data, rows, lists)
    classes = classes or tuple(sorted(set(table["label"])))
    _check_classes(layout, table, classes, lists)
    files, closed = clip_files(root)
    if closed:
        notes = [*notes, f"{len(closed)} folders may not be read, {shown(closed[0])} first: clips in them are missing"]
    files_of = match(files)
    fitting = {row.id: files_of(row) for row in rows}  # also of rows left out: their files are not unlisted
    repeated = _of_one_file(layout, kept, fitting)
    if repeated:
        again = {row[0] for row in repeated}
        left_out = pd.concat([left_out, pd.DataFrame(repeated, columns=list(LEFT_OUT))], ignore_index=True)
        kept, table = [row for row in kept if row.id not in again], table[~table["id"].isin(again)]
    missing = {row.id for row in kept if not fitting[row.id]}
    taken = {path for found in fitting.values() for path in found}
    if len(missing) == len(table):
        _refuse_empty(layout, root, kept[0], expected, files)
    listing = Listing(
        lists={str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in lists.values()},
        missing=frozenset(missing),
        unlisted=tuple(path for path in files if path not in taken),
        several={row.id: tuple(fitting[row.id]) for row in kept if len(fitting[row.id]) > 1},
        left_out=left_out,
        notes=tuple(notes),
    )
    labels = table["label"].map({name: i for i, name in enumerate(classes)}).astype(int)
    paths = [fitting[row.id][0] if fitting[row.id] else str(root / expected(row)) for row in kept]
    check_names(paths)
    clips = pd.DataFrame({"id": table["id"], "path": paths, "label": labels})
    return ClipIndex(layout.name, classes, clips.assign(split=table["split"], group=table["group"]), listing)


def _table(
    layout: Layout, data: DataConfig, rows: Sequence[Row], lists: dict[str, Path]
) -> tuple[list[Row], pd.DataFrame, pd.DataFrame]:
    """The rows that are kept, every clip once, as they are and as a table; and those that were left out."""
    if not rows:
        raise BadInputError(f"{layout.name}: no clips in {' and '.join(map(str, lists.values()))}. {layout.text}")
    first: dict[tuple[str, str], Row] = {}
    repeated = []
    for row in rows:
        before = first.setdefault((row.id, row.split), row)
        if before is row:
            continue
        if before.label != row.label:
            raise BadInputError(
                f"{layout.name}: {row.line}: clip {shown(row.id)} has the label {shown(row.label)}, but "
                f"{shown(before.label)} in {before.line}. Take one of them out"
            )
        repeated.append((row.id, row.split, "repeated", f"{row.line}, after {before.line}"))
    every = pd.DataFrame([row[:4] for row in first.values()], columns=list(Row._fields[:4]))
    table, overlap = without_overlap(layout.name, every, data.on_overlap)
    left_out = pd.DataFrame([*repeated, *overlap.itertuples(index=False)], columns=list(LEFT_OUT))
    for split in ("train", "test"):
        if not (table["split"] == split).any():
            raise BadInputError(f"{layout.name}: no clip is left in the split `{split}`; both train and test need some")
    kept = [first[key] for key in zip(table["id"].tolist(), table["split"].tolist(), strict=True)]
    return kept, table, left_out


def _of_one_file(layout: Layout, rows: Sequence[Row], fitting: dict[str, list[str]]) -> list[tuple[str, ...]]:
    """Rows (as in `Listing.left_out`) whose file another row has already, under another name of the same clip."""
    first: dict[str, Row] = {}
    repeated: list[tuple[str, ...]] = []
    for row in rows:
        before = first.setdefault(fitting[row.id][0], row) if fitting[row.id] else row
        if before is row:
            continue
        if (before.label, before.split) != (row.label, row.split):
            raise BadInputError(
                f"{layout.name}: {row.line}: clip {shown(row.id)} ({shown(row.label)}, {row.split}) has the file of "
                f"{shown(before.id)} ({shown(before.label)}, {before.split}) in {before.line}. Take one of them out"
            )
        repeated.append((row.id, row.split, "repeated", f"{row.line}, the file of {before.line}"))
    return repeated


def _check_classes(layout: Layout, table: pd.DataFrame, classes: tuple[str, ...], lists: dict[str, Path]) -> None:
    train = set(table.loc[table["split"] == "train", "label"])
    unlearnt = [name for name in classes if name not in train]
    if unlearnt:
        raise BadInputError(
            f"{layout.name}: {len(unlearnt)} of {len(classes)} classes have no clip in train, "
            f"{shown(unlearnt[0])} first (lists: {', '.join(map(str, lists.values()))})"
        )


def _refuse_empty(layout: Layout, root: Path, row: Row, expected: Callable[[Row], str], files: list[str]) -> None:
    seen = f"no clip file lies there (extensions looked for: {' '.join(CONTAINERS)})"
    if files:
        seen = f"{len(files)} clip files lie there, {str(Path(files[0]).relative_to(root))!r} first"
    raise BadInputError(
        f"{layout.name}: none of the listed clips was found in {root} or any folder below it: {row.line} needs "
        f"{shown(expected(row))}, and {seen}. {layout.text}"
    )
