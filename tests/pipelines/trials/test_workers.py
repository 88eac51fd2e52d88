"""`--workers 2`: two Ray Train workers train the model that one worker trains."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import ray
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from crmt.errors import CRMTError
from pipelines import evaluate, sweep, train
from pipelines.infra.ray_errors import first_line
from pipelines.runs.results import ResultsStore
from tests.pipelines.small import PER_SPLIT, Small

TOLERANCE = 1e-3
"""Relative: sums of float32 in another order, over three epochs."""
HALVES = {"sweep": {"cpus_per_worker": 0.5}}


def run(small: Small, out: Path, *more: str, **changes: Any) -> Path:
    config = small.file(out.with_suffix(".json"), **{"train": {"epochs": 3, "lr": 0.02}, **HALVES, **changes})
    code = train.main(["--dataset", "manifest", "--config", str(config), "--out", str(out), *more])
    assert code == 0
    return out


def curve(run: Path, name: str = "loss") -> pd.Series:
    epochs = ResultsStore(run / "results").read("epochs")
    return epochs[epochs.name == name].set_index("epoch")["value"]


@pytest.mark.parametrize("method", ["crmt_jt"])
def test_two_workers_have_the_loss_curve_of_one(small: Small, tmp_path: Path, method: str) -> None:
    one = run(small, tmp_path / "one", train={"method": method, "epochs": 3, "lr": 0.01})
    two = run(small, tmp_path / "two", "--workers", "2", train={"method": method, "epochs": 3, "lr": 0.01})
    pd.testing.assert_series_equal(curve(two), curve(one), rtol=TOLERANCE)
    assert list(curve(two).index) == [1, 2, 3] and curve(two).iloc[-1] < curve(two).iloc[0]
    pd.testing.assert_series_equal(curve(two, "val_accuracy"), curve(one, "val_accuracy"), atol=1.1 / 12)

    row = ResultsStore(two / "results").read("trials").iloc[0]
    assert (row.status, row.workers, row.epochs) == ("finished", 2, 3) and row.weights_sha256
    radii = ResultsStore(two / "results").read("radii")
    assert len(radii[radii.final]) == 3 * PER_SPLIT["test"]  # both ranks' halves
    assert (two / "report.html").exists() and (two / row.model / "model.json").exists()


SMOOTHING = {"sigmas": {"video": 0.2, "audio": 0.2}, "n0": 4, "n": 10, "samples": 7}
EXACT = {"certificates": ["estimate", "smoothing"], "smoothing": SMOOTHING, "audit_restarts": 1}


def rows(run: Path, table: str) -> pd.DataFrame:
    found = ResultsStore(run / "results").read(table)
    keys = {"metrics": ["name", "modality", "certificate"], "curves": ["attack", "ball", "epsilon"]}
    return found.sort_values(keys.get(table, ["certificate", "ball", "clip_id"]), ignore_index=True)


def test_two_workers_evaluate_as_one_does(small: Small, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also of a model that two workers could not have trained: its batches do not divide."""
    trained = run(small, tmp_path / "trained", train={"epochs": 2, "batch_size": 9}, certify=EXACT)
    model = str(trained / "models" / "train")
    one, two = tmp_path / "one", tmp_path / "two"
    assert evaluate.main([model, "--out", str(one)]) == 0
    assert evaluate.main([model, "--out", str(two), "--workers", "2"]) == 0
    for table in ("metrics", "curves", "radii"):
        pd.testing.assert_frame_equal(rows(two, table), rows(one, table), rtol=0, atol=1e-6)
    assert {"estimate", "smoothing"} == set(rows(two, "radii").certificate)
    row = ResultsStore(two / "results").read("trials").iloc[0]
    card = json.loads((trained / "models" / "train" / "model.json").read_text())
    assert (row.status, row.workers, row.weights_sha256) == ("finished", 2, card["weights_sha256"])
    assert (two / "report.html").exists()

    before = ResultsStore(two / "results").read("certified_clips")
    assert len(before) == SMOOTHING["samples"]
    (two / "report.html").unlink()
    assert evaluate.main([model, "--resume", str(two), "--workers", "2"]) == 2
    assert "leave the other options out" in capsys.readouterr().err
    assert evaluate.main([model, "--resume", str(two)]) == 0
    pd.testing.assert_frame_equal(rows(two, "radii"), rows(one, "radii"), rtol=0, atol=1e-6)
    assert (two / "report.html").exists()


def test_an_evaluation_on_a_cluster_goes_to_its_workers(small: Small, tmp_path: Path) -> None:
    trained = run(small, tmp_path / "trained", train={"epochs": 1}, certify={"audit_samples": 0})
    address = ray.get_runtime_context().gcs_address
    out = tmp_path / "far"
    assert evaluate.main([str(trained / "models" / "train"), "--out", str(out), "--address", address]) == 0
    assert (out / "workers" / "evaluation").exists()  # Ray Train was there
    pd.testing.assert_frame_equal(
        rows(out, "curves").drop(columns="trial_id"),
        rows(trained, "curves").query("final").drop(columns="trial_id").reset_index(drop=True),
    )


def test_a_batch_that_two_workers_cannot_share_is_refused_at_once(
    small: Small, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small.file(out.with_suffix(".json"), **HALVES, train={"batch_size": 9})
    code = train.main(["--dataset", "manifest", "--config", str(config), "--out", str(out), "--workers", "2"])
    captured = capsys.readouterr()
    assert code == 2 and "train.batch_size" in captured.err and len(captured.err.splitlines()) == 1
    assert not out.exists()


@pytest.mark.slow
def test_a_training_that_fails_on_workers_says_why_in_one_line(
    small: Small, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"train": {"lr": 1e6}, "sweep": {"cpus_per_worker": 0.5, "max_failures": 0}}
    config = small.file(out.with_suffix(".json"), **changes)
    code = train.main(["--dataset", "manifest", "--config", str(config), "--out", str(out), "--workers", "2"])
    captured = capsys.readouterr()
    assert code == 1 and "lower train.lr" in captured.err, captured.err
    row = ResultsStore(out / "results").read("trials").iloc[0]
    assert row.status == "failed" and "lower train.lr" in row.error and "\n" not in row.error


def test_the_cause_of_a_remote_error_in_one_line(ray_cluster: None) -> None:
    ours, theirs = CRMTError("the loss is nan: lower train.lr"), RuntimeError("gloo:\n peer closed the connection\n")
    wrapped = {0: UserExceptionWithTraceback(theirs, "..."), 1: UserExceptionWithTraceback(ours, "...")}
    assert first_line(WorkerGroupError("two workers failed", wrapped)) == str(ours)
    assert first_line(WorkerGroupError("failed", {0: wrapped[0]})) == "RuntimeError: peer closed the connection"
    assert first_line(ControllerError(theirs)).startswith("RuntimeError")
    assert first_line("a\nb\n\n") == "b" and first_line(None) and first_line(ValueError()) == "ValueError: ValueError"

    ours.__cause__ = theirs
    assert first_line(ours) == str(ours)  # it says more than what it came from

    @ray.remote
    def fails() -> None:
        raise ours from theirs

    @ray.remote(max_retries=0)
    def dies() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    for task, expected in ((fails, str(ours)), (dies, "WorkerCrashedError")):
        with pytest.raises(ray.exceptions.RayError) as caught:
            ray.get(task.remote())
        assert expected in first_line(caught.value) and "\n" not in first_line(caught.value)


@pytest.mark.slow
def test_a_sweep_with_two_workers_a_trial(small: Small, out: Path) -> None:
    search = {"train.method": {"grid": ["jt", "crmt_jt"]}}
    changes = {"search": search, "sweep": {"algorithm": "grid", "workers": 2, "cpus_per_worker": 0.5}}
    config = small.file(out.with_suffix(".json"), **changes)
    assert sweep.main(["--dataset", "manifest", "--config", str(config), "--out", str(out)]) == 0
    trials = ResultsStore(out / "results").read("trials")
    assert sorted(json.loads(p)["train.method"] for p in trials.params) == ["crmt_jt", "jt"]
    assert (trials.status == "finished").all() and (trials.workers == 2).all() and (trials.epochs == 2).all()
    assert trials.selected_value.notna().all() and trials.weights_sha256.nunique() == 2
    epochs = ResultsStore(out / "results").read("epochs")
    assert epochs.groupby("trial_id").epoch.max().tolist() == [2, 2]
