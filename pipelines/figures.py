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

from pipelines.report_data import (
    RunData,
    accuracy_from_radii,
    distinct,
    final_rows,
    format_value,
    params_of,
    params_text,
)
from pipelines.report_names import JOINT, attack_name, attacks_in_order, colour_of, mark_of, method_name, settings_text

GREY = "#8a929e"
GRID = "rgba(128,136,148,.22)"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
DASHES = {
    "estimate": "6px,4px",
    "lipschitz": "16px,5px",
    "smoothing": "16px,4px,3px,4px",
    "fgm": "1.5px,3px",
    "noise": "1px,6px",
    "pgd": "9px,3px",
    "apgd_ce": "9px,3px,2px,3px",
    "apgd_dlr": "9px,3px,2px,3px,2px,3px",
    "minimal_norm": "3px,3px",
    "square": "4px,8px",
}
"""Of lines that are not the headline's, which is solid."""
MANY = 5
"""More methods than this, and a figure draws no bands and begins with the headline's attack alone."""
TRAIN_LOSS = ("loss", "train_loss")
LEARNING_PANELS = (
    ("Training loss", TRAIN_LOSS, False),
    ("Validation accuracy, clean", ("val_accuracy", "validation_accuracy"), True),
    ("Validation accuracy, attacked", ("val_robust_accuracy", "validation_robust_accuracy"), True),
)


def safe(text: Any) -> str:
    """Text for plotly, which reads a little HTML in names and hover texts."""
    return escape(str(text), quote=False)


def _rgba(colour: str, alpha: float) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"


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


def _wrapped(label: str, space: str, width: int) -> str:
    """The axis title with its space below it, broken at semicolons where it is long."""
    lines = [""]
    for part in space.split("; "):
        joined = f"{lines[-1]}; {part}" if lines[-1] else part
        lines = [*lines[:-1], joined] if len(joined) <= width or not lines[-1] else [*lines, part]
    return f"{label}<br>({';<br>'.join(map(safe, lines))})" if space else label


# --- all methods in one line each --------------------------------------------------------------------


def ranking_figure(data: RunData) -> go.Figure:
    """A line a method, the best on top: accuracy under the headline's attack and clean, with intervals."""
    epsilon = data.headline
    clean = {m: data.metric(t, "clean_accuracy") for m, t in data.best.items()}
    attacked = {m: data.attacked(t, epsilon) if epsilon is not None else clean[m] for m, t in data.best.items()}
    order = sorted(data.best, key=lambda m: attacked[m].value if np.isfinite(attacked[m].value) else -1.0)
    figure = go.Figure()
    for method in order:
        name, colour = safe(method_name(method)), colour_of(method)
        for kind, share, symbol in (("clean", clean[method], "-open"), (data.attack, attacked[method], "")):
            if not np.isfinite(share.value):
                continue
            line = {"width": 1.6, "color": colour}
            ends = {"array": [share.high - share.value], "arrayminus": [share.value - share.low]}
            figure.add_trace(
                go.Scatter(
                    x=[share.value],
                    y=[name],
                    mode="markers",
                    marker={"size": 10, "color": colour, "symbol": mark_of(method) + symbol, "line": line},
                    error_x={"type": "data", **ends, "thickness": 1.4, "width": 0} if share.has_interval else None,
                    hovertemplate=f"{name}, {safe(attack_name(kind))}<br>%{{x:.1%}}, n = {share.n}<extra></extra>",
                    meta=meta(method, "ranking"),
                )
            )
    style(figure, 70 + 25 * len(order), "Accuracy on the test split", "")
    figure.update_xaxes(range=[0, 1.02], tickformat=".0%", dtick=0.25)
    figure.update_yaxes(categoryorder="array", categoryarray=[safe(method_name(m)) for m in order])
    return figure.update_layout(margin={"l": 140, "t": 8, "b": 52})


# --- robustness curves -------------------------------------------------------------------------------


def balls_of(data: RunData) -> list[str]:
    """Balls with a curve or a radius, joint first."""
    found = distinct(data.tables["curves"].ball) | distinct(data.tables["radii"].ball)
    return [b for b in (JOINT, *data.modalities) if b in found]


def attack_norms(data: RunData) -> list[str]:
    """Norms to draw: ℓ2 first (radii are ℓ2 distances), then what else was attacked."""
    found = distinct(final_rows(data.tables["curves"]).norm)
    radii = {"l2"} if len(data.tables["radii"]) else set()
    return sorted(found | radii, key=lambda n: (n != "l2", n))


def robustness_figure(data: RunData, ball: str, norm: str = "l2", wide: bool = False) -> go.Figure:
    """Accuracy against radius in one ball: attacks and radii of the best trial of each method."""
    figure = go.Figure()
    limit = _reach(data, ball, norm)
    if data.chance:
        _add_chance(figure, data.chance, limit)
    for method, trial_id in data.best.items():
        for attack in reversed(attacks_in_order({data.attack, *data.attacks})):  # the headline's lies on top
            _add_attack(figure, data, method, trial_id, ball, norm, attack)
        if norm == "l2":
            _add_radii(figure, data, method, trial_id, ball, limit)
    label = {"l2": "ℓ2 budget ε", "linf": "ℓ∞ budget ε"}.get(norm, f"{safe(norm)} budget ε")
    x = _wrapped(label, data.space_of(ball), 44)
    style(figure, 430 if wide else 340, x, "Accuracy on the test split", percent=True)
    figure.update_layout(margin_b=62 + 16 * (x.count("<br>") - 1))
    return figure.update_xaxes(range=[-0.015 * limit, limit * 1.02])


def _reach(data: RunData, ball: str, norm: str) -> float:
    """Where the x axis ends: at the largest budget of an attack, or else at the largest radius."""
    curves, radii = data.tables["curves"], data.tables["radii"]
    budgets = curves[(curves.ball == ball) & (curves.norm == norm)].epsilon
    radius = radii[radii.ball == ball].radius
    found = [float(v) for v in (budgets.max(), radius.max()) if pd.notna(v) and v > 0]
    return found[0] if found else 1.0


def _add_chance(figure: go.Figure, chance: float, limit: float) -> None:
    figure.add_trace(
        go.Scatter(
            x=[0, limit],
            y=[chance, chance],
            mode="lines",
            line={"color": GREY, "width": 1, "dash": "2px,3px"},
            hoverinfo="skip",
            meta=meta("", "chance"),
        )
    )
    label = f"chance {100 * chance:.3g} %"
    # on the left, where no curve runs this low
    where = {"xanchor": "left", "yanchor": "bottom", "xshift": 4}
    figure.add_annotation(x=0, y=chance, text=label, showarrow=False, **where)


def shown_at_first(data: RunData, kind: str) -> bool:
    """Whether a kind of curve is on when the page opens."""
    if kind == data.attack:
        return True
    return len(data.best) <= MANY and (kind not in data.attacks or len(data.attacks) <= 2)


def _add_attack(
    figure: go.Figure, data: RunData, method: str, trial_id: str, ball: str, norm: str, attack: str
) -> None:
    rows = final_rows(data.of("curves", trial_id))
    rows = rows[(rows.ball == ball) & (rows.norm == norm) & (rows.attack == attack)]
    rows = rows.dropna(subset=["epsilon", "accuracy"]).sort_values("epsilon")
    if rows.empty:
        return
    clean = data.metric(trial_id, "clean_accuracy")
    start = [clean] if np.isfinite(clean.value) else []
    x = np.array([*(0.0 for _ in start), *rows.epsilon])
    y = np.array([*(c.value for c in start), *rows.accuracy])
    low = np.array([*(c.low for c in start), *rows.low])
    high = np.array([*(c.high for c in start), *rows.high])
    colour, main = colour_of(method), attack == data.attack
    known = np.isfinite(low) & np.isfinite(high)
    if main and known.sum() > 1 and len(data.best) <= MANY:
        figure.add_trace(
            go.Scatter(
                x=np.concatenate([x[known], x[known][::-1]]).tolist(),
                y=np.concatenate([high[known], low[known][::-1]]).tolist(),
                fill="toself",
                fillcolor=_rgba(colour, 0.14),
                line={"width": 0},
                mode="lines",
                hoverinfo="skip",
                meta=meta(method, attack),
            )
        )
    name = f"{safe(method_name(method))}, {safe(attack_name(attack))}"
    figure.add_trace(
        go.Scatter(
            x=x.tolist(),
            y=y.tolist(),
            customdata=np.stack([low, high], axis=1).tolist(),
            mode="lines+markers" if main else "lines",
            line={"color": colour, "width": 2.4, "dash": "solid"}
            if main
            else {"color": colour, "width": 1.3, "dash": DASHES.get(attack, "dot")},
            marker={"size": 7, "symbol": mark_of(method)},
            hovertemplate=f"{name}<br>ε = %{{x:g}}: %{{y:.1%}}<br>95 % interval %{{customdata[0]:.1%}} – "
            "%{customdata[1]:.1%}<extra></extra>",
            meta=meta(method, attack),
            visible=shown_at_first(data, attack),
        )
    )


def _add_radii(figure: go.Figure, data: RunData, method: str, trial_id: str, ball: str, limit: float) -> None:
    grid = np.linspace(0, limit, 161)
    for certificate in data.certificates:
        rows = data.radii(trial_id, certificate, ball)
        if rows.empty:
            continue
        word = data.certificate_name(certificate)
        dash = DASHES.get(certificate, "6px,4px")
        figure.add_trace(
            go.Scatter(
                x=grid.tolist(),
                y=accuracy_from_radii(rows, grid).tolist(),
                mode="lines",
                line={"color": colour_of(method), "width": 1.7 if certificate == "estimate" else 2.6, "dash": dash},
                hovertemplate=f"{safe(method_name(method))}, {safe(word)} accuracy"
                f"<br>ε = %{{x:.2f}}: %{{y:.1%}}<br>n = {len(rows)}<extra></extra>",
                meta=meta(method, certificate),
                visible=shown_at_first(data, certificate),
            )
        )


# --- learning curves ---------------------------------------------------------------------------------


def learning_figures(data: RunData) -> list[tuple[str, go.Figure]]:
    """Training loss, validation accuracy clean and attacked: one thin line a trial."""
    epochs = data.tables["epochs"].dropna(subset=["value"])
    panels = []
    for title, names, percent in LEARNING_PANELS:
        rows = epochs[epochs["name"].isin(names)]
        if len(rows):
            panels.append((title, _learning_figure(data, rows, percent)))
    return panels


def _learning_figure(data: RunData, rows: pd.DataFrame, percent: bool) -> go.Figure:
    figure = go.Figure()
    curves = {str(k): v.sort_values("epoch") for k, v in rows.groupby("trial_id")}
    trials = data.tables["trials"]
    # finished ones last, so that they lie on top
    order = trials.assign(last=trials.status == "finished").sort_values(["last", "trial_id"])
    for _, trial in order.iterrows():
        curve = curves.get(str(trial.trial_id))
        if curve is None:
            continue
        done = trial.status == "finished"
        chosen = trial.trial_id in data.best.values()
        few_points = len(curve) <= 12
        figure.add_trace(
            go.Scatter(
                x=curve.epoch.tolist(),
                y=curve.value.tolist(),
                mode="lines+markers" if few_points else "lines",
                marker={"size": 5 if len(curve) > 1 else 7, "symbol": mark_of(trial.method)},
                line={"color": colour_of(trial.method), "width": 2 if chosen else 1.1},
                opacity=1.0 if chosen else 0.7 if done else 0.32,
                hovertemplate=f"{trial_label(trial)}<br>epoch %{{x}}: %{{y:{'.1%' if percent else '.4g'}}}"
                "<extra></extra>",
                meta=meta(trial.method, str(trial.status)),
            )
        )
    style(figure, 300, "Epoch", "", percent=percent)
    if not percent:
        scaled(figure, rows.value, "y")
    figure.update_xaxes(rangemode="tozero")
    return figure.update_layout(margin={"l": 46, "t": 8, "b": 44})


def trial_label(trial: pd.Series) -> str:
    """Method, id, status and parameters of a trial for a hover text."""
    params = params_text(params_of(trial.params))
    return (
        f"<b>{safe(method_name(trial.method))}</b> {safe(trial.trial_id)} ({safe(trial.status)})"
        f"{'<br>' + safe(params) if params else ''}"
    )


# --- step 2 ------------------------------------------------------------------------------------------


def step2_figure(pairs: pd.DataFrame, percent: bool) -> go.Figure:
    """One line a trial from its value after step 1 to its value after step 2.

    `pairs`: columns trial_id, method, status, params, step1, step2.
    """
    figure = go.Figure()
    for _, pair in pairs.iterrows():
        value = "%{y:.1%}" if percent else "%{y:.3f}"
        figure.add_trace(
            go.Scatter(
                x=["step 1", "step 2"],
                y=[pair.step1, pair.step2],
                mode="lines+markers",
                line={"color": colour_of(pair.method), "width": 1.6},
                marker={"size": 7, "symbol": mark_of(pair.method)},
                opacity=0.85,
                hovertemplate=f"{trial_label(pair)}<br>%{{x}}: {value}<extra></extra>",
                meta=meta(pair.method, str(pair.status)),
            )
        )
    style(figure, 250, "", "")
    values = pd.concat([pairs.step1, pairs.step2])
    room = max(0.12 * (values.max() - values.min()), 0.01)
    low, high = values.min() - room, values.max() + room
    if percent:
        low, high = max(low, -room / 4), min(high, 1 + room / 4)  # a marker's room, but no tick beyond a share's ends
    figure.update_yaxes(range=[low, high], tickformat=".1%" if percent else ".2f")
    figure.update_yaxes(nticks=6)
    figure.update_xaxes(range=[-0.25, 1.25], showgrid=False)
    return figure.update_layout(margin={"l": 52, "r": 14, "t": 8, "b": 32})


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


def attack_settings(data: RunData) -> str:
    """`PGD, APGD-CE: 20 steps, 1 restart, margin loss; FGM: ...`: of the attacks whose rows all agree."""
    curves = data.tables["curves"]
    names: dict[str, list[str]] = {}
    for attack in data.attacks:
        found = curves[curves.attack == attack].settings.dropna().unique()
        text = settings_text(params_of(found[0])) if len(found) == 1 else ""
        if text:
            names.setdefault(text, []).append(attack_name(attack))
    return "; ".join(f"{', '.join(attacks)}: {text}" for text, attacks in names.items())
