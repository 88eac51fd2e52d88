"""The best trial of each method, as a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipelines.infra.storage import Where, folder_at
from pipelines.reporting.data import PAGE, RunData, budgets_for_tables, load_run, params_text
from pipelines.reporting.names import JOINT, json_object
from pipelines.reporting.render import duration, number, percent
from pipelines.reporting.sections.audit import refuted
from pipelines.reporting.sections.header import outcome
from pipelines.reporting.sections.step2 import harmful

WIDE = 100
STATUS_STYLES = {"finished": "green", "stopped": "yellow", "running": "cyan", "failed": "red"}


def print_summary(run: Where, console: Console, page: Where | None = None) -> None:
    """The trials of a run, best first, and where the report is.

    Args:
        run: its folder, here or on a server.
        console: takes the table.
        page: the report, where it is not in the run's folder.

    Raises:
        BadInputError: `run` is not the folder of a run.
    """
    data = load_run(run)
    wide = console.width >= WIDE
    # a terminal of 80 columns holds two budgets
    shown = budgets_for_tables(data.budgets, data.headline)
    budgets = [b for b in shown if wide or b >= (data.headline or 0)]
    table = Table(box=None, pad_edge=False, padding=(0, 2 if wide else 1, 0, 0))
    table.title, table.title_justify = "Trials, best first; accuracies in %", "left"
    table.add_column("\ntrial", overflow="fold")
    table.add_column("\nmethod", no_wrap=True)
    table.add_column("\nsearched", overflow="fold", min_width=9)
    table.add_column("\nstatus", no_wrap=True)
    columns = ["\nepochs" if wide else "\nep.", *(["\ntime"] if wide else []), "vali-\ndation", "\nclean"]
    columns += [*(f"{escape(data.names.attack_short(data.attack))}\n{e:g}" for e in budgets)]
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
    console.print(escape(outcome(data)), highlight=False)
    for sentence in harmful(data):
        console.print(escape(f"warning: {sentence}"), style="yellow", highlight=False)
    for _, row in data.summary[data.summary.status == "failed"].iterrows():
        reason = row.error if isinstance(row.error, str) else "no error was recorded"
        console.print(escape(f"{row.trial_id} failed: {reason}"), style="red", highlight=False)
    for sentence in refuted(data):  # last, where it is seen
        console.print(escape(f"ALARM: a sound certificate was refuted: {sentence}"), style="bold red", highlight=False)
    page = page or (run / PAGE if folder_at(run).has(PAGE) else None)
    if page is not None:
        console.print(f"Report: {escape(str(page))}", highlight=False, soft_wrap=True)


def _legend(data: RunData) -> str:
    by = data.selected_by or "the metric"
    text = f"validation: {by} on the validation split, which alone chooses (bold: the best of a method)"
    space = data.space_of(JOINT)
    space = f" ({space})" if space else ""
    return f"{text}; all else: test split. {data.names.attack(data.attack)}: joint ℓ2 budget{space}"


def _summary_cells(data: RunData, row: pd.Series, budgets: Sequence[float], wide: bool) -> list[str]:
    style = STATUS_STYLES.get(str(row.status), "white")
    chosen = row.trial_id in data.best.values()
    shares = [row.selected_value, row.clean_accuracy, *(row[data.column(e)] for e in budgets)]
    method = escape(data.names.method(row.method))
    time = [duration(None if pd.isna(row.seconds) else row.seconds)] if wide else []
    return [
        escape(str(row.trial_id)),
        f"[bold]{method}[/bold]" if chosen else method,
        escape(params_text(json_object(row.params))),
        f"[{style}]{escape(str(row.status))}[/{style}]",
        "–" if pd.isna(row.epochs) else f"{row.epochs:.0f}",
        *time,
        *(percent(v).removesuffix("\u00a0%") for v in shares),
        *([number(row.get("estimated_mean_radius"))] if "estimate" in data.certificates else []),
    ]


def _certified(data: RunData, certificate: str) -> Table:
    """The radii of one certificate: no other kind of radius shares a column with them."""
    by_chance = certificate in data.by_chance
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("method", no_wrap=True)
    for heading in ("radius", "violated", *(("allowed by chance", "abstained") if by_chance else ())):
        table.add_column(heading, justify="right", no_wrap=True)
    for method, trial_id in data.best.items():
        radius, found = data.mean_radius(trial_id, certificate), data.audit(trial_id, certificate)
        if not radius.n:
            continue
        cells = [escape(data.names.method(method)), number(radius.value)]
        cells.append(f"{found[0]} of {found[1]}" if found else "not audited")
        if by_chance:
            abstained = data.abstained(trial_id, certificate)
            cells.append(str(data.allowed(trial_id, certificate)) if found else "")
            cells.append(f"{abstained[0]} of {abstained[1]}" if abstained else "")
        table.add_row(*cells)
    return table
