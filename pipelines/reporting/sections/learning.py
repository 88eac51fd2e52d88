"""Learning curves: a figure a metric, a line a trial."""

from __future__ import annotations

from html import escape

import pandas as pd
import plotly.graph_objects as go

from pipelines.reporting.data import (
    RunData,
    distinct,
)
from pipelines.reporting.html import STATUSES, figure_block, method_keys, nothing, section
from pipelines.reporting.names import (
    colour_of,
    mark_of,
    methods_in_order,
)
from pipelines.reporting.plotting import meta, scaled, style, trial_label

TRAIN_LOSS = ("loss", "train_loss")
LEARNING_PANELS = (
    ("Training loss", TRAIN_LOSS, False),
    ("Validation accuracy, clean", ("val_accuracy", "validation_accuracy"), True),
    ("Validation accuracy, attacked", ("val_robust_accuracy", "validation_robust_accuracy"), True),
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


def learning(data: RunData) -> str:
    """Learning curves of all trials."""
    title, panels = "Learning curves", learning_figures(data)
    if not panels:
        return section("learning", title, nothing("No epoch has been reported yet."))
    trials = data.tables["trials"]
    methods = methods_of(data)
    found = [s for s in STATUSES if s in set(trials.status)]
    status = "".join(
        f'<button type="button" class="key" aria-pressed="true" data-toggle="kind:{s}">{s}</button>' for s in found
    )
    text = (
        "<p class=muted>One line a trial; the chosen trial of each method is drawn stronger, trials that were stopped, "
        "failed or still run are lighter. Validation clips only: the test split plays no part here.</p>"
        f'<div class="bar" role="group" aria-label="Show or hide">{method_keys(methods)}<span class="gap"></span>'
        f"{status}</div>"
    )
    blocks = [figure_block(f"learning-{i}", escape(name), figure) for i, (name, figure) in enumerate(panels)]
    return section("learning", title, f'{text}<div class="grid">{"".join(blocks)}</div>')


def methods_of(data: RunData) -> list[str]:
    """The methods of the run, in the order of the page."""
    return methods_in_order(distinct(data.tables["trials"].method))
