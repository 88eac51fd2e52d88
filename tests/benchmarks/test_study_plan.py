"""The study: its lists of points, the choice between them, and the sentences made from known numbers."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.study.answers import answers, comparison_sentence
from benchmarks.study.data import Study, read_study
from benchmarks.study.plan import (
    BY_NAME,
    LIPSCHITZ_ONLY,
    RHOS,
    TRIALS,
    Options,
    Phase,
    Point,
    Tried,
    chosen_points,
    configuration,
    phases_of,
    points_of,
    search_points,
    search_results,
    wider_points,
)
from benchmarks.study.report import build
from benchmarks.study.tables import all_tables, contrast_table
from crmt.errors import BadInputError, CRMTError
from crmt.methods import method_class, method_names
from pipelines.config.run_config import RunConfig, with_values
from pipelines.runs.results import ResultsStore

ROOT = Path(__file__).resolve().parents[2]

CLIPS = 40
ALL = Options(tuple(method_names()))
FEW = Options(("jt", "crmt_jt", "crmt_step1", "mmat"), seeds=(0, 1, 2), samples=30)
Quality = Callable[[str, int], float]
"""(method, seed) to the share of right predictions, of all numbers alike."""


def first_chosen(phase: Phase, options: Options) -> dict[str, Point]:
    return {method: search_points(phase, method)[0] for method in phase.methods_of(options)}


def planned(phase: Phase, options: Options) -> list[Point]:
    return points_of(phase, options, first_chosen(phase, options))


# --- the plan ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["search", "lipschitz_search"])
def test_every_method_gets_the_same_number_of_search_trials(name: str) -> None:
    phase = BY_NAME[name]
    points = planned(phase, ALL)
    for method in phase.methods_of(ALL):
        mine = [p for p in points if p["train.method"] == method]
        assert len(mine) == TRIALS and len({json.dumps(p) for p in mine}) == TRIALS, method
        fields = {p.removeprefix("train.") for p in mine[0] if any(point[p] is not None for point in mine)}
        assert fields - {"method", "lr", "seed"} <= set(method_class(method).parameters()), method
        assert {p["train.seed"] for p in mine} == {0}
        assert len({p["train.lr"] for p in mine}) > 1


def test_adversarial_methods_share_their_grid_of_budgets() -> None:
    points = planned(BY_NAME["search"], ALL)
    adversarial = [m for m in BY_NAME["search"].methods_of(ALL) if "epsilon" in method_class(m).parameters()]
    grids = [{p["train.epsilon"] for p in points if p["train.method"] == m} for m in adversarial]
    assert len(adversarial) >= 2 and all(grid == grids[0] for grid in grids)


def test_all_methods_take_part_and_a_new_one_joins_by_itself() -> None:
    assert set(BY_NAME["search"].methods_of(ALL)) == set(method_names()) - set(LIPSCHITZ_ONLY)
    joined = search_points(BY_NAME["search"], "brand_new")
    assert len(joined) == TRIALS and all(set(p) == {"train.method", "train.lr"} for p in joined)


@pytest.mark.parametrize("name", list(BY_NAME))
def test_a_phase_tries_exactly_its_points(name: str) -> None:
    points = planned(BY_NAME[name], ALL)
    config = configuration(BY_NAME[name], ALL, points)
    assert config.start_points() == points
    assert config.sweep.trials == len(points)
    assert config.sweep.algorithm == "points" and config.sweep.scheduler == "none"
    assert {len(p) for p in points} == {len(points[0])}
    assert config.train.epochs == (32 if "lipschitz" in name else 20)


@pytest.mark.parametrize("name", [p.name for p in phases_of(ALL) if not p.search])
def test_final_models_have_every_seed_and_the_chosen_values(name: str) -> None:
    phase = BY_NAME[name]
    chosen = first_chosen(phase, ALL)
    points = points_of(phase, ALL, chosen)
    repeats = len(RHOS) if name == "rho" else 1
    for method in phase.methods_of(ALL):
        mine = [p for p in points if p["train.method"] == method]
        assert sorted(p["train.seed"] for p in mine) == sorted([0, 1, 2] * repeats)
        for path, value in chosen[method].items():
            if not (name == "rho" and path == "train.rho"):
                assert {p[path] for p in mine} == {value}


def test_a_phase_needs_its_search() -> None:
    with pytest.raises(BadInputError, match="needs the choice made in 'search'"):
        phases_of(Options(("jt",), phases=("final",)))
    with pytest.raises(BadInputError, match="no phase 'finale'"):
        phases_of(Options(("jt",), phases=("finale",)))


def test_options_survive_their_file(tmp_path: Path) -> None:
    options = Options(("jt",), seeds=(3, 4), limit=9, phases=("search",))
    options.write(tmp_path)
    assert Options.read(tmp_path) == options
    with pytest.raises(BadInputError, match=r"no readable study\.json"):
        Options.read(tmp_path / "elsewhere")


# --- a synthetic study ---------------------------------------------------------------------------------


def trial_row(config: RunConfig, trial_id: str, selected: float, status: str = "finished") -> dict[str, Any]:
    return {
        "trial_id": trial_id,
        "status": status,
        "error": "CRMTError: the loss is not finite" if status == "failed" else None,
        "method": config.train.method,
        "params": "{}",
        "config": json.dumps(config.model_dump(mode="json")),
        "seed": config.train.seed,
        "epochs": config.train.epochs,
        "seconds": 20.0 if config.train.method == "jt" else 50.0,
        "started": "2026-01-05T10:00:00+00:00",
        "selected_by": "val_robust_accuracy",
        "selected_value": selected if status == "finished" else None,
    }


def write_phase(
    folder: Path, phase: Phase, points: list[Point], options: Options, quality: Quality, name: str = ""
) -> ResultsStore:
    """A finished phase: every share of a model is its quality; every right clip has radius 0.6."""
    config = configuration(phase, options, points)
    where = folder / (name or phase.name)
    where.mkdir(parents=True)
    card = {
        "config": config.model_dump(mode="json"),
        "commit": "0123456789abcdef",
        "dirty": False,
        "started": "2026-01-05T10:00:00+00:00",
        "hardware": {"cpus": 2, "gpus": 0},
        "versions": {"python": "3.11", "torch": "2.13"},
        "clips": {"test": CLIPS},
        "clips_sha256": "ab" * 32,
    }
    (where / "run.json").write_text(json.dumps(card))
    store = ResultsStore(where / "results")
    for place, point in enumerate(points):
        one, trial_id = with_values(config.without_search(), point), f"t_{place:05d}"
        right = quality(one.train.method, one.train.seed)
        store.write("trials", trial_id, [trial_row(one, trial_id, right)])
        if phase.needs:
            for table, rows in measured(phase, one, right).items():
                store.write(table, trial_id, [{"trial_id": trial_id, **row} for row in rows])
    return store


def measured(phase: Phase, config: RunConfig, right: float) -> dict[str, list[dict[str, Any]]]:
    two_steps = method_class(config.train.method).step2
    certificate = config.certify.certificates[0]
    found: dict[str, list[dict[str, Any]]] = {"metrics": [], "curves": [], "radii": []}
    for stage in ("step1", "step2") if two_steps else ("step1",):
        tag = {"stage": stage, "final": stage == "step2" or not two_steps}
        share = right - (0.1 if not tag["final"] else 0.0)
        test = {**tag, "split": "test"}
        found["metrics"].append({**test, "name": "clean_accuracy", "value": share, "n": CLIPS})
        found["metrics"].append(
            {**test, "name": "indicator_ratio", "certificate": certificate, "value": 2.0 - right, "n": CLIPS}
        )
        for modality in ("video", "audio"):
            for name in ("missing_accuracy", "unimodal_accuracy"):
                found["metrics"].append({**test, "name": name, "modality": modality, "value": share, "n": CLIPS})
        for ball in ("joint", "video", "audio"):
            key = {"certificate": certificate, "modality": None if ball == "joint" else ball}
            found["metrics"].append({**test, **key, "name": "mean_radius", "value": 0.6 * share, "n": CLIPS})
            for attack in config.attack.names:
                for epsilon in config.attack.epsilons:
                    row = {"attack": attack, "ball": ball, "epsilon": epsilon, "accuracy": share, "n": CLIPS}
                    found["curves"].append({**test, **row})
            for clip in range(CLIPS):
                radius = 0.6 if clip < round(share * CLIPS) else 0.0
                broken = certificate == "estimate" and ball == "audio" and clip < 4
                row = {"ball": ball, "radius": radius, "certificate": certificate, "clip_id": f"clip{clip}"}
                found["radii"].append({**tag, **row, "audited": clip < 10 and radius > 0, "violated": broken})
        for video in config.attack.product.get("video", []):
            for audio in config.attack.product["audio"]:
                row = {"attack": "pgd", "ball": "product", "accuracy": share, "n": CLIPS}
                found["curves"].append({**test, **row, "budgets": json.dumps({"video": video, "audio": audio})})
    return found


def make_study(folder: Path, options: Options, quality: Quality, phases: tuple[str, ...] = tuple(BY_NAME)) -> Path:
    options.write(folder)
    tried: dict[str, list[Tried]] = {}
    for phase in phases_of(options):
        if phase.name not in phases:
            continue
        points = points_of(phase, options, chosen_points(tried.get(phase.needs or "", [])))
        store = write_phase(folder, phase, points, options, quality)
        if phase.search:
            tried[phase.search] = tried.get(phase.search, []) + search_results(store.read("trials"), points)
    return folder


def better_crmt(method: str, seed: int) -> float:
    """CRMT-JT is 0.2 better than JT with every seed; CRMT-step-1 by 0.2, 0 and −0.2; MMAT as good as JT."""
    gain = {"crmt_jt": 0.2, "crmt_step1": 0.2 - 0.2 * seed}.get(method, 0.0)
    return 0.6 + 0.05 * seed + gain


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_study(tmp_path_factory.mktemp("study") / "s", FEW, better_crmt)


@pytest.fixture(scope="module")
def study(folder: Path) -> Study:
    return read_study(folder)


# --- the choice ----------------------------------------------------------------------------------------


def test_the_validation_split_alone_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = planned(BY_NAME["search"], FEW)
    store = write_phase(tmp_path, BY_NAME["search"], points, FEW, lambda *_: 0.5)
    config = configuration(BY_NAME["search"], FEW, points).without_search()
    jt = [i for i, p in enumerate(points) if p["train.method"] == "jt"]
    for place, value in zip(jt, (0.3, 0.7, 0.7, 0.1), strict=True):  # the second and third tie: the second
        trial_id = f"t_{place:05d}"
        store.write("trials", trial_id, [trial_row(with_values(config, points[place]), trial_id, value)])
        test = {"trial_id": trial_id, "stage": "step1", "final": True, "split": "test", "name": "clean_accuracy"}
        store.write("metrics", trial_id, [{**test, "value": 1 - value}])
    read = ResultsStore.read
    tables: list[str] = []

    def watched(self: ResultsStore, table: str, part: str | None = None) -> Any:
        tables.append(table)
        return read(self, table, part)

    monkeypatch.setattr(ResultsStore, "read", watched)
    assert chosen_points(search_results(store.read("trials"), points))["jt"] == {
        "train.method": "jt",
        "train.lr": points[jt[1]]["train.lr"],
    }
    assert set(tables) == {"trials"}


def test_a_trial_that_failed_is_not_chosen_and_one_judged_on_test_is_refused(tmp_path: Path) -> None:
    options = Options(("jt",))
    points = planned(BY_NAME["search"], options)
    store = write_phase(tmp_path, BY_NAME["search"], points, options, lambda *_: 0.5)
    first = with_values(configuration(BY_NAME["search"], options, points).without_search(), points[0])
    store.write("trials", "t_00000", [trial_row(first, "t_00000", 0.9, "failed")])
    assert chosen_points(search_results(store.read("trials"), points))["jt"]["train.lr"] == points[1]["train.lr"]
    store.write("trials", "t_00000", [trial_row(first, "t_00000", 0.9) | {"selected_by": "test_accuracy"}])
    with pytest.raises(CRMTError, match="not on the validation split"):
        search_results(store.read("trials"), points)


@pytest.mark.parametrize(("best", "further"), [(0.2, (0.4, 0.8)), (0.02, (0.01, 0.005)), (0.05, (0.0354, 0.0707))])
def test_the_wider_search_goes_beyond_the_edge(best: float, further: tuple[float, ...], tmp_path: Path) -> None:
    options = Options(("jt",), phases=("search", "search_wider"))

    def quality(method: str, seed: int) -> float:
        return 0.5

    first, wider = phases_of(options)
    points = planned(first, options)
    store = write_phase(tmp_path, first, points, options, quality)
    place = next(i for i, p in enumerate(points) if p["train.lr"] == best)
    config = configuration(first, options, points).without_search()
    store.write("trials", f"t_{place:05d}", [trial_row(with_values(config, points[place]), f"t_{place:05d}", 0.9)])
    chosen = chosen_points(search_results(store.read("trials"), points))
    more = points_of(wider, options, chosen)
    assert tuple(p["train.lr"] for p in more) == further and {p["train.seed"] for p in more} == {0}
    write_phase(tmp_path, wider, more, options, quality)
    options.write(tmp_path)
    study = read_study(tmp_path)
    assert len(study.tried["search"]) == 6 and study.chosen["search"]["jt"]["train.lr"] == best

    folder = ResultsStore(tmp_path / wider.name / "results")
    last = configuration(wider, options, more).without_search()
    folder.write("trials", "t_00001", [trial_row(with_values(last, more[1]), "t_00001", 0.95)])
    study = read_study(tmp_path)
    assert study.chosen["search"]["jt"]["train.lr"] == further[1]
    note = next(t for t in all_tables(study) if t.name == "search").note
    assert ("edge" in note) == (best != 0.05)


def test_the_wider_search_keeps_what_else_was_chosen() -> None:
    phase = BY_NAME["search_wider"]
    best = {"train.method": "crmt_jt", "train.lr": 0.05, "train.rho": 5.0}
    assert wider_points(phase, best) == [{**best, "train.lr": 0.025}, {**best, "train.lr": 0.0125}]


# --- numbers and sentences -----------------------------------------------------------------------------


def test_numbers_are_those_of_the_store(study: Study) -> None:
    assert study.values("final", "jt", "clean").tolist() == pytest.approx([60, 65, 70])
    assert study.values("final", "crmt_jt", "auto:joint:0.5").tolist() == pytest.approx([80, 85, 90])
    assert study.values("final", "crmt_jt", "auto:joint:0.5", "step1").tolist() == pytest.approx([70, 75, 80])
    assert study.values("final", "jt", "missing:audio").tolist() == pytest.approx([60, 65, 70])
    assert study.values("rho", "crmt_jt", "pgd:joint:1@5").tolist() == pytest.approx([80, 85, 90])
    product = study.values("curves", "jt", "pgd:product:audio=0.5,video=1.5")
    assert product.tolist() == pytest.approx([60, 65, 70])


def test_certified_accuracy_counts_radii_that_reach(study: Study) -> None:
    assert study.values("lipschitz", "jt", "certified:lipschitz:joint:0.5").tolist() == pytest.approx([60, 65, 70])
    assert study.values("lipschitz", "jt", "certified:lipschitz:joint:0.75").tolist() == [0, 0, 0]
    assert study.values("smoothing", "crmt_jt", "certified:smoothing:audio:0.5").tolist() == pytest.approx([80, 85, 90])


def test_a_sentence_says_what_the_numbers_say(study: Study) -> None:
    numbers = {"clean": "clean", "auto:video:1": "video 1"}
    higher = comparison_sentence(study, "final", "crmt_jt", "jt", numbers)
    assert higher == "**CRMT-JT against JT**: higher in clean +20.0 ± 0.0 and video 1 +20.0 ± 0.0."
    lower = comparison_sentence(study, "final", "jt", "crmt_jt", numbers)
    assert lower == "**JT against CRMT-JT**: lower in clean −20.0 ± 0.0 and video 1 −20.0 ± 0.0."
    neither = comparison_sentence(study, "final", "crmt_step1", "jt", {"clean": "clean"})
    assert neither == "**CRMT-step-1 against JT**: no difference beyond two deviations in clean +0.0 ± 20.0."
    assert comparison_sentence(study, "final", "pmr", "jt", numbers) is None


def test_swapping_the_models_swaps_the_answers(tmp_path: Path) -> None:
    worse = make_study(tmp_path / "w", FEW, lambda m, s: 1.4 - better_crmt(m, s), ("search", "final"))
    texts = dict(answers(read_study(worse)))["Does CRMT help, where, and by how much?"]
    assert texts[0].startswith("**CRMT-JT against JT**: lower in clean −20.0 ± 0.0")
    assert "higher" not in texts[0]


def test_the_audit_is_counted(study: Study) -> None:
    said = dict(answers(study))["How often do radii break under attack?"]
    estimate = next(line for line in said if line.startswith("The estimated radius"))
    models, audited, broken = 4 * 3, 10, 4
    total = f"{models * broken} of {models * audited * 3} ({100 * broken / audited / 3:.1f} %)"
    assert total in estimate and f"audio {models * broken} of {models * audited} (40.0 %)" in estimate
    assert "joint 0 of" in estimate
    sound = next(line for line in said if "1-Lipschitz" in line)
    assert "in 0 of" in sound and "bug" not in sound


def test_step_2_is_compared_within_each_model(study: Study) -> None:
    said = dict(answers(study))["What does step 2 change?"]
    assert [line for line in said if line.startswith("**CRMT-JT**: clean +10.0 ± 0.0 points")]
    assert not any(line.startswith("**JT**") for line in said)


def test_differences_are_paired_by_seed_and_bold_beyond_two_deviations(study: Study) -> None:
    table = contrast_table(study)
    rows = {row[0].partition(":")[0]: row[1:] for row in table.rows}
    assert set(rows["CRMT-JT less JT"]) == {"**+20.0 ± 0.0**"}
    raw = table.raw[(table.raw.method == "crmt_jt") & (table.raw.number == "clean")]
    assert raw["mean"].item() == pytest.approx(20) and raw.deviation.item() == pytest.approx(0, abs=1e-9)


def test_cost_is_said_from_measured_seconds(study: Study) -> None:
    (said,) = dict(answers(study))["What does it cost?"]
    assert "takes JT 20 s" in said and "MMAT 2.5 times as long (50 s)" in said


# --- the report ----------------------------------------------------------------------------------------


def test_the_report_has_tables_pictures_and_provenance(study: Study, tmp_path: Path) -> None:
    from PIL import Image

    text = build(study, tmp_path)
    assert (tmp_path / "study.md").read_text() == text
    pictures = re.findall(r"!\[\w+\]\((study/\w+\.png)\)", text)
    names = {Path(p).stem for p in pictures}
    assert names == {"figure1", "figure3", "figure4", "figure5", "lipschitz", "smoothing", "estimate", "audit"}
    for picture in pictures:
        with Image.open(tmp_path / picture) as image:
            assert 900 <= image.width <= 1100
            assert np.asarray(image.convert("L"))[0, 0] > 250
    for table in all_tables(study):
        assert (tmp_path / "study" / f"{table.name}.csv").stat().st_size
        assert f"### {table.heading}" in text
    assert "not complete" not in text
    for fact in ("0123456789ab", "2 cores", "torch 2.13", "abababababab"):
        assert fact in text
    assert "nan" not in re.sub(r"\w*nan\w+|\w+nan", "", text)


def test_an_unfinished_study_is_reported_and_says_what_is_missing(tmp_path: Path) -> None:
    where = make_study(tmp_path / "s", FEW, better_crmt, ("search", "final"))
    (where / "final" / "results" / "trials" / "t_00002.parquet").unlink()
    text = build(read_study(where), tmp_path / "r")
    assert "not complete" in text and "final (every method with the values chosen): 11 of 12" in text
    assert "smoothing (" in text and "has not begun" in text
    nothing = tmp_path / "empty"
    FEW.write(nothing)
    assert "- search (hyperparameters, on the validation split) has not begun" in build(read_study(nothing), None)


def test_a_trial_tried_twice_counts_once(tmp_path: Path) -> None:
    where = make_study(tmp_path / "s", FEW, better_crmt, ("search", "final"))
    store = ResultsStore(where / "final" / "results")
    for table in ("trials", "metrics", "curves", "radii"):
        store.write(table, "t_99999", store.read(table, "t_00000").assign(trial_id="t_99999"))
    study = read_study(where)
    assert len(study.runs["final"].trials) == 12
    final = study.numbers[study.numbers.phase == "final"]
    assert not final.duplicated(["method", "seed", "stage", "number"]).any()


def test_one_seed_has_no_deviation(tmp_path: Path) -> None:
    options = Options(("jt", "crmt_jt"), seeds=(0,))
    study = read_study(make_study(tmp_path / "s", options, better_crmt, ("search", "final")))
    joint = all_tables(study)[0]
    assert joint.rows[0][1] == "60.0"
    assert math.isnan(joint.raw.deviation.iloc[0])
    assert "**CRMT-JT against JT**: with one seed, so without a deviation, clean +20.0, joint" in build(study, None)
