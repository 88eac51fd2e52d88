"""The comparison of methods: tiles or a ranking, and the table that people quote."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go
from markupsafe import Markup

from pipelines.reporting.data import MISSING, RunData, Share, budgets_for_tables, params_text, wilson
from pipelines.reporting.names import JOINT, json_object
from pipelines.reporting.plotting import LOOK, MANY, draw, meta, safe, style
from pipelines.reporting.render import DASH, capital, number, percent, render

WITHOUT_ATTACK = "Without attack: all modalities, one alone, one missing (replaced by its mean)"
"""The one table that the first three groups share where methods are many."""


@dataclass(frozen=True)
class ComparisonRow:
    """One line of the table: a label and the same number for every method."""

    label: str
    shares: list[Share]
    """By method, as in `RunData.best`."""
    is_share: bool = True
    """Whether it is shown in per cent; radii and ratios are not."""
    small: str | None = None
    """A second line below the label, in small letters."""

    @property
    def has_numbers(self) -> bool:
        return any(np.isfinite(share.value) for share in self.shares)

    def clearly_best(self, place: int) -> bool:
        """Whether one method's interval lies above all others."""
        others, mine = [s for i, s in enumerate(self.shares) if i != place], self.shares[place]
        return mine.has_interval and bool(others) and all(o.has_interval and mine.low > o.high for o in others)


@dataclass(frozen=True)
class RowGroup:
    """Rows under one heading; where methods are many, the groups of one `table` share a table."""

    title: str
    rows: list[ComparisonRow]
    table: str


def comparison(data: RunData) -> Markup:
    """Tiles and the table of the best trial of each method."""
    groups = [g for g in _groups(data) if g.rows]
    tables: dict[str, list[ComparisonRow]] = {}
    for group in groups if len(data.best) > MANY else ():
        tables.setdefault(group.table, []).extend(group.rows)
    many = len(data.best) > 2 * MANY  # then the figure and the table say it better than tiles
    return render(
        "comparison",
        data,
        early=[data.names.method(m) for m, t in data.best.items() if data.trial(t).status != "finished"],
        ranking=ranking_figure(data) if many else None,
        tiles=[] if many else [(m, *_tile(data, t)) for m, t in data.best.items()],
        groups=groups,
        tables=tables,
    )


def ranking_figure(data: RunData) -> go.Figure:
    """A line a method, the best on top: accuracy under the headline's attack and clean, with intervals."""
    epsilon, names = data.headline, data.names
    clean = {m: data.metric(t, "clean_accuracy") for m, t in data.best.items()}
    attacked = {m: data.attacked(t, epsilon) if epsilon is not None else clean[m] for m, t in data.best.items()}
    order = sorted(data.best, key=lambda m: attacked[m].value if np.isfinite(attacked[m].value) else -1.0)
    figure = go.Figure()
    for method in order:
        name, colour = safe(names.method(method)), names.colour(method)
        for kind, share, symbol in (("clean", clean[method], "-open"), (data.attack, attacked[method], "")):
            if not np.isfinite(share.value):
                continue
            line = {"width": 1.6, "color": colour}
            ends = {"array": [share.high - share.value], "arrayminus": [share.value - share.low]}
            draw(
                figure,
                meta(method, "ranking"),
                [share.value],
                [name],
                mode="markers",
                marker={"size": 10, "color": colour, "symbol": names.mark(method) + symbol, "line": line},
                error_x={"type": "data", **ends, "thickness": 1.4, "width": 0} if share.has_interval else None,
                hovertemplate=f"{name}, {safe(names.attack(kind))}<br>%{{x:.1%}}, n = {share.n}",
            )
    style(figure, 70 + 25 * len(order), "Accuracy on the test split", "")
    figure.update_xaxes(LOOK["share"])
    figure.update_yaxes(categoryorder="array", categoryarray=[safe(names.method(m)) for m in order])
    return figure.update_layout(margin={"l": 140, "t": 8, "b": 52})


def _tile(data: RunData, trial_id: str) -> tuple[str, str, list[tuple[str, str]]]:
    """A number, what it is, and names and values to stand below it."""
    trial, epsilon = data.trial(trial_id), data.headline
    clean = data.metric(trial_id, "clean_accuracy")
    radii = [(data.certificate_name(c), data.mean_radius(trial_id, c).value) for c in data.certificates]
    tested = [("Clean accuracy", percent(clean.value)), *((f"Mean {c} radius", number(r)) for c, r in radii)]
    chosen = [("Validation", percent(trial.selected_value))]
    chosen += [("Parameters", params_text(json_object(trial.params)) or DASH)]
    if not np.isfinite(clean.value) and data.attacked(trial_id, epsilon or 0.0) is MISSING:
        return (percent(trial.selected_value), "on validation; not tested yet", chosen)
    if epsilon is None:
        return (percent(clean.value), "clean accuracy on the test split", tested[1:] + chosen)
    attacked = percent(data.attacked(trial_id, epsilon).value)
    return (attacked, f"under {data.names.attack_with_budget(data.attack, epsilon)}", tested + chosen)


def _groups(data: RunData) -> list[RowGroup]:
    """Everything that is compared, under headings; each certificate has headings of its own.

    The order is that in which people ask: clean, what one modality gives, what a missing one costs, attacked, radii.
    Rows in which no method has a number, and so the groups of parts that did not run, fall out at the end.
    """
    best, modalities = list(data.best.values()), data.modalities

    def metric(name: str, modality: str | None = None, certificate: str | None = None) -> list[Share]:
        return [data.metric(t, name, modality, certificate=certificate) for t in best]

    alone = [ComparisonRow(f"{capital(m)} alone", metric("unimodal_accuracy", m)) for m in modalities]
    missing = [ComparisonRow(f"Without {m}", metric("missing_accuracy", m)) for m in modalities]
    attack = capital(data.names.attack_short(data.attack))
    attacked = [
        ComparisonRow(f"{attack} accuracy, ε\u00a0=\u00a0{e:g}", [data.attacked(t, e) for t in best])
        for e in budgets_for_tables(data.budgets, data.headline)
    ]
    ball = f"Under attack in the joint ℓ2 ball: {data.names.attack(data.attack)} ({data.space_of(JOINT)})"
    groups = [
        RowGroup("Without attack", [ComparisonRow("Clean accuracy", metric("clean_accuracy"))], WITHOUT_ATTACK),
        RowGroup("One modality alone", alone, WITHOUT_ATTACK),
        RowGroup("A modality missing (replaced by its mean)", missing, WITHOUT_ATTACK),
        RowGroup(ball, attacked, ball),
    ]
    # a run of one modality has no ratio: whatever the label says, its row has no numbers and falls out below
    ratio = Markup("Mean η<sup>{}</sup>\u00a0/\u00a0η<sup>{}</sup>").format(*[*modalities, "", ""][:2])
    for certificate in data.certificates or ["estimate"]:
        balls = (JOINT, *(modalities if len(modalities) > 1 else []))
        word = data.certificate_name(certificate)
        title = f"Mean {word} ℓ2 radius"
        radii = [(b, [data.mean_radius(t, certificate, b) for t in best]) for b in balls]
        groups.append(RowGroup(title, [ComparisonRow(capital(b), r, False, data.space_of(b)) for b, r in radii], title))
        indicator = f"Vulnerability indicator, ratio between the modalities · {word}"
        groups.append(
            RowGroup(indicator, [ComparisonRow(ratio, metric("indicator_ratio", None, certificate), False)], title)
        )
        if certificate in data.by_chance:
            counts = [data.abstained(t, certificate) for t in best]
            shares = [wilson(*count) if count else MISSING for count in counts]
            groups.append(
                RowGroup(f"Abstentions · {word}", [ComparisonRow("Abstained, share of clips", shares)], title)
            )
    return [RowGroup(g.title, [row for row in g.rows if row.has_numbers], g.table) for g in groups]
