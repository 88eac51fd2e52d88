"""A run on a server: its store, card, heartbeat and live table are those of a folder, and cost few requests."""

from __future__ import annotations

import json
import re
import tempfile
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from ray import tune
from ray.tune.experiment import Experiment
from ray.tune.search import BasicVariantGenerator
from rich.console import Console

from crmt.checkpoint import CARD, save_model
from crmt.errors import BadInputError, CRMTError
from crmt.model import build_model
from pipelines import report, sweep, train
from pipelines.config.run_config import parse
from pipelines.infra import remote
from pipelines.infra.storage import Folder, folder_at, saving
from pipelines.runs import heartbeat
from pipelines.runs.heartbeat import Heartbeat, _note_report, heartbeat_path, last_report
from pipelines.runs.live import LiveTable
from pipelines.runs.place import run_at, storage_at
from pipelines.runs.results import TABLES, ResultsStore, open_store
from pipelines.runs.run_folder import create_run, read_card, write_card
from pipelines.sweeps.recorder import Recorder
from pipelines.sweeps.single import load_saved
from pipelines.sweeps.tuner import TUNE, _relocate, _replace_noted
from pipelines.trials.sessions import LocalSession
from tests.crmt.tiny import spec
from tests.pipelines.s3 import S3
from tests.pipelines.small import TINY, one_line
from tests.pipelines.synthetic import TRIALS, make_run, provenance

ROW = {"trial_id": "t", "epoch": 1, "name": "loss", "value": 0.5}


def test_the_store_holds_what_a_folder_holds(run: Folder, tmp_path: Path) -> None:
    here, there = ResultsStore(tmp_path / "results"), ResultsStore(run / "results")
    for store in (here, there):
        store.write("epochs", "b", [{**ROW, "trial_id": "b"}])
        store.write("epochs", "a", [{**ROW, "value": 0.1}])
        store.write("epochs", "a", [ROW, {**ROW, "epoch": 2}])
        store.write("trials", "a", [{"trial_id": "a", "status": "running"}])
        store.write("metrics", "a.step1", [{"trial_id": "a", "value": 1.0}])
    for name in TABLES:
        pd.testing.assert_frame_equal(here.read(name), there.read(name))
    assert (run / "results" / "epochs").read("a.parquet") == (tmp_path / "results/epochs/a.parquet").read_bytes()
    assert list(there.read("epochs", "b").trial_id) == ["b"] and there.read("epochs", "c").empty
    assert len(open_store(run).read("epochs")) == 3
    for store in (here, there):
        store.forget({"a"})
        assert [len(store.read(name)) for name in ("epochs", "trials", "metrics")] == [1, 0, 0]


def test_a_part_is_one_request(s3: S3, run: Folder) -> None:
    store = ResultsStore(run / "results")
    asked = s3.during(lambda: store.write("epochs", "a", [ROW]))
    assert [r.split(" ")[0] for r in asked] == ["PUT"]


def test_a_card_is_read_back_and_a_folder_without_one_is_said(run: Folder) -> None:
    card = {"kind": "sweep", "config": parse(TINY, "a test").model_dump(mode="json")}
    write_card(run, card)
    assert read_card(run)[0] == card
    with pytest.raises(BadInputError, match="has no readable"):
        read_card(run / "none")
    with pytest.raises(BadInputError, match="holds no results"):
        open_store(run)


def test_each_run_gets_a_folder_of_its_own(s3: S3) -> None:
    storage = storage_at(s3.uri("clips/made"))
    names = []
    for _ in range(3):
        made = create_run(None, "avdigits", "sweep", storage)
        write_card(made, {})
        names.append(made.name)
    assert len(set(names)) == 3 and all(name.startswith("avdigits-sweep-") for name in names)
    assert sorted(storage.folders()) == sorted(names) and str(made).startswith("s3://clips/made/avdigits-sweep-")


def test_places(s3: S3) -> None:
    folder = folder_at(s3.uri("clips/a%20b/c"))
    assert folder.name == "c" and folder.parent.name == "a b" and folder.root == "clips/a b/c"
    assert folder.parent / "c" == Folder(s3.uri("clips/a%20b/c"))
    assert folder_at(Path("runs/x")) == Folder(str(Path("runs/x").absolute()))


# ---- the report


def test_a_report_of_a_run_on_a_server(run: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = tmp_path / "run"
    make_run(here, trials=TRIALS[:3], clips=60, epochs=5)
    provenance(here)
    for file in sorted(here.rglob("*")):
        if file.is_file():
            folder = run
            for part in file.relative_to(here).parent.parts:
                folder = folder / part
            folder.upload(file)
    assert report.main([str(run)]) == 0
    printed = capsys.readouterr().out
    assert f"Report: {run / 'report.html'}" in printed.replace("\n", "")
    assert b"avdigits-demo" in run.read("report.html")
    tables = {name: (run / "tables").read(name) for name in (run / "tables").names()}
    assert {"summary.csv", "trials.csv", "radii.csv"} <= tables.keys()
    copy = tmp_path / "copy"
    assert report.main([str(run), "--out", str(copy)]) == 0
    assert str(copy / "report.html") in capsys.readouterr().out.replace("\n", "")
    assert (copy / "report.html").read_bytes() == run.read("report.html")
    assert {f.name: f.read_bytes() for f in (copy / "tables").iterdir()} == tables


# ---- while it runs


def test_heartbeats_are_few_and_never_wait(s3: S3, run: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    tell = Heartbeat(heartbeat_path(run, "t0"))

    def work() -> None:
        for step in range(50):
            tell("training" if step < 25 else "τ", step / 50)
        assert tell._writing is not None
        tell._writing.join()

    asked = s3.during(work)
    assert [r.split(" ")[0] for r in asked] == ["PUT"]
    assert json.loads((run / "live").read("t0.json"))["phase"] == "training"
    monkeypatch.setattr(heartbeat, "REMOTE_SECONDS", 0.0)
    tell("τ", 0.9)
    tell._writing.join()  # type: ignore[union-attr]
    assert json.loads((run / "live").read("t0.json"))["phase"] == "τ"
    monkeypatch.setattr(Folder, "write", lambda *given, **more: (_ for _ in ()).throw(CRMTError("away")))
    tell("τ", 1.0)


def test_the_last_report_is_read_back(run: Folder) -> None:
    assert last_report(run, "t0") == {}
    _note_report(run, "t0", {"epoch": 3})
    assert last_report(run, "t0") == {"epoch": 3}


def test_the_table_reads_again_what_changed_and_no_more(s3: S3, run: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ResultsStore(run / "results")
    trial = {"status": "running", "method": "jt", "params": "{}", "epochs": 1}
    for name in ("a", "b", "c"):
        store.write("trials", name, [{"trial_id": name, **trial}])
        (run / "live").write(f"{name}.json", json.dumps({"phase": "τ", "fraction": 0.5, "time": 0.0}).encode())
    table = LiveTable(run, 3, Console())
    assert [row["progress"] for row in table._rows()] == ["τ 50 %"] * 3
    store.write("trials", "b", [{"trial_id": "b", **trial, "status": "finished"}])  # in the same second
    assert [row["status"] for row in table._rows()] == ["running", "finished", "running"]
    table._rows()
    settled = s3.during(table._rows)
    assert len(settled) == 2 and all("list-type=2" in asked for asked in settled)
    time.sleep(1.1)
    store.write("trials", "c", [{"trial_id": "c", **trial, "epochs": 7}])
    assert [row["epochs"] for row in table._rows()] == [1, 1, 7]
    monkeypatch.setattr(Folder, "stamps", lambda folder: (_ for _ in ()).throw(CRMTError("away")))
    assert [row["epochs"] for row in table._rows()] == [1, 1, 7]


# ---- what cannot be


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--storage", "runs"], "--storage runs: give a URI"),
        (["--storage", "file:///tmp/x"], "given to --out"),
        (["--storage", "s3://clips/x?secret_key=Zq81"], "environment of every node"),
        (["--out", "s3://clips/x"], "use --storage"),
        (["--storage", "s3://clips/x", "--out", "x"], "--out or --storage"),
        (
            ["--storage", "s3://clips/x?endpoint_override=127.0.0.1:9&scheme=http"],
            "--storage: s3.* cannot be used: .*onnect",
        ),
    ],
)
@pytest.mark.parametrize("command", [sweep, train], ids=["sweep", "train"])
def test_what_cannot_be_is_one_line(
    command: object, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["--dataset", "avdigits", *arguments]) == 2  # type: ignore[attr-defined]
    line = one_line(capsys.readouterr().err)
    assert "Zq81" not in line
    assert re.search(message, line), line


def test_a_run_that_is_not_there_is_one_line(s3: S3, capsys: pytest.CaptureFixture[str]) -> None:
    for command, arguments in (
        (sweep, ["--resume", s3.uri("clips/none")]),
        (train, ["--resume", s3.uri("nowhere/x")]),
        (report, [s3.uri("clips/none")]),
        (report, [s3.uri("nowhere/x")]),
    ):
        assert command.main(arguments) == 2
        one_line(capsys.readouterr().err)
    with pytest.raises(BadInputError, match="RUN"):
        run_at(s3.uri("nowhere/x"), "RUN")


# ---- what a trial leaves


def test_a_training_state_is_read_back_and_one_that_a_kill_cut_off_is_passed_over(run: Folder, s3: S3) -> None:
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1).state_dict()
    session = LocalSession("train", run)
    assert session.resume() is None
    for epoch in (4, 8):
        state = {"model": layer.state_dict(), "optimizer": optimizer, "epoch": epoch}
        asked = s3.during(lambda state=state: session.report({"epoch": state["epoch"]}, state))
    puts = [r.split("?")[0] for r in asked if r.startswith("PUT") and "checkpoint_000008/" in r]
    assert [p.rpartition("/")[2] for p in puts] == ["state.safetensors", "state.json"]  # the card last
    assert (run / "state" / "train").folders() == ["checkpoint_000008"]
    (run / "state" / "train" / "checkpoint_000012").write("state.safetensors", b"half")
    found = LocalSession("train", run).resume()
    assert found is not None and found["epoch"] == 8
    assert torch.equal(found["model"]["weight"], layer.weight)
    assert last_report(run, "train") == {"epoch": 8}


def test_a_model_on_a_server_is_loaded_by_its_uri(run: Folder) -> None:
    one = spec(classes=3)
    model = build_model(one)
    folder = run / "models" / "t0"
    with saving(folder, CARD) as files:
        digest = save_model(files, model, one, {"method": "jt"})
    saved = load_saved(folder)
    assert saved.identity == {"weights_sha256": digest, "model": str(folder)}
    assert all(torch.equal(saved.weights[name], value) for name, value in model.state_dict().items())
    with pytest.raises(BadInputError, match="not the folder of a saved model"):
        load_saved(run / "models" / "none")


def test_what_the_search_of_tune_noted_follows_a_run_to_another_address(run: Folder, s3: S3) -> None:
    """As when a run is resumed from another network, or was fetched to a disk."""
    tune.register_trainable("moved", lambda config: None)
    begun = BasicVariantGenerator()
    space = {"train.lr": tune.uniform(0, 1)}
    experiment = Experiment(
        TUNE, "moved", config=space, num_samples=3, storage_path=run.root, storage_filesystem=run.patient
    )
    begun.add_configurations([experiment])
    first = begun.next_trial()
    assert first is not None and remote.location_of(first.storage.storage_filesystem) == str(run)
    with tempfile.TemporaryDirectory() as folder:
        begun.save_to_dir(folder, "2026-01-02")
        for file in Path(folder).iterdir():
            (run / TUNE).upload(file)
        elsewhere = folder_at(str(run).replace("127.0.0.1", "localhost"))
        _relocate(elsewhere)
        for file in Path(folder).iterdir():
            file.write_bytes((run / TUNE).read(file.name))
        restored = BasicVariantGenerator()
        restored.restore_from_dir(folder)
    second = restored.next_trial()
    assert second is not None and remote.location_of(second.storage.storage_filesystem) == str(elsewhere)
    row = Recorder(parse(TINY, "a test"), {"clips_sha256": "0" * 64})
    row.on_trial_start(0, [second], second)
    assert ResultsStore(run / "results").read("trials").trial_id.tolist() == [second.trial_id]


def test_a_checkpoint_that_tune_noted_and_that_is_gone_has_an_empty_folder(run: Folder) -> None:
    ResultsStore(run / "results").write("trials", "a", [{"trial_id": "a", "status": "running"}])
    trial = run / TUNE / "tune_trial_a_1"
    (trial / "checkpoint_000002").write("state.json", b"{}")
    _replace_noted(run)
    assert trial.folders() == [f"checkpoint_00000{n}" for n in range(3)]
    assert (trial / "checkpoint_000002").names() == ["state.json"]
