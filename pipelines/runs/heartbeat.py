"""A trial's phase and progress while it runs, for the live table."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from crmt.errors import CRMTError
from pipelines.infra.storage import Folder, Where, folder_at

HEARTBEAT_SECONDS, REMOTE_SECONDS = 0.5, 20.0
"""The least time between two writes of a heartbeat, on a disk and on a server. There each is a request to pay: at S3's
prices of 2026 180 an hour and trial are a tenth of a cent."""


@dataclass
class Heartbeat:
    """A small file that says what a trial is doing, and since when; the live table reads it. Written at most every half
    second; on a server every 20 s, in the background, and not again where that fails."""

    path: Where
    last: float = field(default=-REMOTE_SECONDS, init=False)
    phase: str = field(default="", init=False)
    began: float = field(default=0.0, init=False)
    _writing: threading.Thread | None = field(default=None, init=False)

    def __call__(self, phase: str, fraction: float, **extra: Any) -> None:
        now = time.monotonic()
        folder, name = _split(self.path)
        if folder.local is None:
            if now - self.last < REMOTE_SECONDS or (self._writing is not None and self._writing.is_alive()):
                self._begin(phase)
                return
        elif phase == self.phase and now - self.last < HEARTBEAT_SECONDS and fraction < 1:
            return
        self._begin(phase)
        self.last = now
        said = {"phase": phase, "fraction": fraction, "time": time.time(), "began": self.began}
        content = json.dumps({**said, **extra}).encode()
        if folder.local is None:
            self._writing = threading.Thread(target=_try_to_write, args=(folder, name, content), daemon=True)
            self._writing.start()
            return
        folder.make()
        folder.write(name, content, durable=False)  # a killed sweep's trial may still write for a while

    def _begin(self, phase: str) -> None:
        if phase != self.phase:
            self.phase, self.began = phase, time.time()


def _try_to_write(folder: Folder, name: str, content: bytes) -> None:
    with contextlib.suppress(CRMTError, OSError):
        folder.write(name, content)


def _split(file: Where) -> tuple[Folder, str]:
    """A file's folder and its name."""
    return folder_at(file.parent), file.name


def heartbeat_path(run: Where, trial_id: str) -> Where:
    """The path of a trial's heartbeat.

    Args:
        run: the run's folder.
        trial_id: the trial's name.
    """
    return run / "live" / f"{trial_id}.json"


def _note_report(run: Where, trial_id: str, metrics: Mapping[str, Any]) -> None:
    folder = folder_at(run) / "live"
    folder.make()
    folder.write(f"{trial_id}.report.json", json.dumps(dict(metrics)).encode(), durable=False)


def last_report(run: Where, trial_id: str) -> dict[str, Any]:
    """What a trial reported last; empty where it reported nothing. Ray keeps no report that came without a checkpoint.

    Args:
        run: the run's folder.
        trial_id: the trial's name.
    """
    try:
        return dict(json.loads((folder_at(run) / "live").read(f"{trial_id}.report.json")))
    except (OSError, ValueError):
        return {}
