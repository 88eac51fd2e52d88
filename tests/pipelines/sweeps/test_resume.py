"""Nothing is lost: a sweep whose process is killed goes on with --resume; Ctrl-C ends it soon and says how to."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
import ray
import torch

from crmt.checkpoint import save_state
from pipelines import sweep, train
from pipelines.runs.results import ResultsStore
from pipelines.trials.sessions import LocalSession, furthest_state
from tests.pipelines.small import Small

EPOCHS, EVERY = 40, 4
STARTED: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def leave_nothing() -> Iterator[None]:
    """Ends what a failing test would leave running."""
    yield
    for process in STARTED:
        if process.poll() is None:
            process.kill()
    STARTED.clear()


def start(
    small: Small, run: Path, script: str = "sweep", trials: int = 3, address: str | None = None, workers: int = 1
) -> subprocess.Popen[str]:
    """A real process in its own group, on its own Ray or on a cluster."""
    config = small.file(
        run.with_suffix(".json"),
        train={"epochs": EPOCHS, "batch_size": 4},
        select={"every": EVERY},
        attack={"names": ["pgd"], "balls": ["joint"]},
        search={"train.lr": {"uniform": [0.001, 0.05]}} if script == "sweep" else {},
        sweep={"trials": trials, "workers": workers},
    )
    command = [sys.executable, str(Path(sweep.__file__).parent / f"{script}.py"), "--dataset", "manifest"]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    environment |= {"RAY_ADDRESS": address} if address else {}
    return spawn([*command, "--config", str(config), "--out", str(run)], environment)


def spawn(command: list[str], environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
    )
    STARTED.append(process)
    return process


def wait_for(process: subprocess.Popen[str], condition: Callable[[], bool], seconds: float = 600) -> None:
    """Until the condition holds; a process that ends before is a failure."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end, "the run did not get so far"
        time.sleep(0.05)


def epochs_stored(run: Path) -> int:
    """The last epoch of any trial in the store; 0 before there is one."""
    stored = ResultsStore(run / "results").read("epochs")
    return int(stored.epoch.max()) if len(stored) else 0


def known_to_tune(run: Path) -> bool:
    """Whether Tune has written down a checkpoint, and every trial that has begun: others begin anew, renamed."""
    states = sorted((run / "tune").glob("experiment_state-*.json"))
    noted = states[-1].read_text() if states else ""
    trials = ResultsStore(run / "results").read("trials").trial_id
    return b"checkpoint_0".hex() in noted and all(trial in noted for trial in trials)


def check_complete(run: Path, trials: int) -> None:
    """Every trial ended, and each has every epoch once."""
    table = ResultsStore(run / "results").read("trials")
    assert len(table) == trials and (table.status == "finished").all() and (table.epochs == EPOCHS).all()
    losses = ResultsStore(run / "results").read("epochs").query("name == 'loss'")
    expected = pd.Series({t: list(range(1, EPOCHS + 1)) for t in table.trial_id})
    assert losses.groupby("trial_id").epoch.apply(list).sort_index().to_dict() == expected.sort_index().to_dict()
    assert (run / "report.html").exists()


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_a_killed_sweep_goes_on_from_its_checkpoints(small: Small, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a cluster that outlives the killed process, as on the machines of others."""
    monkeypatch.setenv("TUNE_GLOBAL_CHECKPOINT_S", "0.5")
    process = start(small, out, trials=2, address=ray.get_runtime_context().gcs_address)
    wait_for(process, lambda: epochs_stored(out) >= 2 * EVERY and known_to_tune(out))
    kill(process)
    for last in {folder.parent: folder for folder in sorted(out.glob("tune/*/checkpoint_*"))}.values():
        # as if Tune had gone on after its last note: it keeps one checkpoint, and the noted one would be gone
        last.rename(last.with_name(f"checkpoint_{int(last.name[-6:]) + 1:06d}"))
    before = ResultsStore(out / "results").read("epochs")
    started = set(ResultsStore(out / "results").read("trials").trial_id)
    assert sweep.main(["--resume", str(out)]) == 0
    check_complete(out, 2)
    after = ResultsStore(out / "results").read("epochs")
    assert started <= set(after.trial_id)
    # what was checkpointed before the kill is still there: training went on, and did not begin again
    reached = before.groupby("trial_id").epoch.max()
    far = before[before.trial_id.isin(reached[reached >= 2 * EVERY].index) & (before.name == "seconds")]
    seconds = far.merge(after, on=["trial_id", "epoch", "name"])
    checkpointed = seconds[seconds.epoch <= EVERY]
    assert len(checkpointed) and (checkpointed.value_x == checkpointed.value_y).all()


def test_a_trial_goes_on_from_the_furthest_whole_checkpoint(tmp_path: Path) -> None:
    """Not from the one whose name is last, nor from one that a kill cut off or that has no card yet."""
    assert furthest_state(tmp_path / "none") is None
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1).state_dict()
    for name, epoch in (("checkpoint_000000", 4), ("checkpoint_000001", 12), ("checkpoint_000002", 8)):
        save_state(tmp_path / name, {"model": layer.state_dict(), "optimizer": optimizer, "epoch": epoch})
    for name in ("checkpoint_000003", "checkpoint_000004"):
        save_state(tmp_path / name, {"model": layer.state_dict(), "optimizer": optimizer, "epoch": 16})
    weights = next((tmp_path / "checkpoint_000003").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-3])
    for card in (tmp_path / "checkpoint_000004").glob("*.json"):
        card.unlink()
    found = furthest_state(tmp_path)
    assert found is not None and found["epoch"] == 12


def test_a_kill_while_a_state_is_written_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1).state_dict()

    def state(epoch: int) -> dict[str, object]:
        return {"model": layer.state_dict(), "optimizer": optimizer, "epoch": epoch}

    session = LocalSession("train", tmp_path)
    (tmp_path / "state" / "train" / "checkpoint_000001").mkdir(parents=True)  # killed at its first
    assert session.resume() is None
    for epoch in (4, 8):
        session.report({}, state(epoch))
    assert [f.name for f in (tmp_path / "state" / "train").iterdir()] == ["checkpoint_000008"]
    with monkeypatch.context() as killed:
        killed.setattr("crmt.checkpoint._write_text", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):  # the weights are there, their card is not
            session.report({}, state(12))
    found = session.resume()
    assert found is not None and found["epoch"] == 8


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


@pytest.mark.slow
def test_a_copied_sweep_goes_on_in_its_copy_and_a_moved_one_where_it_lies(
    small: Small, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNE_GLOBAL_CHECKPOINT_S", "0.5")
    process = start(small, out, trials=2, address=ray.get_runtime_context().gcs_address)
    wait_for(process, lambda: epochs_stored(out) >= EVERY and known_to_tune(out), seconds=900)
    kill(process)
    moved, copy = out.with_name("moved"), out.with_name("copy")
    out.rename(moved)
    shutil.copytree(moved, copy)
    before = contents(moved)
    assert sweep.main(["--resume", str(copy)]) == 0
    check_complete(copy, 2)
    assert contents(moved) == before and not out.exists()
    table = ResultsStore(copy / "results").read("trials")
    assert all((copy / model).is_dir() for model in table.model)
    assert json.loads((copy / "run.json").read_text())["name"] == "copy"
    assert sweep.main(["--resume", str(moved)]) == 0
    check_complete(moved, 2)
    assert not out.exists()


@pytest.mark.slow
def test_a_killed_training_goes_on(small: Small, out: Path) -> None:
    process = start(small, out, script="train", address=ray.get_runtime_context().gcs_address)
    wait_for(process, lambda: epochs_stored(out) >= EVERY)
    kill(process)
    assert ResultsStore(out / "results").read("trials").status.tolist() == ["running"]
    assert train.main(["--resume", str(out)]) == 0
    check_complete(out, 1)


@pytest.mark.slow
def test_a_killed_sweep_with_its_own_ray_goes_on(small: Small, out: Path) -> None:
    """Killed three times: at its first trial, in mid-training, and as soon as a third trial began."""

    def rows() -> int:
        return len(list((out / "results" / "trials").glob("*.parquet")))

    command = [sys.executable, str(Path(sweep.__file__)), "--resume", str(out)]
    process = start(small, out)
    for reached in (lambda: rows() >= 1, lambda: epochs_stored(out) >= 2 * EVERY, lambda: rows() >= 3):
        wait_for(process, reached)
        kill(process)
        process = spawn(command)
    printed = process.communicate(timeout=240)[0]
    assert process.returncode == 0, printed
    check_complete(out, 3)


@pytest.mark.slow
def test_ctrl_c_ends_a_sweep_soon_and_says_how_to_go_on(small: Small, out: Path) -> None:
    process = start(small, out)
    wait_for(process, lambda: epochs_stored(out) >= EVERY)
    began = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)  # as a terminal sends it: to every process of the command
    printed = process.communicate(timeout=60)[0]
    assert process.returncode == 130 and time.monotonic() - began < 30
    assert f"--resume {out}" in printed and "Traceback" not in printed
    assert (out / "report.html").exists()

    def left() -> str:
        return subprocess.run(["pgrep", "-g", str(process.pid), "-r", "R,S,D"], capture_output=True, text=True).stdout

    end = time.monotonic() + 20
    while left() and time.monotonic() < end:
        time.sleep(0.5)
    assert not left()
    assert sweep.main(["--resume", str(out)]) == 0
    check_complete(out, 3)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_ends_a_training_and_says_how_to_go_on(small: Small, out: Path, workers: int) -> None:
    process = start(small, out, script="train", workers=workers)
    wait_for(process, lambda: epochs_stored(out) >= EVERY)
    os.killpg(process.pid, signal.SIGINT)
    printed = process.communicate(timeout=60)[0]
    assert process.returncode == 130 and "Traceback" not in printed, printed
    assert f"--resume {out}" in printed
    assert train.main(["--resume", str(out)]) == 0
    check_complete(out, 1)


@pytest.mark.slow
def test_ctrl_c_before_anything_is_trained(small: Small, out: Path) -> None:
    process = start(small, out)
    time.sleep(6)  # Ray starts, clips are read
    os.killpg(process.pid, signal.SIGINT)
    printed = process.communicate(timeout=60)[0]
    assert process.returncode == 130 and "Traceback" not in printed, printed
