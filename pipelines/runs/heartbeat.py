"""A trial's phase and progress while it runs, for the live table."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.infra.files import write_atomically

HEARTBEAT_SECONDS = 0.5


@dataclass
class Heartbeat:
    """A small file that says what a trial is doing, and since when; the live table reads it. Written at most every half
    second."""

    path: Path
    last: float = field(default=0.0, init=False)
    phase: str = field(default="", init=False)
    began: float = field(default=0.0, init=False)

    def __call__(self, phase: str, fraction: float, **extra: Any) -> None:
        now = time.monotonic()
        if phase == self.phase and now - self.last < HEARTBEAT_SECONDS and fraction < 1:
            return
        if phase != self.phase:
            self.began = time.time()
        self.last, self.phase = now, phase
        self.path.parent.mkdir(parents=True, exist_ok=True)
        said = {"phase": phase, "fraction": fraction, "time": time.time(), "began": self.began}
        text = json.dumps({**said, **extra})
        write_atomically(self.path, text)  # a killed sweep's trial may still write for a while


def heartbeat_path(run: Path, trial_id: str) -> Path:
    """The path of a trial's heartbeat.

    Args:
        run: the run's folder.
        trial_id: the trial's name.
    """
    return run / "live" / f"{trial_id}.json"


def _report_path(run: Path, trial_id: str) -> Path:
    return run / "live" / f"{trial_id}.report.json"


def _note_report(run: Path, trial_id: str, metrics: Mapping[str, Any]) -> None:
    path = _report_path(run, trial_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dict(metrics)))


def last_report(run: Path, trial_id: str) -> dict[str, Any]:
    """What a trial reported last; empty where it reported nothing. Ray keeps no report that came without a checkpoint.

    Args:
        run: the run's folder.
        trial_id: the trial's name.
    """
    try:
        return dict(json.loads(_report_path(run, trial_id).read_text()))
    except (OSError, ValueError):
        return {}
