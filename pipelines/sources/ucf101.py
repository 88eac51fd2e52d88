"""`ucf101`: UCF101, 101 classes of human action, 13,320 clips; for video and optical flow (half have no sound).

Layout: `--data-root DIR` with the published lists in DIR/ucfTrainTestlist/ (or in DIR), and the clips anywhere below:

    classInd.txt       `1 ApplyEyeMakeup`
    trainlist01.txt    `ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1`
    testlist01.txt     `ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi` (the label is the folder)

`data.split` chooses 01, 02 or 03. Clips are found by name, in UCF-101/<class>/ or flat, in any container. A group is
the `_gXX_` of one class: cuts of one source video. Origin: Soomro, Zamir and Shah, "UCF101: a dataset of 101 human
actions classes from videos in the wild" (CRCV-TR-12-01, 2012).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from crmt.errors import BadInputError
from pipelines.config.schema import DataConfig
from pipelines.sources.base import Source
from pipelines.sources.files import by_key
from pipelines.sources.index import ClipIndex
from pipelines.sources.lists import Layout, ListedClip, assemble, find_lists, is_number, lines, shown, whole_number

_GROUP = re.compile(r"_(g\d+)_c\d+$")


def layout(split: int) -> Layout:
    """What is looked for, for one of the three splits."""
    names = {"classes": "classInd.txt", "train": f"trainlist0{split}.txt", "test": f"testlist0{split}.txt"}
    return Layout(
        name="ucf101",
        forms=(names,),
        folders=("ucfTrainTestlist", "."),
        text=f"DIR holds ucfTrainTestlist/ with {', '.join(names.values())} (data.split chooses 1, 2 or 3), and in any "
        "folder the clips, such as UCF-101/ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi",
    )


def load(data: DataConfig) -> ClipIndex:
    """The clips of split `data.split`.

    Raises:
        BadInputError: no lists, a malformed line, a label that contradicts its folder, or no clips.
    """
    form = layout(data.split)
    lists = find_lists(form, data)
    if "classes" not in lists:
        raise BadInputError(f"ucf101: data.lists needs `classes`, too. {form.text}")
    classes = _classes(lists["classes"])
    known = set(classes)
    rows = [
        _row(line, text, role, classes, known)
        for role, file in lists.items()
        if role != "classes"
        for line, text in lines(file)
    ]
    notes = [f"split {data.split} of 3"]
    return assemble(form, data, lists, rows, match=_match, expected=_file, classes=classes, notes=notes)


def _match(files: list[str]) -> Callable[[ListedClip], list[str]]:
    found = by_key(files, lambda stem: stem)
    return lambda row: found.get(row.key, [])


def _file(row: ListedClip) -> str:
    return f"UCF-101/{row.label}/{row.key}.avi"


def _classes(file: Path) -> tuple[str, ...]:
    names: list[str] = []
    for line, text in lines(file):
        number, _, name = text.partition(" ")
        if whole_number(number, "the class number", line) != len(names) + 1 or not name.strip():
            raise BadInputError(f"{line}: expected `{len(names) + 1} <class>`, found {shown(text)}")
        names.append(name.strip())
    return tuple(names)


def _row(line: str, text: str, split: str, classes: tuple[str, ...], known: set[str]) -> ListedClip:
    name, _, label = text.rpartition(" ")
    if not (name and is_number(label)):
        name, label = text, ""  # test lists have no label
    path = PurePosixPath(name.strip().replace("\\", "/"))
    folder = path.parent.name
    if folder not in known:
        raise BadInputError(f"{line}: {shown(text)} has no folder that is a class of classInd.txt")
    if label and not (1 <= int(label) <= len(classes) and classes[int(label) - 1] == folder):
        raise BadInputError(f"{line}: label {label} is not {folder}, whose folder it lies in")
    group = _GROUP.search(path.stem)
    if group is None:
        raise BadInputError(f"{line}: {shown(path.name)} is not v_<class>_gXX_cYY, which names its source video")
    return ListedClip(path.stem, folder, split, f"{folder}_{group[1]}", path.stem, line)


SOURCE = Source(load, look=lambda data: find_lists(layout(data.split), data), takes=("lists", "split"))
