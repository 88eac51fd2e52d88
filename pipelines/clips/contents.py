"""What a decoded set was made of: the settings, the list, and what stands for each clip's content.

A file stands for its content by its size and a digest of three pieces of it: copies and files that were touched are the
same clip, and one that was encoded again, or a .npy of the same shape with other numbers, is another. Reading the
pieces costs 50 µs a file on a local disk; pictures in folders, of which there are many, go by names and sizes alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from pipelines.clips.kinds import Kind, kinds_of
from pipelines.config.modality import PATH
from pipelines.config.schema import DataConfig
from pipelines.decoding.pictures import are_pictures, picture_files
from pipelines.sources.index import ClipIndex

FORMAT = 7
"""Version of what the files look like and of how clips are decoded. A change makes every cache a new one."""
ABSENT = "absent"
"""Stands for the content of a file that is not there, or may not be read."""
_PIECE, _THREADS = 4096, 16


@dataclass(frozen=True)
class MadeOf:
    """`settings`: what decides a stored byte, by dotted path. `contents`: by column, one a clip in the index's order.

    `index`: its own list.
    """

    index: ClipIndex
    settings: dict[str, Any]
    contents: dict[str, list[str]]

    @property
    def key(self) -> str:
        """SHA-256 of all of it, and of the format."""
        digest = hashlib.sha256(json.dumps([FORMAT, self.index.sha256, self.settings], sort_keys=True).encode())
        for values in self.contents.values():
            for content in values:
                digest.update(f"{content}\n".encode())
        return digest.hexdigest()

    @property
    def absent(self) -> int:
        """Clips of which some file is not there."""
        return sum(ABSENT in row for row in zip(*self.contents.values(), strict=True))

    def rows(self) -> dict[str, list[list[str]]]:
        """By clip id: what the list says of it (label, split, group), and its contents."""
        clips = self.index.clips
        says = zip((self.index.classes[i] for i in clips["label"]), clips["split"], clips["group"], strict=True)
        contents = zip(*self.contents.values(), strict=True)
        return {i: [list(a), list(b)] for i, a, b in zip(clips["id"].tolist(), says, contents, strict=True)}


def made_of(index: ClipIndex, data: DataConfig, modalities: Iterable[str]) -> MadeOf:
    """What a decoded set of these clips and settings is made of.

    data.decode_timeout and the limits are among the settings: they decide which clips are quarantined, and a longer one
    tries them again. Left out is what no stored byte depends on, such as video.crop and audio.standardise, which
    batches apply.

    Args:
        index: the list.
        data: how its clips are decoded.
        modalities: those that are decoded.
    """
    declared = kinds_of(data)
    kinds = {name: declared[name] for name in modalities}
    settings: dict[str, Any] = {"decode_timeout": data.decode_timeout, "missing_modality": data.missing_modality}
    settings |= {f"video.{name}": getattr(data.video, name) for name in ("max_pixels", "max_frames", "max_seconds")}
    for name, kind in kinds.items():
        settings |= {f"{name}.{field}": value for field, value in _settings(kind).items()}
    settings["modalities"] = sorted(kinds)
    columns = sorted({kind.column for kind in kinds.values()}, key=lambda c: (c != PATH, c))
    contents = {column: _contents(index, column) for column in columns}
    return MadeOf(index, json.loads(json.dumps(settings)), contents)


def _settings(kind: Kind) -> dict[str, Any]:
    """What decides a modality's bytes, and where they come from where that is not what its name says."""
    where = {} if (kind.name, kind.column) == (kind.kind, PATH) else {"kind": kind.kind, "column": kind.column}
    return {**kind.decides_bytes(), **where}


def _contents(index: ClipIndex, column: str) -> list[str]:
    """What stands for the content of each clip's file, in the order of the index."""
    if column == PATH and "fingerprint" in index.clips:
        return [str(value) for value in index.clips["fingerprint"]]
    paths = index.clips[column].tolist()
    share = max(1, -(-len(paths) // _THREADS))
    with ThreadPoolExecutor(_THREADS) as pool:  # on a network's disk each file is a journey
        pieces = pool.map(_contents_of, [paths[i : i + share] for i in range(0, len(paths), share)])
        return [content for piece in pieces for content in piece]


def _contents_of(paths: list[str]) -> list[str]:
    return [_content(path) for path in paths]


def _content(path: str) -> str:
    """Of a file, or of the pictures that a folder or pattern names."""
    if not path:
        return "none"
    try:
        state = os.stat(path)  # noqa: PTH116 - hot loop
    except (OSError, ValueError):
        return _pictures(path) if are_pictures(path) else ABSENT
    if stat.S_ISDIR(state.st_mode):
        return _pictures(path)
    if not stat.S_ISREG(state.st_mode):
        return "no file"
    pieces = _pieces(path, state.st_size)
    return f"{state.st_size} {pieces}" if pieces else ABSENT


def _pieces(path: str, size: int) -> str:
    digest = hashlib.sha256()
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - hot loop
            for start in sorted({0, max(0, size // 2 - _PIECE // 2), max(0, size - _PIECE)}):
                file.seek(start)
                digest.update(file.read(_PIECE))
    except OSError:
        return ""
    return digest.hexdigest()[:16]


def _pictures(path: str) -> str:
    files = picture_files(path)
    digest = hashlib.sha256()
    for file in files:
        try:
            size = os.stat(file).st_size  # noqa: PTH116 - hot loop
        except OSError:
            size = -1
        digest.update(f"{os.path.basename(file)} {size}\n".encode())  # noqa: PTH119 - hot loop
    return digest.hexdigest() if files else ABSENT
