"""`vggsound`: VGGSound, 309 classes of sounding objects, about 200,000 clips of ten seconds from YouTube.

Layout: `--data-root DIR` with a list and, anywhere below it, the clips. Lists, as their authors wrote them:

    vggsound.csv              youtube_id,start_seconds,label,split    ---g-f_I2yQ,1,people marching,test
    train.csv and test.csv    file,label                              glLQrEijrKg_000300.mp4,playing hammond organ

both without a header (one is passed over in the first) and with labels in quotes where they hold commas;
vggsound_train.csv and vggsound_test.csv do as well, and data.lists names others. Clips are `{youtube_id}_{start:06d}`
or `{youtube_id}_{start}` in any container, flat or in folders. Classes are the sorted labels; clips of one YouTube
video are a group. Origin: Chen, Xie, Vedaldi and Zisserman, "VGGSound: a large-scale audio-visual dataset" (ICASSP
2020); the list is CC BY 4.0, the clips are their uploaders'.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePosixPath

from crmt.errors import BadInputError
from pipelines.config.schema import DataConfig
from pipelines.sources.base import Source
from pipelines.sources.files import by_key
from pipelines.sources.index import ClipIndex
from pipelines.sources.lists import (
    Layout,
    ListedClip,
    assemble,
    csv_rows,
    find_lists,
    is_number,
    shown,
    split_named,
    whole_number,
)

LAYOUT = Layout(
    name="vggsound",
    forms=(
        {"all": "vggsound.csv"},
        {"train": "train.csv", "test": "test.csv"},
        {"train": "vggsound_train.csv", "test": "vggsound_test.csv"},
    ),
    text="DIR holds vggsound.csv (a line: `---g-f_I2yQ,1,people marching,test`) or train.csv and test.csv (a line: "
    "`glLQrEijrKg_000300.mp4,playing hammond organ`), and in any folder the clips {youtube_id}_{start:06d}.mp4 or "
    "{youtube_id}_{start}.mp4 (.mkv, .webm ...); data.lists names lists that are called otherwise",
)


def load(data: DataConfig) -> ClipIndex:
    """The clips of VGGSound's lists.

    Raises:
        BadInputError: no lists, a malformed line, or no clips.
    """
    lists = find_lists(LAYOUT, data)
    rows: list[ListedClip] = []
    for role, file in lists.items():
        rows += _read(file, role)
    return assemble(LAYOUT, data, lists, rows, match=_match, expected=lambda row: f"{row.id}.mp4")


def _match(files: list[str]) -> Callable[[ListedClip], list[str]]:
    found = by_key(files, _key)
    return lambda row: found.get(row.key, [])


def _key(stem: str) -> tuple[str, int] | str:
    """Video and second, however the second is written; a name without them is its own key."""
    video, _, start = stem.rpartition("_")
    return (video, int(start)) if video and is_number(start) else stem


def _read(file: Path, role: str) -> list[ListedClip]:
    rows = []
    for number, (line, cells) in enumerate(csv_rows(file)):
        if len(cells) == 4 and number == 0 and not cells[1].isdecimal() and cells[3].lower() not in ("train", "test"):
            continue  # a header that somebody added
        rows.append(_row(line, cells, role))
    return rows


def _row(line: str, cells: list[str], role: str) -> ListedClip:
    if len(cells) == 4:
        video, seconds, label, named = cells
        start, split = whole_number(seconds, "start_seconds", line), split_named(named, line)
        if role not in ("all", split):
            raise BadInputError(f"{line}: the split is {split!r}, in the list of {role}")
    elif len(cells) == 2:
        name, label = cells
        key = _key(PurePosixPath(name).stem)  # some lists give the folder, too
        if isinstance(key, str):
            raise BadInputError(f"{line}: {shown(name)} is not {{youtube_id}}_{{start:06d}}.mp4")
        (video, start), split = key, role
        if role == "all":
            raise BadInputError(f"{line}: two columns do not tell the split; give data.lists.train and data.lists.test")
    else:
        raise BadInputError(
            f"{line}: {len(cells)} columns; youtube_id,start_seconds,label,split or file,label are read"
        )
    if not label or not video or "/" in video:
        raise BadInputError(f"{line}: {'no label' if not label else f'{shown(video)} is no youtube_id'}")
    return ListedClip(f"{video}_{start:06d}", label, split, video, (video, start), line)


SOURCE = Source(load, look=partial(find_lists, LAYOUT), takes=("lists",))
