"""A disk that fills up while a run writes to it: noticed wherever it shows, and the run ends so that it can go on.

A run that is alive keeps a file in reserve. Whoever finds no space left deletes it: what must still be written, rows
and Tune's own state, then fits, and its absence tells the command to stop.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from crmt.errors import CRMTError
from pipelines.infra.storage import Where, folder_at

RESERVE = ".reserve"
RESERVED_BYTES = 4 * 2**20
"""What a run keeps free for its last rows."""
_PROBED = 64 * 2**10
_LOOK_SECONDS, _END_SECONDS = 1.0, 20.0
_WORDS = tuple(os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT))


def is_full(error: BaseException | str) -> bool:
    """Whether an error, of this process or as text of another's, says that a disk or a quota is full."""
    return any(words in str(error) for words in _WORDS)


def give_way(run: Where) -> None:
    """Delete the reserve of a run: what must be written fits again, and the command that runs it ends."""
    if (path := folder_at(run).local) is not None:
        (path / RESERVE).unlink(missing_ok=True)


@contextmanager
def watch_disk(run: Where, go_on: str) -> Iterator[None]:
    """Watch the disk of a run while the block runs, and end the block, as Ctrl-C does, when it is full.

    By SIGUSR1, which Tune takes for Ctrl-C too, since a shell has SIGINT ignored in what it starts with `&`. A block
    that does not end within 20 s then, since something waits for the disk, ends with its process.

    A run on a server has no disk to watch.

    Args:
        run: the run's folder.
        go_on: the command that goes on with it.

    Raises:
        CRMTError: the disk is full: before the block, in it, or an error in it says so.
    """
    path = folder_at(run).local
    if path is None:
        yield
        return
    line = f"no space left for {run} or in {tempfile.gettempdir()}: make room, then go on with: {go_on}"
    full, ended = threading.Event(), threading.Event()
    main = threading.current_thread() is threading.main_thread()
    watch = threading.Thread(target=_watch, args=(path, line, full, ended, main), daemon=True)
    before = signal.signal(signal.SIGUSR1, signal.default_int_handler) if main else None
    try:
        _reserve(path / RESERVE)
        watch.start()
        yield
    except BaseException as error:
        if not full.is_set() and (not isinstance(error, Exception) or not is_full(error)):
            raise
        raise CRMTError(line) from None
    finally:
        ended.set()
        if watch.ident is not None:
            watch.join(5)  # its signal comes while it is still caught
        give_way(run)
        if main:
            signal.signal(signal.SIGUSR1, before or signal.SIG_DFL)
    if full.is_set():
        raise CRMTError(line)


def _reserve(path: Path) -> None:
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, RESERVED_BYTES)


def _watch(run: Path, line: str, full: threading.Event, ended: threading.Event, main: bool) -> None:
    while not ended.wait(_LOOK_SECONDS):
        if not _has_room(run):
            give_way(run)
        if not (run / RESERVE).exists() and not ended.is_set():
            full.set()
            if main:
                os.kill(os.getpid(), signal.SIGUSR1)
            if not ended.wait(_END_SECONDS):
                print(f"error: {line}", file=sys.stderr, flush=True)
                os._exit(1)
            return


def _has_room(run: Path) -> bool:
    probe = run / f"{RESERVE}.probe"
    try:
        probe.write_bytes(os.urandom(_PROBED))  # no file system makes less of it
    except OSError as error:
        return not is_full(error)
    finally:
        probe.unlink(missing_ok=True)
    return True
