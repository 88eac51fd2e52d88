"""Builds the layouts of the published data sets, small, with whatever files a test puts in the place of the clips.

`put(path, label)` makes one clip; by default an empty file, which is enough where nothing is decoded. Each builder
returns the folder for `--data-root`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pandas as pd

Put = Callable[[Path, int], object]
Nesting = Literal["flat", "split", "class"]

VGG_LABELS = ("people marching", "bird chirping, tweeting", "playing hammond organ")
UCF_LABELS = ("ApplyEyeMakeup", "HandstandPushups", "YoYo")
KINETICS_LABELS = ("playing accordion", "tap dancing", "singing")


def touch(path: Path, label: int) -> None:
    """An empty file."""
    path.touch()


def video_id(number: int) -> str:
    """A YouTube id of 11 characters; the first ones start with dashes, as real ones do."""
    return f"{'-_a'[number % 3]}-{number:04d}_{number % 7}xY-"[:11]


def place(root: Path, name: str, split: str, label: str, nesting: Nesting) -> Path:
    """Where a clip of this name lies, in a folder that is made."""
    folder = {"flat": root, "split": root / split, "class": root / "videos" / label}[nesting]
    folder.mkdir(parents=True, exist_ok=True)
    return folder / name


def vggsound(
    root: Path,
    put: Put = touch,
    *,
    columns: Literal[4, 2] = 4,
    padded: bool = True,
    nesting: Nesting = "flat",
    container: str = ".mp4",
    each: tuple[int, int] = (4, 2),
) -> Path:
    """Lists of the authors and clips: `each` train and test clips of every class, every third video with two cuts."""
    root.mkdir(parents=True, exist_ok=True)
    lists: dict[str, list[str]] = {"vggsound.csv": [], "train.csv": [], "test.csv": []}
    number = 0
    for label, name in enumerate(VGG_LABELS):
        for split, count in zip(("train", "test"), each, strict=True):
            for _ in range(count):
                video, start = video_id(number), 10 * number
                quoted = f'"{name}"' if "," in name else name
                lists["vggsound.csv"].append(f"{video},{start},{quoted},{split}")
                lists[f"{split}.csv"].append(f"{video}_{start:06d}.mp4,{quoted}")
                stem = f"{video}_{start:06d}" if padded else f"{video}_{start}"
                put(place(root, stem + container, split, name, nesting), label)
                number += 1
    for file in ("vggsound.csv",) if columns == 4 else ("train.csv", "test.csv"):
        (root / file).write_text("\n".join(lists[file]) + "\n")
    return root


def kinetics_sounds(
    root: Path,
    put: Put = touch,
    *,
    lists: Literal["crmt", "ogm", "csv"] = "crmt",
    nesting: Nesting = "split",
    container: str = ".mp4",
    timed: bool = True,
    each: tuple[int, int] = (4, 2),
) -> Path:
    """One kind of list and clips `{id}_{start:06d}_{end:06d}`; CRMT's test clips are `{id}` where not `timed`."""
    root.mkdir(parents=True, exist_ok=True)
    lines: dict[str, list[str]] = {"train": [], "test": []}
    number = 0
    for label, name in enumerate(KINETICS_LABELS):
        for split, count in zip(("train", "test"), each, strict=True):
            for _ in range(count):
                video, start = video_id(number), number
                stem = f"{video}_{start:06d}_{start + 10:06d}"
                if lists == "crmt":
                    lines[split].append(f"{stem if split == 'train' else video} {label}")
                    stem = stem if split == "train" or timed else video
                elif lists == "ogm":
                    lines[split].append(f"{stem if split == 'train' else f'{video}_{start}'},10,{label}")
                else:
                    lines[split].append(f"{name},{video},{start},{start + 10},{split},0")
                put(place(root, stem + container, split, name, nesting), label)
                number += 1
    if lists == "csv":
        other = f"abseiling,{video_id(number)},1,11,train,0"
        header = "label,youtube_id,time_start,time_end,split,is_cc"
        (root / "train.csv").write_text("\n".join([header, *lines["train"], other]))
        (root / "test.csv").write_text("\n".join([header, *lines["test"]]))
        (root / "classes.txt").write_text("\n".join(KINETICS_LABELS))
        return root
    for split in ("train", "test"):
        file = f"ks_{split}_overlap.txt" if lists == "crmt" else f"my_{split}.txt"
        (root / file).write_text("\n".join(lines[split]) + "\n")
    return root


def ucf101(
    root: Path, put: Put = touch, *, flat: bool = False, container: str = ".avi", groups: int = 6, cuts: int = 2
) -> Path:
    """Lists of all three splits (split n tests on groups n and n + 3) with CRLF ends, and clips."""
    lists = root / "ucfTrainTestlist"
    lists.mkdir(parents=True, exist_ok=True)
    (lists / "classInd.txt").write_text("".join(f"{i + 1} {name}\r\n" for i, name in enumerate(UCF_LABELS)))
    names = [
        (label, group, f"{name}/v_{name.replace('stand', 'Stand')}_g{group:02d}_c{cut:02d}.avi")
        for label, name in enumerate(UCF_LABELS)
        for group in range(1, groups + 1)
        for cut in range(1, cuts + 1)
    ]
    for split in (1, 2, 3):
        tested = (split, split + 3)
        train = [f"{name} {label + 1}\r\n" for label, group, name in names if group not in tested]
        test = [f"{name}\r\n" for _, group, name in names if group in tested]
        (lists / f"trainlist0{split}.txt").write_text("".join(train))
        (lists / f"testlist0{split}.txt").write_text("".join(test))
    for label, _, name in names:
        file = root / (Path(name).name if flat else f"UCF-101/{name}")
        file.parent.mkdir(parents=True, exist_ok=True)
        put(file.with_suffix(container), label)
    return root


def manifest(
    root: Path,
    put: Put = touch,
    *,
    table: Literal["csv", "parquet"] = "csv",
    containers: tuple[str, ...] = (".mp4",),
    each: tuple[int, int] = (4, 2),
) -> Path:
    """One table of clips in folders by class, in each container in turn; returns the table itself, not its folder."""
    rows = []
    for label, name in enumerate(KINETICS_LABELS):
        for split, count in zip(("train", "test"), each, strict=True):
            for number in range(count):
                file = Path(name) / f"{split} {number}{containers[len(rows) % len(containers)]}"
                (root / file).parent.mkdir(parents=True, exist_ok=True)
                put(root / file, label)
                rows.append((str(file), name, split, f"camera {number % 2}"))
    found = pd.DataFrame(rows, columns=["path", "label", "split", "device"])
    path = root / f"clips.{table}"
    found.to_csv(path, index=False) if table == "csv" else found.to_parquet(path, index=False)
    return path
