"""What step 2 changed: figures over all trials, a table of the best ones, and a warning where it did harm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from markupsafe import Markup

from pipelines.reporting.data import RunData, Share, distinct
from pipelines.reporting.names import in_order
from pipelines.reporting.plotting import draw, meta, style, trial_label
from pipelines.reporting.render import capital, percent, render

STAGES = ("step1", "step2")


@dataclass(frozen=True)
class Measure:
    """A number that both steps have."""

    label: str
    split: str
    is_share: bool
    share_of: Callable[[str, str], Share]
    """(trial_id, stage) to the number."""

    def both(self, trial_id: str) -> tuple[float, float] | None:
        """Its values after either step; None where one is missing."""
        before, after = (self.share_of(trial_id, stage).value for stage in STAGES)
        return (before, after) if np.isfinite(before) and np.isfinite(after) else None


def step2(data: RunData) -> Markup:
    """The section; trials without both stages have no part in it."""
    measures = _measures(data)
    pairs = [(m, _pairs(data, m)) for m in measures if m.split != "validation"]
    changes = {method: [m.both(trial_id) for m in measures] for method, trial_id in data.best.items()}
    return render(
        "step2",
        data,
        panels=[(m, step2_figure(data, rows, m.is_share)) for m, rows in pairs if len(rows)],
        harmful=harmful(data),
        measures=measures,
        changes={method: found for method, found in changes.items() if any(found)},
    )


def step2_figure(data: RunData, pairs: pd.DataFrame, percent: bool) -> go.Figure:
    """One line a trial from its value after step 1 to its value after step 2.

    `pairs`: columns trial_id, method, status, params, step1, step2.
    """
    figure = go.Figure()
    for _, pair in pairs.iterrows():
        value = "%{y:.1%}" if percent else "%{y:.3f}"
        draw(
            figure,
            meta(pair.method, str(pair.status)),
            ["step 1", "step 2"],
            [pair.step1, pair.step2],
            mode="lines+markers",
            line={"color": data.names.colour(pair.method), "width": 1.6},
            marker={"size": 7, "symbol": data.names.mark(pair.method)},
            opacity=0.85,
            hovertemplate=f"{trial_label(data.names, pair)}<br>%{{x}}: {value}",
        )
    style(figure, 250, "", "")
    values = pd.concat([pairs.step1, pairs.step2])
    room = max(0.12 * (values.max() - values.min()), 0.01)
    low, high = values.min() - room, values.max() + room
    if percent:
        low, high = max(low, -room / 4), min(high, 1 + room / 4)  # a marker's room, but no tick beyond a share's ends
    figure.update_yaxes(range=[low, high], tickformat=".1%" if percent else ".2f", nticks=6)
    figure.update_xaxes(range=[-0.25, 1.25], showgrid=False)
    return figure.update_layout(margin={"l": 52, "r": 14, "t": 8, "b": 32})


def harmful(data: RunData) -> list[str]:
    """A sentence for each trial whose step 2 cost more validation accuracy than the configuration tolerates."""
    metrics = data.tables["metrics"]
    rows = metrics[(metrics["name"] == "step2_harmful") & (metrics.value == 1)]
    sentences = []
    for trial_id in sorted(distinct(rows.trial_id)):
        before, after = (data.metric(trial_id, "val_accuracy", None, s, "validation").value for s in STAGES)
        lost = f": validation accuracy fell from {percent(before)} to {percent(after)}" if np.isfinite(after) else ""
        trial = data.rows_of("trials", trial_id)
        method = f" ({data.names.method(trial.method.iloc[-1])})" if len(trial) else ""
        sentences.append(f"Step 2 did harm in {trial_id}{method}{lost}")
    return sentences


def _measures(data: RunData) -> list[Measure]:
    def metric(label: str, split: str, name: str, certificate: str | None = None) -> Measure:
        return Measure(
            label, split, certificate is None, lambda t, s: data.metric(t, name, None, s, split, certificate)
        )

    found: list[Measure] = []
    for certificate in _maximised(data.tables["metrics"]):
        label = f"{capital(data.certificate_name(certificate))} radius"
        found.append(metric(label, "train", "train_mean_radius", certificate))
        found.append(metric(label, "test", "mean_radius", certificate))
    found.append(metric("Accuracy", "validation", "val_accuracy"))
    found.append(metric("Robust accuracy", "validation", "val_robust_accuracy"))
    found.append(metric("Clean accuracy", "test", "clean_accuracy"))
    epsilon = data.headline
    if epsilon is not None:
        label = f"Joint {capital(data.names.attack_short(data.attack))}, ε = {epsilon:g}"
        found.append(Measure(label, "test", True, lambda t, s: data.attacked(t, epsilon, stage=s)))
    return found


def _maximised(metrics: pd.DataFrame) -> list[str]:
    """The certificates whose radius step 2 maximised."""
    rows = metrics[metrics["name"] == "train_mean_radius"]
    return in_order("certificates", distinct(rows.certificate.fillna("estimate"))) or ["estimate"]


def _pairs(data: RunData, measure: Measure) -> pd.DataFrame:
    rows = []
    for _, trial in data.tables["trials"].iterrows():
        found = measure.both(str(trial.trial_id))
        if found:
            kept = {k: trial[k] for k in ("trial_id", "method", "status", "params")}
            rows.append({**kept, "step1": found[0], "step2": found[1]})
    return pd.DataFrame(rows)
