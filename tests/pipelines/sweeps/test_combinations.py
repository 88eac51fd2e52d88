"""Every search algorithm with every way of feeding trials and one or two workers, on 2 CPUs: nothing waits for ever."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from pipelines import sweep
from pipelines.clips import ingest
from pipelines.runs.results import ResultsStore
from tests.pipelines.small import Small

SECONDS = 400
"""What is not through by then hangs."""


@pytest.fixture
def alarm() -> Iterator[None]:
    """Ends a test that hangs."""

    def hangs(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"not through after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def parts(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clips in several parts, as two streaming workers need them."""
    root = tmp_path_factory.getbasetemp() / "parts"
    root.mkdir(exist_ok=True)
    monkeypatch.setenv("CRMT_CACHE", str(root))
    monkeypatch.setattr(ingest, "_SHARD_CLIPS", 12)


SEARCH: dict[str, dict[str, Any]] = {
    "random": {"train.lr": {"uniform": [0.01, 0.05]}},
    "optuna": {"train.lr": {"uniform": [0.01, 0.05]}},
    "grid": {"train.lr": {"choice": [0.01, 0.02, 0.05]}},
}


@pytest.mark.slow
@pytest.mark.usefixtures("alarm", "parts")
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("mode", ["memory", "stream"])
@pytest.mark.parametrize("algorithm", sorted(SEARCH))
def test_a_sweep_finishes_or_is_refused(small: Small, tmp_path: Path, algorithm: str, mode: str, workers: int) -> None:
    run = tmp_path / "run"
    config = small.file(
        tmp_path / "c.json",
        data={"mode": mode},
        search=SEARCH[algorithm],
        train={"method": "jt", "epochs": 1},
        attack={"names": ["fgm"], "balls": ["joint"]},
        certify={"audit_samples": 0},
        sweep={"algorithm": algorithm, "trials": 3, "workers": workers},
    )
    code = sweep.main(["--dataset", "manifest", "--config", str(config), "--out", str(run)])
    if code == 2:
        assert mode == "stream" and workers == 2  # with the CPUs that read, more than there are
        assert not (run / "results").exists()
        return
    trials = ResultsStore(run / "results").read("trials")
    assert code == 0 and len(trials) == 3 and (trials.status == "finished").all()
