"""What the study's report owns up to: other budgets, failed trials, fewer seeds, chance, and what was left out."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.study import __main__ as command
from benchmarks.study.answers import answers, difference_text
from benchmarks.study.cost import seconds_a_trial
from benchmarks.study.data import Difference, Study, has_ended, read_study, smoothing_audits
from benchmarks.study.plan import PHASES, configuration, points_in
from benchmarks.study.report import build
from benchmarks.study.setup import COLUMNS, setup_of, training_advantage
from benchmarks.study.tables import contrast_table, joint_table, signed
from crmt.certificates.smoothing_audit import violations_allowed
from crmt.methods import method_names
from pipelines.runs.results import ResultsStore
from pipelines.runs.run_folder import read_card
from pipelines.sweeps.preflight import check_settings
from tests.benchmarks.test_study_plan import (
    BY_NAME,
    CLIPS,
    Options,
    better_crmt,
    make_study,
    phases_of,
    planned,
    points_of,
    write_phase,
)

PAIR = Options(("jt", "crmt_jt"))
WHOLE = Options(tuple(method_names()))
BOUND = "Does it help where the radius is proven?"
BROKEN = "How often do radii break under attack?"


RUN = ("search", "final", "lipschitz_search", "lipschitz", "smoothing")
OPTIONS = Options(("jt", "crmt_jt", "mmat"), samples=30, audited=30, phases=RUN)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_study(tmp_path_factory.mktemp("report") / "s", OPTIONS, better_crmt)


@pytest.fixture(scope="module")
def study(made: Path) -> Study:
    return read_study(made)


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(made, tmp_path / "s"))


def change_card(folder: Path, phase: str, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / phase / "run.json"
    card = json.loads(path.read_text())
    change(card["config"])
    path.write_text(json.dumps(card))


def setups(text: str) -> dict[str, dict[str, str]]:
    """Phase to column to text, of the table of what each phase trained with."""
    lines = text.split("from its run card:\n\n")[1].split("\n\n")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: dict(zip(rows[0][1:], row[1:], strict=True)) for row in rows[2:]}


# --- what each phase trained with ----------------------------------------------------------------------


def test_the_report_says_what_the_lipschitz_phases_had(study: Study) -> None:
    text = build(study, None)
    found = setups(text)
    assert list(found) == list(RUN) and list(found["final"]) == list(COLUMNS)
    for phase in ("lipschitz_search", "lipschitz"):
        mine = found[phase]
        assert [mine[c] for c in ("epochs", "optimiser", "weight decay", "features")] == ["32", "adam", "0", "128"]
        assert mine["augmentation"] == "pad 2, time_shift 6" and mine["certificates"] == "lipschitz"
    assert found["final"]["epochs"] == "20" and found["final"]["optimiser"] == "sgd, momentum 0.9"
    assert found["final"]["augmentation"] == "none"
    assert "20 epochs each in search, final, smoothing; 32 epochs each in lipschitz_search, lip" in text
    apart = next(line for line in text.splitlines() if "Otherwise than search, lipschitz_search and lipschitz" in line)
    for words in ("epochs 32 instead of 20 (1.6 times as many)", "optimizer adam instead of sgd", "features 128 inst",
                  "weight_decay 0 instead of 0.0001", "pad 2 instead of 0", "all methods alike"):  # fmt: skip
        assert words in apart
    assert "smoothing trained, all methods alike, with noise.video 0.5, noise.audio 0.5" in text


def test_what_is_said_of_a_phase_follows_its_card(folder: Path) -> None:
    def change(config: dict[str, Any]) -> None:
        config["train"] |= {"epochs": 24, "optimizer": "sgd", "weight_decay": 0.01}
        config["data"]["augment"] |= {"pad": 3, "flip": True, "time_shift": 0}

    change_card(folder, "lipschitz", change)
    study = read_study(folder)
    mine = setups(build(study, None))["lipschitz"]
    assert (mine["epochs"], mine["optimiser"], mine["weight decay"]) == ("24", "sgd, momentum 0.9", "0.01")
    assert mine["augmentation"] == "pad 3, flip"
    assert training_advantage(study, "lipschitz", "final") == "trained longer, 24 epochs against 20, with augmentation"


def test_the_goal_is_not_compared_as_if_budgets_were_equal(study: Study, folder: Path) -> None:
    goal = [line for line in dict(answers(study))[BOUND] if line.startswith("At joint radius")]
    assert len(goal) == 2
    assert all("(the certified models trained longer, 32 epochs against 20, with augmentation: no" in g for g in goal)
    final = json.loads((folder / "final" / "run.json").read_text())["config"]

    def alike(config: dict[str, Any]) -> None:
        config["train"]["epochs"] = final["train"]["epochs"]
        config["data"]["augment"] = final["data"]["augment"]

    change_card(folder, "lipschitz", alike)
    goal = [line for line in dict(answers(read_study(folder)))[BOUND] if line.startswith("At joint radius")]
    assert len(goal) == 2 and not any("trained longer" in line or "augmentation" in line for line in goal)


def test_a_search_chooses_on_the_pipeline_that_is_measured() -> None:
    configs = {p.name: configuration(p, WHOLE, planned(p, WHOLE)) for p in PHASES}
    search, measured = configs["lipschitz_search"], configs["lipschitz"]
    assert search.certify.certificates == measured.certify.certificates == ["lipschitz"]
    assert search.certify.audit_samples == 0
    assert setup_of(search.model_dump(mode="json")) == setup_of(measured.model_dump(mode="json"))
    for config in configs.values():
        check_settings(config)


# --- audits --------------------------------------------------------------------------------------------


def break_smoothing(folder: Path, method: str, ball: str, count: int) -> None:
    store = ResultsStore(folder / "smoothing" / "results")
    trials = store.read("trials")
    trial_id = trials.trial_id[(trials.method == method) & (trials.seed == 0)].iloc[0]
    rows = store.read("radii", trial_id)
    mine = rows.index[(rows.ball == ball) & rows.audited & rows.final][:count]
    assert len(mine) == count
    rows.loc[mine, "violated"] = True
    store.write("radii", trial_id, rows)


@pytest.mark.parametrize("extra", [0, 1])
def test_smoothing_beyond_chance_is_a_bug(folder: Path, extra: int) -> None:
    """All clips of the audits count, those without a radius as well: 3 seeds of 30, though fewer were attacked."""
    allowed = violations_allowed(3 * OPTIONS.audited, 0.001)
    break_smoothing(folder, "crmt_jt", "audio", allowed + extra)
    study = read_study(folder)
    found = smoothing_audits(study)
    assert set(found.clips) == {3 * min(OPTIONS.audited, CLIPS)} and set(found.allowed) == {allowed}
    said = next(line for line in dict(answers(study))[BROKEN] if "of smoothing" in line)
    assert ("this is a bug" in said) == bool(extra)
    if extra:
        assert f"CRMT-JT audio {allowed + 1}, where chance allows {allowed} of 90 clips" in said
    else:
        assert f"CRMT-JT audio has the most, {allowed}, where {allowed} of 90 clips are allowed" in said


def test_only_sound_certificates_are_called_certified(study: Study) -> None:
    certified = [n for n in study.numbers.number if n.startswith("certified:")]
    assert {n.split(":")[1] for n in certified} == {"lipschitz", "smoothing"}


# --- what is missing -----------------------------------------------------------------------------------


def fail(folder: Path, phase: str, method: str, seed: int) -> None:
    store = ResultsStore(folder / phase / "results")
    trials = store.read("trials")
    row = trials[(trials.method == method) & (trials.seed == seed)].iloc[[0]]
    store.write("trials", row.trial_id.iloc[0], row.assign(status="failed", error="CRMTError: the loss is\nnot finite"))


def test_a_failed_trial_is_named_and_what_rests_on_fewer_seeds_marked(study: Study, folder: Path) -> None:
    assert "†" not in build(study, None)
    fail(folder, "final", "crmt_jt", 2)
    study = read_study(folder)
    text = build(study, None)
    assert "8 of 9 trials finished\n  - failed: CRMT-JT, seed 2, lr " in text
    assert ": CRMTError: the loss is not finite\n" in text
    rows = {row[0]: row[1:] for row in joint_table(study).rows}
    assert all(c.endswith("†") for c in rows["CRMT-JT"]) and not any("†" in c for c in rows["JT"])
    differences = {row[0].partition(":")[0]: row[1:] for row in contrast_table(study).rows}
    assert differences["CRMT-JT less JT"][0] == "**+20.0 ± 0.0**†"
    assert "† rests on fewer seeds than planned." in joint_table(study).markdown()
    assert "higher in clean +20.0 ± 0.0†" in text
    lipschitz = text.split("### Certified radius: encoders")[1].split("###")[0]
    assert "†" not in lipschitz
    store = ResultsStore(folder / "final" / "results")
    assert has_ended(store, points_in(read_card(folder / "final")[1]))


def test_a_trial_that_failed_and_then_finished_is_no_failure(folder: Path) -> None:
    store = ResultsStore(folder / "final" / "results")
    store.write("trials", "t_99999", store.read("trials", "t_00000").assign(trial_id="t_99999", status="failed"))
    final = read_study(folder).runs["final"]
    assert not final.failed and len(final.trials) == len(final.planned)


def test_an_unfinished_phase_does_not_hide_a_method_that_was_not_chosen(tmp_path: Path) -> None:
    PAIR.write(tmp_path)
    make_study(tmp_path, PAIR, better_crmt, ("search",))
    store = ResultsStore(tmp_path / "search" / "results")
    trials = store.read("trials")
    for trial_id in trials.trial_id[trials.method == "jt"]:
        store.write("trials", trial_id, store.read("trials", trial_id).assign(status="failed", error="CRMTError: bad"))
    study = read_study(tmp_path)
    final = BY_NAME["final"]
    points = points_of(final, PAIR, study.chosen["search"])
    write_phase(tmp_path, final, points, PAIR, better_crmt)
    (tmp_path / "final" / "results" / "trials" / "t_00001.parquet").unlink()
    text = build(read_study(tmp_path), None)
    assert text.count("  - failed: JT, seed 0, lr ") == 4
    assert "2 of 3 trials finished" in text
    assert "- final: no trial of the search finished for JT" in text


def test_phases_that_were_left_out_are_named(tmp_path: Path) -> None:
    options = Options(PAIR.methods, phases=("search", "final"))
    text = build(read_study(make_study(tmp_path, options, better_crmt, ("search",))), None)
    for phase in PHASES:
        assert (f"- {phase.name} ({phase.question}) was left out" in text) == (phase not in phases_of(options))


# --- where the report goes -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "shrunken", "said"),
    [
        ({}, False, ""),
        ({"samples": 100, "audited": 30, "sound_audited": 99}, False, " --samples 100 --audited 30 --sound-audited 99"),
        ({"methods": ("jt", "crmt_jt")}, True, " --methods jt,crmt_jt"),
        ({"methods": tuple(reversed(method_names()))}, False, ""),
        ({"seeds": (0, 1)}, True, " --seeds 0,1"),
        ({"seeds": (3, 4, 5)}, False, " --seeds 3,4,5"),
        ({"epochs": 3}, True, " --epochs 3"),
        ({"epochs": 40}, False, " --epochs 40"),
        ({"limit": 80}, True, " --limit 80"),
        ({"phases": ("search", "final")}, True, " --phases search,final"),
        ({"phases": tuple(BY_NAME)}, False, f" --phases {','.join(BY_NAME)}"),
    ],
)
def test_only_a_whole_study_is_published(changes: dict[str, Any], shrunken: bool, said: str) -> None:
    options = Options(**({"methods": tuple(method_names())} | changes))
    assert options.shrunken == shrunken
    assert options.command() == f"python -m benchmarks.study{said}"
    parsed = command.options_of(command.arguments().parse_args(said.split()))
    assert parsed.command() == options.command()


@pytest.mark.parametrize("chosen", [["--seeds", "0,1"], ["--samples", "30"], ["--seeds", "0,1", "--results", "r"]])
def test_a_shrunken_study_reports_into_its_own_folder(
    chosen: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    went: list[Path] = []
    monkeypatch.setattr(command, "check", lambda options: None)  # seconds each; tested elsewhere
    monkeypatch.setattr(command, "plan_text", lambda options: "")
    monkeypatch.setattr(command, "RESULTS", tmp_path / "published")
    monkeypatch.setattr(command, "run", lambda options, folder, results: went.append(Path(results).resolve()) or 0)
    assert command.main(["--out", "s", *chosen]) == 0
    whole, given = chosen[0] == "--samples", "--results" in chosen
    expected = tmp_path / ("published" if whole else "r" if given else "s/report")
    assert went == [expected]
    assert command.main(["--resume", "s"]) == 0  # a resumed study goes by its own options
    assert went[1] == tmp_path / ("published" if whole else "s/report")


def test_the_report_names_its_command_and_leaves_nothing_stale(tmp_path: Path) -> None:
    options = Options(("jt", "crmt_jt"), samples=30, phases=("search",))
    study = read_study(make_study(tmp_path / "s", options, better_crmt))
    results = tmp_path / "r"
    (results / "study").mkdir(parents=True)
    for name in ("figure1.png", "lipschitz.csv", "notes.txt"):
        (results / "study" / name).write_text("of an earlier study")
    text = build(study, results)
    assert f"`{options.command()}`" in text
    assert sorted(p.name for p in (results / "study").iterdir()) == ["notes.txt", "search.csv"]


# --- small truths --------------------------------------------------------------------------------------


def test_a_difference_of_nothing_has_no_minus() -> None:
    assert signed(-0.01, math.nan) == "+0.0" and signed(-0.01, 0.2) == "+0.0 ± 0.2"
    assert signed(-0.06, math.nan) == "−0.1" and signed(-0.3, math.nan, 0) == "+0"
    assert signed(-0.004, math.nan, 2) == "+0.00" and signed(-1.0, 0.5) == "−1.0 ± 0.5"


def test_a_sentence_marks_fewer_seeds(study: Study) -> None:
    assert difference_text(study, Difference(4.5, 0.6, 3)) == "+4.5 ± 0.6 points"
    assert difference_text(study, Difference(4.5, 0.6, 2)) == "+4.5 ± 0.6† points"


def test_the_estimate_of_time_knows_what_is_done() -> None:
    def seconds(phase: str, method: str, **changes: Any) -> float:
        return seconds_a_trial(BY_NAME[phase], method, Options(WHOLE.methods, **changes))

    assert seconds("lipschitz_search", "jt") - 8 == pytest.approx(65, abs=1)
    more = seconds("lipschitz", "jt", sound_audited=140) - seconds("lipschitz", "jt")
    assert more == pytest.approx(0.5 * 100)
    assert more == pytest.approx(seconds("lipschitz", "crmt_jt", sound_audited=140) - seconds("lipschitz", "crmt_jt"))
    assert seconds("final", "crmt_jt") > seconds("final", "jt") > seconds("search", "jt")
    assert seconds("search", "mmat") > 2 * seconds("search", "jt")
    assert seconds("final", "jt", epochs=40) > seconds("final", "jt")
