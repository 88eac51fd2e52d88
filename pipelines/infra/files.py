"""Files that are whole or not there: a reader never sees half of one, whenever the writer is killed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
