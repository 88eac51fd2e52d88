"""The sections of a report that hold figures: robustness, audit, learning curves, search, step 2."""

from __future__ import annotations

from collections.abc import Callable
from html import escape

import numpy as np
import pandas as pd

from pipelines import figures
from pipelines.figures import colour_of
from pipelines.figures_search import search_axes, search_figure, symbol_of
from pipelines.report_data import (
    CERTIFICATE_NAMES,
    JOINT,
    RunData,
    Share,
    distinct,
    method_name,
    params_of,
    short_name,
    wilson,
)
from pipelines.report_html import STATUSES, figure_block, method_label, nothing, number, percent, section, table

Pick = Callable[[str, str], Share]
"""(trial_id, stage) to a number."""

LINES = {
    "pgd": ("PGD accuracy", "", 2.4),
    "fgm": ("FGM accuracy", "1.5 3", 1.4),
    "estimate": ("estimated accuracy (from radii)", "6 4", 1.7),
    "lipschitz": ("certified accuracy (Lipschitz)", "16 5", 2.6),
    "smoothing": ("certified accuracy (99.9 %, smoothing)", "16 4 3 4", 2.6),
}
GLYPHS = {
    "circle": '<circle cx="7" cy="7" r="5"/>',
    "diamond": '<path d="M7 1l6 6-6 6-6-6z"/>',
    "square": '<path d="M2 2h10v10H2z"/>',
    "triangle-up": '<path d="M7 2l6 10H1z"/>',
    "triangle-down": '<path d="M7 12l6-10H1z"/>',
    "cross": '<path d="M5 1h4v4h4v4H9v4H5V9H1V5h4z"/>',
}


def method_keys(methods: list[str]) -> str:
    """Buttons that switch methods on and off in all figures."""
    return "".join(
        f'<button type="button" class="key" aria-pressed="true" data-toggle="method:{escape(m)}">'
        f'<span class="swatch" style="--c:{colour_of(m)}"></span>{escape(method_name(m))}</button>'
        for m in methods
    )


def _line_key(kind: str, on: bool) -> str:
    label, dash, width = LINES.get(kind, (f"{kind} accuracy", "6 4", 1.8))
    line = (
        f'<line x1="0" y1="5" x2="26" y2="5" stroke="currentColor" stroke-width="{width}" stroke-dasharray="{dash}"/>'
    )
    return (
        f'<button type="button" class="key" aria-pressed="{str(on).lower()}" data-toggle="kind:{escape(kind)}">'
        f'<svg width="26" height="10" aria-hidden="true">{line}</svg>{escape(label)}</button>'
    )


def robustness(data: RunData) -> str:
    """Accuracy against radius, one figure a ball."""
    title, balls = "Accuracy against radius", figures.balls_of(data)
    if not data.best or not balls:
        return section("robustness", title, nothing("No trial has been attacked or given radii yet."))
    attacks = [a for a in ("pgd", "fgm") if a in distinct(data.tables["curves"].attack)]
    keys = "".join(_line_key(k, figures.shown_at_first(data, k)) for k in [*attacks, *data.certificates])
    settings = figures.attack_settings(data)
    text = (
        "<p class=muted>The best trial of each method. Under attack, accuracy is an <b>upper</b> bound of what the "
        "model truly keeps: a stronger attack may find more. "
        f"{'PGD: ' + escape(settings) + '. ' if settings else ''}Bands are 95 % intervals. "
        f"{_certificate_words(data)}ε = 0 is clean accuracy.</p>"
        f'<div class="bar" role="group" aria-label="Show or hide">{method_keys(list(data.best))}'
        f'<span class="gap"></span>{keys}</div>'
    )
    for norm in figures.attack_norms(data):
        shown = balls if norm == "l2" else [b for b in balls if b in _attacked_balls(data, norm)]
        text += f"<h3>{escape(norm)} attacks</h3>" if norm != "l2" else ""
        blocks = [
            figure_block(
                f"curve-{norm}-{i}", _ball_caption(ball), figures.robustness_figure(data, ball, norm, i == 0), i == 0
            )
            for i, ball in enumerate(shown)
        ]
        text += "".join(blocks[:1]) + (f'<div class="grid">{"".join(blocks[1:])}</div>' if blocks[1:] else "")
    return section("robustness", title, text)


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
    if set(data.certificates) & {"lipschitz", "smoothing"}:
        words.append("<b>Certified</b> accuracy is a sound lower bound. ")
    return "".join(words)


def audit(data: RunData) -> str:
    """Violations of the radii under attack, of the best trial of each method and over all trials."""
    title, rows = "Do the radii hold? The audit", []
    few_methods = len(data.best) <= figures.MANY
    balls = (JOINT, *data.modalities) if few_methods else (JOINT,)
    for method, trial_id in data.best.items():
        for certificate in data.certificates or ["estimate"]:
            for ball in balls:
                found = data.audit(trial_id, certificate, ball)
                if found:
                    share, radius = wilson(*found), data.mean_radius(trial_id, certificate, ball)
                    ends = f"{100 * share.low:.1f} – {100 * share.high:.1f}"
                    rows.append(
                        [
                            method_label(method),
                            escape(CERTIFICATE_NAMES.get(certificate, certificate)),
                            f"{escape(ball)}<small>{escape(data.space_of(ball))}</small>",
                            number(radius.value),
                            f"<b>{found[0]}</b> of {found[1]}",
                            f'{percent(share.value)} <span class="ci">{ends}</span>',
                        ]
                    )
    if not rows:
        return section("audit", title, nothing("No radius has been audited by attack in this run."))
    text = (
        "<p class=muted>For each audited clip an attack tries to change the prediction strictly inside the clip's own "
        "radius. A violation refutes the radius. For an <b>estimated</b> radius the rate is a finding; for a "
        "<b>certified</b> one a single violation would be a bug. No violation is no proof: the attack may be too "
        f"weak.{'' if few_methods else ' The joint ball is shown; the others are in tables/radii.csv.'}</p>"
    )
    head = [("Method", False), ("Kind of radius", False), ("Ball and space", False), ("Mean radius", True)]
    head += [("Violations", True), ("Share, 95 % interval", True)]
    return section("audit", title, text + table(head, rows, "Audit of the radii") + _audit_total(data))


def _audit_total(data: RunData) -> str:
    counts = [data.audit(str(t)) for t in data.tables["trials"].trial_id]
    found = [c for c in counts if c]
    if len(found) < 2:
        return ""
    broken, audited = sum(c[0] for c in found), sum(c[1] for c in found)
    return (
        f'<p class="small muted" style="margin-top:10px">Over all {len(found)} audited trials, joint ball: {broken} of '
        f"{audited} estimated radii were broken.</p>"
    )


def learning(data: RunData) -> str:
    """Learning curves of all trials."""
    title, panels = "Learning curves", figures.learning_figures(data)
    if not panels:
        return section("learning", title, nothing("No epoch has been reported yet."))
    trials = data.tables["trials"]
    methods = _methods_in_order(data)
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


def _methods_in_order(data: RunData) -> list[str]:
    return list(dict.fromkeys([*data.best, *(str(m) for m in data.tables["trials"].method.dropna())]))


def search(data: RunData) -> str:
    """Where the search went."""
    axes, figure = search_axes(data), search_figure(data)
    title = "What the search tried"
    if figure is None:
        return section("search", title, nothing("No number was searched over: there is nothing to draw here."))
    methods = sorted(str(m) for m in data.tables["trials"].method.dropna().unique())
    glyphs = "".join(
        f'<span class="key"><svg width="14" height="14" fill="currentColor" aria-hidden="true">'
        f"{GLYPHS.get(symbol_of(m, methods), GLYPHS['circle'])}</svg>{escape(method_name(m))}</span>"
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
    caption = f"{names} <span>· colour: validation {escape(_metric_name(data))}</span>" if len(axes) > 1 else names
    return section("search", title, text + figure_block("search-0", caption, figure))


def _metric_name(data: RunData) -> str:
    names = data.tables["trials"].selected_by.dropna().unique()
    return str(names[0]).replace("_", " ") if len(names) else "metric"


def step2(data: RunData) -> str:
    """What step 2 changed, for the trials that have both stages."""
    title = "What step 2 changed"
    panels = [(label, share, _step_pairs(data, pick)) for label, share, pick in _step_metrics(data)]
    panels = [p for p in panels if len(p[2])]
    if not panels:
        return section("step2", title, nothing("No trial of this run has numbers of both steps."))
    text = (
        "<p class=muted>Step 2 keeps encoders and head directions and sets only the integration weights, for the "
        "largest mean radius on the training clips. One line a trial. Step 2 is part of the method: its result is "
        "what is reported everywhere on this page, better or not.</p>"
    )
    blocks = [
        figure_block(f"step2-{i}", label, figures.step2_figure(pairs, share))
        for i, (label, share, pairs) in enumerate(panels)
    ]
    head = [
        ("Mean over trials", False),
        ("Trials", True),
        ("After step 1", True),
        ("After step 2", True),
        ("Change", True),
    ]
    rows = [_step_row(label, share, pairs) for label, share, pairs in panels]
    grid = f'<div class="grid four">{"".join(blocks)}</div>'
    return section("step2", title, f"{text}{grid}<div style='height:14px'></div>{table(head, rows, title)}")


def _step_metrics(data: RunData) -> list[tuple[str, bool, Pick]]:
    found: list[tuple[str, bool, Pick]] = [
        (
            "Estimated radius <span>· train</span>",
            False,
            lambda t, s: data.metric(t, "train_mean_radius", None, s, "train"),
        ),
        ("Estimated radius <span>· test</span>", False, lambda t, s: data.metric(t, "mean_radius", None, s)),
        ("Clean accuracy <span>· test</span>", True, lambda t, s: data.metric(t, "clean_accuracy", None, s)),
    ]
    epsilon = data.headline
    if epsilon is not None:
        label = f"Joint PGD, ε = {epsilon:g} <span>· test</span>"
        found.append((label, True, lambda t, s: data.attacked(t, epsilon, stage=s)))
    return found


def _step_pairs(data: RunData, pick: Pick) -> pd.DataFrame:
    rows = []
    for _, trial in data.tables["trials"].iterrows():
        before, after = (pick(str(trial.trial_id), stage).value for stage in ("step1", "step2"))
        if np.isfinite(before) and np.isfinite(after):
            kept = {k: trial[k] for k in ("trial_id", "method", "status", "params")}
            rows.append({**kept, "step1": before, "step2": after})
    return pd.DataFrame(rows)


def _step_row(label: str, share: bool, pairs: pd.DataFrame) -> list[str]:
    before, after = float(pairs.step1.mean()), float(pairs.step2.mean())
    change = f"{100 * (after - before):+.1f} points" if share else f"{after - before:+.3f}"
    shown = [percent(v) if share else f"{v:.3f}" for v in (before, after)]
    return [label.replace("<span>", '<span class="muted">'), str(len(pairs)), *shown, change.replace("-", "−")]
