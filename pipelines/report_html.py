"""The sections of a report as HTML. Every text that comes from data is escaped here."""

from __future__ import annotations

from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go

from pipelines import figures
from pipelines.figures import MANY
from pipelines.report_data import MISSING, RunData, Share, few, params_of, params_text, wilson
from pipelines.report_names import JOINT, attack_name, attack_short, colour_of, mark_of, method_name, under

DASH = "–"
STATUSES = ("finished", "stopped", "running", "failed")


def percent(value: Any) -> str:
    """`88.3 %`, or a dash; the space does not break."""
    return f"{100 * float(value):.1f}\u00a0%" if value is not None and np.isfinite(float(value)) else DASH


def number(value: Any) -> str:
    """Two decimals, or a dash."""
    return f"{float(value):.2f}" if value is not None and np.isfinite(float(value)) else DASH


def duration(seconds: Any) -> str:
    """`42 s`, `3 min 05 s`, `2 h 10 min`."""
    if seconds is None or not np.isfinite(float(seconds)):
        return DASH
    whole = round(float(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def swatch(method: Any) -> str:
    """The method's colour in the shape of its mark."""
    return f'<span class="swatch {mark_of(method)}" style="--c:{colour_of(method)}"></span>'


def method_label(method: Any) -> str:
    """The method's name behind its colour."""
    return f'<span class="nowrap">{swatch(method)}{escape(method_name(method))}</span>'


def section(anchor: str, title: str, body: str) -> str:
    """A section with its heading; `body` is HTML."""
    return f'<section id="{anchor}" aria-labelledby="{anchor}-h"><h2 id="{anchor}-h">{title}</h2>{body}</section>'


def nothing(text: str) -> str:
    """What a section says that has nothing to show."""
    return f"<p class=muted>{text}</p>"


def figure_block(name: str, caption: str, figure: go.Figure, wide: bool = False, method: str | None = None) -> str:
    """A figure in its card; `caption` is HTML. With `method`, it goes and comes with that method's button."""
    # drawn at the end of the page: before its neighbours exist, a figure in a grid measures a wrong width
    spec = figure.to_json().replace("<", "\\u003c")
    of = f' data-method="{escape(method)}"' if method is not None else ""
    return (
        f'<figure class="card{" wide" if wide else ""}"{of}><figcaption>{caption}</figcaption>'
        f'<div id="{name}" class="plot" style="height:{figure.layout.height}px"></div>'
        f'<script type="application/json" data-plot="{name}">{spec}</script></figure>'
    )


def table(head: list[tuple[str, bool]], rows: list[list[str]], label: str) -> str:
    """A plain table; cells are HTML, the first of a row is its head; `head` says which columns hold numbers."""
    heads = "".join(f'<th scope="col"{" class=r" if right else ""}>{text}</th>' for text, right in head)
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>'
        + "".join(f"<td{' class=r' if head[i + 1][1] else ''}>{cell}</td>" for i, cell in enumerate(row[1:]))
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}"><table>'
        f"<thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>"
    )


# --- 2. the best of each method ------------------------------------------------------------------------


def comparison(data: RunData) -> str:
    """Tiles and the table of the best trial of each method."""
    if not data.best:
        return section("comparison", "The best trial of each method", nothing("No trial has come to its end yet."))
    by = data.selected_by
    early = [method_name(m) for m, t in data.best.items() if data.trial(t).status != "finished"]
    text = (
        f"<p class=muted>Chosen on the <b>validation</b> split{' by ' + escape(by) if by else ''}; every "
        "number below is from the test split, which no choice has seen. Shares carry 95 % Wilson intervals, mean "
        "radii normal ones. Bold: above all others, and the intervals do not overlap.</p>"
    )
    if early:
        text += (
            f'<p class="note">No finished trial yet of {escape(", ".join(early))}: the best stopped one stands in.</p>'
        )
    return section("comparison", "The best trial of each method", text + _tiles(data) + _tables(data))


def _tiles(data: RunData) -> str:
    if len(data.best) > 2 * MANY:  # the figure and the table say it better
        return figure_block("ranking", _ranking_caption(data), figures.ranking_figure(data), True)
    return f'<div class="tiles">{"".join(_tile(data, m, t) for m, t in data.best.items())}</div>'


def _ranking_caption(data: RunData) -> str:
    if data.headline is None:
        return "Clean accuracy <span>· test split, 95 % intervals</span>"
    attacked = f"Filled: under {escape(under(data.attack, data.headline))}"
    return f"{attacked}; hollow: clean <span>· test split, 95 % intervals</span>"


def _tile(data: RunData, method: str, trial_id: str) -> str:
    trial = data.trial(trial_id)
    clean = data.metric(trial_id, "clean_accuracy")
    rows = [("Clean accuracy", percent(clean.value))]
    rows += [
        (f"Mean {escape(data.certificate_name(c))} radius", number(data.mean_radius(trial_id, c).value))
        for c in data.certificates
    ]
    rows += [
        ("Validation", percent(trial.selected_value)),
        ("Parameters", escape(params_text(params_of(trial.params)) or DASH)),
    ]
    if not np.isfinite(clean.value) and data.attacked(trial_id, data.headline or 0.0) is MISSING:
        big, what = percent(trial.selected_value), "on validation; not tested yet"
        rows = rows[-2:]
    elif data.headline is None:
        big, what = percent(clean.value), "clean accuracy on the test split"
        rows = rows[1:]
    else:
        attacked = data.attacked(trial_id, data.headline)
        big, what = percent(attacked.value), f"under {under(data.attack, data.headline)}"
    items = "".join(f"<dt>{k}</dt><dd>{v}</dd>" for k, v in rows)
    return (
        f'<div class="tile" style="--c:{colour_of(method)}"><h3>{swatch(method)}{escape(method_name(method))}</h3>'
        f'<div class="big">{big}</div><p class="small muted">{what}</p><dl>{items}</dl></div>'
    )


Row = tuple[str, list[Share], bool]
"""Label (HTML), a number a method, whether they are shares."""


_CLEAN = ("Without attack", "One modality alone", "A modality missing (replaced by its mean)")
_CLEAN_TABLE = "Without attack: all modalities, one alone, one missing (replaced by its mean)"
_INDICATOR = "Vulnerability indicator, ratio between the modalities · "
_ABSTENTIONS = "Abstentions · "
_RADIUS = "Mean {} ℓ2 radius"


def _tables(data: RunData) -> str:
    groups = [(title, [r for r in rows if any(np.isfinite(s.value) for s in r[1])]) for title, rows in _groups(data)]
    groups = [(title, rows) for title, rows in groups if rows]
    if not groups:
        return ""
    return _methods_down(data, groups) if len(data.best) > MANY else _methods_across(data, groups)


def _groups(data: RunData) -> list[tuple[str, list[Row]]]:
    """Everything that is compared, under headings; certificates never together."""
    best = list(data.best.values())

    def of(name: str, modality: str | None = None, certificate: str | None = None) -> list[Share]:
        return [data.metric(t, name, modality, certificate=certificate) for t in best]

    mods = [(m, escape(m)) for m in data.modalities]
    attack = attack_short(data.attack)
    groups: list[tuple[str, list[Row]]] = [
        (_CLEAN[0], [("Clean accuracy", of("clean_accuracy"), True)]),
        (_CLEAN[1], [(f"{_capital(h)} alone", of("unimodal_accuracy", m), True) for m, h in mods]),
        (
            _CLEAN[2],
            [(f"Without {h}", of("missing_accuracy", m), True) for m, h in mods],
        ),
        (
            f"Under attack in the joint ℓ2 ball: {escape(attack_name(data.attack))} ({escape(data.space_of(JOINT))})",
            [
                (f"{escape(_capital(attack))} accuracy, ε\u00a0=\u00a0{e:g}", [data.attacked(t, e) for t in best], True)
                for e in few(data.budgets, data.headline)
            ],
        ),
    ]
    first, second = [*(h for _, h in mods), "", ""][:2]
    for certificate in data.certificates or ["estimate"]:
        balls = (JOINT, *(data.modalities if len(data.modalities) > 1 else []))
        word = escape(data.certificate_name(certificate))
        radii: list[Row] = [
            (
                f"{escape(_capital(ball))}<small>{escape(data.space_of(ball))}</small>",
                [data.mean_radius(t, certificate, ball) for t in best],
                False,
            )
            for ball in balls
        ]
        groups.append((_RADIUS.format(word), radii))
        ratio = of("indicator_ratio", certificate=certificate)
        label = f"Mean η<sup>{first}</sup> / η<sup>{second}</sup>"
        groups.append((_INDICATOR + word, [(label, ratio, False)]))
        if certificate == "smoothing":
            groups.append(
                (_ABSTENTIONS + word, [("Abstained, share of clips", [_abstained(data, t) for t in best], True)])
            )
    return groups


def _abstained(data: RunData, trial_id: str) -> Share:
    found = data.abstained(trial_id)
    return wilson(*found) if found else MISSING


def _methods_across(data: RunData, groups: list[tuple[str, list[Row]]]) -> str:
    """A few methods: a column each, the numbers below one another with their bars."""
    body = "".join(_group_rows(title, rows, data) for title, rows in groups)
    heads = "".join(
        f'<th scope="col">{method_label(m)}<small><code>{escape(t)}</code></small></th>' for m, t in data.best.items()
    )
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Best trial of each method"><table class="compare">'
        f'<thead><tr><th scope="col">Test split</th>{heads}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _methods_down(data: RunData, groups: list[tuple[str, list[Row]]]) -> str:
    """Many methods: a row each, in a few tables."""
    html, merged = "", dict[str, list[Row]]()
    for title, rows in groups:
        word = title.removeprefix(_INDICATOR).removeprefix(_ABSTENTIONS)
        key = _CLEAN_TABLE if title in _CLEAN else title if word == title else _RADIUS.format(word)
        merged.setdefault(key, []).extend(rows)
    for title, rows in merged.items():
        heads = "".join(f'<th scope="col" class=r>{label}</th>' for label, _, _ in rows)
        body = ""
        for i, (method, trial_id) in enumerate(data.best.items()):
            cells = "".join(
                _share_cell(shares[i], colour_of(method), is_share, _clearly_best(shares, i), "r")
                for _, shares, is_share in rows
            )
            tip = f' title="{escape(trial_id)}"'
            body += f'<tr><th scope="row"{tip}>{method_label(method)}</th>{cells}</tr>'
        html += (
            f'<h3>{title}</h3><div class="scroll" tabindex="0" role="region" aria-label="{_plain(title)}">'
            f'<table class="compare down"><thead><tr><th scope="col">Method</th>{heads}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>"
        )
    return html


def _plain(html: str) -> str:
    return html.replace('"', "&quot;")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _group_rows(title: str, rows: list[Row], data: RunData) -> str:
    html = f'<tr class="group"><th scope="rowgroup" colspan="{1 + len(data.best)}">{title}</th></tr>'
    for label, shares, is_share in rows:
        cells = "".join(
            _share_cell(s, colour_of(m), is_share, _clearly_best(shares, i))
            for i, (m, s) in enumerate(zip(data.best, shares, strict=True))
        )
        html += f'<tr><th scope="row">{label}</th>{cells}</tr>'
    return html


def _clearly_best(shares: list[Share], place: int) -> bool:
    others = [s for i, s in enumerate(shares) if i != place]
    mine = shares[place]
    return mine.has_interval and bool(others) and all(o.has_interval and mine.low > o.high for o in others)


def _share_cell(share: Share, colour: str, is_share: bool, best: bool, css: str = "") -> str:
    kind = f' class="{css}"' if css else ""
    if not np.isfinite(share.value):
        return f"<td{kind}>{DASH}</td>"
    text = percent(share.value) if is_share else number(share.value)
    interval = ""
    if share.has_interval:
        ends = [f"{100 * v:.1f}" if is_share else number(v) for v in (share.low, share.high)]
        interval = f'<span class="ci" title="95 % interval, n = {share.n}">{ends[0]} – {ends[1]}</span>'
    bar = ""
    if is_share:
        low, high = (share.low, share.high) if share.has_interval else (share.value, share.value)
        bar = (
            f'<div class="whisker" style="--c:{colour};--v:{100 * share.value:.2f};--l:{100 * low:.2f};'
            f'--h:{100 * high:.2f}"><i></i><b></b></div>'
        )
    return f'<td{kind}><span class="num{" best" if best else ""}">{text}</span>{interval}{bar}</td>'
