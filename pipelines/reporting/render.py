"""Templates to HTML. Everything that a template prints is escaped; figures go in as JSON that a script draws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from pipelines.reporting.data import RunData
from pipelines.reporting.names import JOINT

HERE = Path(__file__).parent
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
    minutes, rest = divmod(round(float(seconds)), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def capital(text: str) -> str:
    """With a capital first letter; the others stay."""
    return text[:1].upper() + text[1:]


def _spec(figure: go.Figure) -> Markup:
    # inside a script element only `<` could end it; JSON reads the escape as the same character
    return Markup(figure.to_json().replace("<", "\\u003c"))


_ENVIRONMENT = Environment(
    loader=FileSystemLoader(HERE / "templates"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=StrictUndefined,
)
_ENVIRONMENT.filters |= {
    "percent": percent,
    "number": number,
    "duration": duration,
    "capital": capital,
    "spec": _spec,
    "finite": np.isfinite,
    "column": lambda name, row: row.get(name),
}
_ENVIRONMENT.tests["missing"] = pd.isna
_ENVIRONMENT.globals |= {"DASH": DASH, "JOINT": JOINT, "STATUSES": STATUSES}


def render(name: str, data: RunData, /, **values: Any) -> Markup:
    """A section: `templates/<name>.html.j2` with `data`, its `names`, and `values`."""
    template = _ENVIRONMENT.get_template(f"{name}.html.j2")
    return Markup(template.render(data=data, names=data.names, **values))


def page(title: str, body: Markup) -> str:
    """A whole page around its sections that needs nothing from outside."""
    style, script = ((HERE / "static" / f"report.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    plotly = get_plotlyjs() if "data-plot=" in body else ""
    template = _ENVIRONMENT.get_template("page.html.j2")
    return template.render(title=title, body=body, style=Markup(style), script=Markup(script), plotly=Markup(plotly))
