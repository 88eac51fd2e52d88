"""The sweep for real, tiny: what it leaves behind, how it deals with trials that fail, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from crmt.checkpoint import load_model
from crmt.errors import BadInputError
from pipelines import sweep
from pipelines.runs.results import ResultsStore
from pipelines.sweeps.preflight import check_settings, needs_of, plan_sweep, with_resources
from tests.pipelines.small import PER_SPLIT, Small, one_line

LIGHT: dict[str, Any] = {"attack": {"names": ["pgd"], "balls": ["joint"]}, "certify": {"audit_samples": 0}}
"""Less measuring, where a test is not about it."""


def start(small: Small, out: Path, *more: str, **changes: Any) -> int:
    config = small.file(out.with_suffix(".json"), **changes)
    return sweep.main(["--dataset", "manifest", "--config", str(config), "--out", str(out), *more])


def read(run: Path, table: str = "trials") -> pd.DataFrame:
    return ResultsStore(run / "results").read(table)


@pytest.fixture(scope="module")
def done(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three trials by Optuna under ASHA."""
    run = tmp_path_factory.mktemp("sweep") / "run"
    code = start(
        small,
        run,
        train={"epochs": 3},
        search={
            "train.method": {"choice": ["jt", "crmt_jt"]},
            "train.lr": {"loguniform": [0.001, 0.1]},
            "train.rho": {"uniform": [1, 3]},
        },
        sweep={
            "trials": 3,
            "scheduler": "asha",
            "reduction_factor": 2,
            "start_with": [{"train.method": "crmt_jt", "train.lr": 0.05}, {"train.method": "jt", "train.lr": 0.002}],
        },
    )
    assert code == 0
    return run


def test_every_trial_has_a_row_that_says_how_it_ended(done: Path) -> None:
    trials = read(done)
    assert len(trials) == 3 == trials.trial_id.nunique()
    assert set(trials.status) <= {"finished", "stopped"} and (trials.status == "finished").any()
    assert trials.error.isna().all() and trials.selected_value.between(0, 1).all()
    assert (trials.selected_by == "val_robust_accuracy").all() and (trials.seconds > 0).all()
    finished, stopped = (trials[trials.status == s] for s in ("finished", "stopped"))
    assert (finished.epochs == 3).all() and stopped.epochs.between(1, 2).all()
    assert finished.weights_sha256.notna().all() and stopped.weights_sha256.isna().all()
    for row in finished.itertuples():
        _, _, card = load_model(done / str(row.model))
        assert card["weights_sha256"] == row.weights_sha256


def test_the_start_points_are_tried_and_parameters_without_effect_are_null(done: Path) -> None:
    params = [json.loads(p) for p in read(done).params]
    chosen = {(p["train.method"], p["train.lr"]): p["train.rho"] for p in params}
    assert len(chosen) == 3 and chosen["crmt_jt", 0.05] == 2.0  # the configuration's own
    assert chosen["jt", 0.002] is None
    for row, config in zip(params, read(done).config, strict=True):
        assert (row["train.rho"] is None) == (row["train.method"] == "jt")
        assert json.loads(config)["train"]["lr"] == row["train.lr"]


def test_results_are_those_of_the_trials(done: Path) -> None:
    trials, epochs, radii = read(done), read(done, "epochs"), read(done, "radii")
    assert not epochs.duplicated(["trial_id", "epoch", "name"]).any()
    reached = epochs[epochs.name == "loss"].groupby("trial_id").epoch.agg(["count", "max"])
    assert (reached["count"] == reached["max"]).all()
    for row in trials.itertuples():
        assert reached.loc[row.trial_id, "max"] >= row.epochs
    finished = set(trials[trials.status == "finished"].trial_id)
    assert set(radii.trial_id) == finished
    assert (radii[radii.final].groupby(["trial_id", "ball"]).size() == PER_SPLIT["test"]).all()


def test_the_run_says_where_it_comes_from(done: Path) -> None:
    card = json.loads((done / "run.json").read_text())
    assert card["dataset"] == "manifest" and card["clips"] == {**PER_SPLIT, "failed": 0}
    assert card["clips_sha256"] == read(done).clips_sha256.iloc[0] and card["classes"] == 3
    assert card["config"]["train"]["epochs"] == 3 and set(card["config"]["search"]) >= {"train.lr"}
    assert {"torch", "ray", "python"} <= set(card["versions"]) and card["hardware"]["cpus"] == 2
    assert card["modalities"] == ["video", "audio"] and "pixels" in card["spaces"]["video"]


def test_the_report_and_its_tables_are_there(done: Path) -> None:
    page = (done / "report.html").read_text()
    assert all(trial in page for trial in read(done).trial_id)
    summary = pd.read_csv(done / "tables" / "summary.csv")
    assert len(summary) == 3 and {"trials.csv", "curves.csv", "radii.csv"} <= {
        p.name for p in (done / "tables").iterdir()
    }


def test_a_trial_that_fails_is_a_row_and_the_others_go_on(
    small: Small, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search = {"train.lr": {"grid": [1e6, 0.05]}, "train.batch_size": {"grid": [12, 100]}}
    sweep_section = {"algorithm": "grid", "max_failures": 0}
    code = start(small, out, **LIGHT, train={"epochs": 1}, search=search, sweep=sweep_section)
    printed = capsys.readouterr()
    assert code == 0 and "Traceback" not in printed.err + printed.out
    trials = read(out)
    params = trials.params.map(json.loads)
    chosen = {(p["train.lr"], p["train.batch_size"]): row for p, row in zip(params, trials.itertuples(), strict=True)}
    assert len(chosen) == len(trials) == 4
    assert chosen[0.05, 12].status == "finished"
    for key, message in {(1e6, 12): "lower train.lr", (0.05, 100): "lower train.batch_size"}.items():
        assert chosen[key].status == "failed" and message in chosen[key].error and "\n" not in chosen[key].error
        assert chosen[key].error in " ".join(printed.out.split())
    assert "lower train.lr" in (out / "report.html").read_text()


def test_where_every_trial_fails_the_command_fails(small: Small, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = start(small, out, train={"lr": 1e6}, search={}, sweep={"max_failures": 0})
    printed = capsys.readouterr()
    assert code == 1 and "no trial finished" in one_line(printed.err)
    assert read(out).status.tolist() == ["failed"] and (out / "report.html").exists()


@pytest.mark.parametrize(
    ("sweep_section", "count"), [({"algorithm": "random", "trials": 5}, 5), ({"algorithm": "grid", "trials": 5}, 6)]
)
def test_a_dry_run_shows_the_plan_and_starts_nothing(
    small: Small, out: Path, capsys: pytest.CaptureFixture[str], sweep_section: dict[str, Any], count: int
) -> None:
    search = {"train.rho": {"choice": [1, 2, 3]}, "train.method": {"choice": ["jt", "crmt_jt"]}}
    assert start(small, out, "--dry-run", search=search, sweep=sweep_section) == 0
    printed = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert f"{count} by {sweep_section['algorithm']}" in printed and "2 trials side by side" in printed
    assert "JT" in printed and "CRMT-JT" in printed and "not sound" in printed
    assert not out.exists()


@pytest.mark.parametrize(
    ("section", "numbers"),
    [
        ({"cpus_per_worker": 64}, ("64 CPUs", "2 CPUs")),
        ({"workers": 3}, ("3 workers", "2 CPUs")),
        ({"gpus_per_worker": 1}, ("1 GPU", "0 GPUs")),
    ],
)
def test_a_cluster_too_small_is_said_with_the_numbers(
    small: Small, out: Path, capsys: pytest.CaptureFixture[str], section: dict[str, Any], numbers: tuple[str, str]
) -> None:
    assert start(small, out, sweep=section) == 2
    line = one_line(capsys.readouterr().err)
    assert all(n in line for n in numbers) and "sweep." in line and not out.exists()


def test_what_trials_take_and_how_many_fit(small: Small) -> None:
    def side_by_side(**section: Any) -> int:
        return plan_sweep(small.config(sweep=section, search={"train.rho": {"uniform": [0, 1]}})).concurrent

    assert side_by_side(trials=9) == 2
    assert side_by_side(trials=9, cpus_per_worker=0.4) == 5
    assert side_by_side(trials=9, cpus_per_worker=0.4, max_concurrent=3) == 3
    assert side_by_side(trials=1) == 1
    assert side_by_side(trials=9, workers=2) == 1
    assert plan_sweep(small.config(data={"mode": "stream"})).needs.cpus > plan_sweep(small.config()).needs.cpus
    assert side_by_side(trials=9, cpus_per_worker=0.4, input_cpus=0.6) == 2
    for mode in ("memory", "stream"):  # a share for the Data tasks is in it
        needs = needs_of(small.config(sweep={"input_cpus": 3}), mode)
        assert needs.cpus == 4 and "3 of the CPUs for input" in needs.text


@pytest.mark.parametrize(
    ("nodes", "section", "expected"),
    [
        ([{"CPU": 16, "GPU": 1}], {"cpus_per_worker": 4}, (1, 12)),
        ([{"CPU": 64, "GPU": 8}, {"CPU": 32}], {}, (1, 7)),  # a node without GPUs runs none of its workers
        ([{"CPU": 64, "GPU": 8}], {"gpus_per_worker": 0.5, "cpus_per_worker": 2}, (0.5, 2)),
        ([{"CPU": 96, "GPU": 1}, {"CPU": 8, "GPU": 1}], {}, (1, 7)),
        ([{"CPU": 96, "GPU": 1}], {}, (1, 16)),
        ([{"CPU": 4, "GPU": 8}], {}, (1, 0)),
        ([{"CPU": 96, "GPU": 1}], {"input_cpus": 2.5}, (1, 2.5)),
        ([{"CPU": 96, "GPU": 1}], {"gpus_per_worker": 0}, (0, 0)),
        ([{"CPU": 96}], {}, (0, 0)),
    ],
)
def test_input_takes_the_cpus_that_a_node_has_for_each_gpu(
    small: Small,
    monkeypatch: pytest.MonkeyPatch,
    nodes: list[dict[str, float]],
    section: dict[str, Any],
    expected: tuple[float, float],
) -> None:
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": node} for node in nodes])
    total = {name: sum(node.get(name, 0) for node in nodes) for name in ("CPU", "GPU")}
    monkeypatch.setattr("ray.cluster_resources", lambda: total)
    sweep = with_resources(small.config(sweep=section)).sweep
    assert (sweep.gpus_per_worker, sweep.input_cpus) == expected


def test_streaming_asks_for_no_less_than_its_tasks_take(small: Small) -> None:
    assert needs_of(small.config(sweep={"input_cpus": 0}), "stream").cpus == 1.5
    assert needs_of(small.config(sweep={"input_cpus": 0}), "memory").cpus == 1
    assert plan_sweep(small.config(search={}, sweep={"trials": 9})).trials == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": {"method": "crmt"}}, "no training method 'crmt'"),
        ({"search": {"train.method": {"choice": ["jt", "crmt"]}}}, "no training method 'crmt'"),
        ({"model": {"encoders": {}}}, "not none"),
        ({"model": {"encoders": {"smell": "resnet18"}}}, "not smell"),
        ({"model": {"encoders": {"video": "resnet"}}}, "model.encoders.video: no encoder 'resnet'"),
        ({"search": {"model.encoders.audio": {"choice": ["resnet18", "x"]}}}, "model.encoders.audio: no encoder 'x'"),
        ({"model": {"features": 20}}, "multiple of 8"),
        ({"attack": {"balls": ["smell"]}}, "smell"),
        ({"attack": {"product": {"smell": [1.0]}}}, "attack.product"),
        ({"train": {"noise": {"smell": 1.0}}}, "train.noise: the model has no 'smell'; it has video, audio"),
        ({"certify": {"certificates": ["lipschitz"]}}, "lipschitz needs encoders that are 1-Lipschitz"),
        ({"certify": {"certificates": ["smoothing"]}}, "certify.smoothing.sigmas: give one for video, audio, too"),
        (
            {"certify": {"certificates": ["lipschitz"]}, "train": {"method": "msefm"}},
            "lipschitz cannot certify msefm, whose head mixes the modalities",
        ),
        ({"sweep": {"workers": 3}, "attack": {"samples": 2}}, "attack.samples (2) must not be below sweep.workers (3)"),
        ({"sweep": {"algorithm": "points"}, "search": {"train.lr": {"choice": [1]}}}, "list them in sweep.start_with"),
        ({"sweep": {"workers": 2}, "train": {"batch_size": 9}}, "train.batch_size (9)"),
        ({"sweep": {"workers": 2}, "search": {"train.batch_size": {"choice": [8, 9]}}}, "train.batch_size (9)"),
    ],
)
def test_what_no_trial_could_do_is_refused_before_anything_starts(
    small: Small, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadInputError) as caught:
        check_settings(small.config(**changes))
    assert message in str(caught.value)


def test_a_range_in_a_grid_is_refused(small: Small, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    search = {"train.rho": {"uniform": [1, 2]}}
    assert start(small, out, search=search, sweep={"algorithm": "grid"}) == 2
    assert "search.train.rho" in one_line(capsys.readouterr().err)
