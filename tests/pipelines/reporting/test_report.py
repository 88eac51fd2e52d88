"""The report: its numbers against hand computation, its page against hostile strings, and every half-finished run."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from crmt.errors import BadInputError
from pipelines.report import main
from pipelines.reporting.build import build_report
from pipelines.reporting.data import accuracy_from_radii, budgets_for_tables, load_run, params_text, summary
from pipelines.reporting.sections.header import outcome
from pipelines.reporting.summary import print_summary
from pipelines.runs.results import TABLES, ResultsStore, open_store
from tests.pipelines.pages import Page, read
from tests.pipelines.synthetic import BUDGETS, HOSTILE, SPACES, TRIALS, make_run, provenance

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of nine trials in all four states, with two of the clips in quarantine."""
    folder = tmp_path_factory.mktemp("runs") / "demo"
    folder.mkdir()
    store = make_run(folder, clips=200)
    reasons = [("a.mp4", "truncated", HOSTILE), ("b.mp4", "no_audio", None)]
    rows = [{"clip_id": c, "path": c, "split": "train", "reason": r, "detail": d} for c, r, d in reasons]
    store.write("quarantine", "ingest", rows)
    provenance(folder, name=f"demo {HOSTILE}")
    return folder


@pytest.fixture(scope="module")
def html(run: Path) -> Page:
    return read(build_report(run))


def test_summary_has_one_row_a_trial_best_first(run: Path) -> None:
    table = summary(open_store(run))
    assert len(table) == len(TRIALS)
    assert list(table.status) == ["finished"] * 5 + ["stopped"] * 2 + ["running", "failed"]
    finished = table[table.status == "finished"].selected_value
    assert list(finished) == sorted(finished, reverse=True)
    assert table.trial_id.iloc[0] == "d4f1_00000"


def test_summary_equals_hand_computation(run: Path) -> None:
    store = open_store(run)
    row = summary(store).set_index("trial_id").loc["d4f1_00001"]
    radii = store.read("radii")
    mine = radii[(radii.trial_id == "d4f1_00001") & (radii.stage == "step2")]
    joint, audio = mine[mine.ball == "joint"], mine[mine.ball == "audio"]
    assert row.clean_accuracy == pytest.approx((joint.predicted == joint.label).mean())
    assert row.estimated_mean_radius == pytest.approx(joint.radius.mean())
    assert row.estimated_mean_radius_audio == pytest.approx(audio.radius.mean())
    assert row.estimated_audited == joint.audited.sum()
    assert row.estimated_violations == joint.violated.sum()
    # make_run draws the attacked accuracy from the same distances: true distance = estimated radius / 0.55
    for epsilon in BUDGETS:
        assert row[f"pgd_joint_{epsilon:g}"] == pytest.approx((joint.radius / 0.55 > epsilon).mean())


def test_summary_uses_the_final_stage_only(tmp_path: Path) -> None:
    store = make_run(tmp_path, trials=TRIALS[:1], clips=40)
    metrics = store.read("metrics")
    clean = metrics[(metrics.name == "clean_accuracy")].set_index("stage").value
    assert clean["step1"] != clean["step2"]
    assert summary(store).clean_accuracy.iloc[0] == clean["step2"]


def test_the_best_trial_is_chosen_by_validation_not_by_test(tmp_path: Path) -> None:
    store = make_run(tmp_path, trials=(TRIALS[0], TRIALS[7]), clips=60)
    row: dict[Any, Any] = store.read("trials", "d4f1_00007").to_dict("records")[0]
    store.write("trials", "d4f1_00007", [{**row, "selected_value": 0.99}])
    assert load_run(tmp_path).best == {"crmt_jt": "d4f1_00007"}


def test_a_stopped_trial_stands_in_only_without_a_finished_one(run: Path, tmp_path: Path) -> None:
    assert load_run(run).best == {"crmt_jt": "d4f1_00000", "jt": "d4f1_00002"}
    make_run(tmp_path, trials=(TRIALS[4], TRIALS[6]))
    assert load_run(tmp_path).best == {"crmt_jt": "d4f1_00004"}


@given(
    radius=st.lists(st.one_of(st.just(0.0), st.floats(0, 5)), min_size=1, max_size=40),
    right=st.data(),
    epsilons=st.lists(st.floats(0, 6), min_size=1, max_size=8),
)
def test_curve_from_radii_is_the_share_right_with_radius_at_least_epsilon(
    radius: list[float], right: st.DataObject, epsilons: list[float]
) -> None:
    flags = right.draw(st.lists(st.booleans(), min_size=len(radius), max_size=len(radius)))
    rows = pd.DataFrame({"radius": radius, "label": 1, "predicted": [1 if f else 2 for f in flags]})
    expected = [sum(f and r >= e for f, r in zip(flags, radius, strict=True)) / len(radius) for e in epsilons]
    assert accuracy_from_radii(rows, epsilons) == pytest.approx(expected)


def test_curves_on_the_page_are_the_tables(run: Path, html: Page) -> None:
    store, traces = open_store(run), html.plots["curve-l2-0"]["data"]
    mine = [t for t in traces if t["meta"] == {"method": "jt", "kind": "pgd"} and t["mode"] == "lines+markers"]
    curves = store.read("curves")
    rows = curves[(curves.trial_id == "d4f1_00002") & (curves.attack == "pgd") & (curves.ball == "joint")]
    clean = summary(store).set_index("trial_id").clean_accuracy["d4f1_00002"]
    assert mine[0]["x"] == [0, *BUDGETS]
    assert mine[0]["y"] == pytest.approx([clean, *rows.sort_values("epsilon").accuracy])
    estimated = [t for t in traces if t["meta"] == {"method": "jt", "kind": "estimate"}]
    assert len(estimated) == 1 and "estimated accuracy" in estimated[0]["hovertemplate"]
    assert estimated[0]["y"][0] == pytest.approx(clean)
    assert [t["y"][0] for t in traces if t["meta"]["kind"] == "chance"] == [0.1]
    title = html.plots["curve-l2-0"]["layout"]["xaxis"]["title"]["text"]
    assert title == "ℓ2 budget ε<br>(video: pixels in [0, 1];<br>audio: standardised log-mel)"


def test_outcome_names_methods_accuracies_and_doubt(run: Path, tmp_path: Path) -> None:
    data = load_run(run)
    table = data.summary.set_index("trial_id")
    text = outcome(data).replace("\u00a0", " ")
    for trial_id in ("d4f1_00000", "d4f1_00002"):
        assert f"{100 * table['pgd_joint_0.5'][trial_id]:.1f} %" in text
    assert "CRMT-JT keeps" in text and "budget 0.5" in text and "overlap" not in text
    make_run(tmp_path, trials=(TRIALS[2], ("x", "ojt", "finished", None, 0.05, 0.93)), clips=20)
    assert "overlap" in outcome(load_run(tmp_path))


def test_page_loads_nothing_from_outside(html: Page) -> None:
    links = [v for _, attrs in html.tags for k, v in attrs.items() if k in ("src", "href", "srcset", "data", "action")]
    assert links and all(v and v.startswith(("#", "tables/", "data:")) for v in links)
    assert "@import" not in html.text and not [t for t, _ in html.tags if t in ("iframe", "object", "embed", "base")]


def test_hostile_strings_stay_text(run: Path, html: Page) -> None:
    assert html.text.count(HOSTILE) >= 3  # the name, the error, the quarantine
    assert HOSTILE not in (run / "report.html").read_text()
    # one script for plotly, one for the page, and the figures' data
    scripts = [attrs for tag, attrs in html.tags if tag == "script" and "data-plot" not in attrs]
    assert len(scripts) == 2


def test_page_is_whole_and_accessible(html: Page) -> None:
    starts = [t for t, _ in html.tags]
    closed = [t[1:] for t in html.open if t.startswith("/")]
    for tag in ("div", "section", "table", "tr", "td", "th", "figure", "dl", "p", "span", "button", "details"):
        assert starts.count(tag) == closed.count(tag), tag
    assert all(attrs.get("scope") in ("col", "row", "rowgroup") for tag, attrs in html.tags if tag == "th")
    assert all(attrs.get("type") == "button" for tag, attrs in html.tags if tag == "button")
    ids = [attrs["id"] for _, attrs in html.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    anchors = {str(attrs["href"])[1:] for tag, attrs in html.tags if tag == "a" and str(attrs["href"]).startswith("#")}
    assert anchors and anchors <= set(ids)


def test_page_says_what_failed(html: Page) -> None:
    assert "loss is not finite" in html.text
    assert "2 of 1,799 clips failed" in html.text and "truncated" in html.text
    assert "1 of 9 trials failed" in html.text


def test_estimated_and_certified_are_never_one_row(tmp_path: Path) -> None:
    make_run(tmp_path, trials=TRIALS[:1], clips=40, certificates=("estimate", "lipschitz", "smoothing"))
    page = read(build_report(tmp_path))
    for name in (
        "Mean estimated ℓ2 radius",
        "Mean certified ℓ2 radius",
        "Mean certified (99.9 %, smoothing) ℓ2 radius",
    ):
        assert page.text.count(name) == 1
    kinds = [t["meta"]["kind"] for t in page.plots["curve-l2-0"]["data"]]
    assert {"estimate", "lipschitz", "smoothing"} <= set(kinds)
    assert {"estimated_mean_radius", "certified_mean_radius", "smoothed_mean_radius"} <= set(load_run(tmp_path).summary)


def test_tables_round_trip(run: Path, html: Page) -> None:
    store = open_store(run)
    for name in TABLES:
        table, written = store.read(name), pd.read_csv(run / "tables" / f"{name}.csv")
        assert list(written) == list(table) and len(written) == len(table)
        for column in table.select_dtypes("number"):
            np.testing.assert_allclose(written[column].astype(float), table[column].astype(float))
    written = pd.read_csv(run / "tables" / "summary.csv")
    pd.testing.assert_series_equal(
        written.selected_value, summary(store).selected_value, check_names=False, check_dtype=False
    )
    assert set(written.trial_id) == {t[0] for t in TRIALS}


@pytest.mark.parametrize("modalities", [("audio",), ("video", "audio", "flow"), ("radar", "video")])
def test_any_number_of_modalities(tmp_path: Path, modalities: tuple[str, ...]) -> None:
    make_run(tmp_path, modalities, trials=TRIALS[:3], clips=40)
    page = read(build_report(tmp_path))
    assert len([p for p in page.plots if p.startswith("curve-")]) == 1 + len(modalities)
    assert all(f"Only {m}" in page.text and SPACES[m] in page.text for m in modalities)


def test_without_step2_the_section_says_so(tmp_path: Path) -> None:
    make_run(tmp_path, trials=TRIALS[:2], clips=40, step2=False)
    page = read(build_report(tmp_path))
    assert "No trial of this run has numbers of both steps" in page.text
    assert not [p for p in page.plots if p.startswith("step2")]


def test_step2_figure_holds_both_stages(run: Path, html: Page) -> None:
    lines = html.plots["step2-2"]["data"]
    assert {t["meta"]["method"] for t in lines} == {"crmt_jt"} and len(lines) == 3
    metrics = open_store(run).read("metrics")
    clean = metrics[(metrics.name == "clean_accuracy") & (metrics.trial_id == "d4f1_00000")].sort_values("stage")
    assert lines[0]["y"] == pytest.approx(list(clean.value))


def test_empty_store(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    page = read(build_report(tmp_path))
    assert "Nothing was finished" in page.text and not page.plots
    assert len(summary(open_store(tmp_path))) == 0
    assert (tmp_path / "tables" / "summary.csv").exists()


def test_partial_run_without_a_finished_trial(tmp_path: Path) -> None:
    make_run(tmp_path, trials=TRIALS[4:7] + TRIALS[8:])
    (tmp_path / "run.json").write_text('{"name": "half of a f')
    page = read(build_report(tmp_path))
    assert "Nothing was finished and tested yet" in page.text
    assert "the best stopped one stands in" in page.text
    assert "1 of 4 trials had not ended" in page.text and "learning-0" in page.plots


def test_only_failed_trials(tmp_path: Path) -> None:
    make_run(tmp_path, trials=TRIALS[6:7])
    page = read(build_report(tmp_path))
    assert "Nothing was finished" in page.text and "loss is not finite" in page.text


def test_sparse_rows_are_enough(tmp_path: Path) -> None:
    """A trial with nothing but its id, as a crash in its first second leaves it."""
    store = ResultsStore(tmp_path / "results")
    store.write("trials", "t", [{"trial_id": "t", "status": "running"}])
    store.write("trials", "u", [{"trial_id": "u", "status": "finished", "method": "jt", "params": "not json"}])
    page = read(build_report(tmp_path))
    assert "running" in page.text
    print_summary(tmp_path, Console(width=80, quiet=True))


def test_search_without_numbers_leaves_the_picture_out(tmp_path: Path) -> None:
    store = make_run(tmp_path, trials=TRIALS[:1], clips=20)
    row: dict[Any, Any] = store.read("trials").to_dict("records")[0]
    for params, drawn in (({"train.method": "jt"}, 0), ({"train.lr": 0.1}, 1), ({"a.b": 2, "train.lr": 0.1}, 1)):
        store.write("trials", row["trial_id"], [{**row, "params": json.dumps(params)}])
        assert len([p for p in read(build_report(tmp_path)).plots if p.startswith("search")]) == drawn


def test_methods_without_rho_have_a_strip_of_their_own(html: Page) -> None:
    figure = html.plots["search-0"]
    assert figure["layout"]["xaxis"]["title"]["text"] == "no ρ"
    strip = [t for t in figure["data"] if t["xaxis"] == "x"]
    assert {t["meta"]["method"] for t in strip} == {"jt"}
    assert figure["layout"]["xaxis2"]["type"] == figure["layout"]["yaxis"]["type"] == "log"


def test_linf_attacks_get_figures_of_their_own(tmp_path: Path) -> None:
    store = make_run(tmp_path, trials=TRIALS[:1], clips=30)
    curves = store.read("curves")
    store.write("curves", "linf", curves.assign(norm="linf", epsilon=curves.epsilon / 100))
    page = read(build_report(tmp_path))
    kinds = {t["meta"]["kind"] for t in page.plots["curve-linf-0"]["data"]}
    assert "estimate" not in kinds and "pgd" in kinds  # a radius is an ℓ2 distance
    assert summary(store)["pgd_joint_0.5"].notna().all() and "pgd_joint_0.005" not in summary(store)


def test_print_summary(run: Path, html: Page) -> None:
    for width in (80, 120):
        console = Console(width=width, record=True, file=io.StringIO())
        print_summary(run, console)
        text = console.export_text()
        assert text.index("d4f1_00000") < text.index("d4f1_00002") < text.index("d4f1_00006")
        assert all(len(line) <= width for line in text.splitlines() if not line.startswith("Report"))
        assert "failed" in text and "report.html" in text and "loss is not finite" in text


def test_small_helpers() -> None:
    assert budgets_for_tables(BUDGETS, 0.5) == [0.25, 0.5, 1.5]
    assert budgets_for_tables([1.0], 1.0) == [1.0] and budgets_for_tables([], None) == []
    assert params_text({"train.method": "jt", "train.rho": None, "train.lr": 0.012345, "train.seed": 3}) == (
        "lr 0.0123, seed 3"
    )


def test_wrong_folder_is_one_line_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BadInputError):
        build_report(tmp_path)
    assert main([str(tmp_path / "nowhere")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "nowhere" in error


@pytest.mark.slow
def test_the_command_itself(run: Path) -> None:
    command = [sys.executable, "pipelines/report.py", str(run)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "report.html" in done.stdout
