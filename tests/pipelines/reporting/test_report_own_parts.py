"""Parts of the user's own in a report: named by the run's card, and told apart from ours and from one another."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipelines.reporting.build import build_report
from pipelines.reporting.data import load_run
from pipelines.reporting.names import names_of
from pipelines.reporting.sections.audit import refuted
from pipelines.reporting.summary import print_summary
from pipelines.runs.results import open_store
from tests.pipelines.pages import Page, read
from tests.pipelines.synthetic import make_run, provenance

# two names whose bytes have one sum: alone they would look alike
NET, TEN, BOUND, STORM = "mine:Net", "mine:Ten", "mine:Bound", "mine:Storm"
WORDS: dict[str, Any] = {
    "methods": {NET: "Net & <b>bold</b>", TEN: "Ten"},
    "certificates": {
        "estimate": {"title": "Estimate", "word": "guessed", "sound": False, "meaning": "No more than a guess."},
        BOUND: {"title": "Interval bound", "word": "bounded", "sound": True, "meaning": "Sound by its intervals."},
    },
    "attacks": {STORM: "Storm"},
}


def flat(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "own"
    folder.mkdir()
    trials = tuple((f"t{i}", m, "finished", 1.0, 0.01 * (i + 1), 0.9) for i, m in enumerate((NET, TEN, "jt")))
    make_run(folder, trials=trials, clips=60, certificates=("estimate", BOUND), attacks=(STORM, "fgm"))
    provenance(folder, words=WORDS)
    return folder


@pytest.fixture(scope="module")
def page(run: Path) -> Page:
    return read(build_report(run))


def test_titles_stand_wherever_a_name_is_read(run: Path, page: Page) -> None:
    shown = page.text.replace(json.dumps(WORDS, ensure_ascii=False), "")  # run.json's own row
    assert shown != page.text and "mine:" not in shown
    for title in ("Net & <b>bold</b>", "Ten", "Storm accuracy", "Bounded", "Mean bounded ℓ2 radius", "Guessed"):
        assert title in shown
    hovers = [t.get("hovertemplate", "") for plot in page.plots.values() for t in plot["data"]]
    assert any("Net &amp; &lt;b&gt;bold&lt;/b&gt;, Storm" in h for h in hovers)
    assert not any("mine:" in h or "<b>bold" in h for h in hovers)
    console = Console(width=120, record=True, file=io.StringIO())
    print_summary(run, console)
    printed = console.export_text()
    assert (
        "Ten" in printed and "<b>bold</b>" in printed and "best trials, bounded" in printed and "mine:" not in printed
    )


def test_buttons_switch_the_traces_that_they_name(page: Page) -> None:
    toggles = {a["data-toggle"] for _, a in page.tags if "data-toggle" in a}
    kinds = {t["meta"]["kind"] for t in page.plots["curve-l2-0"]["data"]} - {"chance"}
    methods = {t["meta"]["method"] for t in page.plots["curve-l2-0"]["data"]} - {""}
    assert methods == {NET, TEN, "jt"} and {BOUND, STORM} <= kinds
    assert {f"method:{m}" for m in methods} | {f"kind:{k}" for k in kinds} <= toggles


def test_identifiers_are_safe_and_looks_differ(run: Path, page: Page) -> None:
    assert all(re.fullmatch(r"[A-Za-z][\w-]*", str(a["id"])) for _, a in page.tags if "id" in a)
    names = load_run(run).names
    looks = [(names.colour(m), names.mark(m)) for m in (NET, TEN, "jt")]
    assert len(set(looks)) == 3
    swatches = {
        (str(a["style"])[4:], str(a["class"]).split()[1]) for _, a in page.tags if "swatch" in str(a.get("class"))
    }
    assert swatches == set(looks)
    for trace in page.plots["learning-0"]["data"]:
        look = trace["line"]["color"], trace["marker"]["symbol"]
        assert look == (names.colour(trace["meta"]["method"]), names.mark(trace["meta"]["method"]))


def test_the_card_says_what_a_certificate_means(page: Page) -> None:
    text = flat(page.text)
    assert "Radius: bounded Sound by its intervals." in text and "Radius: guessed No more than a guess." in text
    assert "Interval bound Sound by its intervals." in text[text.index("How to read this page") :]
    assert "a lower bound under every attack" in text
    assert "bounded accuracy" in text and "bounded accuracy (from radii)" not in text
    assert "guessed accuracy (from radii)" in text


@pytest.mark.parametrize("sound", [True, False])
def test_a_refuted_certificate_of_the_users_own_raises_the_alarm_where_it_is_sound(tmp_path: Path, sound: bool) -> None:
    store = make_run(tmp_path, trials=(("t", "jt", "finished", None, 0.1, 1.0),), clips=40, certificates=(BOUND,))
    provenance(tmp_path, words={"certificates": {BOUND: WORDS["certificates"][BOUND] | {"sound": sound}}})
    radii = store.read("radii", "t")
    radii.loc[radii[(radii.ball == "joint") & radii.audited].index[:1], "violated"] = True
    store.write("radii", "t", radii)
    assert [s.partition(": ")[2] for s in refuted(load_run(tmp_path))] == (
        ["1 bounded radius refuted by attack (joint)"] if sound else []
    )
    assert ("A sound certificate was refuted" in read(build_report(tmp_path)).text) is sound


def test_two_certificates_never_share_a_word() -> None:
    said = {BOUND: {"word": "certified", "sound": True}, "smoothing": {"word": "certified"}}
    names = names_of({"words": {"certificates": said}})
    words = [names.certificate(c).word for c in ("lipschitz", "smoothing", BOUND)]
    assert words == ["certified", "certified (smoothing)", f"certified ({BOUND})"]


def test_cards_that_say_radius_and_how_sure_it_is_read_like_older_ones(tmp_path: Path) -> None:
    said = {
        "estimate": {"title": "estimated", "word": "estimated radius", "sound": False, "meaning": "from gradients"},
        "lipschitz": {"title": "certified", "word": "certified radius", "sound": True, "meaning": "by construction"},
        "smoothing": {"title": "smoothing", "word": "certified radius (99.9 %)", "sound": True, "meaning": "by noise"},
    }
    pages = []
    for words in ({}, {"certificates": said}):
        make_run(tmp_path, trials=(("t", "jt", "finished", None, 0.1, 1.0),), clips=20, certificates=tuple(said))
        provenance(tmp_path, words=words)
        text = read(build_report(tmp_path)).text
        pages.append(text.replace(json.dumps(words, ensure_ascii=False), ""))
    assert pages[0] == pages[1] and "Mean certified (99.9 %, smoothing) radius" in pages[0]


@pytest.mark.parametrize(
    "words",
    [
        [1],
        "x",
        {"methods": 3, "attacks": [], "certificates": {BOUND: "x"}},
        {"certificates": {BOUND: {"sound": "yes"}}},
    ],
)
def test_a_card_of_another_shape_is_passed_over(tmp_path: Path, words: Any) -> None:
    make_run(tmp_path, trials=(("t", NET, "finished", None, 0.1, 1.0),), clips=20, certificates=(BOUND,))
    provenance(tmp_path, words=words)
    page = read(build_report(tmp_path))
    assert NET in page.text and "Mean mine:Bound ℓ2 radius" in page.text
    assert load_run(tmp_path).is_sound(BOUND) is False
    assert f"{BOUND}_mean_radius" in load_run(tmp_path).summary and len(open_store(tmp_path).read("radii"))
