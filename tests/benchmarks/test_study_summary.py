"""The summary of the study: made from the raw tables alone, the same from a study and from its CSV files."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pandas as pd
import pytest

from benchmarks.study import __main__ as command
from benchmarks.study.data import read_study
from benchmarks.study.report import build
from benchmarks.study.summary import (
    HEADING,
    NEXT_HEADING,
    method_table,
    read_raw_tables,
    summarise,
    with_summary,
)
from crmt.errors import BadInputError
from tests.benchmarks.test_study_plan import Options, better_crmt, make_study

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"


@pytest.fixture
def published() -> dict[str, pd.DataFrame]:
    return read_raw_tables(RESULTS / "study")


def numbers(text: str) -> list[str]:
    return re.findall(r"\d+\.\d ± \d+\.\d", text)


def test_the_published_summary_is_the_one_that_its_csv_files_give(published: dict[str, pd.DataFrame]) -> None:
    page = (RESULTS / "study.md").read_text()
    assert with_summary(page, published) == page
    assert page.index(HEADING) < page.index(NEXT_HEADING) < page.index("## Answers") < page.index("## Tables")


def test_the_summary_agrees_with_the_tables_below_it(published: dict[str, pd.DataFrame]) -> None:
    below = (RESULTS / "study.md").read_text().split(NEXT_HEADING)[1]
    found = numbers(summarise(published))
    assert len(found) > 50
    for number in found:
        assert number in below, number


def test_the_readmes_table_of_methods_is_the_studys(published: dict[str, pd.DataFrame]) -> None:
    readme = (ROOT / "README.md").read_text()
    assert method_table(published) in readme


def test_a_study_and_its_csv_files_give_the_same_summary(tmp_path: Path) -> None:
    options = Options(("jt", "crmt_jt", "mmat"), samples=30, audited=30, phases=("search", "final"))
    study = read_study(make_study(tmp_path / "s", options, better_crmt))
    page = build(study, tmp_path / "r")
    tables = read_raw_tables(tmp_path / "r" / "study")
    assert page.startswith(f"# The study: what CRMT does on avdigits\n\n{summarise(tables)}\n\n{NEXT_HEADING}\n")
    assert with_summary(page, tables) == page
    assert "| CRMT-AT |" not in method_table(tables)
    assert "**Better** (CRMT-JT against JT, in points): on clean clips (+20.0 ± 0.0)" in page
    assert "**Proven**" not in page  # these phases did not run


def test_better_equal_and_worse_follow_the_differences(published: dict[str, pd.DataFrame]) -> None:
    contrasts = published["contrasts"].copy()
    mine = (contrasts.method == "crmt_jt") & (contrasts.against == "jt")
    contrasts.loc[mine, ["mean", "deviation", "beyond_two_deviations"]] = [-3.0, 0.5, True]
    contrasts.loc[mine & (contrasts.number == "clean"), ["mean", "deviation"]] = [3.0, 0.5]
    contrasts.loc[mine & (contrasts.number == "missing:audio"), "beyond_two_deviations"] = False
    better, equal, worse = summarise(published | {"contrasts": contrasts}).split("\n- ")[1:4]
    assert better.endswith("on clean clips (+3.0 ± 0.5).")
    assert equal == "**Not shown to differ**: with audio missing."
    assert worse.count("(−3.0 ± 0.5)") == 5 and "the mean estimated radius (0.60" in worse


def test_fewer_seeds_are_marked(published: dict[str, pd.DataFrame]) -> None:
    joint = published["joint"].copy()
    joint.loc[(joint.method == "mmat") & (joint.number == "clean"), "seeds"] = 2
    text = summarise(published | {"joint": joint})
    assert text.count("†") == 2 and "98.7 ± 0.3† |" in text and "† rests on fewer seeds than planned." in text


def test_a_study_that_measured_nothing_yet_has_no_summary(published: dict[str, pd.DataFrame]) -> None:
    assert summarise({}) == ""
    assert summarise({k: v for k, v in published.items() if k != "single"}) == ""
    joint = published["joint"]
    assert summarise(published | {"joint": joint[joint.method == "jt"]}) == ""


def test_the_command_remakes_the_summary_and_nothing_else(tmp_path: Path, capsys) -> None:
    shutil.copytree(RESULTS / "study", tmp_path / "study")
    page = (RESULTS / "study.md").read_text()
    title, below = page.partition("\n")[0], page.index(NEXT_HEADING)
    (tmp_path / "study.md").write_text(f"{title}\n\nan older summary\n\n{page[below:]}")
    assert command.main(["summary", "--results", str(tmp_path)]) == 0
    assert (tmp_path / "study.md").read_text() == page
    assert HEADING in capsys.readouterr().out
    (tmp_path / "study.md").unlink()
    assert command.main(["summary", "--results", str(tmp_path)]) == 2
    assert "study.md is not there" in capsys.readouterr().err


def test_what_is_no_published_study_is_refused(tmp_path: Path, published: dict[str, pd.DataFrame]) -> None:
    with pytest.raises(BadInputError, match=r"has no joint\.csv"):
        read_raw_tables(tmp_path)
    with pytest.raises(BadInputError, match="no heading '## What was run'"):
        with_summary("# Another page\n", published)
