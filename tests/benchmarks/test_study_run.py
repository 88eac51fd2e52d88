"""The study's command: phases in order, nothing run twice, one-line errors; and a tiny study from end to end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.study import __main__ as command
from benchmarks.study.data import read_study
from pipelines.config.run_config import RunConfig
from pipelines.runs.results import ResultsStore
from tests.benchmarks.test_study_plan import BY_NAME, FEW, Options, better_crmt, make_study, write_phase

SMALL = ["--methods", "jt,crmt_jt", "--seeds", "0,1", "--phases", "search,final", "--samples", "30"]


class Sweeps:
    """Stands where `run_sweep` does: writes a finished phase at once, or is stopped in one."""

    def __init__(self, options: Options, stop_in: str = "") -> None:
        self.options, self.stop_in = options, stop_in
        self.begun: list[tuple[str, bool]] = []

    def __call__(self, config: RunConfig, folder: Path | None, resume: Path | None, *_: Any) -> int:
        where = folder or resume
        assert where is not None
        self.begun.append((where.name, resume is not None))
        if resume is None:
            phase = BY_NAME[where.name.partition("-")[0]]
            write_phase(where.parent, phase, config.start_points(), self.options, better_crmt, where.name)
        trials = where / "results" / "trials" / "t_00001.parquet"
        if where.name == self.stop_in:
            trials.unlink()
            return 130
        if not trials.exists():
            store, one = ResultsStore(where / "results"), "t_00000"
            row = store.read("trials", one)
            full = json.loads(row.config[0])
            full["train"] |= {k.removeprefix("train."): v for k, v in config.start_points()[1].items()}
            store.write("trials", "t_00001", row.assign(trial_id="t_00001", config=json.dumps(full)))
        return 0


def run(arguments: list[str], sweeps: Sweeps, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(command, "run_sweep", sweeps)
    return command.main(arguments)


def test_a_stopped_study_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    out, results = tmp_path / "s", tmp_path / "r"
    options = Options(("jt", "crmt_jt"), seeds=(0, 1), samples=30, phases=("search", "final"))
    first = Sweeps(options, stop_in="final")
    assert run([*SMALL, "--out", str(out)], first, monkeypatch) == 130
    assert first.begun == [("search", False), ("final", False)]
    assert f"--resume {out}" in capsys.readouterr().err
    second = Sweeps(options)
    assert run(["--resume", str(out), "--results", str(results)], second, monkeypatch) == 0
    assert second.begun == [("final", True)]
    assert (results / "study.md").exists()
    third = Sweeps(options)
    assert run(["--resume", str(out), "--results", str(results)], third, monkeypatch) == 0
    assert third.begun == []


@pytest.mark.slow
def test_a_method_joins_a_study_that_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, results = tmp_path / "s", tmp_path / "r"
    options = Options(("jt", "crmt_jt"), seeds=(0, 1), samples=30, phases=("search", "final"))
    assert run([*SMALL, "--out", str(out), "--results", str(results)], Sweeps(options), monkeypatch) == 0
    before = read_study(out)
    joins = Sweeps(options)
    again = ["--resume", str(out), "--results", str(results)]
    assert run([*again, "--also", "mmat,jt"], joins, monkeypatch) == 0
    assert joins.begun == [("search-2", False), ("final-2", False)]
    study = read_study(out)
    assert study.options.methods == ("jt", "crmt_jt", "mmat")
    for method in ("jt", "crmt_jt"):
        assert study.chosen["search"][method] == before.chosen["search"][method]
        clean = study.values("final", method, "clean")
        assert len(clean) == 2 and clean.equals(before.values("final", method, "clean"))
    assert len(study.values("final", "mmat", "clean")) == 2
    assert len(study.runs["search"].planned) == 12 and len(study.runs["final"].trials) == 6
    assert "| final-2 | 2 |" in (results / "study.md").read_text()
    assert run(again, none := Sweeps(options), monkeypatch) == 0  # now it belongs to the study
    assert none.begun == []


def test_the_final_phase_takes_what_the_search_chose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = Options(("jt", "crmt_jt"), seeds=(0, 1), samples=30, phases=("search", "final"))
    seen: dict[str, RunConfig] = {}

    class Watched(Sweeps):
        def __call__(self, config: RunConfig, folder: Path | None, resume: Path | None, *_: Any) -> int:
            assert folder is not None
            seen[folder.name] = config
            code = super().__call__(config, folder, resume)
            if folder.name == "search":  # the last point of each method is its best
                store = ResultsStore(folder / "results")
                for i, name in enumerate(sorted(set(store.read("trials").trial_id))):
                    row = store.read("trials", name)
                    store.write("trials", name, row.assign(selected_value=0.1 + 0.01 * i))
            return code

    assert run([*SMALL, "--out", str(tmp_path / "s"), "--results", str(tmp_path)], Watched(options), monkeypatch) == 0
    points = seen["search"].start_points()
    for method in ("jt", "crmt_jt"):
        best = [p for p in points if p["train.method"] == method][-1]
        final = [p for p in seen["final"].start_points() if p["train.method"] == method]
        assert [p["train.seed"] for p in final] == [0, 1]
        assert all(p[path] == best[path] for p in final for path in ("train.lr", "train.rho"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--methods", "jt,nothing"], "nothing"),
        (["--phases", "final"], "search"),
        (["--phases", "fine"], "search, search_wider, final"),
        (["report"], "folder"),
        (["report", "here"], "study.json"),
        (["--resume", "here"], "study.json"),
        (["--resume", "here", "--epochs", "3"], "leave out"),
        (["--also", "jt"], "--resume"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], said: str, capsys: Any) -> None:
    assert command.main([*arguments, "--dry-run"]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error and "\n" not in error


def test_a_folder_with_something_in_it_is_not_taken(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "mine.txt").write_text("")
    assert command.main(["--out", str(tmp_path)]) == 2
    assert "not empty" in capsys.readouterr().err


def test_a_dry_run_counts_every_trial_and_writes_nothing(tmp_path: Path, capsys: Any) -> None:
    assert command.main(["--dry-run", "--out", str(tmp_path / "s"), *SMALL]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines[:2]] == [["search", "8", "trials"], ["final", "4", "trials"]]
    assert "in all" in lines[2] and not (tmp_path / "s").exists()


def test_report_prints_any_study_and_writes_only_when_asked(tmp_path: Path, capsys: Any) -> None:
    folder = make_study(tmp_path / "s", FEW, better_crmt, ("search",))
    before = sorted(tmp_path.rglob("*"))
    assert command.main(["report", str(folder)]) == 0
    text = capsys.readouterr().out
    assert "### The search" in text and "not complete" in text
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_a_tiny_study_from_end_to_end(tmp_path: Path) -> None:
    """Two methods, one epoch, few clips, all phases: on the real data set and on Ray."""
    import ray

    out, results = tmp_path / "s", tmp_path / "r"
    small = [
        "--methods",
        "jt,crmt_jt",
        "--seeds",
        "0,1",
        "--epochs",
        "1",
        "--samples",
        "4",
        "--audited",
        "4",
        "--sound-audited",
        "4",
    ]
    try:
        assert command.main([*small, "--limit", "80", "--out", str(out), "--results", str(results)]) == 0
        began = (out / "final" / "run.json").read_text()
        assert command.main(["--resume", str(out), "--results", str(results)]) == 0
    finally:
        ray.shutdown()
    assert (out / "final" / "run.json").read_text() == began
    study = command.read_study(out)
    assert all(len(r.trials) == len(r.planned) and not r.failed for r in study.runs.values())
    for method in ("jt", "crmt_jt"):
        assert len(study.values("final", method, "auto:joint:0.5")) == 2
        assert len(study.values("lipschitz", method, "certified:lipschitz:joint:0.5")) == 2
        assert len(study.values("smoothing", method, "certified:smoothing:joint:0.25")) == 2
        assert len(study.values("curves", method, "pgd:product:audio=0.5,video=0.5")) == 2
        assert len(study.values("final", method, "indicator_ratio:estimate")) == 2
    text = (results / "study.md").read_text()
    assert "not complete" not in text and text.count("![") == 8
