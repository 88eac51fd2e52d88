"""The sections of a report that hold figures: robustness, learning curves, search."""

from __future__ import annotations

from html import escape

import pandas as pd

from pipelines import figures
from pipelines.figures_search import search_axes, search_figure, symbol_of
from pipelines.report_data import RunData, distinct, final_rows, params_of, short_name
from pipelines.report_html import STATUSES, figure_block, nothing, section, swatch
from pipelines.report_names import JOINT, attack_name, glyph, method_name, methods_in_order


def method_keys(methods: list[str]) -> str:
    """Buttons that switch methods on and off in all figures."""
    return "".join(
        f'<button type="button" class="key" aria-pressed="true" data-toggle="method:{escape(m)}">'
        f"{swatch(m)}{escape(method_name(m))}</button>"
        for m in methods
    )


def _line_key(data: RunData, kind: str) -> str:
    label = f"{attack_name(kind)} accuracy" if kind in data.attacks else f"{data.certificate_name(kind)} accuracy"
    label += " (from radii)" if kind == "estimate" else ""
    main, on = kind == data.attack, str(figures.shown_at_first(data, kind)).lower()
    dash = "" if main else figures.DASHES.get(kind, "6px,4px").replace("px", "")
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
    title, balls = "Accuracy against radius", figures.balls_of(data)
    if not data.best or not balls:
        return section("robustness", title, nothing("No trial has been attacked or given radii yet."))
    keys = "".join(_line_key(data, k) for k in [*data.attacks, *data.certificates])
    settings = figures.attack_settings(data)
    bands = "Bands are 95 % intervals. " if len(data.best) <= figures.MANY else ""
    text = (
        "<p class=muted>The best trial of each method. Under attack, accuracy is an <b>upper</b> bound of what the "
        "model truly keeps: a stronger attack may find more. "
        f"{escape(settings) + '. ' if settings else ''}{_auto_words(data)}{bands}"
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
    return methods_in_order(distinct(data.tables["trials"].method))


def search(data: RunData) -> str:
    """Where the search went."""
    axes, figure = search_axes(data), search_figure(data)
    title = "What the search tried"
    if figure is None:
        return section("search", title, nothing("No number was searched over: there is nothing to draw here."))
    methods = _methods_in_order(data)
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
