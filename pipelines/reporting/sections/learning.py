"""Learning curves: a figure a metric, a line a trial."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go
from markupsafe import Markup

from pipelines.reporting.data import RunData, distinct
from pipelines.reporting.names import in_order
from pipelines.reporting.plotting import draw, meta, scaled, style, trial_label
from pipelines.reporting.render import STATUSES, render

PANELS = (
    ("Training loss", ("loss", "train_loss"), False),
    ("Validation accuracy, clean", ("val_accuracy", "validation_accuracy"), True),
    ("Validation accuracy, attacked", ("val_robust_accuracy", "validation_robust_accuracy"), True),
)
"""Caption, names of the metric in the table of epochs, whether it is a share."""


def learning(data: RunData) -> Markup:
    """Learning curves of all trials."""
    statuses = [s for s in STATUSES if s in set(data.tables["trials"].status)]
    return render("learning", data, panels=learning_figures(data), methods=methods_of(data), statuses=statuses)


def learning_figures(data: RunData) -> list[tuple[str, go.Figure]]:
    """Training loss, validation accuracy clean and attacked: one thin line a trial."""
    epochs = data.tables["epochs"].dropna(subset=["value"])
    panels = [(title, epochs[epochs["name"].isin(names)], percent) for title, names, percent in PANELS]
    return [(title, _learning_figure(data, rows, percent)) for title, rows, percent in panels if len(rows)]


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
        chosen = trial.trial_id in data.best.values()
        draw(
            figure,
            meta(trial.method, str(trial.status)),
            curve.epoch.tolist(),
            curve.value.tolist(),
            mode="lines+markers" if len(curve) <= 12 else "lines",
            marker={"size": 5 if len(curve) > 1 else 7, "symbol": data.names.mark(trial.method)},
            line={"color": data.names.colour(trial.method), "width": 2 if chosen else 1.1},
            opacity=1.0 if chosen else 0.7 if trial.status == "finished" else 0.32,
            hovertemplate=f"{trial_label(data.names, trial)}<br>epoch %{{x}}: %{{y:{'.1%' if percent else '.4g'}}}",
        )
    style(figure, 300, "Epoch", "", percent=percent)
    if not percent:
        scaled(figure, rows.value, "y")
    figure.update_xaxes(rangemode="tozero")
    return figure.update_layout(margin={"l": 46, "t": 8, "b": 44})


def methods_of(data: RunData) -> list[str]:
    """The methods of the run, in the order of the page."""
    return in_order("methods", distinct(data.tables["trials"].method))
