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
from pipelines.sources.files import CONTAINERS, check_names, clip_files, one_group_a_file
from pipelines.sources.index import LEFT_OUT, SPLITS, ClipIndex, Listing, without_overlap
from pipelines.sources.text import one_text

_SHOWN = 80


class ListedClip(NamedTuple):
    """One clip as a list names it."""

    id: str
    label: str
    split: str
    group: str
    key: Hashable
    """What identifies the clip's file: its name, or video and second."""
    line: str
    """Where the list names it, for messages: `FILE line N`."""


Matcher = Callable[[list[str]], Callable[[ListedClip], list[str]]]
"""Takes all clip files; gives a function from a listed clip to its files among them, the best first.

In two steps, so that the files are sorted by key once, and not once for each of 200,000 clips.
"""


@dataclass(frozen=True)
class Layout:
    """What a data set looks like on disk.

    Args:
        name: of the data set.
        forms: the sets of list files that are looked for, role to file name; a complete set wins over its subsets.
        text: the layout in one line, for messages.
        optional: further lists, as (role, file name).
        folders: where below the root lists may lie.
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
        return _chosen_lists(layout, data, root)
    folders = [root / folder for folder in layout.folders]
    found: list[dict[str, Path]] = []
    for form in layout.forms:
        for folder in folders:
            files = {role: folder / name for role, name in form.items()}
            if all(file.is_file() for file in files.values()):
                found.append(files)
                break
    # where the files of one form are some of another's, the larger form is meant
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


def _chosen_lists(layout: Layout, data: DataConfig, root: Path) -> dict[str, Path]:
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
    """Optional lists without a chosen file for their role, from the folders in which lists are looked for."""
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

    Args:
        text: as the list has it.
        what: what the number means, for the message.
        line: where it stands, for the message.

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
    """The split that a list means; `val` and `validate` are validation.

    Args:
        text: as the list has it.
        line: where it stands, for the message.

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
    rows: Sequence[ListedClip],
    *,
    match: Matcher,
    expected: Callable[[ListedClip], str],
    classes: tuple[str, ...] | None = None,
    notes: Iterable[str] = (),
) -> ClipIndex:
    """The clips of a list, matched with the files below the root.

    Args:
        layout: what the data set looks like, for messages.
        data: says where the root is, and what an overlap of splits means.
        lists: role to the file that was read.
        rows: the clips of those files, in their order.
        match: finds a clip's files.
        expected: gives the file name that a clip without a file would have.
        classes: names in the order of their numbers; left out: the sorted labels.
        notes: sentences about the lists, for the check and the cache's card.

    Raises:
        BadInputError: no rows, one clip or file with two labels, an overlap that data.on_overlap refuses, or a class
            without train clips.
    """
    root = root_of(layout, data)
    rows = [row._replace(label=one_text(row.label)) for row in rows]
    unseen = next((row for row in rows if not row.label), None)
    if unseen is not None:
        raise BadInputError(f"{layout.name}: {unseen.line}: the label holds nothing that can be seen")
    kept, table, left_out = _table(layout, data, rows, lists)
    classes = tuple(dict.fromkeys(map(one_text, classes or sorted(set(table["label"])))))
    _check_classes(layout, table, classes, lists)
    files, closed = clip_files(root)
    if closed:
        notes = [*notes, f"{len(closed)} folders may not be read, {shown(closed[0])} first: clips in them are missing"]
    files_of = match(files)
    fitting = {row.id: files_of(row) for row in rows}  # also for rows left out, whose files a list does name
    repeated = _same_file(layout, kept, fitting)
    if repeated:  # a clip under two names would count twice, and could lie in train and test
        again = {row[0] for row in repeated}
        left_out = pd.concat([left_out, pd.DataFrame(repeated, columns=list(LEFT_OUT))], ignore_index=True)
        kept, table = [row for row in kept if row.id not in again], table[~table["id"].isin(again)]
    paths = [fitting[row.id][0] if fitting[row.id] else str(root / expected(row)) for row in kept]
    check_names(paths)
    table, linked = without_overlap(layout.name, one_group_a_file(table.assign(path=paths)), data.on_overlap)
    if len(linked):
        left_out = pd.concat([left_out, linked], ignore_index=True)
        left = set(table["id"])
        kept = [row for row in kept if row.id in left]
        _check_classes(layout, table, classes, lists)
    missing = {row.id for row in kept if not fitting[row.id]}
    taken = {path for found in fitting.values() for path in found}
    listing = Listing(
        lists={str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in lists.values()},
        missing=frozenset(missing),
        unlisted=tuple(path for path in files if path not in taken),
        several={row.id: tuple(fitting[row.id]) for row in kept if len(fitting[row.id]) > 1},
        left_out=left_out,
        notes=tuple(notes),
        nothing_there=_nothing(layout, root, kept[0], expected, files) if len(missing) == len(table) else "",
    )
    labels = table["label"].map({name: i for i, name in enumerate(classes)}).astype(int)
    clips = pd.DataFrame({"id": table["id"], "path": table["path"], "label": labels})
    return ClipIndex(layout.name, classes, clips.assign(split=table["split"], group=table["group"]), listing)


def _table(
    layout: Layout, data: DataConfig, rows: Sequence[ListedClip], lists: dict[str, Path]
) -> tuple[list[ListedClip], pd.DataFrame, pd.DataFrame]:
    """The rows that are kept, every clip once, as tuples and as a table; and a table of those that are left out."""
    if not rows:
        raise BadInputError(f"{layout.name}: no clips in {' and '.join(map(str, lists.values()))}. {layout.text}")
    # by id and split: one clip in two splits is no repetition but an overlap, which data.on_overlap decides on
    first: dict[tuple[str, str], ListedClip] = {}
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
    every = pd.DataFrame([row[:4] for row in first.values()], columns=list(ListedClip._fields[:4]))
    table, overlap = without_overlap(layout.name, every, data.on_overlap)
    left_out = pd.DataFrame([*repeated, *overlap.itertuples(index=False)], columns=list(LEFT_OUT))
    for split in ("train", "test"):
        if not (table["split"] == split).any():
            raise BadInputError(f"{layout.name}: no clip is left in the split `{split}`; both train and test need some")
    kept = [first[key] for key in zip(table["id"].tolist(), table["split"].tolist(), strict=True)]
    return kept, table, left_out


def _same_file(layout: Layout, rows: Sequence[ListedClip], fitting: dict[str, list[str]]) -> list[tuple[str, ...]]:
    """Rows (as in `Listing.left_out`) whose file an earlier row has: one clip under two names."""
    first: dict[str, ListedClip] = {}
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


def _nothing(
    layout: Layout, root: Path, row: ListedClip, expected: Callable[[ListedClip], str], files: list[str]
) -> str:
    seen = f"no clip file lies there (extensions looked for: {' '.join(CONTAINERS)})"
    if files:
        seen = f"{len(files)} clip files lie there, {str(Path(files[0]).relative_to(root))!r} first"
    return (
        f"{layout.name}: none of the listed clips was found in {root} or any folder below it: {row.line} needs "
        f"{shown(expected(row))}, and {seen}. {layout.text}"
    )
