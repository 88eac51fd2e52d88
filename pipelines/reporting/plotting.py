"""The plotly figures of a report: small, calm, readable on light and dark, one colour a method everywhere.

A figure has no legend of its own: every trace carries `meta = {method, kind}`, and the buttons of the page
switch methods and kinds on and off in all figures at once.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from pipelines.reporting.data import format_value, params_text
from pipelines.reporting.names import Names, json_object

LOOK: dict[str, Any] = json.loads((Path(__file__).parent / "static/figures.json").read_text(encoding="utf-8"))
GREY = "#8a929e"
MANY = 5
"""More methods than this, and a figure draws no bands and begins with the headline's attack alone."""


def safe(text: Any) -> str:
    """Text for plotly, which reads a little HTML in names and hover texts."""
    return escape(str(text), quote=False)


def meta(method: Any, kind: str) -> dict[str, str]:
    """What the buttons of the page know a trace by."""
    return {"method": str(method), "kind": kind}


def draw(figure: go.Figure, owner: dict[str, str], x: Sequence[Any], y: Sequence[Any], **look: Any) -> None:
    """Add a line or markers; `owner` is its `meta`, and without a `hovertemplate` nothing shows on hovering."""
    hover = {"hovertemplate": look.pop("hovertemplate") + "<extra></extra>"} if "hovertemplate" in look else {}
    figure.add_scatter(x=list(x), y=list(y), meta=owner, **(hover or {"hoverinfo": "skip"}), **look)


def style(figure: go.Figure, height: int, x: str, y: str, percent: bool = False) -> go.Figure:
    """Give a figure the look of the page: transparent, thin grid, no zoom (a finger scrolls the page)."""
    figure.update_layout(LOOK["layout"], template=go.layout.Template(), height=height)
    figure.update_xaxes(LOOK["x"], title={"text": x, "standoff": 12})
    figure.update_yaxes(LOOK["y"] | (LOOK["share"] if percent else {}), title={"text": y, "standoff": 6})
    return figure


def trial_label(names: Names, trial: pd.Series) -> str:
    """Method, id, status and parameters of a trial for a hover text."""
    params = params_text(json_object(trial.params))
    who = f"<b>{safe(names.method(trial.method))}</b> {safe(trial.trial_id)} ({safe(trial.status)})"
    return f"{who}<br>{safe(params)}" if params else who


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
        update(type="log", range=[a - room, b + room], tickvals=ticks, ticktext=list(map(format_value, ticks)), **where)
    else:
        room = 0.06 * (high - low) or 0.1 * (abs(high) or 1)
        update(range=[low - room, high + room], **where)
    return figure
