"""Every trial, as a table that sorts."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from pipelines.reporting.data import RunData, params_text
from pipelines.reporting.names import json_object
from pipelines.reporting.render import duration, number, percent, render


def trials(data: RunData) -> Markup:
    """Every trial of the run in a table that sorts on a click."""
    attacked = [data.column(data.headline)] if data.headline is not None else []
    radii = [f"{data.names.certificate(c).column}_mean_radius" for c in data.certificates]
    return render(
        "trials",
        data,
        rows=[row for _, row in data.summary.iterrows()],
        params={row.trial_id: _params(row.params) for _, row in data.summary.iterrows()},
        # columns of the summary, and how their values are shown
        ran=[("epochs", lambda v: f"{v:.0f}"), ("seconds", duration), ("selected_value", percent)],
        tested=[(c, percent) for c in ("clean_accuracy", *attacked)] + [(c, number) for c in radii],
    )


def _params(text: Any) -> str:
    """Breaks between parameters only."""
    return params_text(json_object(text)).replace(" ", "\u00a0").replace(",\u00a0", ", ")
