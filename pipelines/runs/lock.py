"""One process at a time works on a run: a lock in its folder, and a file that says who holds it."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from crmt.errors import BadInputError
from pipelines.infra.files import write_atomically
from pipelines.infra.storage import Where, folder_at
from pipelines.runs.holder import holder_here, said_of
from pipelines.runs.lease import hold_lease

LOCK, MARKER, HOLDER = ".lock", ".lock.held", ".lock.json"
"""Locked by the kernel; there while it is held, on a file system without locks; who holds it."""
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


@contextmanager
def hold_run(run: Where) -> Iterator[None]:
    """Hold a run while the block runs: by a lock in its folder, or on a server by a claim (`hold_lease`).

    Args:
        run: an existing folder.

    Raises:
        BadInputError: another process holds it.
    """
    folder = folder_at(run)
    with hold_lease(folder) if folder.local is None else _hold_folder(folder.local):
        yield


@contextmanager
def _hold_folder(run: Path) -> Iterator[None]:
    """Hold the lock of a run's folder while the block runs.

    The kernel keeps it, and lets it go when the process dies, on whatever host of a shared file system that has locks.
    On one that has none, it is a file that is there as long as it is held: left by a dead process of this host it is
    taken over, and of another host, which cannot be asked, the refusal says which file to delete.
    """
    lock = _acquired(run)
    try:
        write_atomically(run / HOLDER, json.dumps(holder_here()))
        yield
    finally:
        (run / HOLDER).unlink(missing_ok=True)
        lock.release()


def _acquired(run: Path) -> BaseFileLock:
    try:
        return _tried(FileLock(run / LOCK), run)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return _tried(SoftFileLock(run / MARKER), run, f"; if it is gone, delete {run / MARKER}")


def _tried(lock: BaseFileLock, run: Path, more: str = "") -> BaseFileLock:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise BadInputError(f"{run} is in use by {_holder(run)}: wait until it has ended, or stop it{more}") from None
    return lock


def _holder(run: Path) -> str:
    try:
        return said_of(json.loads((run / HOLDER).read_text()))
    except (OSError, ValueError):
        return said_of(None)
