"""What step 2 changed: figures over all trials, a table of the best ones, and a warning where it did harm."""

from __future__ import annotations

from collections.abc import Callable
from html import escape

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from pipelines.reporting.data import (
    RunData,
    Share,
    distinct,
)
from pipelines.reporting.html import DASH, figure_block, method_label, nothing, percent, section, table
from pipelines.reporting.names import (
    attack_short,
    certificates_in_order,
    colour_of,
    mark_of,
    method_name,
)
from pipelines.reporting.plotting import meta, style, trial_label

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


Pick = Callable[[str, str], Share]
"""(trial_id, stage) to a number."""
Metric = tuple[str, bool, Pick]
"""Label (HTML), whether it is a share, how to get it."""
TITLE = "What step 2 changed"
STAGES = ("step1", "step2")


def step2(data: RunData) -> str:
    """The section; trials without both stages have no part in it."""
    metrics = _step_metrics(data)
    panels = [(label, share, _step_pairs(data, pick)) for label, share, pick in metrics if "validation" not in label]
    panels = [p for p in panels if len(p[2])]
    if not panels:
        return section("step2", TITLE, nothing("No trial of this run has numbers of both steps."))
    text = (
        "<p class=muted>Step 2 keeps encoders and head directions and sets only the integration weights, for the "
        "largest mean radius on the training clips. One line a trial. Step 2 is part of the method: its result is "
        "what is reported everywhere on this page, better or not.</p>"
    )
    text += "".join(f'<p class="note">{escape(s)}.</p>' for s in harmful(data))
    blocks = [
        figure_block(f"step2-{i}", label, step2_figure(pairs, share)) for i, (label, share, pairs) in enumerate(panels)
    ]
    grid = f'<div class="grid four">{"".join(blocks)}</div>'
    return section("step2", TITLE, f"{text}{grid}<h3>The best trial of each method, step 1 → step 2</h3>{_table(data)}")


def harmful(data: RunData) -> list[str]:
    """A sentence for each trial whose step 2 cost more validation accuracy than the configuration tolerates."""
    metrics = data.tables["metrics"]
    rows = metrics[(metrics["name"] == "step2_harmful") & (metrics.value == 1)]
    sentences = []
    for trial_id in sorted(distinct(rows.trial_id)):
        before, after = (data.metric(trial_id, "val_accuracy", None, s, "validation").value for s in STAGES)
        lost = f": validation accuracy fell from {percent(before)} to {percent(after)}" if np.isfinite(after) else ""
        trial = data.of("trials", trial_id)
        method = f" ({method_name(trial.method.iloc[-1])})" if len(trial) else ""
        sentences.append(f"Step 2 did harm in {trial_id}{method}{lost}")
    return sentences


def _step_metrics(data: RunData) -> list[Metric]:
    metrics = data.tables["metrics"]
    found: list[Metric] = []
    for certificate in _maximised(metrics):
        word = _capital(data.certificate_name(certificate))
        found.append((f"{word} radius <span>· train</span>", False, _metric(data, "train_mean_radius", certificate)))
        found.append((f"{word} radius <span>· test</span>", False, _metric(data, "mean_radius", certificate)))
    found.append(("Accuracy <span>· validation</span>", True, _metric(data, "val_accuracy")))
    found.append(("Robust accuracy <span>· validation</span>", True, _metric(data, "val_robust_accuracy")))
    found.append(("Clean accuracy <span>· test</span>", True, _metric(data, "clean_accuracy")))
    epsilon = data.headline
    if epsilon is not None:
        attack = _capital(attack_short(data.attack))
        label = f"Joint {escape(attack)}, ε = {epsilon:g} <span>· test</span>"
        found.append((label, True, lambda t, s: data.attacked(t, epsilon, stage=s)))
    return found


def _maximised(metrics: pd.DataFrame) -> list[str]:
    """The certificates whose radius step 2 maximised."""
    rows = metrics[metrics["name"] == "train_mean_radius"]
    return certificates_in_order(distinct(rows.certificate.fillna("estimate"))) or ["estimate"]


def _metric(data: RunData, name: str, certificate: str | None = None) -> Pick:
    split = "train" if name.startswith("train_") else "validation" if name.startswith("val_") else "test"
    return lambda trial_id, stage: data.metric(trial_id, name, None, stage, split, certificate)


def _capital(text: str) -> str:
    return escape(text[:1].upper() + text[1:])


def _step_pairs(data: RunData, pick: Pick) -> pd.DataFrame:
    rows = []
    for _, trial in data.tables["trials"].iterrows():
        before, after = (pick(str(trial.trial_id), stage).value for stage in STAGES)
        if np.isfinite(before) and np.isfinite(after):
            kept = {k: trial[k] for k in ("trial_id", "method", "status", "params")}
            rows.append({**kept, "step1": before, "step2": after})
    return pd.DataFrame(rows)


def _table(data: RunData) -> str:
    rows, metrics = [], _step_metrics(data)
    for method, trial_id in data.best.items():
        cells = [_change(pick(trial_id, "step1").value, pick(trial_id, "step2").value, s) for _, s, pick in metrics]
        if any(c != DASH for c in cells):
            rows.append([method_label(method), *cells])
    head = [("Method", False)]
    head += [(label.replace("<span>·", "<small>").replace("</span>", "</small>"), True) for label, _, _ in metrics]
    return table(head, rows, TITLE) if rows else nothing("No best trial of a method has numbers of both steps.")


def _change(before: float, after: float, share: bool) -> str:
    if not (np.isfinite(before) and np.isfinite(after)):
        return DASH
    shown = [percent(v) if share else f"{v:.3f}" for v in (before, after)]
    change = f"{100 * (after - before):+.1f} points" if share else f"{after - before:+.3f}"
    return f'<span class="nowrap">{shown[0]} → {shown[1]}</span><small>{change.replace("-", "−")}</small>'
