"""The picture of the search: where the trials lie in two searched numbers, and what validation said of each."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from pipelines.reporting.data import RunData, distinct, params_of, short_name
from pipelines.reporting.html import figure_block, nothing, section
from pipelines.reporting.names import SYMBOLS, colour_of, glyph, method_name, methods_in_order
from pipelines.reporting.plotting import GREY, meta, safe, scaled, style, trial_label
from pipelines.reporting.sections.learning import methods_of

SCALE = [[0, "#3b2a78"], [0.3, "#2f6d9e"], [0.6, "#2fa98c"], [0.85, "#a8cf45"], [1, "#f2dc3b"]]


def symbol_of(method: Any, methods: Sequence[str]) -> str:
    """A marker symbol by the method's place among the methods of the run."""
    return SYMBOLS[(list(methods).index(method) if method in methods else 0) % len(SYMBOLS)]


def search_axes(data: RunData) -> list[str]:
    """The two searched numbers to draw: ρ and the learning rate if they were, else the first two."""
    found: dict[str, set[float]] = {}
    for text in data.tables["trials"].params:
        for key, value in params_of(text).items():
            if isinstance(value, int | float) and not isinstance(value, bool) and not key.endswith("seed"):
                found.setdefault(key, set()).add(float(value))
    preferred = [k for leaf in ("rho", "lr") for k in found if k.rpartition(".")[2] == leaf]
    rest = [k for k in found if k not in preferred]
    return [*preferred, *rest][:2]


def _searched(data: RunData, axes: Sequence[str]) -> pd.DataFrame:
    trials = data.tables["trials"].copy()
    params = [params_of(text) for text in trials.params]
    for i, key in enumerate(axes):
        values = [p.get(key) for p in params]
        trials[f"axis{i}"] = [float(v) if isinstance(v, int | float) else np.nan for v in values]
    return trials


def search_figure(data: RunData) -> go.Figure | None:
    """Where the search went and what it found: ρ × learning rate, coloured by the validation metric."""
    axes = search_axes(data)
    if not axes:
        return None
    trials = _searched(data, axes)
    return _one_axis(data, trials, axes[0]) if len(axes) == 1 else _two_axes(data, trials, axes)


def _one_axis(data: RunData, trials: pd.DataFrame, key: str) -> go.Figure:
    figure = go.Figure()
    rows = trials.dropna(subset=["axis0", "selected_value"])
    for method, group in rows.groupby("method"):
        figure.add_trace(
            go.Scatter(
                x=group.axis0.tolist(),
                y=group.selected_value.tolist(),
                mode="markers",
                marker=_points(data, group, str(method)) | {"color": colour_of(method)},
                hovertext=[trial_label(t) for _, t in group.iterrows()],
                hovertemplate="%{hovertext}<br>%{y:.1%}<extra></extra>",
                meta=meta(method, "search"),
            )
        )
    style(figure, 360, safe(short_name(key)), "Validation metric", percent=True)
    return scaled(figure, rows.axis0, "x")


def _two_axes(data: RunData, trials: pd.DataFrame, axes: Sequence[str]) -> go.Figure:
    trials = trials.dropna(subset=["axis1"])
    without = trials[trials.axis0.isna()]
    strip = len(without) > 0 and trials.axis0.notna().any()
    figure = make_subplots(
        rows=1,
        cols=2 if strip else 1,
        shared_yaxes=True,
        column_widths=[0.14, 0.86] if strip else [1.0],
        horizontal_spacing=0.02,
    )
    shown = trials.selected_value.dropna()
    low, high = (float(shown.min()), float(shown.max())) if len(shown) else (0.0, 1.0)
    for no_first, group_all in ((True, without), (False, trials[trials.axis0.notna()])):
        for method, group in group_all.groupby("method"):
            column = 1 if no_first or not strip else 2
            x = _spread(data, group, str(method)) if no_first else group.axis0.tolist()
            _add_points(figure, data, group, str(method), x, column)
    style(figure, 400, "", "")
    figure.update_yaxes(title_text=safe(short_name(axes[1])), col=1)
    scaled(figure, trials.axis1, "y")
    if strip:
        none = f"no {safe(short_name(axes[0]))}"
        figure.update_xaxes(range=[-1, 1], tickvals=[], title_text=none, showgrid=False, col=1)
        figure.update_xaxes(title_text=safe(short_name(axes[0])), col=2)
        scaled(figure, trials.axis0.dropna(), "x", col=2)
    elif trials.axis0.notna().any():
        figure.update_xaxes(title_text=safe(short_name(axes[0])))
        scaled(figure, trials.axis0.dropna(), "x")
    figure.update_layout(
        coloraxis={
            "colorscale": SCALE,
            "cmin": low,
            "cmax": high if high > low else low + 0.01,
            "colorbar": {
                "thickness": 10,
                "outlinewidth": 0,
                "tickformat": ".0%",
                "nticks": 6,
                "title": {"text": "validation", "side": "right", "font": {"size": 11}},
            },
        }
    )
    return figure


def _spread(data: RunData, group: pd.DataFrame, method: str) -> list[float]:
    """Places inside the strip: methods side by side."""
    methods = list(dict.fromkeys([*data.best, *data.tables["trials"].method.dropna()]))
    n = max(len(methods), 1)
    return [(methods.index(method) + 0.5) / n * 1.4 - 0.7 if n > 2 else 0.0] * len(group)


def _points(data: RunData, group: pd.DataFrame, method: str) -> dict[str, Any]:
    shape = symbol_of(method, methods_in_order(distinct(data.tables["trials"].method)))
    symbols = ["x-thin" if s == "failed" else shape if s == "finished" else f"{shape}-open" for s in group.status]
    return {"symbol": symbols, "size": 13, "line": {"width": 2}}


def _add_points(
    figure: go.Figure,
    data: RunData,
    group: pd.DataFrame,
    method: str,
    x: list[float],
    column: int,
) -> None:
    valued = group.selected_value.notna().to_numpy()
    hover = [
        f"{trial_label(t)}<br>validation {t.selected_value:.1%}"
        if pd.notna(t.selected_value)
        else f"{trial_label(t)}<br>no validation yet"
        for _, t in group.iterrows()
    ]
    for mask, with_colour in ((valued, True), (~valued, False)):
        if not mask.any():
            continue
        rows = group[mask]
        marker = _points(data, rows, method)
        if with_colour:
            line = {"width": 2, "color": rows.selected_value.tolist(), "coloraxis": "coloraxis"}
            marker |= {"color": rows.selected_value.tolist(), "coloraxis": "coloraxis", "line": line}
        else:
            marker |= {"color": GREY, "line": {"width": 2, "color": GREY}}
        figure.add_trace(
            go.Scatter(
                x=[v for v, m in zip(x, mask, strict=True) if m],
                y=rows.axis1.tolist(),
                mode="markers",
                marker=marker,
                hovertext=[h for h, m in zip(hover, mask, strict=True) if m],
                hovertemplate="%{hovertext}<extra></extra>",
                meta=meta(method, "search"),
            ),
            row=1,
            col=column,
        )


def search(data: RunData) -> str:
    """Where the search went."""
    axes, figure = search_axes(data), search_figure(data)
    title = "What the search tried"
    if figure is None:
        return section("search", title, nothing("No number was searched over: there is nothing to draw here."))
    methods = methods_of(data)
    glyphs = "".join(
        f'<span class="key"><svg width="14" height="14" fill="currentColor" aria-hidden="true">'
        f"{glyph(symbol_of(m, methods))}</svg>{escape(method_name(m))}</span>"
        for m in methods
    )
    names = " × ".join(escape(short_name(a)) for a in axes)
    strip = len(axes) > 1 and any(params_of(t).get(axes[0]) is None for t in data.tables["trials"].params)
    text = (
        f"<p class=muted>{names}: each mark is a trial. Filled: finished; hollow: stopped early or still running; "
        "cross: failed; grey: without a validation number."
        f"{' On the left: methods on which ' + escape(short_name(axes[0])) + ' has no effect.' if strip else ''}</p>"
        f'<div class="bar" aria-label="Marks">{glyphs}</div>'
    )
    colour = f" <span>· colour: {escape(data.selected_by or 'the metric')} on validation</span>"
    caption = names + colour * (len(axes) > 1)
    return section("search", title, text + figure_block("search-0", caption, figure))
