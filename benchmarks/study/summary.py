"""The two-minute summary at the top of study.md, made from the study's raw tables alone.

The tables are those of benchmarks/results/study/*.csv. A finished study and a folder of CSV files therefore give the
same page, and the page's top can be remade where the run folders of the study are no longer at hand.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from benchmarks.study.data import FEWER, title
from benchmarks.study.tables import FOOTNOTE, NO_VALUE, cell, listed, signed
from crmt.errors import BadInputError

RawTables = Mapping[str, pd.DataFrame]
"""Name of a table (its CSV file without the ending) to its rows."""

HEADING = "## The study in two minutes"
NEXT_HEADING = "## What was run"
"""The section that follows the summary; all from there on is left alone when the summary is remade."""
NEEDED = ("joint", "single", "contrasts", "search")
"""Tables without which there is no summary."""
METHODS = {
    "jt": "JT",
    "crmt_jt": "CRMT-JT",
    "mmat": "MMAT (adversarial training)",
    "crmt_at": "CRMT-AT",
    "crmt_gradient": "CRMT-gradient (ours)",
}
"""The methods of the summary's table, in its order, with the text of their rows."""
COLUMNS = {
    "clean": "clean",
    "auto:joint:0.5": "both attacked, ε .5",
    "auto:joint:1": "both attacked, ε 1",
    "auto:video:1": "only video attacked, ε 1",
    "auto:audio:1": "only audio attacked, ε 1",
    "missing:video": "video missing",
    "missing:audio": "audio missing",
}
"""The numbers of the summary's table, in its order, with the text of their columns."""
PLACES = {
    "clean": "on clean clips",
    "auto:joint:0.5": "with both modalities attacked at ε .5",
    "auto:joint:1": "with both attacked at ε 1",
    "auto:video:1": "with only video attacked",
    "auto:audio:1": "with only audio attacked",
    "missing:video": "with video missing",
    "missing:audio": "with audio missing",
}
"""How a sentence names each number of the table."""


def read_raw_tables(folder: Path) -> dict[str, pd.DataFrame]:
    """The CSV files of a published study, by name.

    Raises:
        BadInputError: the folder lacks a table that the summary needs.
    """
    found = {path.stem: pd.read_csv(path) for path in sorted(folder.glob("*.csv"))}
    if missing := [name for name in NEEDED if name not in found]:
        raise BadInputError(f"{folder} has no {missing[0]}.csv: give the folder of a published study's CSV files")
    return found


def summarise(tables: RawTables) -> str:
    """What was compared, five methods in one table, and what is better, equal and worse, as Markdown.

    Args:
        tables: the study's raw tables by name; those of a phase that has not run may be missing.

    Returns: empty where the study has not measured two of the methods yet.
    """
    if any(name not in tables for name in NEEDED):
        return ""
    methods = [m for m in METHODS if m in set(tables["joint"].method)]
    if len(methods) < 2:
        return ""
    sentences = [
        *_better_equal_worse(tables, "crmt_jt", "jt"),
        *_proven(tables),
        *_in_one_sentence(tables, "crmt_gradient", "crmt_jt"),
        *_in_one_sentence(tables, "crmt_at", "mmat"),
        *_cost(tables, methods),
        _trust(tables),
    ]
    table = method_table(tables)
    footnote = f"\n\n{FOOTNOTE}" if FEWER in table else ""
    return "\n\n".join([HEADING, _compared(tables), table + footnote, "\n".join(f"- {s}" for s in sentences)])


def with_summary(page: str, tables: RawTables) -> str:
    """A page of the study with its summary made anew; everything from `NEXT_HEADING` on stays as it is.

    Raises:
        BadInputError: the page has no such heading.
    """
    start = page.find(f"{NEXT_HEADING}\n")
    if start < 0:
        raise BadInputError(f"the page has no heading {NEXT_HEADING!r}: make it with python -m benchmarks.study report")
    return f"{page.partition(chr(10))[0]}\n\n{summarise(tables)}\n\n{page[start:]}"


def method_table(tables: RawTables) -> str:
    """The table of `METHODS`: accuracy in %, mean ± deviation over seeds, and training time as a multiple of JT's."""
    measured = pd.concat([tables["joint"], tables["single"]], ignore_index=True)
    planned = _seeds(tables)
    times = _training_times(tables)
    lines = ["|  | " + " | ".join([*COLUMNS.values(), "training time"]) + " |"]
    lines.append("| --- |" + " ---: |" * (len(COLUMNS) + 1))
    for method, label in METHODS.items():
        if method not in set(measured.method):
            continue
        cells = []
        for number in COLUMNS:
            row = _row(measured, method=method, number=number)
            mark = FEWER if row is not None and row["seeds"] < planned else ""
            cells.append(NO_VALUE if row is None else cell(row["mean"], row["deviation"]) + mark)
        cells.append(f"{times[method] / times['jt']:.1f} ×" if {method, "jt"} <= set(times) else NO_VALUE)
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _row(table: pd.DataFrame, **wanted: str) -> dict[str, float] | None:
    """The one row whose columns have these values; None without it."""
    chosen = table
    for column, value in wanted.items():
        chosen = chosen[chosen[column] == value]
    return None if chosen.empty else {str(k): v for k, v in chosen.iloc[0].items()}


def _seeds(tables: RawTables) -> int:
    return int(tables["joint"].seeds.max())


def _trials(tables: RawTables) -> pd.DataFrame:
    """The finished trials of the main search."""
    search = tables["search"]
    return search[(search.search == "search") & search.validation_robust_accuracy.notna()]


def _training_times(tables: RawTables) -> dict[str, float]:
    """Method to the median seconds of its trials in the search, where all methods train for the same epochs."""
    return {str(m): float(s) for m, s in _trials(tables).groupby("method").seconds.median().items()}


def _compared(tables: RawTables) -> str:
    certified = [tables[name] for name in ("lipschitz", "smoothing") if name in tables]
    methods = set(pd.concat([tables["joint"], *certified]).method)
    trials = _trials(tables).groupby("method").size()
    return (
        f"{len(methods)} training methods learn to name a digit from a short clip: the picture shows the digit, the "
        f"sound is its telephone tone. Each method got a search of {trials.max()} trials, decided on validation clips, "
        f"and was then trained with {_seeds(tables)} seeds. Here are the baseline (JT, plain joint training), the "
        "paper's method (CRMT-JT) and three more. Accuracy in % on test clips, mean ± deviation over seeds. Attacked: "
        "after the strongest of several attacks within the ℓ2 distance ε. Missing: replaced by its mean. Training "
        "time: in multiples of JT's."
    )


def _contrast(tables: RawTables, ours: str, theirs: str) -> tuple[list[str], list[str], list[str]]:
    """Where `ours` is better, where no difference was shown, and where it is worse, by the rule of two deviations."""
    contrasts = tables["contrasts"]
    better, equal, worse = [], [], []
    for row in contrasts[(contrasts.method == ours) & (contrasts.against == theirs)].to_dict("records"):
        place = PLACES[row["number"]]
        if row["beyond_two_deviations"]:
            (better if row["mean"] > 0 else worse).append(f"{place} ({signed(row['mean'], row['deviation'])})")
        else:
            equal.append(place)
    return better, equal, worse


def _better_equal_worse(tables: RawTables, ours: str, theirs: str) -> list[str]:
    """One sentence each on where a method is better, not shown to differ, and worse; empty without a comparison."""
    better, equal, worse = _contrast(tables, ours, theirs)
    if not (better or equal or worse):
        return []
    worse += _smaller_radius(tables, ours, theirs)
    return [
        f"**Better** ({title(ours)} against {title(theirs)}, in points): {listed(better) or 'nowhere in this table'}.",
        f"**Not shown to differ**: {listed(equal) or 'nothing in this table'}.",
        f"**Worse**: {listed(worse) or 'nothing in this table'}.",
    ]


def _smaller_radius(tables: RawTables, ours: str, theirs: str) -> list[str]:
    """The mean estimated radius of `ours` where it is clearly below that of `theirs`.

    The raw tables hold no differences of radii by seed, so both deviations count.
    """
    number = "mean_radius:estimate:joint"
    rows = [_row(tables["radius"], method=m, number=number) if "radius" in tables else None for m in (ours, theirs)]
    mine, other = rows
    if mine is None or other is None:
        return []
    if not other["mean"] - mine["mean"] > 2 * math.hypot(mine["deviation"], other["deviation"]):
        return []
    texts = [cell(row["mean"], row["deviation"], 2) for row in (mine, other)]
    return [f"the mean estimated radius ({texts[0]} against {texts[1]})"]


def _in_one_sentence(tables: RawTables, ours: str, theirs: str) -> list[str]:
    """Better, not shown to differ and worse in one sentence; empty without a comparison."""
    better, equal, worse = _contrast(tables, ours, theirs)
    parts = [f"better {listed(better)}"] * bool(better) + [f"worse {listed(worse)}"] * bool(worse)
    parts += [f"not shown to differ {listed(equal)}"] * bool(equal)
    return [f"**{title(ours)} against {title(theirs)}**: {'; '.join(parts)}."] if parts else []


def _proven(tables: RawTables) -> list[str]:
    """Certified accuracy of CRMT-JT and JT, side by side."""
    texts = []
    kinds = {"lipschitz": "with 1-Lipschitz encoders", "smoothing": "by smoothing (at 99.9 % a clip)"}
    for name, what in kinds.items():
        if name not in tables:
            continue
        pairs = []
        for radius in ("0.5", "1"):
            number = f"certified:{name}:joint:{radius}"
            crmt = _row(tables[name], method="crmt_jt", stage="step2", number=number)
            jt = _row(tables[name], method="jt", stage="step1", number=number)  # plain joint training has no step 2
            if crmt is not None and jt is not None:
                sides = [cell(row["mean"], row["deviation"]) for row in (crmt, jt)]
                pairs.append(f"{sides[0]} against {sides[1]} at radius {radius.removeprefix('0')}")
        if pairs:
            texts.append(f"{what} {listed(pairs)}")
    if not texts:
        return []
    return [
        "**Proven**, that is, right and safe from every attack within the radius, in % of clips, CRMT-JT against JT: "
        f"{'; '.join(texts)}."
    ]


def _cost(tables: RawTables, methods: list[str]) -> list[str]:
    times = _training_times(tables)
    multiples = [f"{title(m)} {times[m] / times['jt']:.1f} times" for m in methods if {m, "jt"} <= set(times)]
    if len(multiples) < 2:
        return []
    return [
        f"**Cost**: a trial of the search takes JT {times['jt']:.0f} s, and with the same number of epochs "
        f"{listed(multiples[1:])} as long."
    ]


def _trust(tables: RawTables) -> str:
    """How far the numbers reach, and how often attacks broke a radius."""
    texts = []
    kinds = {"radius": "the paper's estimated radius", "lipschitz": "the 1-Lipschitz one", "smoothing": "smoothing's"}
    for name, what in kinds.items():
        if name in tables:
            table = tables[name]
            broken, audited = (table["mean"][table.number == f"audit:{n}"].sum() for n in ("violated", "audited"))
            if audited:
                texts.append(f"{what} in {broken:.0f} of {audited:,.0f} audits")
    audits = f" Attacks inside a radius broke {listed(texts)}: an estimate proves nothing." if texts else ""
    return (
        f"**How far to trust this**: one small data set, {_seeds(tables)} seeds, and attacks on a sample of the test "
        "clips. A difference counts when it is beyond two of its own deviations (with three seeds, chance alone does "
        "that in about 7 % of cases), and many were looked at; what is not shown to differ need not be equal." + audits
    )
