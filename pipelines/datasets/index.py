"""The list of a data set's clips, whatever the layout on disk; and the validation split carved from it."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from crmt.errors import BadInputError
from pipelines.schema import DataConfig

SPLITS = ("train", "validation", "test")
COLUMNS = ("id", "path", "label", "split", "group")


@dataclass(frozen=True, eq=False)
class ClipIndex:
    """A data set as a list.

    `clips` has the columns id (str, unique), path (str, absolute), label (int, position in `classes`), split
    (train | validation | test) and group (str: the source video, which lies in one split only), and is sorted by id.
    An optional column `fingerprint` (str) stands for a clip's content; without it the file's size and time do.

    Raises:
        BadInputError: a duplicate id, an unknown split, a label out of range, or a group in more than one split.
    """

    name: str
    classes: tuple[str, ...]
    clips: pd.DataFrame

    def __post_init__(self) -> None:
        columns = [*COLUMNS, *(["fingerprint"] if "fingerprint" in self.clips else [])]
        clips = self.clips[columns].sort_values("id", kind="stable").reset_index(drop=True)
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
        """Of the classes and of every clip's id, label, split and group: the same on every machine."""
        columns = ("id", "label", "split", "group")
        rows = [list(row) for row in zip(*(self.clips[c].tolist() for c in columns), strict=True)]
        return hashlib.sha256(json.dumps([list(self.classes), rows]).encode()).hexdigest()

    def limited(self, n: int, seed: int) -> ClipIndex:
        """At most `n` clips of each split, seeded; classes are kept as equal as they can be."""
        order = np.random.default_rng([seed, 1]).permutation(len(self.clips))
        shuffled = self.clips.iloc[order]
        turn = shuffled.groupby(["split", "label"]).cumcount()  # every class gives its first clip, then its second ...
        chosen = shuffled.assign(turn=turn).sort_values("turn", kind="stable").groupby("split").head(n)
        return ClipIndex(self.name, self.classes, chosen.drop(columns="turn"))


def _check_groups(name: str, clips: pd.DataFrame) -> None:
    """Refuse a group that lies in two splits: cuts of a video that was learned would be tested on."""
    places = clips[["group", "split"]].drop_duplicates()
    torn = places["group"][places["group"].duplicated()]
    if len(torn):
        group = torn.iloc[0]
        splits = [s for s in SPLITS if s in set(places.loc[places["group"] == group, "split"])]
        raise BadInputError(
            f"{name}: group {group!r} (clips of one source video) lies in {' and '.join(splits)}; "
            "give all clips of a group the same split"
        )


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
    labels_of = {str(group): labels.value_counts() for group, labels in train.groupby("group")["label"]}
    groups = sorted(labels_of)
    left = train["label"].value_counts()
    target = max(1, round(share * len(groups)))
    moved: set[str] = set()
    for position in np.random.default_rng([seed, 2]).permutation(len(groups)):
        counts = labels_of[groups[position]]
        if len(moved) == target:
            break
        if (left[counts.index] > counts).all():
            left[counts.index] -= counts
            moved.add(groups[position])
    if not moved:
        raise BadInputError(
            f"{index.name}: no clips can be carved from train for validation, because every class has clips of one "
            "group (source video) only. Add clips, or rows whose split is `validation`"
        )
    to_move = (clips["split"] == "train") & clips["group"].isin(moved)
    return ClipIndex(index.name, index.classes, clips.assign(split=clips["split"].mask(to_move, "validation")))


def cache_root(data: DataConfig) -> Path:
    """Where generated and decoded clips are kept: data.cache, else $CRMT_CACHE, else ~/.cache/crmt-sweep."""
    chosen = data.cache or os.environ.get("CRMT_CACHE") or Path.home() / ".cache" / "crmt-sweep"
    return Path(chosen).expanduser().absolute()
