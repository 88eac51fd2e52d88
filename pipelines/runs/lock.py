"""One process at a time works on a run: a lock in its folder, and a file that says who holds it."""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from crmt.errors import BadInputError
from pipelines.infra.files import write_atomically

LOCK, MARKER, HOLDER = ".lock", ".lock.held", ".lock.json"
"""Locked by the kernel; there while it is held, on a file system without locks; who holds it."""
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


@contextmanager
def hold_run(run: Path) -> Iterator[None]:
    """Hold the lock of a run's folder while the block runs.

    The kernel keeps it, and lets it go when the process dies, on whatever host of a shared file system that has locks.
    On one that has none, it is a file that is there as long as it is held: left by a dead process of this host it is
    taken over, and of another host, which cannot be asked, the refusal says which file to delete.

    Args:
        run: an existing folder.

    Raises:
        BadInputError: another process holds it.
    """
    lock = _acquired(run)
    try:
        since = datetime.now(UTC).isoformat(timespec="seconds")
        holder = {"host": socket.gethostname(), "pid": os.getpid(), "since": since}
        write_atomically(run / HOLDER, json.dumps(holder))
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
        found = json.loads((run / HOLDER).read_text())
        return f"process {found['pid']} on {found['host']} since {found['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
