"""The section of the budget grid: each modality attacked within a budget of its own."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from markupsafe import Markup

from pipelines.reporting.data import DEFAULT_SPACES, RunData, distinct, final_rows, format_value
from pipelines.reporting.names import PRODUCT, in_order, json_object
from pipelines.reporting.plotting import LOOK, meta, safe, style
from pipelines.reporting.render import render

SIGNS = {"l2": "ℓ2", "linf": "ℓ∞"}


def product(data: RunData) -> Markup:
    """A heat map a method; nothing where no grid was attacked."""
    table = product_table(data)
    names = modalities_of(table)
    maps: dict[str, list[tuple[str, Plane, go.Figure]]] = {}
    attacks: set[str] = set()
    for norm in sorted(distinct(table.norm), key=lambda n: (n != "l2", n)):
        for method, trial_id in data.best.items():
            rows = shown_rows(data, table, trial_id, norm)
            for plane in planes(rows, names):
                attacks |= distinct(rows.attack)
                maps.setdefault(norm, []).append((method, plane, product_figure(data, method, plane, norm)))
    said = " or ".join(data.names.attack(a) for a in sorted(attacks))
    return render("product", data, maps=maps, attacks=said, signs=SIGNS) if maps else Markup("")


@dataclass(frozen=True)
class Plane:
    """One heat map's numbers: accuracy over the budgets of two modalities (or of one)."""

    x: str
    y: str | None
    x_budgets: list[float]
    y_budgets: list[float]
    accuracy: list[list[float | None]]
    """By y, then x; None where no such combination was attacked."""
    counts: list[list[str]]
    """The interval and n of each cell, for hovering."""
    fixed: dict[str, float]
    """The other modalities' budgets: their smallest."""

    @property
    def held(self) -> str:
        """`audio 0.5, flow 1`: the others' budgets."""
        return ", ".join(f"{m} {format_value(v)}" for m, v in self.fixed.items())


def product_table(data: RunData) -> pd.DataFrame:
    """The grid's rows with a column a modality: trial_id, method, stage, final, norm, attack, epsilon_<modality>,
    accuracy, low, high, n, space."""
    curves = data.tables["curves"]
    rows = curves[(curves.ball == PRODUCT) & curves.budgets.notna()]
    budgets = [json_object(text) for text in rows.budgets]
    names = [m for m in data.modalities if any(m in b for b in budgets)]
    names += sorted({m for b in budgets for m in b} - set(names))
    trials = data.tables["trials"]
    methods = dict(zip(trials.trial_id, trials.method, strict=True))
    table = rows[["trial_id", "stage", "final", "norm", "attack"]].copy()
    table.insert(1, "method", [methods.get(t) for t in rows.trial_id])
    for m in names:
        table[f"epsilon_{m}"] = [float(b[m]) if isinstance(b.get(m), int | float) else np.nan for b in budgets]
    return table.join(rows[["accuracy", "low", "high", "n", "space"]]).reset_index(drop=True)


def modalities_of(table: pd.DataFrame) -> list[str]:
    """The modalities that have budgets in the grid."""
    return [c.removeprefix("epsilon_") for c in map(str, table) if c.startswith("epsilon_")]


def shown_rows(data: RunData, table: pd.DataFrame, trial_id: str, norm: str) -> pd.DataFrame:
    """A trial's rows under the headline's attack, or the strongest that the grid has."""
    rows = final_rows(table[(table.trial_id == trial_id) & (table.norm == norm)])
    attacks = [a for a in in_order("attacks", distinct(rows.attack)) if a != "noise"] or ["noise"]
    return rows[rows.attack == (data.attack if data.attack in attacks else attacks[0])]


def planes(rows: pd.DataFrame, names: list[str]) -> list[Plane]:
    """Every pair of modalities, the others at their smallest budgets."""
    rows = rows.dropna(subset=[f"epsilon_{m}" for m in names])
    if rows.empty:
        return []
    if len(names) == 1:
        return [_plane(rows, names[0], None, {})]
    found = []
    for x, y in combinations(names, 2):
        fixed = {m: float(rows[f"epsilon_{m}"].min()) for m in names if m not in (x, y)}
        part = rows
        for m, budget in fixed.items():
            part = part[np.isclose(part[f"epsilon_{m}"], budget)]
        found.append(_plane(part, x, y, fixed))
    return found


def _plane(rows: pd.DataFrame, x: str, y: str | None, fixed: dict[str, float]) -> Plane:
    xs = sorted({float(v) for v in rows[f"epsilon_{x}"]})
    ys = sorted({float(v) for v in rows[f"epsilon_{y}"]}) if y else [0.0]
    accuracy: list[list[float | None]] = [[None] * len(xs) for _ in ys]
    counts = [[""] * len(xs) for _ in ys]
    for _, row in rows.iterrows():
        i, j = ys.index(float(row[f"epsilon_{y}"])) if y else 0, xs.index(float(row[f"epsilon_{x}"]))
        accuracy[i][j] = float(row.accuracy)
        if pd.notna(row.low) and pd.notna(row["n"]):
            counts[i][j] = f"95 % interval {row.low:.1%} – {row.high:.1%}, n = {int(row['n'])}"
    return Plane(x, y, xs, ys, accuracy, counts, fixed)


def product_figure(data: RunData, method: str, plane: Plane, norm: str) -> go.Figure:
    """One heat map; the colours mean the same in all of them."""
    x = [format_value(v) for v in plane.x_budgets]
    y = [format_value(v) for v in plane.y_budgets] if plane.y else ["accuracy"]
    other = f"<br>{safe(plane.y)} ε = %{{y}}" if plane.y else ""
    cells = len(x) * len(y)
    figure = go.Figure(
        go.Heatmap(
            x=x,
            y=y,
            z=plane.accuracy,
            customdata=plane.counts,
            zmin=0,
            zmax=1,
            colorscale=LOOK["scale"],
            xgap=1,
            ygap=1,
            texttemplate="%{z:.0%}" if len(x) <= 8 and cells <= 80 else "",
            colorbar=LOOK["product_bar"],
            hovertemplate=f"{safe(data.names.method(method))}<br>{safe(plane.x)} ε = %{{x}}{other}: %{{z:.1%}}"
            "<br>%{customdata}<extra></extra>",
            meta=meta(method, PRODUCT),
        )
    )
    titles = [_axis_title(data, m, SIGNS.get(norm, norm)) if m else "" for m in (plane.x, plane.y)]
    style(figure, 300 if plane.y else 190, titles[0], titles[1])
    figure.update_xaxes(type="category", showgrid=False)
    figure.update_yaxes(type="category", showgrid=False)
    return figure.update_layout(margin={"l": 76, "r": 10, "t": 8, "b": 64})


def _axis_title(data: RunData, modality: str, sign: str) -> str:
    spaces = data.provenance.get("spaces")
    space = (spaces.get(modality) if isinstance(spaces, dict) else None) or DEFAULT_SPACES.get(modality)
    return f"{safe(modality)} {sign} budget ε" + (f"<br>({safe(space)})" if space else "")
