"""`kinetics_sounds`: Kinetics-Sounds, the classes of Kinetics that can be heard, clips of ten seconds from YouTube.

Layout: `--data-root DIR` with a pair of lists and, anywhere below it, the clips. Three kinds of list are read, and told
apart by their lines:

    CRMT's   ks_train_overlap.txt, ks_test_overlap.txt    `--4-0ihtnBU_000058_000068 4`, test `--7VUM9MKg4 17`
    OGM's    my_train.txt, my_test.txt                    `--4-0ihtnBU_000058_000068,10,4`, test `-3Mwkq-7TV4_2,10,23`
    Kinetics train.csv, validate.csv or val.csv, test.csv (or all in kinetics.csv) with the header
             label,youtube_id,time_start,time_end,split,is_cc, and classes.txt: the classes to keep, one a line

Labels of the first two are numbers without names; a classes.txt beside them names them in order. Their test lists do
not even overlap: results carry the SHA-256 of theirs. train.txt and test.txt do as well, data.lists names others. Where
Kinetics' CSV (of a file a split, the file decides) has no test rows, its validation rows are the test split, and
validation is carved from train. Clips are `{youtube_id}_{start:06d}_{end:06d}`, `{youtube_id}_{start:06d}` or
`{youtube_id}_{start}` in any container, or `{youtube_id}` where the list has no time; a listed name without a time is
any cut of its video, of which Kinetics has one. Clips of one YouTube video are a group. Origin: Arandjelovic and
Zisserman, "Look, listen and learn" (ICCV 2017), on Kay et al., "The Kinetics human action video dataset" (2017); the
lists are their publishers', the clips their uploaders'.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from crmt.errors import BadInputError
from pipelines.config.hints import nearest
from pipelines.config.schema import DataConfig
from pipelines.sources.base import Source
from pipelines.sources.files import by_key, stem
from pipelines.sources.index import ClipIndex
from pipelines.sources.lists import (
    Layout,
    ListedClip,
    assemble,
    csv_rows,
    find_lists,
    lines,
    shown,
    split_named,
    whole_number,
)

_CSV = "label,youtube_id,time_start,time_end,split,is_cc"
_VALIDATIONS = ("validate.csv", "val.csv")
LAYOUT = Layout(
    name="kinetics_sounds",
    forms=(
        {"train": "ks_train_overlap.txt", "test": "ks_test_overlap.txt"},
        {"train": "my_train.txt", "test": "my_test.txt"},
        {"train": "train.txt", "test": "test.txt"},
        {"all": "kinetics.csv"},
        *({"train": "train.csv", "validation": name, "test": "test.csv"} for name in _VALIDATIONS),
        *({"train": "train.csv", "validation": name} for name in _VALIDATIONS),
        {"train": "train.csv", "test": "test.csv"},
    ),
    optional=(("classes", "classes.txt"),),
    text="DIR holds CRMT's lists (a line: `--4-0ihtnBU_000058_000068 4`), OGM's (`--4-0ihtnBU_000058_000068,10,4`) or "
    f"Kinetics' CSV (header {_CSV}) with classes.txt, and in any folder the clips "
    "{youtube_id}_{start:06d}_{end:06d}.mp4 (or {youtube_id}_{start}.mp4; .mkv, .webm ...); data.lists names lists "
    "that are called otherwise",
)
_NAME = re.compile(r"([A-Za-z0-9_-]{11})(?:_(\d{1,9}))?(?:_(\d{1,9}))?", re.ASCII)


def load(data: DataConfig) -> ClipIndex:
    """The clips of one pair of lists.

    Raises:
        BadInputError: no lists, lists of two kinds, a malformed line, or no clips.
    """
    lists = find_lists(LAYOUT, data)
    files = {role: file for role, file in lists.items() if role != "classes"}
    names = _class_names(lists["classes"]) if "classes" in lists else None
    kinds = {_kind(file) for file in files.values()}
    if len(kinds) > 1:
        raise BadInputError(f"kinetics_sounds: {' and '.join(f.name for f in files.values())} are lists of two kinds")
    if kinds == {"csv"}:
        rows, notes = _from_csv(files, names)
        classes = tuple(sorted(names or ()))
    else:
        rows = [_numbered(line, text, role) for role, file in files.items() for line, text in lines(file)]
        classes, notes = _number_classes(rows, names), ["labels are numbers" + (", named by classes.txt" * bool(names))]
        rows = [row._replace(label=classes[int(row.label)]) for row in rows]
    return assemble(LAYOUT, data, lists, rows, match=_match, expected=_file, classes=classes, notes=notes)


def _kind(file: Path) -> str:
    first = next((text for _, text in lines(file)), "")
    return "csv" if "youtube_id" in first.replace('"', "").split(",") else "numbers"


def _parts(name: str) -> tuple[str, int | None] | None:
    """Video and second of a clip's name; None for any other name."""
    found = _NAME.fullmatch(name)
    return (found[1], None if found[2] is None else int(found[2])) if found else None


def _match(files: list[str]) -> Callable[[ListedClip], list[str]]:
    found = by_key(files, _parts)
    cuts: dict[str, list[tuple[str, int | None]]] = {}
    for key in found:
        if isinstance(key, tuple):
            cuts.setdefault(key[0], []).append(key)

    def files_of(row: ListedClip) -> list[str]:
        assert isinstance(row.key, tuple)
        video, start = row.key
        if row.key in found or start is not None:
            # of cuts that begin together, the one with the listed end comes first
            return sorted(found.get(row.key, []), key=lambda path: stem(path) != row.id)
        return [path for key in sorted(cuts.get(video, []), key=str) for path in found[key]]

    return files_of


def _file(row: ListedClip) -> str:
    return f"{row.id}.mp4"


def _numbered(line: str, text: str, split: str) -> ListedClip:
    """A line of CRMT's list (`name label`) or OGM's (`name,seconds,label`)."""
    cells = [cell.strip() for cell in text.split(",")] if "," in text else text.split()
    if len(cells) != (3 if "," in text else 2) or split == "all":
        raise BadInputError(f"{line}: {shown(text)} is neither `name label` nor `name,seconds,label`, one file a split")
    key = _parts(cells[0])
    if key is None:
        raise BadInputError(
            f"{line}: {shown(cells[0])} is not a YouTube id of 11 characters, with or without _start_end"
        )
    for seconds in cells[1:-1]:
        whole_number(seconds, "the seconds", line)
    label = whole_number(cells[-1], "the label", line)
    return ListedClip(cells[0], str(label), split, key[0], key, line)


def _number_classes(rows: list[ListedClip], names: tuple[str, ...] | None) -> tuple[str, ...]:
    if not rows:
        return ()
    last = max(rows, key=lambda row: int(row.label))
    count = int(last.label) + 1
    if names is None and count > len(rows):
        raise BadInputError(f"{last.line}: label {last.label}, but the lists have {len(rows)} clips in all")
    if names is not None and count > len(names):
        known = f"classes.txt names {len(names)} (0 to {len(names) - 1})"
        raise BadInputError(f"{last.line}: label {last.label}, but {known}")
    return names or tuple(map(str, range(count)))


def _class_names(file: Path) -> tuple[str, ...]:
    names = tuple(text for _, text in lines(file) if not text.startswith("#"))
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not names:
        raise BadInputError(f"{file}: " + (f"{shown(twice[0])} is named twice" if twice else "no class, one a line"))
    return names


def _from_csv(files: dict[str, Path], names: tuple[str, ...] | None) -> tuple[list[ListedClip], list[str]]:
    if names is None:
        raise BadInputError(
            f"kinetics_sounds: {' and '.join(map(str, files.values()))} list all of Kinetics: write the classes to "
            "keep into classes.txt beside them, one a line (such as `playing accordion`), or give data.lists.classes"
        )
    kept = set(names)
    every = [row for role, file in files.items() for row in _csv_file(file, role)]
    unknown = sorted(kept - {row.label for row in every})
    if unknown:
        close = nearest(unknown[0], sorted({row.label for row in every}))
        raise BadInputError(f"kinetics_sounds: classes.txt: no clip has the label {shown(unknown[0])}.{close}")
    rows = [row for row in every if row.label in kept]
    notes = [f"{len(rows)} of {len(every)} rows are of the {len(names)} classes in classes.txt"]
    if not any(row.split == "test" for row in rows):
        rows = [row._replace(split="test") if row.split == "validation" else row for row in rows]
        notes.append("the list has no test rows: its validation rows are the test split")
    return rows, notes


def _csv_file(file: Path, role: str) -> list[ListedClip]:
    table = csv_rows(file)
    line, header = next(table)
    wanted = ("label", "youtube_id", "time_start", "time_end", *(("split",) if role == "all" else ()))
    lacking = [column for column in wanted if column not in header]
    if lacking:
        raise BadInputError(f"{line}: the header has no {', '.join(lacking)}; expected {_CSV}")
    return [
        _csv_row(line, dict(zip(header, cells, strict=False)), len(cells) == len(header), role) for line, cells in table
    ]


def _csv_row(line: str, row: dict[str, str], whole: bool, role: str) -> ListedClip:
    if not whole or not row["label"]:
        raise BadInputError(f"{line}: expected {_CSV}, found {shown(','.join(row.values()))}")
    video = row["youtube_id"]
    start, end = (_seconds(row[column], column, line) for column in ("time_start", "time_end"))
    split = split_named(row["split"], line) if role == "all" else role
    name = f"{video}_{start:06d}_{end:06d}"
    key = _parts(name)
    if key is None:
        raise BadInputError(f"{line}: {shown(video)} is not a YouTube id of 11 characters")
    return ListedClip(name, row["label"], split, video, key, line)


def _seconds(text: str, what: str, line: str) -> int:
    return whole_number(text.removesuffix(".0"), what, line)


SOURCE = Source(load, look=partial(find_lists, LAYOUT), takes=("lists",))
