"""The sections of a report that hold figures: robustness, learning curves, search."""

from __future__ import annotations

from html import escape

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from pipelines.reporting.data import (
    RunData,
    accuracy_from_radii,
    distinct,
    final_rows,
    params_of,
)
from pipelines.reporting.html import figure_block, method_keys, nothing, section
from pipelines.reporting.names import (
    JOINT,
    attack_name,
    attacks_in_order,
    colour_of,
    mark_of,
    method_name,
    settings_text,
)
from pipelines.reporting.plotting import GREY, MANY, meta, safe, style

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


def _rgba(colour: str, alpha: float) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"


def _wrapped(label: str, space: str, width: int) -> str:
    """The axis title with its space below it, broken at semicolons where it is long."""
    lines = [""]
    for part in space.split("; "):
        joined = f"{lines[-1]}; {part}" if lines[-1] else part
        lines = [*lines[:-1], joined] if len(joined) <= width or not lines[-1] else [*lines, part]
    return f"{label}<br>({';<br>'.join(map(safe, lines))})" if space else label


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


def _line_key(data: RunData, kind: str) -> str:
    label = f"{attack_name(kind)} accuracy" if kind in data.attacks else f"{data.certificate_name(kind)} accuracy"
    label += " (from radii)" if kind == "estimate" else ""
    main, on = kind == data.attack, str(shown_at_first(data, kind)).lower()
    dash = "" if main else DASHES.get(kind, "6px,4px").replace("px", "")
    width = 2.4 if main else 1.8
    line = (
        f'<line x1="0" y1="5" x2="34" y2="5" stroke="currentColor" stroke-width="{width}" stroke-dasharray="{dash}"/>'
    )
    return (
        f'<button type="button" class="key" aria-pressed="{on}" data-toggle="kind:{escape(kind)}">'
        f'<svg width="34" height="10" aria-hidden="true">{line}</svg>{escape(label)}</button>'
    )


def robustness(data: RunData) -> str:
    """Accuracy against radius, one figure a ball."""
    title, balls = "Accuracy against radius", balls_of(data)
    if not data.best or not balls:
        return section("robustness", title, nothing("No trial has been attacked or given radii yet."))
    keys = "".join(_line_key(data, k) for k in [*data.attacks, *data.certificates])
    settings = attack_settings(data)
    bands = "Bands are 95 % intervals. " if len(data.best) <= MANY else ""
    text = (
        "<p class=muted>The best trial of each method. Under attack, accuracy is an <b>upper</b> bound of what the "
        "model truly keeps: a stronger attack may find more. "
        f"{escape(settings) + '. ' if settings else ''}{_auto_words(data)}{bands}"
        f"{_certificate_words(data)}ε = 0 is clean accuracy.</p>"
        f'<div class="bar" role="group" aria-label="Show or hide">{method_keys(list(data.best))}'
        f'<span class="gap"></span>{keys}</div>'
    )
    for norm in attack_norms(data):
        shown = balls if norm == "l2" else [b for b in balls if b in _attacked_balls(data, norm)]
        text += f"<h3>{escape(norm)} attacks</h3>" if norm != "l2" else ""
        blocks = [
            figure_block(f"curve-{norm}-{i}", _ball_caption(ball), robustness_figure(data, ball, norm, i == 0), i == 0)
            for i, ball in enumerate(shown)
        ]
        text += "".join(blocks[:1]) + (f'<div class="grid">{"".join(blocks[1:])}</div>' if blocks[1:] else "")
    return section("robustness", title, text)


def _auto_words(data: RunData) -> str:
    return "<b>Auto</b> counts a clip as kept where none of all attacks breaks it. " if "auto" in data.attacks else ""


def _attacked_balls(data: RunData, norm: str) -> set[str]:
    curves = data.tables["curves"]
    return distinct(curves[curves.norm == norm].ball)


def _ball_caption(ball: str) -> str:
    if ball == JOINT:
        return "Joint ball <span>· one budget over all modalities together</span>"
    return f"Only {escape(ball)} <span>· the others untouched</span>"


def _certificate_words(data: RunData) -> str:
    words = []
    if "estimate" in data.certificates:
        words.append(
            "<b>Estimated</b> accuracy is the share of clips predicted right with an estimated radius ≥ ε: it rests on "
            "gradients of training clips and is <b>not</b> a certificate. "
        )
    if "lipschitz" in data.certificates:
        words.append(
            "<b>Certified</b> accuracy is the share predicted right with a proven radius ≥ ε: on these clips a "
            "<b>lower</b> bound under every attack. "
        )
    if "smoothing" in data.certificates:
        words.append(
            f"<b>{escape(data.certificate_name('smoothing').capitalize())}</b> is of the smoothed classifier, clip by "
            "clip, and starts at the share that it predicts right without abstaining; it says nothing about the model "
            "itself, which is what the attacks are on. "
        )
    return "".join(words) + _clips_words(data)


def _clips_words(data: RunData) -> str:
    """Where the lines of a figure are of different clips they may cross by chance."""
    counts: dict[int, list[str]] = {}
    for label, rows in (("attacked", data.tables["curves"].n), *_certified_clips(data)):
        if len(rows):
            counts.setdefault(int(rows.max()), []).append(label)
    if len(counts) < 2:
        return ""
    found = ", ".join(f"{n} {' and '.join(labels)}" for n, labels in sorted(counts.items()))
    return f"Of the test clips, {escape(found)}: lines of different clips may cross by the sample alone. "


def _certified_clips(data: RunData) -> list[tuple[str, pd.Series]]:
    radii = final_rows(data.tables["radii"])
    radii = radii[radii.ball == JOINT]
    names = {"estimate": "with an estimated radius", "lipschitz": "certified", "smoothing": "smoothed"}
    return [
        (names[kind], radii[radii.certificate == kind].groupby("trial_id").size())
        for kind in data.certificates
        if kind in names
    ]
