"""The report of a run: one self-contained report.html and its tables as CSV, from any results store.

    python pipelines/report.py RUN_DIR

Works on a run that is still going, was stopped or failed in part: it shows what is there.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.csv
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from crmt.errors import BadInputError, CRMTError
from pipelines import report_lists, report_plots
from pipelines.figures_product import product_table
from pipelines.report_audit import audit, refuted
from pipelines.report_data import RunData, few, load_run, params_of, params_text, summary
from pipelines.report_html import comparison, duration, number, percent
from pipelines.report_names import JOINT, attack_name, attack_short, method_name
from pipelines.report_page import page
from pipelines.report_product import product
from pipelines.report_step2 import harmful, step2

__all__ = ["build_report", "main", "print_summary", "summary"]

SECTIONS = (
    report_lists.header,
    comparison,
    report_plots.robustness,
    product,
    audit,
    report_plots.learning,
    report_plots.search,
    step2,
    report_lists.trials,
    report_lists.quarantine,
    report_lists.words,
)
WIDE = 100
STATUS_STYLES = {"finished": "green", "stopped": "yellow", "running": "cyan", "failed": "red"}


def build_report(run: Path) -> Path:
    """Write `run`/report.html and `run`/tables/*.csv; return the path of the page.

    Raises:
        BadInputError: `run` is not the folder of a run.
    """
    data = load_run(Path(run))
    write_tables(data, data.run / "tables")
    name = data.provenance.get("name") or data.run.resolve().name
    body = "\n".join(make(data) for make in SECTIONS)
    target = data.run / "report.html"
    _write_atomically(target, page(f"CRMT sweep: {name}", body, with_figures="data-plot=" in body))
    return target


def write_tables(data: RunData, folder: Path) -> None:
    """Every table of the run, the summary and the budget grid as CSV."""
    folder.mkdir(parents=True, exist_ok=True)
    tables = {**data.tables, "summary": data.summary}
    if report_lists.has_product(data):
        tables["product"] = product_table(data)
    for name, table in tables.items():
        # pyarrow: a big run has millions of radii, which pandas would write for minutes
        pyarrow.csv.write_csv(pa.Table.from_pandas(table, preserve_index=False), folder / f"{name}.csv")


def _write_atomically(target: Path, text: str) -> None:
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=".report", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(target)
    finally:
        Path(temporary).unlink(missing_ok=True)


def print_summary(run: Path, console: Console) -> None:
    """The trials of a run, best first, and where the report is.

    Raises:
        BadInputError: `run` is not the folder of a run.
    """
    data = load_run(Path(run))
    wide = console.width >= WIDE
    budgets = few(data.budgets, data.headline)
    if not wide:  # a terminal of 80 columns holds two budgets
        budgets = [b for b in budgets if b >= (data.headline or 0)]
    table = Table(title="Trials, best first; accuracies in %", title_justify="left", box=None, pad_edge=False)
    table.padding = (0, 2 if wide else 1, 0, 0)
    table.add_column("\ntrial", overflow="fold")
    table.add_column("\nmethod", no_wrap=True)
    table.add_column("\nsearched", overflow="fold", min_width=9)
    table.add_column("\nstatus", no_wrap=True)
    columns = ["\nepochs" if wide else "\nep.", *(["\ntime"] if wide else []), "vali-\ndation", "\nclean"]
    columns += [*(f"{attack_short(data.attack)}\n{e:g}" for e in budgets)]
    if "estimate" in data.certificates:
        columns.append("estimated\nradius" if wide else "est.\nr")
    for heading in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    for _, row in data.summary.iterrows():
        table.add_row(*_summary_cells(data, row, budgets, wide))
    console.print(table)
    for certificate in data.certificates:
        certified = _certified(data, certificate)
        if certificate != "estimate" and certified.row_count:
            name = escape(data.certificate_name(certificate))
            console.print(f"Mean joint radius of the best trials, {name}", style="italic", highlight=False)
            console.print(certified)
    console.print(escape(_legend(data)), style="dim", highlight=False)
    console.print(escape(report_lists.outcome(data)), highlight=False)
    for sentence in harmful(data):
        console.print(escape(f"warning: {sentence}"), style="yellow", highlight=False)
    for _, row in data.summary[data.summary.status == "failed"].iterrows():
        reason = row.error if isinstance(row.error, str) else "no error was recorded"
        console.print(escape(f"{row.trial_id} failed: {reason}"), style="red", highlight=False)
    for sentence in refuted(data):  # last, where it is seen
        console.print(escape(f"ALARM: a sound certificate was refuted: {sentence}"), style="bold red", highlight=False)
    target = data.run / "report.html"
    if target.exists():
        console.print(f"Report: {escape(str(target))}", highlight=False, soft_wrap=True)


def _legend(data: RunData) -> str:
    by = data.selected_by or "the metric"
    text = f"validation: {by} on the validation split, which alone chooses (bold: the best of a method)"
    space = data.space_of(JOINT)
    space = f" ({space})" if space else ""
    return f"{text}; all else: test split. {attack_name(data.attack)}: joint ℓ2 budget{space}"


def _summary_cells(data: RunData, row: pd.Series, budgets: Sequence[float], wide: bool) -> list[str]:
    style = STATUS_STYLES.get(str(row.status), "white")
    chosen = row.trial_id in data.best.values()
    shares = [row.selected_value, row.clean_accuracy, *(row[data.column(e)] for e in budgets)]
    method = escape(method_name(row.method))
    time = [duration(None if pd.isna(row.seconds) else row.seconds)] if wide else []
    return [
        escape(str(row.trial_id)),
        f"[bold]{method}[/bold]" if chosen else method,
        escape(params_text(params_of(row.params))),
        f"[{style}]{escape(str(row.status))}[/{style}]",
        "–" if pd.isna(row.epochs) else f"{row.epochs:.0f}",
        *time,
        *(percent(v).removesuffix("\u00a0%") for v in shares),
        *([number(row.get("estimated_mean_radius"))] if "estimate" in data.certificates else []),
    ]


def _certified(data: RunData, certificate: str) -> Table:
    """The radii of one certificate: no other kind of radius shares a column with them."""
    smoothed = certificate == "smoothing"
    table = Table(box=None, pad_edge=False)
    table.padding = (0, 2, 0, 0)
    table.add_column("method", no_wrap=True)
    for heading in ("radius", "violated", *(("allowed by chance", "abstained") if smoothed else ())):
        table.add_column(heading, justify="right", no_wrap=True)
    for method, trial_id in data.best.items():
        radius, found = data.mean_radius(trial_id, certificate), data.audit(trial_id, certificate)
        if not radius.n:
            continue
        cells = [escape(method_name(method)), number(radius.value)]
        cells.append(f"{found[0]} of {found[1]}" if found else "not audited")
        if smoothed:
            abstained = data.abstained(trial_id)
            cells.append(str(data.allowed(trial_id, certificate)) if found else "")
            cells.append(f"{abstained[0]} of {abstained[1]}" if abstained else "")
        table.add_row(*cells)
    return table


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Exit code 2 where RUN_DIR is not the folder of a run."""
    parser = argparse.ArgumentParser(prog="pipelines/report.py", description="Draw the report of a run (again).")
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="folder of a run, as printed at its end")
    arguments = parser.parse_args(argv)
    try:
        build_report(arguments.run)
        print_summary(arguments.run, Console())
    except CRMTError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, BadInputError) else 1
    return 0


if __name__ == "__main__":
    from pipelines.report import main  # under its real name, as every command here

    sys.exit(main())
