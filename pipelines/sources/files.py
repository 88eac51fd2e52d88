"""Clip files below a folder, found in one walk: names only, no file is opened or asked for its size.

A flat folder of 200,000 files takes about a second; so do nested ones.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd

from crmt.errors import BadInputError
from pipelines.config.modality import PATH
from pipelines.decoding.pictures import counted, is_picture, pattern_of, split_pattern
from pipelines.sources.text import one_text

CONTAINERS = (
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".flv", ".wmv", ".asf", ".mpg", ".mpeg", ".m2ts", ".mts", ".ts",
    ".3gp", ".ogv", ".rm", ".rmvb",
)  # fmt: skip
"""Extensions (in any case) of clip files. Sound, frames and features that were extracted beside them are no clips."""


def is_clip(name: str) -> bool:
    """Whether a file of this name counts as a clip: a known container, and not hidden (`._a.mp4` is no video)."""
    return not name.startswith(".") and name.lower().endswith(CONTAINERS)


def clip_files(root: Path) -> tuple[list[str], list[str]]:
    """Absolute paths of all clip files below `root`, sorted; and the folders below it that may not be read.

    Links are followed, each folder is entered once.

    Raises:
        BadInputError: `root` itself cannot be read.
    """
    found: list[str] = []
    closed: list[str] = []
    start = os.path.abspath(root)  # noqa: PTH100 - strings all the way: 200,000 Path objects take seconds
    waiting = [(start, os.path.realpath(start))]
    entered: set[str] = set()
    while waiting:
        folder, real = waiting.pop()
        if real in entered:
            continue
        entered.add(real)
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if is_clip(entry.name) and not _is_folder(entry):
                        found.append(entry.path)
                    elif not entry.name.startswith(".") and _is_folder(entry):
                        below = os.path.realpath(entry.path) if entry.is_symlink() else f"{real}{os.sep}{entry.name}"
                        waiting.append((entry.path, below))
        except OSError as error:
            if folder == start:
                raise BadInputError(f"{folder} cannot be read: {error.strerror or error}") from None
            closed.append(folder)  # a disk's lost+found holds no clip
    return sorted(found), sorted(closed)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()  # the folder's entry says it; only a link needs a look at the disk
    except OSError:  # a link in a circle
        return False


def stem(path: str) -> str:
    """A clip file's name without its extension."""
    return path.rpartition(os.sep)[2].rpartition(".")[0]


def by_key(paths: Iterable[str], key: Callable[[str], Hashable]) -> dict[Hashable, list[str]]:
    """Paths by a key. Of several with one key, an .mp4 comes first, then in order of path.

    Args:
        paths: of clip files.
        key: gives the key from a file's name without extension.
    """
    found: dict[Hashable, list[str]] = {}
    for path in paths:
        found.setdefault(key(stem(path)), []).append(path)
    for several in found.values():
        if len(several) > 1:
            several.sort(key=lambda path: (not path.lower().endswith(".mp4"), path))
    return found


def check_names(paths: Iterable[str]) -> None:
    """Refuse paths that are not UTF-8, which no table can hold, and paths that no file can have.

    Raises:
        BadInputError: the first such path.
    """
    for path in paths:
        try:
            path.encode()
        except UnicodeEncodeError:
            raise BadInputError(f"the path {path!a} is not UTF-8: rename what it names") from None
        if "\0" in path:
            raise BadInputError(f"{path!a} cannot be the path of a file")


def existing(paths: Iterable[str]) -> tuple[set[str], list[str]]:
    """The paths that exist, and all clip files of their folders; each folder is read once.

    A folder that is not there, or that may not be read, has no files. A pattern with `*` (decoding/pictures.py) exists
    where a picture fits it.
    """
    wanted: dict[str, list[str]] = {}
    patterns: list[str] = []
    for path in paths:
        if "*" in path and not os.path.lexists(path):
            patterns.append(path)
        else:
            wanted.setdefault(os.path.dirname(path), []).append(path)  # noqa: PTH120 - hot loop
    there: set[str] = set()
    clips: list[str] = []
    for folder, members in wanted.items():
        names = _names(folder)
        there.update(path for path in members if os.path.basename(path) in names)  # noqa: PTH119
        clips += [os.path.join(folder, name) for name in names if is_clip(name)]  # noqa: PTH118
    there |= _fitting(patterns)
    return there, sorted(clips)


def missing_by_column(clips: pd.DataFrame, columns: Iterable[str]) -> tuple[dict[str, frozenset[str]], list[str]]:
    """What the files that a list names lack on disk.

    Args:
        clips: a row a clip, with `id` and the columns; an empty cell names no file.
        columns: those that name files.

    Returns:
        By column the ids of clips whose file is not there; and all clip files that lie beside those of `path`.
    """
    missing: dict[str, frozenset[str]] = {}
    beside: list[str] = []
    for column in columns:
        there, clip_files_there = existing(path for path in clips[column] if path)
        missing[column] = frozenset(clips.loc[(clips[column] != "") & ~clips[column].isin(there), "id"])
        if column == PATH:
            beside = clip_files_there
    return missing, beside


def on_disk(paths: Iterable[str]) -> list[str]:
    """The paths as the disk writes them: what a list names in another Unicode form (NFC, NFD) is the same file.

    One that is there as it is stays so, and so does one that is nowhere. Each folder is read once.
    """
    names = functools.cache(_names)
    forms = functools.cache(lambda folder: {one_text(name): name for name in sorted(names(folder), reverse=True)})

    @functools.cache
    def real(folder: str) -> str:
        above, name = os.path.split(folder)
        if not name or os.path.isdir(folder):  # noqa: PTH112
            return folder
        above = real(above)
        return os.path.join(above, forms(above).get(one_text(name), name))  # noqa: PTH118

    def find(path: str) -> str:
        folder, name = os.path.split(path)
        if not path or name in names(folder):
            return path
        if "*" in path:
            above, first, rest = split_pattern(path)
            return os.path.join(real(above), first, *rest)  # noqa: PTH118
        there = real(folder)
        return os.path.join(there, name if name in names(there) else forms(there).get(one_text(name), name))  # noqa: PTH118

    return [find(path) for path in paths]


def one_group_a_file(clips: pd.DataFrame, columns: Sequence[str] = (PATH,)) -> pd.DataFrame:
    """The clips with one group for all that are one file under several names, by a hard or a symbolic link.

    So a link in another split is an overlap. The group's name then says which clips they are.

    Args:
        clips: with `id`, `group` and the columns.
        columns: those that name files; clips are one where all of these are.
    """
    first: dict[tuple[object, ...], int] = {}
    group_of = dict(zip(clips["group"], clips["group"], strict=True))
    names: dict[str, list[str]] = {}

    def root(group: str) -> str:
        while group_of[group] != group:
            group = group_of[group]
        return group

    groups, ids = clips["group"].tolist(), clips["id"].tolist()
    files = [_identities(clips[column].tolist()) for column in columns]
    for row, found in enumerate(zip(*files, strict=True)):
        if all(isinstance(file, str) for file in found) or (before := first.setdefault(found, row)) == row:
            continue
        one, other = sorted((root(groups[before]), root(groups[row])))
        group_of[other] = one
        names.setdefault(one, [ids[before]]).append(ids[row])
    if not names:
        return clips
    called = {group: f"{group}: one file, {' = '.join(several[:3])}" for group, several in names.items()}
    return clips.assign(group=[called.get(root(group), root(group)) for group in groups])


def _identities(paths: Sequence[str]) -> list[tuple[int, int] | str]:
    """Device and number of each file or folder; its path where there is none."""

    def of(several: Sequence[str]) -> list[tuple[int, int] | str]:
        return [_identity(path) for path in several]

    threads = 16  # on a network's disk each file is a journey
    share = max(1, -(-len(paths) // threads))
    with ThreadPoolExecutor(threads) as pool:
        pieces = pool.map(of, [paths[i : i + share] for i in range(0, len(paths), share)])
        return [found for piece in pieces for found in piece]


def _identity(path: str) -> tuple[int, int] | str:
    try:
        state = os.stat(path)  # noqa: PTH116 - hot loop
    except (OSError, ValueError):
        return path
    return (state.st_dev, state.st_ino) if state.st_ino else path


def _names(folder: str) -> set[str]:
    try:
        return set(os.listdir(folder))  # noqa: PTH208 - names are all that is wanted
    except OSError:
        return set()


def _fitting(patterns: list[str]) -> set[str]:
    """The patterns that a picture fits; each folder is read once."""
    names = functools.cache(_names)
    folders = functools.cache(lambda above, matches: sorted(filter(matches, names(above)), key=counted))

    def fits(pattern: str) -> bool:
        above, name, rest = split_pattern(pattern)
        matches = pattern_of(name)
        if not rest:
            return any(map(is_picture, folders(above, matches)))
        *between, last = rest
        return is_picture(last) and any(
            last in names(os.path.join(above, folder, *between))  # noqa: PTH118
            for folder in folders(above, matches)
        )

    return {pattern for pattern in patterns if fits(pattern)}
