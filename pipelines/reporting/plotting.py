"""The plotly figures of a report: small, calm, readable on light and dark, one colour a method everywhere.

A figure has no legend of its own: every trace carries `meta = {method, kind}`, and the buttons of the page
switch methods and kinds on and off in all figures at once.
"""

from __future__ import annotations

from html import escape
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from pipelines.reporting.data import (
    format_value,
    params_of,
    params_text,
)
from pipelines.reporting.names import (
    method_name,
)

GREY = "#8a929e"
GRID = "rgba(128,136,148,.22)"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
MANY = 5
"""More methods than this, and a figure draws no bands and begins with the headline's attack alone."""


def safe(text: Any) -> str:
    """Text for plotly, which reads a little HTML in names and hover texts."""
    return escape(str(text), quote=False)


def meta(method: Any, kind: str) -> dict[str, str]:
    """What the buttons of the page know a trace by."""
    return {"method": str(method), "kind": kind}


def style(figure: go.Figure, height: int, x: str, y: str, percent: bool = False) -> go.Figure:
    """Give a figure the look of the page: transparent, thin grid, no zoom (a finger scrolls the page)."""
    figure.update_layout(
        template=go.layout.Template(),
        height=height,
        margin={"l": 52, "r": 14, "t": 10, "b": 58},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": FONT, "size": 12, "color": "#5b6472"},
        showlegend=False,
        dragmode=False,
        hovermode="closest",
        hoverlabel={"bgcolor": "#1f2733", "bordercolor": "#1f2733", "font": {"color": "#f3f5f8", "size": 12}},
    )
    axis = {"gridcolor": GRID, "zeroline": False, "linecolor": GRID, "fixedrange": True}
    figure.update_xaxes(**axis, title={"text": x, "standoff": 12}, ticks="outside", tickcolor=GRID, ticklen=4)
    figure.update_yaxes(**axis, title={"text": y, "standoff": 6})
    if percent:
        figure.update_yaxes(range=[0, 1.02], tickformat=".0%", dtick=0.25)
    return figure


def trial_label(trial: pd.Series) -> str:
    """Method, id, status and parameters of a trial for a hover text."""
    params = params_text(params_of(trial.params))
    return (
        f"<b>{safe(method_name(trial.method))}</b> {safe(trial.trial_id)} ({safe(trial.status)})"
        f"{'<br>' + safe(params) if params else ''}"
    )


def scaled(figure: go.Figure, values: pd.Series, axis: str, col: int | None = None) -> go.Figure:
    """A log axis where the values span more than a factor of 8, with room for the markers at both ends."""
    values = values.dropna()
    update = figure.update_xaxes if axis == "x" else figure.update_yaxes
    where = {} if col is None else {"col": col}
    if values.empty:
        return figure
    low, high = float(values.min()), float(values.max())
    if low > 0 and high / low > 8:
        a, b = np.log10(low), np.log10(high)
        steps = (1, 2, 5) if b - a < 2.5 else (1,)
        ticks = [m * 10.0**e for e in range(int(np.floor(a)) - 1, int(np.ceil(b)) + 1) for m in steps]
        room = 0.06 * (b - a)
        labels = [format_value(t) for t in ticks]
        update(type="log", range=[a - room, b + room], tickvals=ticks, ticktext=labels, **where)
    else:
        room = 0.06 * (high - low) or 0.1 * (abs(high) or 1)
        update(range=[low - room, high + room], **where)
    return figure
