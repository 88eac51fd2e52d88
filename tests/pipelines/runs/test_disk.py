"""A full disk ends a run with one line that says how to go on, wherever it shows."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest

from crmt.errors import CRMTError
from pipelines.runs import disk
from pipelines.runs.disk import RESERVE, give_way, is_full, watch_disk


def full_disk(*given: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def line_of(run: Path) -> str:
    return f"no space left for {run} or in {tempfile.gettempdir()}: make room, then go on with: again"


def test_what_says_that_a_disk_is_full() -> None:
    assert is_full(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/x"))
    assert is_full(OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)))
    assert is_full("Error while serializing: I/O error: No space left on device (os error 28)")
    assert not is_full(OSError(errno.EACCES, os.strerror(errno.EACCES))) and not is_full("out of memory")


def test_a_run_that_ends_leaves_no_reserve(tmp_path: Path) -> None:
    with watch_disk(tmp_path, "again"):
        assert (tmp_path / RESERVE).stat().st_blocks * 512 >= 2**20  # it takes room, which a sparse file would not
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="another"), watch_disk(tmp_path, "again"):
        raise ValueError("another")
    with pytest.raises(KeyboardInterrupt), watch_disk(tmp_path, "again"):
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_an_error_of_a_full_disk_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(CRMTError, match=f"^{line_of(tmp_path)}$"), watch_disk(tmp_path, "again"):
        full_disk()


def test_no_room_for_the_reserve_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk.os, "posix_fallocate", full_disk)
    with pytest.raises(CRMTError, match="no space left"), watch_disk(tmp_path, "again"):
        raise AssertionError("begun")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("who", ["the watch", "somebody else"])
def test_a_disk_that_fills_up_ends_what_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, who: str) -> None:
    with pytest.raises(CRMTError, match="no space left"), watch_disk(tmp_path, "again"):
        if who == "the watch":
            monkeypatch.setattr(Path, "write_bytes", full_disk)
        else:
            give_way(tmp_path)
        threading.Event().wait(60)  # ends at once where it is interrupted
        raise AssertionError("not interrupted")
    assert not list(tmp_path.iterdir())


def test_what_does_not_end_by_itself_is_ended(tmp_path: Path) -> None:
    script = f"""
import signal, threading
from pathlib import Path
from pipelines.runs import disk
disk._END_SECONDS = 0.1
with disk.watch_disk(Path({str(tmp_path)!r}), "again"):
    signal.signal(signal.SIGUSR1, lambda *_: None)
    disk.give_way(Path({str(tmp_path)!r}))
    while True:
        threading.Event().wait(1)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [f"error: {line_of(tmp_path)}"]
