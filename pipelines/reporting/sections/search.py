"""The picture of the search: where the trials lie in two searched numbers, and what validation said of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.subplots import make_subplots

from pipelines.reporting.data import RunData, short_name
from pipelines.reporting.names import SYMBOLS, json_object
from pipelines.reporting.plotting import GREY, LOOK, draw, meta, safe, scaled, style, trial_label
from pipelines.reporting.render import render
from pipelines.reporting.sections.learning import methods_of


def search(data: RunData) -> Markup:
    """Where the search went."""
    axes, methods = search_axes(data), methods_of(data)
    without = len(axes) > 1 and any(json_object(t).get(axes[0]) is None for t in data.tables["trials"].params)
    return render(
        "search",
        data,
        plot=search_figure(data),
        axes=[short_name(axis) for axis in axes],
        marks=[(method, Markup(SYMBOLS[symbol_of(method, methods)])) for method in methods],
        without=without,
    )


def symbol_of(method: Any, methods: Sequence[str]) -> str:
    """A marker symbol by the method's place among the methods of the run."""
    symbols = list(SYMBOLS)
    return symbols[(list(methods).index(method) if method in methods else 0) % len(symbols)]


def search_axes(data: RunData) -> list[str]:
    """The two searched numbers to draw: ρ and the learning rate if they were, else the first two."""
    found: dict[str, set[float]] = {}
    for text in data.tables["trials"].params:
        for key, value in json_object(text).items():
            if isinstance(value, int | float) and not isinstance(value, bool) and not key.endswith("seed"):
                found.setdefault(key, set()).add(float(value))
    preferred = [k for leaf in ("rho", "lr") for k in found if k.rpartition(".")[2] == leaf]
    rest = [k for k in found if k not in preferred]
    return [*preferred, *rest][:2]


def search_figure(data: RunData) -> go.Figure | None:
    """Where the search went and what it found: ρ × learning rate, coloured by the validation metric."""
    axes, trials = search_axes(data), data.tables["trials"].copy()
    params = [json_object(text) for text in trials.params]
    for i, key in enumerate(axes):
        values = [p.get(key) for p in params]
        trials[f"axis{i}"] = [float(v) if isinstance(v, int | float) else np.nan for v in values]
    names = [safe(short_name(axis)) for axis in axes]
    if not axes:
        return None
    return _one_axis(data, trials, names[0]) if len(axes) == 1 else _two_axes(data, trials, *names)


def _one_axis(data: RunData, trials: pd.DataFrame, name: str) -> go.Figure:
    figure = go.Figure()
    rows = trials.dropna(subset=["axis0", "selected_value"])
    for method, group in rows.groupby("method"):
        marker = _markers(data, group, str(method)) | {"color": data.names.colour(method)}
        look: dict[str, Any] = {"mode": "markers", "marker": marker, "hovertemplate": "%{hovertext}<br>%{y:.1%}"}
        look["hovertext"] = [trial_label(data.names, t) for _, t in group.iterrows()]
        draw(figure, meta(method, "search"), group.axis0.tolist(), group.selected_value.tolist(), **look)
    style(figure, 360, name, "Validation metric", percent=True)
    return scaled(figure, rows.axis0, "x")


def _two_axes(data: RunData, trials: pd.DataFrame, first: str, second: str) -> go.Figure:
    trials = trials.dropna(subset=["axis1"])
    without = trials[trials.axis0.isna()]
    strip = len(without) > 0 and trials.axis0.notna().any()
    widths = [0.14, 0.86] if strip else [1.0]
    figure = make_subplots(1, len(widths), shared_yaxes=True, column_widths=widths, horizontal_spacing=0.02)
    for in_strip, rows in ((True, without), (False, trials[trials.axis0.notna()])):
        for method, group in rows.groupby("method"):
            x = _beside(data, group, str(method)) if in_strip else group.axis0
            _add_trials(figure, data, group.assign(x=x), str(method), 1 if in_strip or not strip else 2)
    style(figure, 400, "", "")
    figure.update_yaxes(title_text=second, col=1)
    scaled(figure, trials.axis1, "y")
    if strip:
        figure.update_xaxes(range=[-1, 1], tickvals=[], title_text=f"no {first}", showgrid=False, col=1)
    if trials.axis0.notna().any():
        figure.update_xaxes(title_text=first, col=len(widths))
        scaled(figure, trials.axis0, "x", col=len(widths))
    shown = trials.selected_value.dropna()
    low, high = (float(shown.min()), float(shown.max())) if len(shown) else (0.0, 1.0)
    colours = {"cmin": low, "cmax": high if high > low else low + 0.01}
    return figure.update_layout(coloraxis={"colorscale": LOOK["scale"], "colorbar": LOOK["search_bar"], **colours})


def _beside(data: RunData, group: pd.DataFrame, method: str) -> list[float]:
    """Places inside the strip: methods side by side."""
    methods = list(dict.fromkeys([*data.best, *data.tables["trials"].method.dropna()]))
    n = max(len(methods), 1)
    return [(methods.index(method) + 0.5) / n * 1.4 - 0.7 if n > 2 else 0.0] * len(group)


def _markers(data: RunData, group: pd.DataFrame, method: str) -> dict[str, Any]:
    shape = symbol_of(method, methods_of(data))
    symbols = ["x-thin" if s == "failed" else shape if s == "finished" else f"{shape}-open" for s in group.status]
    return {"symbol": symbols, "size": 13, "line": {"width": 2}}


def _add_trials(figure: go.Figure, data: RunData, group: pd.DataFrame, method: str, column: int) -> None:
    """Trials of a method at their `x` and `axis1`: those that validation judged in its colour, the others grey."""
    valued = group.selected_value.notna()
    for rows, coloured in ((group[valued], True), (group[~valued], False)):
        if rows.empty:
            continue
        colour = {"color": rows.selected_value.tolist(), "coloraxis": "coloraxis"} if coloured else {"color": GREY}
        marker = _markers(data, rows, method) | colour | {"line": {"width": 2, **colour}}
        said = [f"validation {v:.1%}" if coloured else "no validation yet" for v in rows.selected_value]
        hover = [f"{trial_label(data.names, t)}<br>{s}" for (_, t), s in zip(rows.iterrows(), said, strict=True)]
        look = {"mode": "markers", "marker": marker, "hovertext": hover, "hovertemplate": "%{hovertext}"}
        draw(figure, meta(method, "search"), rows.x.tolist(), rows.axis1.tolist(), **look, row=1, col=column)
