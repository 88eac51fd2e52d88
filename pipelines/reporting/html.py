"""The sections of a report as HTML. Every text that comes from data is escaped here."""

from __future__ import annotations

from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go

from pipelines.reporting.names import (
    colour_of,
    mark_of,
    method_name,
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


def method_keys(methods: list[str]) -> str:
    """Buttons that switch methods on and off in all figures."""
    return "".join(
        f'<button type="button" class="key" aria-pressed="true" data-toggle="method:{escape(m)}">'
        f"{swatch(m)}{escape(method_name(m))}</button>"
        for m in methods
    )
