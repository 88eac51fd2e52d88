"""`cav_mae`: what was extracted for CAV-MAE and code that reads its lists: a .wav a clip, and a picture a second.

Layout: `--data-root DIR` with train.json and test.json (and val.json where there is one; data.lists names others):

    {"data": [{"wav": "/x/ID.wav", "labels": "/m/04rlf", "video_id": "ID", "video_path": "/x/frames"}]}

The sound is `wav`, column `path` here; the pictures are video_path/frame_0/ID.jpg, video_path/frame_1/ID.jpg and so on,
column `frames`; relative paths are relative to the list. So the configuration says where its modalities lie:

    modalities: {video: {kind: video, column: frames}, audio: audio}

A class_labels_indices.csv (`index,mid,display_name`) beside the lists names the labels, else they are named by
themselves. A clip of several labels (`/m/04rlf,/m/07pjwq1`) is left out, and counted as `several_labels`: one clip has
one class here. A group is `video_id` without the second that it begins at (`_000030`). Origin: Gong et al.,
"Contrastive audio-visual masked autoencoder" (ICLR 2023).
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from crmt.errors import BadInputError
from pipelines.config.modality import PATH
from pipelines.config.schema import DataConfig
from pipelines.sources.base import Source
from pipelines.sources.files import check_names, missing_by_column, on_disk, one_group_a_file
from pipelines.sources.index import LEFT_OUT, ClipIndex, Listing, without_overlap
from pipelines.sources.lists import Layout, find_lists, shown, text_of
from pipelines.sources.text import one_text

_NAMES = "class_labels_indices.csv"
_VALIDATIONS = ("val.json", "validation.json", "valid.json")
LAYOUT = Layout(
    name="cav_mae",
    forms=(
        *({"train": "train.json", "validation": name, "test": "test.json"} for name in _VALIDATIONS),
        {"train": "train.json", "test": "test.json"},
    ),
    optional=(("classes", _NAMES),),
    text='DIR holds train.json and test.json (`{"data": [{"wav": "ID.wav", "labels": "/m/04rlf", "video_id": "ID", '
    '"video_path": "frames"}]}`); data.lists names lists that are called otherwise',
)
FRAMES = "frames"
"""The column of the pictures."""
_CUT = re.compile(r"_\d{1,9}$")


class _Clip(NamedTuple):
    """One entry of a list."""

    id: str
    split: str
    labels: tuple[str, ...]
    wav: str
    frames: str
    where: str


def load(data: DataConfig) -> ClipIndex:
    """The clips of CAV-MAE's lists.

    Raises:
        BadInputError: no lists, a malformed entry, a label without a name, modalities that read another column, or no
            clip of one label.
    """
    lists = find_lists(LAYOUT, data)
    _check_columns(data)
    files = {role: file for role, file in lists.items() if role != "classes"}
    if "all" in files:
        raise BadInputError(f"cav_mae: these lists do not tell the split: give one a split. {LAYOUT.text}")
    names = _label_names(lists["classes"]) if "classes" in lists else None
    entries = [clip for split, file in files.items() for clip in _entries(file, split)]
    one, left_out = _of_one_label(entries)
    table = pd.DataFrame(
        {
            "id": [clip.id for clip in one],
            "path": [clip.wav for clip in one],
            "label": [_named(clip, names) for clip in one],
            "split": [clip.split for clip in one],
            "group": [_CUT.sub("", clip.id) for clip in one],
            FRAMES: [clip.frames for clip in one],
        }
    )
    for column in (PATH, FRAMES):
        check_names(table[column].tolist())
        table[column] = on_disk(table[column])
    kept, overlap = without_overlap("cav_mae", one_group_a_file(table, data.columns), data.on_overlap)
    classes = _classes(kept, names)
    missing, _ = missing_by_column(kept, data.columns)
    listing = Listing(
        lists={str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in lists.values()},
        missing=missing.pop(PATH, frozenset()),
        missing_in_columns=missing,
        left_out=pd.concat([left_out, overlap], ignore_index=True),
        notes=() if names else (f"labels are not named: there is no {_NAMES}",),
    )
    numbers = {name: i for i, name in enumerate(classes)}
    return ClipIndex("cav_mae", classes, kept.assign(label=kept["label"].map(numbers).astype(int)), listing)


def _check_columns(data: DataConfig) -> None:
    for name, declared in data.declared.items():
        if declared.column not in (PATH, FRAMES) or (declared.kind in ("video", "flow") and declared.column == PATH):
            raise BadInputError(
                f"cav_mae: {name} cannot lie in column {declared.column!r}: sound lies in `{PATH}`, pictures in "
                f"`{FRAMES}`. Set data.modalities to {{video: {{kind: video, column: {FRAMES}}}, audio: audio}}"
            )


def _entries(file: Path, split: str) -> Iterator[_Clip]:
    try:
        content = json.loads(text_of(file))
    except json.JSONDecodeError as error:
        raise BadInputError(f"cav_mae: {file} is not valid JSON: {error}") from None
    found = content.get("data") if isinstance(content, dict) else None
    if not isinstance(found, list) or not found:
        raise BadInputError(f"cav_mae: {file} has no list `data` of clips. {LAYOUT.text}")
    for number, entry in enumerate(found):
        yield _clip(entry, split, file, f"{file.name} clip {number + 1}")


def _clip(entry: Any, split: str, file: Path, where: str) -> _Clip:
    fields: list[str] = []
    for name in ("video_id", "labels", "wav", "video_path"):
        value = entry.get(name, "") if isinstance(entry, dict) else ""
        if not isinstance(value, str) or (name in ("video_id", "labels") and not value.strip()):
            raise BadInputError(f"cav_mae: {where} has no text as `{name}`. {LAYOUT.text}")
        fields.append(value)
    clip, labels, wav, pictures = fields
    if "/" in clip or "*" in clip:
        raise BadInputError(f"cav_mae: {where}: {shown(clip)} is no video_id")
    return _Clip(
        clip,
        split,
        tuple(dict.fromkeys(label.strip() for label in one_text(labels).split(",") if label.strip())),
        str(file.parent / wav) if wav else "",
        str(file.parent / pictures / "frame_*" / f"{clip}.jpg") if pictures else "",
        where,
    )


def _of_one_label(entries: Sequence[_Clip]) -> tuple[list[_Clip], pd.DataFrame]:
    """The clips of one label, each once, and the rows that were left out."""
    first: dict[tuple[str, str], _Clip] = {}
    out = []
    for clip in entries:
        if len(clip.labels) != 1:
            out.append((clip.id, clip.split, "several_labels", ", ".join(clip.labels)))
            continue
        before = first.setdefault((clip.id, clip.split), clip)
        if before is clip:
            continue
        if before.labels != clip.labels:
            raise BadInputError(
                f"cav_mae: {clip.where}: clip {shown(clip.id)} has the label {shown(clip.labels[0])}, but "
                f"{shown(before.labels[0])} in {before.where}. Take one of them out"
            )
        out.append((clip.id, clip.split, "repeated", f"{clip.where}, after {before.where}"))
    if not first:
        raise BadInputError(f"cav_mae: all {len(out)} clips have several labels; training needs clips of one")
    return list(first.values()), pd.DataFrame(out, columns=list(LEFT_OUT))


def _label_names(file: Path) -> dict[str, str]:
    """Label to its name, in the file's order."""
    reader = csv.DictReader(io.StringIO(text_of(file), newline=""))
    if not {"mid", "display_name"} <= set(reader.fieldnames or ()):
        raise BadInputError(f"cav_mae: {file} has no header index,mid,display_name")
    return {one_text(str(row["mid"])).strip(): one_text(str(row["display_name"])).strip() for row in reader}


def _named(clip: _Clip, names: dict[str, str] | None) -> str:
    label = clip.labels[0]
    if names is not None and label not in names:
        raise BadInputError(f"cav_mae: {clip.where}: {_NAMES} does not name the label {shown(label)}")
    return label if names is None else names[label]


def _classes(table: pd.DataFrame, names: dict[str, str] | None) -> tuple[str, ...]:
    present = set(table["label"])
    for split in ("train", "test"):
        if not (table["split"] == split).any():
            raise BadInputError(f"cav_mae: no clip is left in the split `{split}`; both train and test need some")
    unlearnt = sorted(present - set(table.loc[table["split"] == "train", "label"]))
    if unlearnt:
        raise BadInputError(f"cav_mae: label {unlearnt[0]!r} has no clip in train, so it cannot be learned")
    ordered = sorted(present) if names is None else [n for n in dict.fromkeys(names.values()) if n in present]
    if len(ordered) < 2:
        raise BadInputError(f"cav_mae: every clip has the label {ordered[0]!r}; training needs two classes at least")
    return tuple(ordered)


SOURCE = Source(load, look=partial(find_lists, LAYOUT), takes=("lists",))
