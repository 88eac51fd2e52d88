"""Accuracy against radius: a figure a ball, with the attacks and radii of the best trial of each method."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from markupsafe import Markup

from pipelines.reporting.data import RunData, accuracy_from_radii, distinct, final_rows
from pipelines.reporting.names import JOINT, OURS, in_order, json_object
from pipelines.reporting.plotting import LOOK, MANY, draw, meta, safe, style
from pipelines.reporting.render import capital, render

DASHES: dict[str, str] = OURS["dashes"]
"""By attack, the dashes of its line; the headline attack's line is solid."""
RADII_DASH = "6px,4px"
"""The dashes of radii from certificates of the user's own."""


def robustness(data: RunData) -> Markup:
    """Accuracy against radius, one figure a ball."""
    balls = balls_of(data) if data.best else []
    figures = {}
    for norm in attack_norms(data) if balls else ():
        curves = data.tables["curves"]
        attacked = distinct(curves[curves.norm == norm].ball)
        shown = [ball for ball in balls if norm == "l2" or ball in attacked]
        figures[norm] = [(ball, robustness_figure(data, ball, norm, i == 0)) for i, ball in enumerate(shown)]
    return render(
        "robustness",
        data,
        figures=figures,
        keys=[(kind, *_line_key(data, kind)) for kind in (*data.attacks, *data.certificates)],
        shown_at_first=shown_at_first,
        settings=attack_settings(data),
        bands=len(data.best) <= MANY,
        meanings=[_curve_meaning(data, c) for c in data.certificates],
        clips=_clips_differ(data),
    )


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


def balls_of(data: RunData) -> list[str]:
    """Balls with a curve or a radius, joint first."""
    found = distinct(data.tables["curves"].ball) | distinct(data.tables["radii"].ball)
    return [b for b in (JOINT, *data.modalities) if b in found]


def attack_norms(data: RunData) -> list[str]:
    """Norms to draw: ℓ2 first (radii are ℓ2 distances), then what else was attacked."""
    radii = {"l2"} if len(data.tables["radii"]) else set()
    return sorted(radii | distinct(final_rows(data.tables["curves"]).norm), key=lambda n: (n != "l2", n))


def robustness_figure(data: RunData, ball: str, norm: str = "l2", wide: bool = False) -> go.Figure:
    """Accuracy against radius in one ball: attacks and radii of the best trial of each method."""
    figure = go.Figure()
    limit = _reach(data, ball, norm)
    if data.chance:
        _add_chance(figure, data.chance, limit)
    for method, trial_id in data.best.items():
        for attack in reversed(in_order("attacks", {data.attack, *data.attacks})):  # the headline's lies on top
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
    look = LOOK["chance"]
    draw(figure, meta("", "chance"), [0, limit], [chance, chance], mode="lines", line=look["line"])
    # on the left, where no curve runs this low
    figure.add_annotation(look["label"], x=0, y=chance, text=f"chance {100 * chance:.3g} %")


def shown_at_first(data: RunData, kind: str) -> bool:
    """Whether a kind of curve is on when the page opens."""
    readable = len(data.best) <= MANY and (kind not in data.attacks or len(data.attacks) <= 2)
    return readable or kind == data.attack


def _add_attack(
    figure: go.Figure, data: RunData, method: str, trial_id: str, ball: str, norm: str, attack: str
) -> None:
    rows = final_rows(data.rows_of("curves", trial_id))
    rows = rows[(rows.ball == ball) & (rows.norm == norm) & (rows.attack == attack)]
    rows = rows.dropna(subset=["epsilon", "accuracy"]).sort_values("epsilon")
    if rows.empty:
        return
    clean = data.metric(trial_id, "clean_accuracy")
    start = [(0.0, clean.value, clean.low, clean.high)] if np.isfinite(clean.value) else []
    x, y, low, high = np.array([*start, *rows[["epsilon", "accuracy", "low", "high"]].to_numpy(dtype=float)]).T
    colour, main = data.names.colour(method), attack == data.attack
    known = np.isfinite(low) & np.isfinite(high)
    if main and known.sum() > 1 and len(data.best) <= MANY:
        xs, ys = np.concatenate([x[known], x[known][::-1]]), np.concatenate([high[known], low[known][::-1]])
        look = dict[str, Any](fill="toself", fillcolor=_rgba(colour, 0.14), line={"width": 0}, mode="lines")
        draw(figure, meta(method, attack), xs.tolist(), ys.tolist(), **look)
    width, dash = (2.4, "solid") if main else (1.3, DASHES.get(attack, "dot"))
    draw(
        figure,
        meta(method, attack),
        x.tolist(),
        y.tolist(),
        customdata=np.stack([low, high], axis=1).tolist(),
        mode="lines+markers" if main else "lines",
        line={"color": colour, "width": width, "dash": dash},
        marker={"size": 7, "symbol": data.names.mark(method)},
        hovertemplate=f"{safe(data.names.method(method))}, {safe(data.names.attack(attack))}<br>ε = %{{x:g}}: "
        "%{y:.1%}<br>95 % interval %{customdata[0]:.1%} – %{customdata[1]:.1%}",
        visible=shown_at_first(data, attack),
    )


def _add_radii(figure: go.Figure, data: RunData, method: str, trial_id: str, ball: str, limit: float) -> None:
    grid = np.linspace(0, limit, 161)
    for certificate in data.certificates:
        rows = data.radii(trial_id, certificate, ball)
        if rows.empty:
            continue
        width, dash = 2.6 if data.is_sound(certificate) else 1.7, DASHES.get(certificate, RADII_DASH)
        draw(
            figure,
            meta(method, certificate),
            grid.tolist(),
            accuracy_from_radii(rows, grid).tolist(),
            mode="lines",
            line={"color": data.names.colour(method), "width": width, "dash": dash},
            hovertemplate=f"{safe(data.names.method(method))}, {safe(data.certificate_name(certificate))} accuracy"
            f"<br>ε = %{{x:.2f}}: %{{y:.1%}}<br>n = {len(rows)}",
            visible=shown_at_first(data, certificate),
        )


def attack_settings(data: RunData) -> str:
    """`PGD, APGD-CE: 20 steps, 1 restart, margin loss; FGM: ...`: of the attacks whose rows all agree."""
    curves = data.tables["curves"]
    names: dict[str, list[str]] = {}
    for attack in data.attacks:
        found = curves[curves.attack == attack].settings.dropna().unique()
        text = data.names.settings(json_object(found[0])) if len(found) == 1 else ""
        if text:
            names.setdefault(text, []).append(data.names.attack(attack))
    return "; ".join(f"{', '.join(attacks)}: {text}" for text, attacks in names.items())


def _line_key(data: RunData, kind: str) -> tuple[str, str]:
    """What a button says that switches one kind of line, and the line's dashes."""
    attack = kind in data.attacks
    label = f"{data.names.attack(kind) if attack else data.certificate_name(kind)} accuracy"
    dash = "" if kind == data.attack else DASHES.get(kind, RADII_DASH).replace("px", "")
    return label if attack or data.is_sound(kind) else f"{label} (from radii)", dash


def _curve_meaning(data: RunData, certificate: str) -> Markup:
    """What the curve of its radii means."""
    known, word = data.names.certificate(certificate), data.certificate_name(certificate)
    if known.curve:
        return Markup(known.curve).format(Word=capital(word))
    bound = (
        "on these clips a <b>lower</b> bound under every attack" if known.sound else "it is <b>not</b> a certificate"
    )
    text = "<b>{}</b> accuracy is the share of clips predicted right with a radius ≥ ε ({}): " + bound + "."
    return Markup(text).format(capital(word), known.title)


def _clips_differ(data: RunData) -> str:
    """Where the lines of a figure are of different clips they may cross by chance: `50 smoothed, 150 attacked`."""
    counts: dict[int, list[str]] = {}
    radii = final_rows(data.tables["radii"])
    radii = radii[radii.ball == JOINT]
    sizes = [(c, radii[radii.certificate == c].groupby("trial_id").size()) for c in data.certificates]
    certified = [(data.names.certificate(c).clips, size) for c, size in sizes]
    for label, rows in (("attacked", data.tables["curves"].n), *certified):
        if len(rows):
            counts.setdefault(int(rows.max()), []).append(label)
    found = (f"{n} {' and '.join(labels)}" for n, labels in sorted(counts.items()))
    return ", ".join(found) if len(counts) > 1 else ""
