"""The list of a data set's clips, whatever the layout on disk; and the validation split carved from it."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from crmt.errors import BadInputError
from pipelines.config.modality import PATH

SPLITS = ("train", "validation", "test")
COLUMNS = ("id", "path", "label", "split", "group")
LEFT_OUT = ("id", "split", "reason", "detail")


@dataclass(frozen=True, eq=False, kw_only=True)
class Listing:
    """What an index was made from: the lists that were read, and what in them and on disk does not fit together.

    Args:
        lists: list file to the SHA-256 of its bytes.
        missing: ids of clips without a file; they stay in the index, and ingest quarantines them.
        missing_in_columns: column of data.modalities to the ids of clips whose file there does not exist.
        unlisted: clip files that no list names.
        several: id to the files that it fits, the first of which is taken.
        left_out: rows of the lists that are not in the index (id, split, reason, detail); the reason is `overlap` or
            `repeated`.
        notes: sentences on how the lists were understood.
        nothing_there: what to say where no clip that the lists name was found; empty where some were.
    """

    lists: dict[str, str] = field(default_factory=dict)
    missing: frozenset[str] = frozenset()
    missing_in_columns: dict[str, frozenset[str]] = field(default_factory=dict)
    unlisted: tuple[str, ...] = ()
    several: dict[str, tuple[str, ...]] = field(default_factory=dict)
    left_out: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(LEFT_OUT)))
    notes: tuple[str, ...] = ()
    nothing_there: str = ""

    def counts(self) -> dict[str, int]:
        """How many rows were left out, by reason, and how many clips have no file or several."""
        reasons = self.left_out["reason"].value_counts().to_dict()
        counts = {"missing": len(self.missing), "several_files": len(self.several), "unlisted": len(self.unlisted)}
        counts |= {f"missing_{column}": len(ids) for column, ids in self.missing_in_columns.items()}
        return {**{str(k): int(v) for k, v in reasons.items()}, **counts}

    def missing_in(self, columns: Iterable[str] | None = None) -> frozenset[str]:
        """Ids of clips that lack a file which the list names.

        Args:
            columns: look in these columns only; None: in all.
        """
        by_column = {PATH: self.missing, **self.missing_in_columns}
        return frozenset().union(*(by_column.get(c, frozenset()) for c in (by_column if columns is None else columns)))

    def __str__(self) -> str:
        """The counts of what does not fit, in one line; empty where everything does."""
        return ", ".join(f"{count} {reason}" for reason, count in self.counts().items() if count)

    def of_clips(self, ids: Iterable[str]) -> Listing:
        """The listing without what it says of other clips; what the lists leave out or do not name stays as it is."""
        kept = frozenset(ids)
        several = {clip: files for clip, files in self.several.items() if clip in kept}
        columns = {column: ids & kept for column, ids in self.missing_in_columns.items()}
        return replace(self, missing=self.missing & kept, missing_in_columns=columns, several=several)

    def summary(self) -> dict[str, Any]:
        """The lists, the counts and the notes as JSON, for a cache's card."""
        return {"lists": self.lists, "counts": self.counts(), "notes": list(self.notes)}


@dataclass(frozen=True, eq=False)
class ClipIndex:
    """A data set as a list.

    `clips` has the columns id (str, unique), path (str, absolute), label (int, position in `classes`), split
    (train | validation | test) and group (str: the source video, which lies in one split only), and is sorted by id.
    An optional column `fingerprint` (str) stands for a clip's content; without it its size and pieces of it do. Columns
    that data.modalities names hold files or folders of pictures, absolute, or nothing where a clip has none. Others are
    kept as they are, and decide nothing.

    Raises:
        BadInputError: a duplicate id, an unknown split, a label out of range, or a group in more than one split.
    """

    name: str
    classes: tuple[str, ...]
    clips: pd.DataFrame
    listing: Listing = field(default_factory=Listing)
    carved: bool = False
    """Whether validation was carved from train, and not listed."""

    def __post_init__(self) -> None:
        more = [column for column in self.clips if column not in COLUMNS]
        clips = self.clips[[*COLUMNS, *more]].sort_values("id", kind="stable").reset_index(drop=True)
        twice = clips["id"][clips["id"].duplicated()]
        if len(twice):
            raise BadInputError(f"{self.name}: clip {twice.iloc[0]!r} is listed more than once")
        unknown = sorted(set(clips["split"]) - set(SPLITS))
        if unknown:
            raise BadInputError(f"{self.name}: unknown split {unknown[0]!r}. Valid: {', '.join(SPLITS)}")
        if not clips["label"].between(0, len(self.classes) - 1).all():
            raise BadInputError(f"{self.name}: labels must lie between 0 and {len(self.classes) - 1}")
        _check_groups(self.name, clips)
        object.__setattr__(self, "clips", clips)

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def sha256(self) -> str:
        """A hash of the classes and of every clip's id, label, split and group: the same on every machine."""
        columns = ("id", "label", "split", "group")
        rows = [list(row) for row in zip(*(self.clips[c].tolist() for c in columns), strict=True)]
        return hashlib.sha256(json.dumps([list(self.classes), rows]).encode()).hexdigest()

    def limited(self, n: int, seed: int) -> ClipIndex:
        """An index of some of the clips, with classes as equal as they can be.

        Args:
            n: at most this many clips of each split.
            seed: fixes which.
        """
        order = np.random.default_rng([seed, 1]).permutation(len(self.clips))
        shuffled = self.clips.iloc[order]
        # every class gives its first clip, then its second ...
        turn = shuffled.groupby(["split", "label"]).cumcount().sort_values(kind="stable").index
        clips = shuffled.loc[turn].groupby("split").head(n)
        return replace(self, clips=clips, listing=self.listing.of_clips(clips["id"]))


def check_column(index: ClipIndex, modality: str, column: str) -> None:
    """Refuse a modality whose column the list of clips lacks, or that names no files.

    Raises:
        BadInputError: names the columns that do.
    """
    if column not in index.clips or (column in COLUMNS and column != PATH):
        usable = [str(c) for c in index.clips if c == PATH or c not in COLUMNS]
        raise BadInputError(
            f"data.modalities.{modality}.column: {index.name} has no column {column!r} that names files; it has "
            f"{', '.join(usable)}"
        )


def overlapping(clips: pd.DataFrame) -> pd.Series:
    """The splits that each group lies in, in the order of SPLITS, for groups that lie in more than one."""
    places = clips[["group", "split"]].drop_duplicates()
    torn = places[places["group"].duplicated(keep=False)]
    order = {split: i for i, split in enumerate(SPLITS)}
    return torn.groupby("group", sort=False)["split"].agg(lambda found: tuple(sorted(found, key=lambda s: order[s])))


def without_overlap(name: str, clips: pd.DataFrame, policy: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Clips whose source video lies in one split only, and those that were left out for it (see `Listing.left_out`).

    Test keeps its clips, then validation: what is tested on is never made smaller.

    Raises:
        BadInputError: there is an overlap, and `policy` is `error`.
    """
    torn = overlapping(clips)
    if torn.empty:
        return clips, pd.DataFrame(columns=list(LEFT_OUT))
    if policy == "error":
        _refuse_overlap(name, torn)
    keeps = torn.map(lambda splits: splits[-1])
    kept_in = clips["group"].map(keeps).fillna(clips["split"])
    out = clips[kept_in != clips["split"]]
    detail = [f"source video {group} is in {keeps[group]}" for group in out["group"]]
    left_out = pd.DataFrame({"id": out["id"], "split": out["split"], "reason": "overlap", "detail": detail})
    return clips[kept_in == clips["split"]], left_out


def _refuse_overlap(name: str, torn: pd.Series) -> None:
    raise BadInputError(
        f"{name}: group {torn.index[0]!r} (clips of one source video) lies in {' and '.join(torn.iloc[0])}; "
        f"{len(torn)} such group{'s' * (len(torn) > 1)} in all. Give all clips of a group the same split, or leave "
        "train's out with --set data.on_overlap=drop_train"
    )


def _check_groups(name: str, clips: pd.DataFrame) -> None:
    """Refuse a group that lies in two splits: cuts of a video that was learned would be tested on."""
    torn = overlapping(clips)
    if len(torn):
        _refuse_overlap(name, torn)


def with_validation(index: ClipIndex, share: float, seed: int) -> ClipIndex:
    """Move `share` of train's groups to validation, seeded; an index that has a validation split stays as it is.

    Every class that train has stays in train: a group that holds a class's last clips is passed over.

    Raises:
        BadInputError: no group can be spared.
    """
    clips = index.clips
    if (clips["split"] == "validation").any():
        return index
    train = clips[clips["split"] == "train"]
    labels_of: dict[str, Counter[int]] = {}
    for group, label in zip(train["group"].tolist(), train["label"].tolist(), strict=True):
        labels_of.setdefault(group, Counter())[label] += 1
    groups = sorted(labels_of)
    left = Counter(train["label"].tolist())
    target = max(1, round(share * len(groups)))
    moved: set[str] = set()
    for position in np.random.default_rng([seed, 2]).permutation(len(groups)):
        counts = labels_of[groups[position]]
        if len(moved) == target:
            break
        if all(left[label] > count for label, count in counts.items()):
            left.subtract(counts)
            moved.add(groups[position])
    if not moved:
        raise BadInputError(
            f"{index.name}: no clips can be carved from train for validation, because every class has clips of one "
            "group (source video) only. Add clips, or rows whose split is `validation`"
        )
    to_move = (clips["split"] == "train") & clips["group"].isin(moved)
    return replace(index, clips=clips.assign(split=clips["split"].mask(to_move, "validation")), carved=True)
