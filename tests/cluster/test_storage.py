"""Sweeps wholly on an S3 server: killed and resumed from elsewhere, and with the server away for 30 s in the middle."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
import ray

from pipelines import evaluate, report, sweep, train
from pipelines.infra import remote
from pipelines.infra.storage import Folder, folder_at
from pipelines.runs.results import ResultsStore
from tests.pipelines.media import make_media
from tests.pipelines.s3 import S3, Wire, s3_server
from tests.pipelines.small import TINY, merged

EPOCHS, EVERY, TRIALS = 60, 4, 2
AWAY_SECONDS = 30
pytestmark = pytest.mark.slow
STARTED: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def leave_nothing(s3: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ends what a failing test would leave running, before its server goes: what is written late would be kept."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    yield
    for process in STARTED:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    STARTED.clear()


@pytest.fixture
def s3() -> Iterator[S3]:
    """A server that speaks S3, with a bucket `bucket`."""
    with s3_server("bucket") as server:
        yield server


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of 18 clips of three classes."""
    folder, rows = tmp_path_factory.mktemp("clips"), []
    for i in range(18):
        path = make_media(folder / f"clip{i}.mp4", width=40 + 8 * (i % 3), tone=300.0 + 300 * (i % 3), seconds=1)
        rows.append((path.name, f"class {i % 3}", ("train", "train", "validation", "test")[i // 3 % 4]))
    pd.DataFrame(rows, columns=["path", "label", "split"]).to_csv(folder / "manifest.csv", index=False)
    return folder


def started(arguments: list[str], folder: Path) -> subprocess.Popen[str]:
    """sweep.py on a Ray of its own, in a working directory of its own."""
    folder.mkdir(exist_ok=True)
    process = subprocess.Popen(
        [sys.executable, str(Path(sweep.__file__)), *arguments],
        cwd=folder,
        stdout=(folder / "log").open("w"),
        stderr=subprocess.STDOUT,
        text=True,
        env={k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {"CRMT_CACHE": str(folder / "cache")},
        start_new_session=True,
    )
    STARTED.append(process)
    return process


def configured(clips: Path, uri: Callable[[str], str], folder: Path) -> list[str]:
    """The arguments of a tiny run whose clips and results lie on the server."""
    changes = {
        "data": {"root": str(clips), "cache": uri("bucket/cache")},
        "train": {"epochs": EPOCHS, "batch_size": 4, "tau_samples": 4},
        "select": {"every": EVERY, "samples": 3},
        "attack": {"names": ["pgd"], "balls": ["joint"], "samples": 3},
        "certify": {"audit_samples": 3},
        "sweep": {"trials": TRIALS},
    }
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(merged(TINY, changes)))
    return ["--dataset", "manifest", "--config", str(folder / "config.json"), "--storage", uri("bucket/runs")]


def begun(clips: Path, uri: Callable[[str], str], folder: Path) -> subprocess.Popen[str]:
    search = ["--set", "search={train.lr: {uniform: [0.001, 0.05]}}"]
    return started([*configured(clips, uri, folder), *search], folder)


def waited(process: subprocess.Popen[str], folder: Path, condition: Callable[[], bool], seconds: float = 500) -> None:
    """Until the condition holds; a process that ends before is a failure."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, (folder / "log").read_text()
        assert time.monotonic() < end, "the sweep did not get so far: " + (folder / "log").read_text()
        time.sleep(0.2)


def ended(process: subprocess.Popen[str], folder: Path) -> str:
    """What it printed; it must have ended well."""
    code = process.wait(900)
    printed = (folder / "log").read_text()
    assert code == 0, printed
    assert "Traceback" not in printed, printed
    return printed


def only_run(s3: S3) -> Folder:
    runs = folder_at(s3.uri("bucket/runs"))
    (name,) = runs.folders()
    return runs / name


def last_epoch(s3: S3) -> int:
    """The last epoch that any trial has stored; 0 before there is one."""
    if not folder_at(s3.uri("bucket/runs")).folders():
        return 0
    stored = ResultsStore(only_run(s3) / "results").read("epochs")
    return int(stored.epoch.max()) if len(stored) else 0


def check_complete(run: Folder) -> None:
    """Every trial ended with every epoch once, its model is there, and no claim is left."""
    table = ResultsStore(run / "results").read("trials")
    assert len(table) == TRIALS and (table.status == "finished").all() and (table.epochs == EPOCHS).all()
    losses = ResultsStore(run / "results").read("epochs").query("name == 'loss'")
    assert losses.groupby("trial_id").epoch.apply(list).tolist() == [list(range(1, EPOCHS + 1))] * TRIALS
    for trial, digest in zip(table.trial_id, table.weights_sha256, strict=True):
        assert json.loads((run / "models" / trial).read("model.json"))["weights_sha256"] == digest
        assert (run / "models" / trial).has("model.safetensors")
    assert run.has("report.html") and (run / "claims").names() == []


def test_a_killed_sweep_goes_on_from_another_folder_and_through_another_door(
    s3: S3, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    process = begun(clips, s3.uri, first)
    waited(process, first, lambda: last_epoch(s3) >= 2 * EVERY)
    process.kill()
    process.wait()
    before = ResultsStore(only_run(s3) / "results").read("epochs")
    assert not list(first.glob("runs*")) and not list((first / "cache").rglob("*.parquet"))

    wire = Wire(s3.address)  # the same bucket at another address, as from another network
    run = folder_at(f"s3://{only_run(s3).root}?endpoint_override={wire.address}&scheme=http")
    printed = ended(started(["--resume", str(run)], second), second)
    wire.cut()
    assert str(run / "report.html") in printed
    check_complete(only_run(s3))
    after = ResultsStore(only_run(s3) / "results").read("epochs")
    seconds = before[before.name == "seconds"].merge(after, on=["trial_id", "epoch", "name"])
    assert (seconds.value_x == seconds.value_y).sum() >= EVERY  # it went on, and did not begin again
    assert report.main([str(only_run(s3)), "--out", str(tmp_path / "copy")]) == 0
    assert (tmp_path / "copy" / "report.html").exists() and "finished" in capsys.readouterr().out


def test_a_server_that_is_away_for_half_a_minute_ends_nothing(s3: S3, clips: Path, tmp_path: Path) -> None:
    wire, folder = Wire(s3.address), tmp_path / "here"
    process = begun(clips, lambda path: f"s3://{path}?endpoint_override={wire.address}&scheme=http", folder)
    waited(process, folder, lambda: last_epoch(s3) >= EVERY)
    wire.cut()
    time.sleep(AWAY_SECONDS)
    reached = last_epoch(s3)
    assert reached < EPOCHS and process.poll() is None
    wire.mend()
    printed = ended(process, folder)
    wire.cut()
    assert re.search(r"does not answer .* asked again for", printed) and "answers again after" in printed
    check_complete(only_run(s3))
    assert (ResultsStore(only_run(s3) / "results").read("trials").error.isna()).all()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_training_and_an_evaluation_of_its_model(
    s3: S3,
    clips: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    workers: int,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CRMT_CACHE", str(tmp_path / "cache"))
    try:
        more = ["--workers", str(workers)]
        assert train.main([*configured(clips, s3.uri, tmp_path / "config"), *more]) == 0
        trained = only_run(s3)
        state = trained / "state" / "train" if workers == 1 else trained / "workers" / "train"
        assert len(state.folders("checkpoint_*")) == 1  # one is kept
        assert str(trained / "models" / "train") in capsys.readouterr().out
        model = str(trained / "models" / "train")
        assert evaluate.main([model, "--storage", s3.uri("bucket/evaluations")]) == 0
    finally:
        ray.shutdown()
    evaluations = folder_at(s3.uri("bucket/evaluations"))
    (name,) = evaluations.folders()
    curves = [
        ResultsStore(run / "results").read("curves").query("final").drop(columns="trial_id").reset_index(drop=True)
        for run in (trained, evaluations / name)
    ]
    pd.testing.assert_frame_equal(*curves)
    assert ResultsStore(evaluations / name / "results").read("trials").model.tolist() == [model]
    assert not (tmp_path / "runs").exists()


def test_a_server_that_stays_away_ends_a_sweep_in_one_line_and_it_goes_on(
    s3: S3, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CRMT_CACHE", str(tmp_path / "cache"))
    wire = Wire(s3.address)

    def cut() -> None:
        while last_epoch(s3) < EVERY:
            time.sleep(0.2)
        monkeypatch.setattr(remote, "PATIENCE_SECONDS", 4.0)  # of the command; its trials have the whole
        wire.cut()

    arguments = configured(clips, lambda path: f"s3://{path}?endpoint_override={wire.address}&scheme=http", tmp_path)
    cutting = threading.Thread(target=cut)
    cutting.start()
    try:
        code = sweep.main([*arguments, "--set", "search={train.lr: {uniform: [0.001, 0.05]}}"])
        cutting.join()
        printed = capfd.readouterr().err
        run = f"s3://{only_run(s3).root}?endpoint_override={wire.address}&scheme=http"
        errors = [line for line in printed.splitlines() if line.startswith("error: ")]
        assert code == 1 and len(errors) == 1, printed
        assert f"--resume {run}" in errors[0] and "Traceback" not in printed, printed
    finally:
        ray.shutdown()
    monkeypatch.setattr(remote, "PATIENCE_SECONDS", 120.0)
    wire.mend()
    claims = only_run(s3) / "claims"
    for name in claims.names():  # it could not be let go; a command's would be that of a dead process
        claims.remove(name)
    try:
        assert sweep.main(["--resume", run]) == 0, capfd.readouterr().err
    finally:
        ray.shutdown()
        wire.cut()
    check_complete(only_run(s3))
