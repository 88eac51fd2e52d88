"""Files that are whole or not there: a reader never sees half of one, whenever the writer is killed."""

from __future__ import annotations

import os
import re
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from crmt.errors import BadInputError

_URI = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)
"""pathlib makes one slash of two."""
_OF_THE_SYSTEM = tuple(Path(name) for name in ("/proc", "/sys", "/dev"))


@contextmanager
def atomic_file(path: Path, durable: bool = False) -> Iterator[Path]:
    """A hidden file beside `path` to write to, which takes its place when the block ends; an error leaves `path` alone.

    Args:
        path: where the file shall lie; its folder must exist. It ends with mode 0o644, whatever the umask.
        durable: whether it shall be on the disk before it takes its place, so that a power cut cannot leave it empty.

    Yields:
        The temporary file, which exists and is empty.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        if durable:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, data: str | bytes, durable: bool = False) -> None:
    """Write a whole file; a text in UTF-8.

    Args:
        path: where it shall lie; its folder must exist.
        data: all that it shall hold.
        durable: as in `atomic_file`.
    """
    with atomic_file(path, durable) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def check_ours(folder: Path) -> None:
    """Refuse a folder with files that another user may have written: what unpickles one runs its writer's code.

    Args:
        folder: looked at with all that lies below it.

    Raises:
        BadInputError: names the first such file, and how to say that it is trusted.
    """
    for path in (folder, *sorted(folder.rglob("*"))):
        found = path.lstat()
        if found.st_uid != os.geteuid() or (found.st_mode & stat.S_IWOTH and not path.is_symlink()):
            raise BadInputError(
                f"{path} is another user's, or may be written by others, and going on with a sweep unpickles such "
                "files, which runs the code of whoever wrote them: add --trust if you trust all who may write there"
            )


def check_place(folder: Path | None) -> None:
    """Refuse what `--out` cannot be: runs lie in a folder of a disk.

    Args:
        folder: as it was given; None: the default.

    Raises:
        BadInputError: a URI, a folder of the system's own, or a file.
    """
    if folder is None:
        return
    if _URI.match(str(folder)):
        raise BadInputError(f"--out {folder}: that is the folder of a disk: give its path, or for a URI use --storage")
    where = folder.resolve()
    if any(where.is_relative_to(own) for own in _OF_THE_SYSTEM):
        raise BadInputError(f"--out {folder}: no run can lie in {where.parts[0]}{where.parts[1]}: name another folder")
    if where.is_file():
        raise BadInputError(f"{where} is a file, so not empty as the folder of a run must be: name a folder with --out")
