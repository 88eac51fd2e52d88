"""Code of the user's own: which folders hold it, on this process's path and, through Ray, on every worker's."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from crmt.errors import BadInputError

_PATH = re.compile(r"(?!timm:)[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
"""`package.module:Name`; what timm names is a model of that package."""
_NOT_CODE = ("runs", "__pycache__", "node_modules", "build", "dist", "crmt", "pipelines")
"""Folders that are never sent; ours are installed on every node."""
_MEDIA = ("mp4", "avi", "mkv", "webm", "mov", "m4v", "wav", "flac", "mp3", "ogg", "jpg", "jpeg", "png", "parquet")
EXCLUDED = [*(f"*.{suffix}" for suffix in _MEDIA), *(f"{name}/" for name in _NOT_CODE[:3]), ".*/"]
"""What is left out of a package, as Ray's runtime environment writes it (the words of .gitignore)."""
LARGEST = 200 * 2**20
"""The most bytes that are sent: Ray keeps them in the memory of the head node, and refuses 500 MiB."""


def names_code(raw: Any) -> bool:
    """Whether a configuration names anything by `package.module:Name`."""
    if isinstance(raw, Mapping):
        return any(names_code(v) for v in raw.values())
    if isinstance(raw, list | tuple):
        return any(names_code(v) for v in raw)
    return isinstance(raw, str) and _PATH.fullmatch(raw) is not None


def put_on_path(folders: Sequence[str]) -> None:
    """Put folders first on the import path of this process, where they are not on it.

    First, as Python does with a script's own: a bare `import datasets` in the user's module is the file beside it.

    Raises:
        BadInputError: no such folder.
    """
    for folder in reversed(folders):
        if not Path(folder).is_dir():
            raise BadInputError(f"there is no folder {folder} to import code from: name it with --with DIR")
        if folder not in sys.path:
            sys.path.insert(0, folder)


def runtime_env(folders: Sequence[str]) -> dict[str, Any] | None:
    """Ray's runtime environment that gives every worker the modules and packages of `folders`; None: there are none.

    Each module (a .py file) and each package (a folder with .py files) is sent by itself, so that its name on the
    worker is its name here.

    Raises:
        BadInputError: more than `LARGEST` bytes.
    """
    entries = [entry for folder in folders for entry in modules_in(Path(folder))]
    sizes = {entry: _size(entry) for entry in entries}
    if sum(sizes.values()) > LARGEST:
        largest = max(sizes, key=lambda entry: sizes[entry])
        raise BadInputError(
            f"the code in {', '.join(folders)} has {sum(sizes.values()) / 2**20:.0f} MiB, most of it in {largest}; "
            f"{LARGEST / 2**20:.0f} MiB are sent to the workers at most: keep data elsewhere, or name a smaller folder "
            "with --with DIR"
        )
    return {"py_modules": [str(entry) for entry in entries], "excludes": EXCLUDED} if entries else None


def modules_in(folder: Path) -> list[Path]:
    """The modules and packages of a folder that a worker could import."""
    return [entry for entry in sorted(folder.iterdir()) if _is_module(entry)]


def _is_module(entry: Path) -> bool:
    if entry.is_file():
        return entry.suffix == ".py" and entry.stem.isidentifier()
    if not entry.name.isidentifier() or entry.name in _NOT_CODE or (entry / "pyvenv.cfg").exists():
        return False
    return entry.is_dir() and any(entry.glob("*.py"))


def _size(entry: Path) -> int:
    """Bytes that are sent; counting stops where it is too much in any case."""
    total = 0
    for size in _sizes(entry):
        total += size
        if total > LARGEST:
            break
    return total


def _sizes(entry: Path) -> Iterator[int]:
    if entry.is_file():
        yield entry.stat().st_size
        return
    for where, folders, files in os.walk(entry):
        folders[:] = [name for name in folders if name not in _NOT_CODE[:3] and not name.startswith(".")]
        for name in files:
            path = Path(where, name)
            if path.suffix.lower().lstrip(".") not in _MEDIA and path.is_file():
                yield path.stat().st_size


def use_in_worker(folders: Sequence[str]) -> None:
    """Called in a worker: import the user's code from its folders where Ray was started without it.

    Someone else may have called ray.init before us; then only a node that has the same folders can import it.
    """
    if not folders:
        return
    import ray

    if not ray.get_runtime_context().runtime_env.get("py_modules"):
        put_on_path([folder for folder in folders if Path(folder).is_dir()])
