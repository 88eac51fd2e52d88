"""Every trial, as a table that sorts."""

from __future__ import annotations

from html import escape
from typing import Any

import numpy as np
import pandas as pd

from pipelines.reporting.data import RunData, params_of, params_text
from pipelines.reporting.html import DASH, STATUSES, duration, method_label, nothing, number, percent, section
from pipelines.reporting.names import COLUMN_OF, JOINT, attack_short, method_name

# --- all trials ---------------------------------------------------------------------------------------


def trials(data: RunData) -> str:
    """Every trial of the run in a table that sorts on a click."""
    rows, title = data.summary, "All trials"
    if rows.empty:
        return section("trials", title, nothing("No trial has started yet."))
    attacked = data.column(data.headline) if data.headline is not None else None
    space = escape(data.space_of(JOINT))
    heads = [("Trial", "text"), ("Status", "text"), ("Method", "text"), ("Parameters", "text"), ("Epochs", "number")]
    heads += [("Time", "number"), ("Validation", "number"), ("Clean", "number")]
    heads += [(f"Joint {escape(attack_short(data.attack))},<br>ε = {data.headline:g}", "number")] if attacked else []
    heads += [(f"Mean joint radius,<br>{escape(data.certificate_name(c))}", "number") for c in data.certificates]
    head = "".join(
        f'<th scope="col" data-type="{kind}"{" class=r" if kind == "number" else ""}>'
        f'<button type="button">{text}</button></th>'
        for text, kind in heads
    )
    body = "".join(_trial_row(data, row, attacked) for _, row in rows.iterrows())
    by = data.selected_by
    text = (
        f"<p class=muted>Click a head to sort. Validation{': ' + escape(by) if by else ''} on the validation split; "
        f"clean, attacked and radius on the test split, after the last step{' (' + space + ')' if space else ''}.</p>"
    )
    return section(
        "trials",
        title,
        f'{text}<div class="scroll" tabindex="0" role="region" aria-label="All trials"><table class="sortable">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>",
    )


def _trial_row(data: RunData, row: pd.Series, attacked: str | None) -> str:
    status, trial_id = str(row.status), escape(str(row.trial_id))
    params = escape(params_text(params_of(row.params))) or DASH
    params = params.replace(" ", "\u00a0").replace(",\u00a0", ", ")  # break between parameters only
    error = f'<div class="error">{escape(str(row.error))}</div>' if isinstance(row.error, str) and row.error else ""
    tag = '<br><span class="tag">chosen</span>' if row.trial_id in data.best.values() else ""
    tested = [(row.clean_accuracy, percent), *([(row[attacked], percent)] if attacked else [])]
    tested += [(row.get(f"{COLUMN_OF.get(c, c)}_mean_radius", np.nan), number) for c in data.certificates]
    badge = status if status in STATUSES else "stopped"
    cells = [
        f'<td data-sort="{escape(status)}"><span class="badge {badge}">{escape(status)}</span></td>',
        f'<td class="nowrap" data-sort="{escape(method_name(row.method))}">{method_label(row.method)}</td>',
        f'<td data-sort="{params}">{params}</td>',
        _number_cell(row.epochs, lambda v: f"{v:.0f}"),
        _number_cell(row.seconds, duration),
        _number_cell(row.selected_value, percent),
    ]
    if error and all(pd.isna(value) for value, _ in tested):  # the error takes the place of the numbers
        cells.append(f'<td colspan="{len(tested)}">{error}</td>')
    else:
        cells[2] = f'<td data-sort="{params}">{params}{error}</td>'
        cells += [_number_cell(value, show) for value, show in tested]
    head = f'<th scope="row" class="nowrap" data-sort="{trial_id}"><code>{trial_id}</code>{tag}</th>'
    return f"<tr>{head}{''.join(cells)}</tr>"


def _number_cell(value: Any, show: Any) -> str:
    if value is None or pd.isna(value):
        return f'<td class="r" data-sort="">{DASH}</td>'
    return f'<td class="r nowrap" data-sort="{float(value):.9g}">{show(float(value))}</td>'
