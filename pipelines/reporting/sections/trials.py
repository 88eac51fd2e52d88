"""Every trial, as a table that sorts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from pipelines.reporting.data import RunData, params_text
from pipelines.reporting.names import json_object
from pipelines.reporting.render import STATUSES, duration, number, percent, render


@dataclass(frozen=True)
class TrialRow:
    """A trial's line in the table."""

    trial: pd.Series
    """Of the summary."""
    params: str
    """Breaks between parameters only."""
    error: str
    badge: str
    chosen: bool
    ran: list[tuple[float | None, str]]
    """Epochs, time, validation: what to sort by (None where it is missing), what is shown."""
    tested: list[tuple[float | None, str]]
    """The same of numbers on the test split."""


def trials(data: RunData) -> Markup:
    """Every trial of the run in a table that sorts on a click."""
    return render("trials", data, rows=[_row(data, row) for _, row in data.summary.iterrows()])


def _row(data: RunData, row: pd.Series) -> TrialRow:
    columns = [f"{data.names.certificate(c).column}_mean_radius" for c in data.certificates]
    tested = [(row.clean_accuracy, percent)]
    tested += [(row[data.column(data.headline)], percent)] if data.headline is not None else []
    tested += [(row.get(column, np.nan), number) for column in columns]
    ran = [(row.epochs, lambda v: f"{v:.0f}"), (row.seconds, duration), (row.selected_value, percent)]
    return TrialRow(
        trial=row,
        params=params_text(json_object(row.params)).replace(" ", "\u00a0").replace(",\u00a0", ", "),
        error=row.error if isinstance(row.error, str) else "",
        badge=row.status if row.status in STATUSES else "stopped",
        chosen=row.trial_id in data.best.values(),
        ran=[_shown(value, show) for value, show in ran],
        tested=[_shown(value, show) for value, show in tested],
    )


def _shown(value: Any, show: Any) -> tuple[float | None, str]:
    return (None, "") if value is None or pd.isna(value) else (float(value), show(float(value)))
