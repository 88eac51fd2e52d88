"""The recorder on a full disk: no row is lost, and the run is told to end."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pyarrow.fs import LocalFileSystem
from ray import cloudpickle

from pipelines import sweep
from pipelines.config.run_config import parse
from pipelines.runs.disk import RESERVE, RESERVED_BYTES
from pipelines.runs.results import ResultsStore
from pipelines.sweeps.preflight import Room
from pipelines.sweeps.recorder import Recorder
from tests.pipelines.small import TINY, Small, merged, one_line

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def recorder(tmp_path: Path) -> Recorder:
    (tmp_path / RESERVE).touch()
    return Recorder(parse(TINY, "a test"), {})


def trial_of(run: Path, error: Exception | None = None) -> SimpleNamespace:
    """As Tune shows a trial to its callbacks, with the error that it wrote down."""
    file = run / "error.pkl"
    file.write_bytes(cloudpickle.dumps(error))
    return SimpleNamespace(
        trial_id="a",
        config={"train.lr": 0.1},
        path=str(run / "tune" / "a"),
        pickled_error_file=str(file),
        storage=SimpleNamespace(storage_filesystem=LocalFileSystem()),
    )


def test_a_row_that_does_not_fit_is_written_into_the_reserve(
    tmp_path: Path, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = ResultsStore.write

    def while_reserved(*given: Any) -> Path:
        if (tmp_path / RESERVE).exists():
            raise FULL
        return write(*given)

    monkeypatch.setattr(ResultsStore, "write", while_reserved)
    trial = trial_of(tmp_path)
    recorder.on_trial_start(0, [trial], trial)
    assert not (tmp_path / RESERVE).exists()
    assert ResultsStore(tmp_path / "results").read("trials").trial_id.tolist() == ["a"]


def test_another_error_is_raised(tmp_path: Path, recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*given: Any) -> Path:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(ResultsStore, "write", refused)
    trial = trial_of(tmp_path)
    with pytest.raises(PermissionError):
        recorder.on_trial_start(0, [trial], trial)
    assert (tmp_path / RESERVE).exists()


@pytest.mark.parametrize(("error", "ends"), [(FULL, True), (ValueError("nan"), False)])
@pytest.mark.parametrize("event", ["on_trial_recover", "on_trial_error"])
def test_a_trial_that_found_no_space_ends_the_run(
    tmp_path: Path, recorder: Recorder, event: str, error: Exception, ends: bool
) -> None:
    trial = trial_of(tmp_path, error)
    getattr(recorder, event)(0, [trial], trial)
    assert (tmp_path / RESERVE).exists() != ends


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk with room for a trial's rows beside the reserve, not for a sweep's; where this machine lets us mount."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4400k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root can mount a disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_too_small_for_the_plan_is_refused_before_anything_is_decoded(
    small: Small, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the run, not of the cache; a model of 20 million numbers and the plan of 1,000 trials."""
    usage, run = shutil.disk_usage, tmp_path / "far" / "run"
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(path)._replace(free=50 * 2**30))
    config = small.file(
        tmp_path / "c.json",
        search={"train.lr": {"uniform": [0.001, 0.05]}},
        model={"encoders": {"video": "resnet18", "audio": "resnet18"}, "features": 512},
        sweep={"trials": 1000},
    )
    assert sweep.main(["--dataset", "manifest", "--config", str(config), "--out", str(run)]) == 2
    line = one_line(capsys.readouterr().err)
    assert line.startswith(f"error: {tmp_path} has 50.0 GiB free, and the run writes 2") and "--out" in line
    assert not run.exists()


@pytest.mark.parametrize(("optimizer", "states"), [("sgd", 2), ("adam", 3)])
def test_what_a_run_writes(tmp_path: Path, optimizer: str, states: int) -> None:
    """Four ended trials keep a model and a state each; two run side by side with a second state."""
    room = Room.of(parse(merged(TINY, {"train": {"optimizer": optimizer}}), "a test"), tmp_path / "run", 1000, 4, 2)
    assert room.wanted_bytes - RESERVED_BYTES == 1000 * (4 * (1 + states) + 2 * states)
    assert room.where == tmp_path


@pytest.mark.slow
def test_a_sweep_ends_on_a_full_disk_and_goes_on_when_there_is_room(
    small: Small, disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Room, "check", lambda room: None)  # as where somebody else fills the disk meanwhile
    run = disk / "run"
    config = small.file(tmp_path / "c.json", search={"train.lr": {"uniform": [0.001, 0.05]}}, sweep={"trials": 4})
    assert sweep.main(["--dataset", "manifest", "--config", str(config), "--out", str(run)]) == 1
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(said) == 1 and said[0].endswith(f"go on with: python pipelines/sweep.py --resume {run}")
    assert said[0].startswith(f"error: no space left for {run} or in ")
    subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
    assert sweep.main(["--resume", str(run)]) == 0
    table = ResultsStore(run / "results").read("trials")
    assert len(table) == 4 and (table.status == "finished").all()
    assert not list(run.glob(f"{RESERVE}*"))
