"""The report's kinds: attacks, certificates, the budget grid, methods, step 2, and runs older than their columns."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from crmt.methods import method_class, method_names
from pipelines.reporting.build import build_report
from pipelines.reporting.data import RunData, load_run, summary
from pipelines.reporting.names import OURS, SYMBOLS, in_order, names_of
from pipelines.reporting.sections.audit import refuted
from pipelines.reporting.sections.step2 import harmful
from pipelines.reporting.summary import print_summary
from pipelines.runs.results import ResultsStore, open_store
from tests.pipelines.pages import Page, read
from tests.pipelines.synthetic import ALLOWED, BUDGETS, SMOOTHED, TRIALS, make_old, make_run, provenance

CERTIFICATES = tuple(OURS["certificates"])
ATTACKS = ("auto", "pgd", "apgd_ce", "apgd_dlr", "minimal_norm", "square", "fgm", "noise")
GRID = {"video": (0.5, 1.0, 2.0), "audio": (0.25, 1.0)}
TWO = (TRIALS[0], TRIALS[2])
BEST, JT = "d4f1_00000", "d4f1_00002"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every attack, the budget grid and all three certificates, in one run; step 2 of the first trial does harm."""
    folder = tmp_path_factory.mktemp("runs") / "kinds"
    folder.mkdir()
    make_run(folder, trials=TWO, clips=150, certificates=CERTIFICATES, attacks=ATTACKS, product=GRID, harmful=(BEST,))
    provenance(folder)
    return folder


@pytest.fixture(scope="module")
def page(run: Path) -> Page:
    return read(build_report(run))


def printed(run: Path, width: int = 120) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    print_summary(run, console)
    return console.export_text()


def flat(text: str) -> str:
    return " ".join(text.split())


# --- attacks -----------------------------------------------------------------------------------------


def test_auto_is_the_headline_where_it_ran(run: Path, page: Page) -> None:
    data, curves = load_run(run), open_store(run).read("curves")
    assert data.attack == "auto" and data.budgets == list(BUDGETS)
    mine = curves[(curves.trial_id == JT) & (curves.ball == "joint") & (curves.attack == "auto")]
    table = summary(open_store(run)).set_index("trial_id")
    for epsilon in BUDGETS:
        expected = float(mine[mine.epsilon == epsilon].accuracy.iloc[0])
        assert table[f"auto_joint_{epsilon:g}"][JT] == expected
    assert not [c for c in table if c.startswith("pgd_")]
    assert "Under the strongest of all joint attacks (auto) with ℓ2 budget 0.5" in page.text
    assert "Auto accuracy, ε\u00a0=\u00a00.5" in page.text and "PGD accuracy, ε" not in page.text
    assert "auto" in printed(run).splitlines()[1]


@pytest.mark.parametrize(
    ("attacks", "headline"), [(("fgm", "pgd"), "pgd"), (("apgd_ce", "fgm"), "apgd_ce"), (("noise",), None)]
)
def test_the_headline_without_auto(tmp_path: Path, attacks: tuple[str, ...], headline: str | None) -> None:
    make_run(tmp_path, trials=TWO, clips=20, attacks=attacks)
    data = load_run(tmp_path)
    assert (data.attack if data.headline is not None else None) == headline
    build_report(tmp_path)


def test_every_attack_has_a_curve_and_a_button(page: Page) -> None:
    traces = page.plots["curve-l2-0"]["data"]
    for attack in ATTACKS:
        mine = [t for t in traces if t["meta"] == {"method": "jt", "kind": attack} and "hovertemplate" in t]
        assert len(mine) == 1 and mine[0]["visible"] is (attack == "auto")
    pressed = {a["data-toggle"]: a["aria-pressed"] for _, a in page.tags if "data-toggle" in a}
    assert {f"kind:{a}" for a in ATTACKS} <= set(pressed)
    assert pressed["kind:auto"] == "true" and pressed["kind:pgd"] == "false"
    for name in ("APGD-CE accuracy", "minimal-norm accuracy", "Gaussian noise accuracy"):
        assert name in page.text


# --- the budget grid -----------------------------------------------------------------------------------


def test_the_words_keep_certificates_and_their_clips_apart(run: Path, page: Page) -> None:
    """A smoothed classifier's radii bound nothing of the model that is attacked, nor do radii of other clips."""
    text = flat(page.text)
    assert "predicted right with a proven radius ≥ ε: on these clips a lower bound under every attack" in text
    assert "Certified (99.9 %, smoothing) is of the smoothed classifier" in text
    assert f"Of the test clips, {SMOOTHED} smoothed, 150 attacked and with an estimated radius and certified:" in text


def test_nothing_is_said_of_clips_that_are_the_same(tmp_path: Path) -> None:
    make_run(tmp_path, trials=TWO, clips=60, certificates=("estimate", "lipschitz"))
    assert "by the sample alone" not in read(build_report(tmp_path)).text


def test_the_grid_is_a_heat_map_a_method_and_no_modality(run: Path, page: Page) -> None:
    data = load_run(run)
    assert data.modalities == ["video", "audio"] and "Only product" not in page.text
    maps = {n: p for n, p in page.plots.items() if n.startswith("product")}
    assert len(maps) == 2
    curves = open_store(run).read("curves")
    rows = curves[(curves.ball == "product") & (curves.attack == "auto") & curves.final]
    for plot in maps.values():
        (heat,), layout = plot["data"], plot["layout"]
        assert (heat["zmin"], heat["zmax"]) == (0, 1)
        assert heat["x"] == ["0.5", "1", "2"] and heat["y"] == ["0.25", "1"]
        trial_id = data.best[heat["meta"]["method"]]
        for _, row in rows[rows.trial_id == trial_id].iterrows():
            budgets = json.loads(row.budgets)
            i, j = GRID["audio"].index(budgets["audio"]), GRID["video"].index(budgets["video"])
            assert heat["z"][i][j] == row.accuracy
        assert layout["xaxis"]["title"]["text"] == "video ℓ2 budget ε<br>(pixels in [0, 1])"
        assert layout["yaxis"]["title"]["text"] == "audio ℓ2 budget ε<br>(standardised log-mel)"


def test_the_grid_as_csv(run: Path, page: Page) -> None:
    written = pd.read_csv(run / "tables" / "product.csv")
    curves = open_store(run).read("curves")
    assert len(written) == (curves.ball == "product").sum()
    assert {(v, a) for v, a in zip(written.epsilon_video, written.epsilon_audio, strict=True)} == {
        (v, a) for v in GRID["video"] for a in GRID["audio"]
    }
    assert "tables/product.csv" in {a.get("href") for _, a in page.tags}


def test_three_modalities_are_drawn_in_pairs_at_the_smallest_third_budget(tmp_path: Path) -> None:
    grid = {"video": (0.5, 1.0), "audio": (0.25, 2.0), "flow": (0.1, 0.3)}
    make_run(tmp_path, tuple(grid), trials=TWO[1:], clips=40, attacks=("pgd",), product=grid)
    page = read(build_report(tmp_path))
    assert len([p for p in page.plots if p.startswith("product")]) == 3
    assert all(f"{m} {min(b):g} held" in page.text for m, b in grid.items())
    curves = open_store(tmp_path).read("curves")
    at = json.dumps({"video": 1.0, "audio": 2.0, "flow": 0.1})
    heat = page.plots["product-l2-0"]["data"][0]
    assert heat["z"][1][1] == float(curves[curves.budgets == at].accuracy.iloc[0])


def test_a_run_without_a_grid_says_nothing_of_one(tmp_path: Path) -> None:
    make_run(tmp_path, trials=TWO, clips=20)
    page = read(build_report(tmp_path))
    assert "#product" not in {a.get("href") for _, a in page.tags}
    assert not (tmp_path / "tables" / "product.csv").exists()


# --- certificates --------------------------------------------------------------------------------------


def test_metrics_are_read_with_their_certificate(run: Path) -> None:
    data, metrics = load_run(run), open_store(run).read("metrics")
    rows = metrics[(metrics.trial_id == BEST) & metrics.final & metrics.modality.isna() & (metrics.split == "test")]
    for name in ("mean_radius", "indicator_ratio"):
        found = {c: data.metric(BEST, name, certificate=c).value for c in ("estimate", "lipschitz")}
        assert found["estimate"] != found["lipschitz"]
        for certificate, value in found.items():
            expected = rows[(rows["name"] == name) & (rows.certificate == certificate)].value
            assert value == expected.iloc[0]


def test_an_audit_table_a_certificate_with_what_it_rests_on(run: Path, page: Page) -> None:
    text = flat(page.text)
    audit = text[text.index("Do the radii hold?") : text.index("Learning curves")]
    heads = ["Radius: estimated", "Radius: certified Sound by", "Radius: certified (99.9 %, smoothing)"]
    places = [audit.index(h) for h in heads]
    assert places == sorted(places)
    estimated, lipschitz, smoothed = (audit[a:b] for a, b in zip(places, [*places[1:], None], strict=True))
    assert "τ̂ from 512 training clips, audited by auto" in estimated
    assert "video 1, audio 0.5" in lipschitz and "Allowed by chance" not in lipschitz
    assert "noise σ: video 0.25, audio 0.5" in smoothed and "α = 0.001" in smoothed
    radii = open_store(run).read("radii")
    mine = radii[(radii.trial_id == JT) & (radii.certificate == "smoothing") & (radii.ball == "joint")]
    abstained = int((mine.predicted == -1).sum())
    assert abstained > 0 and f"0 of {mine.audited.sum()} {ALLOWED} {abstained} of {SMOOTHED}" in smoothed
    assert "Abstained" not in estimated + lipschitz


def test_the_summary_keeps_certificates_apart_and_counts_abstentions(run: Path) -> None:
    store = open_store(run)
    row, radii = summary(store).set_index("trial_id").loc[BEST], store.read("radii")
    for certificate, prefix in zip(CERTIFICATES, ("estimated", "certified", "smoothed"), strict=True):
        mine = radii[(radii.trial_id == BEST) & radii.final & (radii.certificate == certificate)]
        assert row[f"{prefix}_mean_radius"] == pytest.approx(mine[mine.ball == "joint"].radius.mean())
    assert row.smoothed_abstained == (mine[mine.ball == "joint"].predicted == -1).sum() > 0
    assert row.smoothed_violations_allowed == ALLOWED
    assert "certified_abstained" not in row


def test_certified_radii_stand_apart_in_the_terminal(run: Path) -> None:
    text = printed(run)
    at = [text.index(s) for s in ("radius of the best trials, certified\n", "best trials, certified (99.9 %, smooth")]
    assert at == sorted(at) and f"of {SMOOTHED}" in text[at[1] :]
    assert "estimated" in text[: at[0]] and "certified" not in text[: text.index("Mean joint")]


def break_radii(store: ResultsStore, trial_id: str, certificate: str, count: int) -> None:
    """Mark so many audited joint radii as violated, in the table of radii alone."""
    radii = store.read("radii", trial_id)
    hit = (radii.certificate == certificate) & (radii.ball == "joint") & radii.audited & radii.final
    radii.loc[radii[hit].index[:count], "violated"] = True
    store.write("radii", trial_id, radii)


@pytest.mark.parametrize(
    ("certificate", "count", "alarm"),
    [
        ("estimate", 20, False),
        ("lipschitz", 0, False),
        ("lipschitz", 1, True),
        ("smoothing", ALLOWED, False),
        ("smoothing", ALLOWED + 1, True),
    ],
)
def test_a_refuted_sound_certificate_raises_the_alarm(
    tmp_path: Path, certificate: str, count: int, alarm: bool
) -> None:
    # of a trial that is not the best of its method: an alarm is about the code, whichever trial it shows in
    trials = (TRIALS[0], TRIALS[1])
    store = make_run(tmp_path, trials=trials, clips=60, certificates=CERTIFICATES)
    break_radii(store, "d4f1_00001", certificate, count)
    page = read(build_report(tmp_path))
    assert ([a for _, a in page.tags if a.get("role") == "alert"] != []) is alarm
    assert ("A sound certificate was refuted" in page.text) is alarm
    assert ("ALARM" in printed(tmp_path)) is alarm
    if alarm:
        (sentence,) = refuted(load_run(tmp_path))
        assert sentence in page.text and sentence.startswith("d4f1_00001") and f": {count} certified" in sentence


def test_the_alarm_also_hears_the_metrics(tmp_path: Path) -> None:
    store = make_run(tmp_path, trials=TWO, clips=30, certificates=("lipschitz",))
    metrics = store.read("metrics", JT)
    hit = (metrics["name"] == "audit_violations") & (metrics.modality == "audio")
    store.write("metrics", JT, metrics.assign(value=metrics.value.where(~hit, 2.0)))
    assert [s[: len(JT)] for s in refuted(load_run(tmp_path))] == [JT]


# --- step 2 --------------------------------------------------------------------------------------------


def test_a_harmful_step_2_is_said_plainly(run: Path, page: Page) -> None:
    (sentence,) = harmful(load_run(run))
    assert BEST in sentence and flat(sentence).endswith("fell from 91.0 % to 84.0 %")
    assert sentence in page.text and "warning: Step 2 did harm" in printed(run)
    text = flat(page.text)
    table = text[text.index("step 1 → step 2") : text.index("All trials", text.index("step 1 → step 2"))]
    assert "91.0 % → 84.0 % −7.0 points" in table and "Robust accuracy" in table
    metrics = open_store(run).read("metrics")
    train = metrics[(metrics.trial_id == BEST) & (metrics["name"] == "train_mean_radius")].set_index("stage").value
    assert f"{train['step1']:.3f} → {train['step2']:.3f}" in table


def test_a_good_step_2_gives_no_warning(tmp_path: Path) -> None:
    make_run(tmp_path, trials=TWO, clips=20)
    assert harmful(load_run(tmp_path)) == [] and "did harm" not in read(build_report(tmp_path)).text


# --- methods -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunData, Page]:
    """A run of every method that there is, and of one that is gone."""
    tmp_path = tmp_path_factory.mktemp("many")
    names = [*method_names(), "gone_since"]
    trials = tuple(
        (f"t_{i:05d}", m, "finished", 2.0 if m.startswith("crmt") else None, 0.01 + 0.002 * i, 0.5 + 0.05 * i)
        for i, m in enumerate(names)
    )
    make_run(tmp_path, trials=trials, clips=30, attacks=("auto", "pgd"), product={"video": (1.0,), "audio": (1.0,)})
    provenance(tmp_path, words={"methods": {name: method_class(name).title for name in method_names()}})
    return load_run(tmp_path), read(build_report(tmp_path))


def test_all_methods_side_by_side(many: tuple[RunData, Page]) -> None:
    data, page = many
    assert len(method_names()) >= 16
    assert list(data.best)[:2] == ["jt", "gb"] and list(data.best)[-1] == "gone_since"
    for name in method_names():
        assert data.names.method(name) == method_class(name).title
        assert method_class(name).title in page.text
    assert data.names.method("gone_since") == "gone_since" and "gone_since" in page.text
    buttons = [a["data-toggle"] for _, a in page.tags if str(a.get("data-toggle", "")).startswith("method:")]
    assert {f"method:{m}" for m in data.best} == set(buttons)
    ranking = page.plots["ranking"]["data"]
    assert {t["meta"]["method"] for t in ranking} == set(data.best)
    assert "OJT + uni-modal CE" in printed(data.run)


def test_older_runs_call_methods_what_crmt_calls_them() -> None:
    assert {m: method_class(m).title for m in OURS["methods"]} == OURS["methods"]


def test_colour_and_mark_together_name_a_method() -> None:
    names = names_of(methods=[*method_names(), "gone_since"])
    looks = [(names.colour(m), names.mark(m)) for m in [*method_names(), "gone_since"]]
    assert len(set(looks)) == len(looks)
    assert in_order("methods", ["zebra", "crmt_jt", "aardvark", "jt"]) == ["jt", "crmt_jt", "aardvark", "zebra"]


def test_search_marks_differ_and_can_be_drawn(many: tuple[RunData, Page]) -> None:
    data, page = many
    symbols: dict[str, set[Any]] = {}
    for trace in page.plots["search-0"]["data"]:
        symbols.setdefault(trace["meta"]["method"], set()).update(trace["marker"]["symbol"])
    drawn = {SYMBOLS[s] for found in list(symbols.values())[:16] for s in found}
    assert len(symbols) == len(data.best) and len(drawn) >= 14


# --- runs of older versions ----------------------------------------------------------------------------


def test_a_run_without_the_new_columns(tmp_path: Path) -> None:
    new, old = tmp_path / "new", tmp_path / "old"
    for folder in (new, old):
        folder.mkdir()
        make_run(folder, trials=TRIALS[:3], clips=60)
    make_old(open_store(old))
    page = read(build_report(old))
    columns = [c for c in summary(open_store(new)) if c != "step2_harmful"]
    pd.testing.assert_frame_equal(summary(open_store(old))[columns], summary(open_store(new))[columns])
    assert load_run(old).metric(BEST, "indicator_ratio", certificate="estimate").n == 60
    assert "Estimated radius" in page.text and "step2-0" in page.plots
    assert "The radii rest on" not in page.text and "A sound certificate" not in page.text
    printed(old, 80)
