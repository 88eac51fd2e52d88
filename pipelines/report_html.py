"""The sections of a report as HTML. Every text that comes from data is escaped here."""

from __future__ import annotations

from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go

from pipelines.figures import colour_of
from pipelines.report_data import (
    CERTIFICATE_NAMES,
    JOINT,
    MISSING,
    RunData,
    Share,
    few,
    method_name,
    params_of,
    params_text,
)

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


def method_label(method: Any) -> str:
    """The method's name behind its colour."""
    swatch = f'<span class="swatch" style="--c:{colour_of(method)}"></span>'
    return f'<span class="nowrap">{swatch}{escape(method_name(method))}</span>'


def section(anchor: str, title: str, body: str) -> str:
    """A section with its heading; `body` is HTML."""
    return f'<section id="{anchor}" aria-labelledby="{anchor}-h"><h2 id="{anchor}-h">{title}</h2>{body}</section>'


def nothing(text: str) -> str:
    """What a section says that has nothing to show."""
    return f"<p class=muted>{text}</p>"


def figure_block(name: str, caption: str, figure: go.Figure, wide: bool = False) -> str:
    """A figure in its card; `caption` is HTML."""
    # drawn at the end of the page: before its neighbours exist, a figure in a grid measures a wrong width
    spec = figure.to_json().replace("<", "\\u003c")
    return (
        f'<figure class="card{" wide" if wide else ""}"><figcaption>{caption}</figcaption>'
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
    by = sorted({str(s).replace("_", " ") for s in data.tables["trials"].selected_by.dropna()})
    early = [method_name(m) for m, t in data.best.items() if data.trial(t).status != "finished"]
    text = (
        f"<p class=muted>Chosen on the <b>validation</b> split{' by ' + escape(', '.join(by)) if by else ''}; every "
        "number below is from the test split, which no choice has seen. Shares carry 95 % Wilson intervals, mean "
        "radii normal ones. Bold: above all others, and the intervals do not overlap.</p>"
    )
    if early:
        text += (
            f'<p class="note">No finished trial yet of {escape(", ".join(early))}: the best stopped one stands in.</p>'
        )
    return section("comparison", "The best trial of each method", text + _tiles(data) + _comparison_table(data))


def _tiles(data: RunData) -> str:
    return f'<div class="tiles">{"".join(_tile(data, m, t) for m, t in data.best.items())}</div>'


def _tile(data: RunData, method: str, trial_id: str) -> str:
    trial = data.trial(trial_id)
    clean = data.metric(trial_id, "clean_accuracy")
    radius = data.mean_radius(trial_id)
    rows = [("Clean accuracy", percent(clean.value)), ("Mean estimated radius", number(radius.value))]
    rows += [
        ("Validation", percent(trial.selected_value)),
        ("Parameters", escape(params_text(params_of(trial.params)) or DASH)),
    ]
    if not np.isfinite(clean.value) and data.attacked(trial_id, data.headline or 0.0) is MISSING:
        big, under = percent(trial.selected_value), "on validation; not tested yet"
        rows = rows[3:]
    elif data.headline is None:
        big, under = percent(clean.value), "clean accuracy on the test split"
        rows = rows[1:]
    else:
        attacked = data.attacked(trial_id, data.headline)
        big, under = percent(attacked.value), f"under joint PGD, ℓ2 budget {data.headline:g}"
    items = "".join(f"<dt>{k}</dt><dd>{v}</dd>" for k, v in rows)
    return (
        f'<div class="tile" style="--c:{colour_of(method)}"><h3>{escape(method_name(method))}</h3>'
        f'<div class="big">{big}</div><p class="small muted">{under}</p><dl>{items}</dl></div>'
    )


def _comparison_table(data: RunData) -> str:
    best = data.best
    groups: list[tuple[str, list[tuple[str, list[Share], bool]]]] = []

    def row(label: str, shares: list[Share], share: bool = True) -> tuple[str, list[Share], bool]:
        return label, shares, share

    def of(name: str, modality: str | None = None) -> list[Share]:
        return [data.metric(t, name, modality) for t in best.values()]

    mods = [(m, escape(m)) for m in data.modalities]
    groups.append(("Without attack", [row("Clean accuracy", of("clean_accuracy"))]))
    groups.append(("One modality alone", [row(f"{_capital(h)} alone", of("unimodal_accuracy", m)) for m, h in mods]))
    groups.append(
        ("A modality missing (replaced by its mean)", [row(f"Without {h}", of("missing_accuracy", m)) for m, h in mods])
    )
    attacked = [
        row(f"PGD accuracy, ε\u00a0=\u00a0{e:g}", [data.attacked(t, e) for t in best.values()])
        for e in few(data.budgets, data.headline)
    ]
    groups.append((f"Under attack in the joint ℓ2 ball ({escape(data.space_of(JOINT))})", attacked))
    for certificate in data.certificates or ["estimate"]:
        word = escape(CERTIFICATE_NAMES.get(certificate, certificate))
        radii = [
            row(
                f"{escape(_capital(ball))}<small>{escape(data.space_of(ball))}</small>",
                [data.mean_radius(t, certificate, ball) for t in best.values()],
                False,
            )
            for ball in (JOINT, *(data.modalities if len(data.modalities) > 1 else []))
        ]
        groups.append((f"Mean {word} ℓ2 radius", radii))
    first, second = [*(h for _, h in mods), "", ""][:2]
    ratio = row(f"Mean η<sup>{first}</sup> / η<sup>{second}</sup>", of("indicator_ratio"), False)
    groups.append(("Vulnerability indicator, ratio between the modalities", [ratio]))
    body = "".join(_group_rows(title, rows, data) for title, rows in groups)
    if not body:
        return ""
    heads = "".join(
        f'<th scope="col">{method_label(m)}<small><code>{escape(t)}</code></small></th>' for m, t in best.items()
    )
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Best trial of each method"><table class="compare">'
        f'<thead><tr><th scope="col">Test split</th>{heads}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _group_rows(title: str, rows: list[tuple[str, list[Share], bool]], data: RunData) -> str:
    shown = [r for r in rows if any(np.isfinite(s.value) for s in r[1])]
    if not shown:
        return ""
    html = f'<tr class="group"><th scope="rowgroup" colspan="{1 + len(data.best)}">{title}</th></tr>'
    for label, shares, is_share in shown:
        cells = "".join(
            _share_cell(s, colour_of(m), is_share, _clearly_best(s, [o for o in shares if o is not s]))
            for m, s in zip(data.best, shares, strict=True)
        )
        html += f'<tr><th scope="row">{label}</th>{cells}</tr>'
    return html


def _clearly_best(share: Share, others: list[Share]) -> bool:
    return share.has_interval and bool(others) and all(o.has_interval and share.low > o.high for o in others)


def _share_cell(share: Share, colour: str, is_share: bool, best: bool) -> str:
    if not np.isfinite(share.value):
        return f"<td>{DASH}</td>"
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
    return f'<td><span class="num{" best" if best else ""}">{text}</span>{interval}{bar}</td>'
