"""The comparison of methods: tiles, ranking, and the table that people quote."""

from __future__ import annotations

from html import escape

import numpy as np
import plotly.graph_objects as go

from pipelines.reporting.data import (
    MISSING,
    RunData,
    Share,
    few,
    params_of,
    params_text,
    wilson,
)
from pipelines.reporting.html import (
    DASH,
    figure_block,
    method_label,
    nothing,
    number,
    percent,
    section,
    swatch,
)
from pipelines.reporting.names import (
    JOINT,
    attack_name,
    attack_short,
    colour_of,
    mark_of,
    method_name,
    under,
)
from pipelines.reporting.plotting import MANY, meta, safe, style

# --- all methods in one line each --------------------------------------------------------------------


def ranking_figure(data: RunData) -> go.Figure:
    """A line a method, the best on top: accuracy under the headline's attack and clean, with intervals."""
    epsilon = data.headline
    clean = {m: data.metric(t, "clean_accuracy") for m, t in data.best.items()}
    attacked = {m: data.attacked(t, epsilon) if epsilon is not None else clean[m] for m, t in data.best.items()}
    order = sorted(data.best, key=lambda m: attacked[m].value if np.isfinite(attacked[m].value) else -1.0)
    figure = go.Figure()
    for method in order:
        name, colour = safe(method_name(method)), colour_of(method)
        for kind, share, symbol in (("clean", clean[method], "-open"), (data.attack, attacked[method], "")):
            if not np.isfinite(share.value):
                continue
            line = {"width": 1.6, "color": colour}
            ends = {"array": [share.high - share.value], "arrayminus": [share.value - share.low]}
            figure.add_trace(
                go.Scatter(
                    x=[share.value],
                    y=[name],
                    mode="markers",
                    marker={"size": 10, "color": colour, "symbol": mark_of(method) + symbol, "line": line},
                    error_x={"type": "data", **ends, "thickness": 1.4, "width": 0} if share.has_interval else None,
                    hovertemplate=f"{name}, {safe(attack_name(kind))}<br>%{{x:.1%}}, n = {share.n}<extra></extra>",
                    meta=meta(method, "ranking"),
                )
            )
    style(figure, 70 + 25 * len(order), "Accuracy on the test split", "")
    figure.update_xaxes(range=[0, 1.02], tickformat=".0%", dtick=0.25)
    figure.update_yaxes(categoryorder="array", categoryarray=[safe(method_name(m)) for m in order])
    return figure.update_layout(margin={"l": 140, "t": 8, "b": 52})


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
        return figure_block("ranking", _ranking_caption(data), ranking_figure(data), True)
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
