"""What a data set has on disk and what it lacks, before anything is decoded: `ingest.py --check`. Needs no Ray.

Reads lists and folders, opens no clip: seconds for 200,000 of them. Beside the tables on the screen it writes two CSVs:
how many clips each class has in each split, listed and found; and every clip that does not fit,
`clip,split,reason,detail`, with the reasons

    missing         listed, and no file was found; `detail` is where it would be. A row for each column of files
    unlisted        a clip file that no list names; `detail` is the file
    several_files   more than one file fits; the first is taken
    repeated        the list names it again; it counts once
    overlap         its source video lies in another split, too, or its very file does under another name (a link); left
                    out where data.on_overlap is drop_train
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from crmt.errors import BadInputError
from pipelines import sources
from pipelines.config.modality import PATH
from pipelines.config.paths import cache_root
from pipelines.config.schema import DataConfig
from pipelines.sources.index import SPLITS, ClipIndex
from pipelines.sources.text import alike

_EXAMPLES = 5
_COLUMNS = ("clip", "split", "reason", "detail")


def check(data: DataConfig, file: Path | None = None, console: Console | None = None) -> int:
    """Print what is there and what is not, and write every misfit to `file` (by default into the cache's folder).

    The counts of each class and split go into a file beside it, whose name ends in `-classes.csv`.

    Returns:
        0 where the set can be used as it is, else 1, with the reasons on stderr.

    Raises:
        BadInputError: the lists are missing or malformed, or nothing they name is there.
    """
    if sources.find(data.dataset).makes_clips:
        raise BadInputError(f"{data.dataset} makes its clips itself: there is nothing on disk to check")
    # an overlap is counted here, whatever the configuration makes of it
    index = sources.load(data.model_copy(update={"on_overlap": "drop_train"}))
    misfits = _misfits(index)
    file = file or cache_root(data) / "checks" / f"{index.name}-{index.sha256[:12]}.csv"
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8", errors="surrogateescape", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(_COLUMNS)
        writer.writerows(misfits)
    classes = file.with_name(f"{file.stem}-classes.csv")
    counts = _classes(index)
    counts.to_csv(classes, index=False)
    console = console or Console()
    console.print(_splits(index))
    console.print(_facts(index, data))
    _print_thinnest(console, counts)
    _print_examples(console, misfits)
    for path, digest in index.listing.lists.items():
        _print(console, f"list: {path}, SHA-256 {digest}")
    _print(console, f"clips, as results carry it: SHA-256 {index.sha256}")
    _print(console, f"every class: {classes}")
    _print(console, f"every misfit: {file}")
    problems = list(_problems(index, data))
    for problem in problems:
        print(f"not usable: {problem}", file=sys.stderr)
    if not problems:
        console.print("Usable as it is.")
    return 1 if problems else 0


def _misfits(index: ClipIndex) -> list[tuple[str, ...]]:
    """Rows of `_COLUMNS`; not a table, because what lies on a disk need not have a name in UTF-8."""
    listing, clips = index.listing, index.clips
    split_of = dict(zip(clips["id"].tolist(), clips["split"].tolist(), strict=True))
    missing = {PATH: listing.missing, **listing.missing_in_columns}
    several = listing.several.items()
    return [
        *(
            (clip["id"], clip["split"], "missing", clip[column])
            for column, ids in missing.items()
            for clip in clips[clips["id"].isin(ids)][["id", "split", column]].to_dict("records")
        ),
        *((clip, split_of.get(clip, ""), "several_files", " ".join(map(repr, found))) for clip, found in several),
        *listing.left_out.itertuples(index=False),
        *(("", "", "unlisted", path) for path in listing.unlisted),
    ]


def _found(index: ClipIndex) -> pd.DataFrame:
    return index.clips[~index.clips["id"].isin(index.listing.missing_in())]


def _classes(index: ClipIndex) -> pd.DataFrame:
    """A row a class: its name, and for each split how many clips are listed and how many were found."""
    table, found = pd.DataFrame({"class": index.classes}), _found(index)
    for split in SPLITS:
        for what, clips in (("listed", index.clips), ("found", found)):
            labels = clips.loc[clips["split"] == split, "label"]
            table[f"{split} {what}"] = np.bincount(labels, minlength=len(index.classes))
    return table


def _print_thinnest(console: Console, counts: pd.DataFrame) -> None:
    """The classes with the fewest train clips, and how many those are."""
    fewest = counts.sort_values("train found", kind="stable").head(_EXAMPLES)
    shown = ", ".join(f"{name!a} {n}" for name, n in zip(fewest["class"], fewest["train found"], strict=True))
    _print(console, f"fewest train clips found: {shown}")


def _print(console: Console, line: str) -> None:
    """A line as it is: nothing cut, whatever the width."""
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def _splits(index: ClipIndex) -> Table:
    table = Table(title=f"{index.name}: {len(index)} clips of {len(index.classes)} classes")
    table.add_column("split")
    for column in ("listed", "found", "missing", "source videos", "clips found a class: min", "median", "max"):
        table.add_column(column, justify="right")
    found = _found(index)
    for split in SPLITS:
        clips, here = index.clips[index.clips["split"] == split], found[found["split"] == split]
        counts = np.bincount(here["label"], minlength=len(index.classes))
        spread = [f"{value:g}" for value in (counts.min(), np.median(counts), counts.max())]
        listed, groups = len(clips), clips["group"].nunique()
        table.add_row(split, *(str(n) for n in (listed, len(here), listed - len(here), groups)), *spread)
    return table


def _facts(index: ClipIndex, data: DataConfig) -> Table:
    listing, counts = index.listing, index.listing.counts()
    overlap = listing.left_out[listing.left_out["reason"] == "overlap"]
    videos = overlap["detail"].nunique()
    table = Table("", "", show_header=False)
    table.add_row("missing on disk", f"{len(index) - len(_found(index))} ({_missing_share(index):.1%})")
    for column in data.columns if data.modalities else ():
        named = int((index.clips[column] != "").sum())
        lost = len(listing.missing_in([column]))
        table.add_row(
            f"column {column}", f"{named} files named, {lost} of them missing; {len(index) - named} clips without"
        )
    table.add_row("unlisted clip files", str(counts["unlisted"]))
    table.add_row("listed more than once", str(counts.get("repeated", 0)))
    table.add_row("with several files", str(counts["several_files"]))
    table.add_row(
        "overlap of splits", f"{videos} source videos, {len(overlap)} clips (data.on_overlap: {data.on_overlap})"
    )
    for note in (*listing.notes, *alike(index.classes)):
        table.add_row("note", note)
    return table


def _print_examples(console: Console, misfits: list[tuple[str, ...]]) -> None:
    """The first of each kind; names are printed as Python writes them, so that none can spoil the terminal."""
    by_reason: dict[str, list[str]] = {}
    for clip, _, reason, detail in misfits:
        by_reason.setdefault(reason, []).append(clip or detail)
    for reason, names in by_reason.items():
        shown = ", ".join(map(ascii, names[:_EXAMPLES]))
        more = f" and {len(names) - _EXAMPLES} more" if len(names) > _EXAMPLES else ""
        _print(console, f"{reason}: {shown}{more}")


def _missing_share(index: ClipIndex) -> float:
    return 1 - len(_found(index)) / len(index)


def _problems(index: ClipIndex, data: DataConfig) -> Iterator[str]:
    """Why ingest would refuse the set as it is."""
    overlap = int((index.listing.left_out["reason"] == "overlap").sum())
    if overlap and data.on_overlap == "error":
        yield f"{overlap} clips share a source video with another split; leave them out with data.on_overlap=drop_train"
    if _missing_share(index) > data.max_failure_share:
        yield (
            f"{_missing_share(index):.1%} of the clips are missing; data.max_failure_share allows "
            f"{data.max_failure_share:.0%}"
        )
    found = _found(index)
    for split in sorted(set(index.clips["split"])):
        if not (found["split"] == split).any():
            yield f"no clip of the {split} split was found"
    learnt = set(found.loc[found["split"] == "train", "label"])
    lost = [name for label, name in enumerate(index.classes) if label not in learnt]
    if lost:
        yield f"{len(lost)} classes have no train clip on disk, {lost[0]!r} first"
