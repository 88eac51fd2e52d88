"""What the live table says of a trial's phase: how far it is, and how long it may still take."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from pipelines.runs.heartbeat import Heartbeat
from pipelines.runs.live import _row

TRIAL = {
    "trial_id": "t0",
    "method": "jt",
    "status": "running",
    "params": "{}",
    "epochs": 3,
    "selected_value": None,
    "error": None,
}


def beat(fraction: float, spent: float) -> dict[str, object]:
    now = time.time()
    return {"phase": "τ", "fraction": fraction, "time": now, "began": now - spent}


@pytest.mark.parametrize(
    ("fraction", "spent", "said"),
    [
        (0.25, 10.0, "τ 25 %, 30 s left"),
        (0.1, 60.0, "τ 10 %, 9 min left"),
        (0.0, 60.0, "τ 0 %"),
        (1.0, 60.0, "τ 100 %"),
        (0.5, 1.0, "τ 50 %"),
    ],
)
def test_a_phase_says_how_long_it_may_still_take(fraction: float, spent: float, said: str) -> None:
    assert _row(TRIAL, beat(fraction, spent))["progress"] == said


def test_a_heartbeat_of_an_older_version_is_read() -> None:
    old = {k: v for k, v in beat(0.5, 50).items() if k != "began"}
    assert _row(TRIAL, old)["progress"] == "τ 50 %"


def test_every_phase_has_its_own_beginning(tmp_path: Path) -> None:
    path = tmp_path / "live" / "t0.json"
    tell = Heartbeat(path)
    tell("τ", 0.0)
    first = json.loads(path.read_text())["began"]
    tell("τ", 1.0)
    assert json.loads(path.read_text())["began"] == first
    time.sleep(0.01)
    tell("step 2", 0.0)
    assert json.loads(path.read_text())["began"] > first
