"""The commands as a user meets them: a mistake is one line and an exit code, broken clips are counted."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from safetensors.torch import load_file, save_file

from crmt.checkpoint import sha256_of
from pipelines import evaluate, ingest, report, sweep, train
from pipelines.reporting import build
from pipelines.runs.results import ResultsStore
from pipelines.runs.run_folder import latest_run
from tests.pipelines.media import bad_files
from tests.pipelines.small import PER_SPLIT, Main, Small, one_line, write_manifest

PIPELINES = Path(train.__file__).parent
MAINS: dict[str, Main] = {"sweep": sweep.main, "train": train.main, "ingest": ingest.main}
LIGHT = {"attack": {"names": ["pgd"], "balls": ["joint"], "samples": 6}, "certify": {"audit_samples": 3}}


@pytest.fixture(scope="module")
def trained(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of train.py."""
    run = tmp_path_factory.mktemp("trained") / "run"
    config = small.file(run.with_suffix(".json"), train={"epochs": 4})
    assert train.main(["--dataset", "manifest", "--config", str(config), "--out", str(run)]) == 0
    return run


def metric(run: Path, name: str) -> float:
    metrics = ResultsStore(run / "results").read("metrics")
    chosen = metrics[metrics.final & (metrics.name == name) & metrics.modality.isna() & (metrics.split == "test")]
    return float(chosen.value.item())


# ---- mistakes


@pytest.mark.parametrize("command", sorted(MAINS))
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "avdigit"], "Did you mean 'avdigits'"),
        ([], "give --dataset"),
        (["--dataset", "manifest"], "--data-root"),
        (["--dataset", "manifest", "--data-root", "nowhere.csv"], "nowhere.csv"),
        (["--dataset", "vggsound"], "vggsound.csv"),
        (["--dataset", "vggsound", "--data-root", "."], "vggsound.csv"),
        (["--dataset", "avdigits", "--set", "train.epoch=3"], "Did you mean 'train.epochs'"),
        (["--dataset", "avdigits", "--set", "train.epochs"], "path=value"),
        (["--dataset", "avdigits", "--config", "none.yaml"], "none.yaml"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    command: str,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert MAINS[command](arguments) == 2
    printed = capsys.readouterr()
    assert message in one_line(printed.err) and not printed.out
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["sweep", "train"])
def test_runs_that_cannot_be_resumed_or_begun(
    ray_cluster: None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    command: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep me")
    digits = ["--dataset", "avdigits"]
    for arguments, message in (
        (["--resume", "nowhere"], "not the folder of a run"),
        (["--resume", "full"], "not the folder of a run"),
        (["--resume", "full", *digits], "own configuration"),
        (["--resume", "full", "--workers", "2"], "own configuration"),
        ([*digits, "--out", "full"], "not empty"),
        ([*digits, "--out", "full/mine.txt"], "not empty"),
        ([*digits, "--set", "train.method=crmt"], "no training method"),
    ):
        assert MAINS[command](arguments) == 2
        assert message in one_line(capsys.readouterr().err)
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["mine.txt"]


def test_the_newest_sweep_is_resumed_by_default(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert sweep.main(["--resume"]) == 2
    assert "no sweep to resume" in one_line(capsys.readouterr().err)
    for i, name in enumerate(("old", "new", "training")):
        run = tmp_path / "runs" / name
        (run / ("tune" if name != "training" else "models")).mkdir(parents=True)
        (run / "run.json").write_text("{}")
        stamp = 1_000_000 + i
        os.utime(run / "run.json", (stamp, stamp))
    assert latest_run() == tmp_path / "runs" / "new"


def test_a_run_card_that_is_damaged(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for text in ("", "{", "[]", "{}", '{"config": 3}'):
        (tmp_path / "run.json").write_text(text)
        assert sweep.main(["--resume", str(tmp_path)]) == 2
        assert "run.json" in one_line(capsys.readouterr().err)


def test_folders_that_cannot_be_written(small: Small, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    config = str(small.file(tmp_path / "c.json"))
    arguments = ["--dataset", "manifest", "--config", config]
    assert train.main([*arguments, "--out", str(tmp_path / "file" / "run")]) == 2
    assert "--out" in one_line(capsys.readouterr().err)
    assert train.main([*arguments, "--set", f"data.cache={tmp_path / 'file'}", "--out", str(tmp_path / "run")]) == 1
    assert str(tmp_path / "file") in one_line(capsys.readouterr().err)


def test_evaluate_wants_a_model(capsys: pytest.CaptureFixture[str], trained: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(trained / "models" / "train", damaged)
    (damaged / "model.safetensors").write_bytes(b"nothing")
    for folder in (tmp_path / "none", trained, trained / "run.json", damaged):
        assert evaluate.main([str(folder), "--out", str(tmp_path / "out")]) == 2
        assert str(folder) in one_line(capsys.readouterr().err)
    assert not (tmp_path / "out").exists()
    model = str(trained / "models" / "train")
    for setting, message in (
        ("attack.balls=[smell]", "smell"),
        ("attack.step=3", "attack.steps"),
        ("train.method=crmt_mix", "train.method says how the model was trained"),
        ("model.encoders.video=lipschitz_conv", "cannot change it"),
        ("certify.certificates=[]", "certify.certificates"),
        ("certify.certificates=[estimate, estimate]", "estimate is listed twice"),
        ("attack.names=[pgd, pgd]", "pgd is listed twice"),
    ):
        assert evaluate.main([model, "--set", setting, "--out", str(tmp_path / "out")]) == 2
        assert message in one_line(capsys.readouterr().err)
        assert not (tmp_path / "out").exists()


def test_evaluate_refuses_clips_of_another_kind(
    capsys: pytest.CaptureFixture[str], trained: Path, small: Small, tmp_path: Path
) -> None:
    model = str(trained / "models" / "train")
    table = pd.read_csv(small.folder / "manifest.csv")
    table = table.assign(path=[str(small.folder / p) for p in table.path])
    table[table.label != "digit 0"].to_csv(tmp_path / "two.csv", index=False)
    assert evaluate.main([model, "--data-root", str(tmp_path / "two.csv"), "--out", str(tmp_path / "o")]) == 2
    assert "3 classes" in one_line(capsys.readouterr().err)
    assert evaluate.main([model, "--set", "data.audio.frames=40", "--out", str(tmp_path / "o")]) == 2
    assert "(1, 16, 40)" in one_line(capsys.readouterr().err)


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("sweep.py", ["--dataset", "vggsound", "--data-root", "/nowhere"], "vggsound.csv"),
        ("train.py", ["--dataset", "avdigits", "--set", "train.lr=0"], "train.lr"),
        ("evaluate.py", ["/nowhere/model"], "not the folder of a saved model"),
    ],
)
def test_from_a_shell_in_another_folder(tmp_path: Path, script: str, arguments: list[str], message: str) -> None:
    done = subprocess.run(
        [sys.executable, PIPELINES / script, *arguments], capture_output=True, text=True, cwd=tmp_path, timeout=120
    )
    assert done.returncode == 2 and message in one_line(done.stderr)


def test_a_cluster_that_does_not_answer_is_said_at_once() -> None:
    with socket.socket() as closed:  # bound, but not listening
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        command = [sys.executable, PIPELINES / "sweep.py", "--dataset", "avdigits", "--dry-run", "--address", address]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and address in one_line(done.stderr)


# ---- a model that comes back


def test_evaluate_reproduces_the_numbers_of_the_trial(trained: Path, tmp_path: Path) -> None:
    assert evaluate.main([str(trained / "models" / "train"), "--out", str(tmp_path / "run")]) == 0
    for name in ("clean_accuracy", "mean_radius"):
        assert metric(tmp_path / "run", name) == pytest.approx(metric(trained, name), rel=1e-4)
    ours, theirs = (
        ResultsStore(run / "results").read("curves").query("final").drop(columns=["trial_id"]).reset_index(drop=True)
        for run in (tmp_path / "run", trained)
    )
    pd.testing.assert_frame_equal(ours, theirs)
    row = ResultsStore(tmp_path / "run" / "results").read("trials").iloc[0]
    assert row.status == "finished" and (tmp_path / "run" / "report.html").exists()
    card = json.loads((trained / "models" / "train" / "model.json").read_text())
    assert row.weights_sha256 == card["weights_sha256"]


def test_evaluate_with_other_attacks(trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    more = ["--set", "attack.names=[pgd]", "--set", "attack.epsilons=[0.3]"]
    assert evaluate.main([str(trained / "models" / "train"), "--out", str(run), *more]) == 0
    curves = ResultsStore(run / "results").read("curves")
    assert set(curves.attack) == {"pgd"} and set(curves.epsilon) == {0.3}
    radii = ResultsStore(run / "results").read("radii")
    assert len(radii) == 3 * PER_SPLIT["test"]


def test_a_stopped_evaluation_goes_on_with_the_same_model_only(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, run = str(trained / "models" / "train"), tmp_path / "run"
    smoothing = [f"certify.smoothing.{x}" for x in ("sigmas={video: 0.2, audio: 0.2}", "n0=2", "n=10", "samples=6")]
    settings = ["attack.names=[fgm]", "certify.certificates=[smoothing]", "certify.audit_samples=0", *smoothing]
    more = [part for setting in settings for part in ("--set", setting)]

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(build, "build_report", stop)
        assert evaluate.main([model, "--out", str(run), *more]) == 130
    assert "--resume" in capsys.readouterr().err
    smoothed = ResultsStore(run / "results").read("certified_clips")
    assert len(smoothed) == 6
    other = tmp_path / "other"
    shutil.copytree(model, other)
    card = json.loads((other / "model.json").read_text())
    tensors = load_file(other / "model.safetensors")
    save_file({k: v + 1 for k, v in tensors.items()}, other / "model.safetensors")
    card["weights_sha256"] = sha256_of(other / "model.safetensors")
    (other / "model.json").write_text(json.dumps(card))
    assert evaluate.main([str(other), "--resume", str(run)]) == 2
    assert "evaluates another model" in one_line(capsys.readouterr().err)
    assert evaluate.main([model, "--resume", str(run), "--set", "attack.steps=3"]) == 2
    assert "leave the other options out" in one_line(capsys.readouterr().err)
    assert evaluate.main([model, "--resume", str(run)]) == 0
    assert (run / "report.html").exists()


def test_a_finished_training_can_be_resumed_and_changes_nothing(trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "copy"
    shutil.copytree(trained, run)
    assert train.main(["--resume", str(run)]) == 0
    before, after = (ResultsStore(r / "results").read("trials").iloc[0] for r in (trained, run))
    assert after.weights_sha256 == before.weights_sha256 and after.status == "finished" and after.epochs == 4
    assert metric(run, "clean_accuracy") == metric(trained, "clean_accuracy")


def test_report_again(trained: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (trained / "report.html").unlink()
    assert report.main([str(trained)]) == 0 and (trained / "report.html").exists()
    assert "CRMT-JT" in capsys.readouterr().out
    assert report.main([str(tmp_path)]) == 2
    assert "no results" in one_line(capsys.readouterr().err)


# ---- broken clips


@pytest.fixture(scope="module")
def mixed(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The good clips, and a truncated one, one without sound, an empty file and a text named .mp4."""
    folder = tmp_path_factory.mktemp("mixed") / "clips"
    splits = ("train", "train", "validation", "test")
    bad = bad_files(folder)
    more = [(path.name, "digit 1", split) for path, split in zip(bad.values(), splits, strict=True)]
    write_manifest(folder, small.index().clips, more)
    return folder


def test_a_run_ends_well_in_spite_of_broken_clips(
    small: Small, mixed: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"data": {"root": str(mixed), "max_failure_share": 0.1}, **LIGHT}
    config = small.file(out.with_suffix(".json"), **changes)
    assert train.main(["--dataset", "manifest", "--config", str(config), "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert "4 failed" in printed.out and "Traceback" not in printed.err
    quarantine = ResultsStore(out / "results").read("quarantine").set_index("clip_id")
    assert quarantine.reason.to_dict() == {
        "truncated.mp4": "truncated",
        "silent.mp4": "no_audio",
        "empty.mp4": "empty",
        "text.mp4": "not_media",
    }
    assert quarantine.split.to_dict()["text.mp4"] == "test" and (quarantine.detail != "").all()
    assert json.loads((out / "run.json").read_text())["clips"] == {**PER_SPLIT, "failed": 4}
    page = (out / "report.html").read_text()
    assert all(name in page and reason in page for name, reason in quarantine.reason.items())
    assert len(pd.read_csv(out / "tables" / "quarantine.csv")) == 4
    radii = ResultsStore(out / "results").read("radii")
    assert not set(radii.clip_id) & set(quarantine.index)


@pytest.mark.parametrize("command", ["sweep", "train"])
def test_too_many_broken_clips_stop_the_run_before_training(
    small: Small, mixed: Path, out: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    changes = {"data": {"root": str(mixed), "max_failure_share": 0.05}, **LIGHT}
    config = small.file(out.with_suffix(".json"), **changes)
    assert MAINS[command](["--dataset", "manifest", "--config", str(config), "--out", str(out)]) == 1
    line = one_line(capsys.readouterr().err)
    assert "4 of 67 clips" in line and "1 truncated" in line and "1 no_audio" in line and "5%" in line
    assert not out.exists()
