"""The study's pictures: counterparts of the paper's Figures 1, 3, 4 and 5, certified accuracy and the audit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.study.data import Study, audits, title
from benchmarks.study.plan import EPSILONS, PAIR_BUDGETS, RHOS
from benchmarks.study.tables import MODALITIES

matplotlib.use("Agg")

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#882255", "#777777")
"""Okabe and Ito's, and a wine red, which the colour-blind can tell apart; markers differ as well."""
MARKERS = "osD^vPXp*"
RATIO_TICKS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.2, 1.5, 2, 3, 5, 7, 10, 20)
SPACES = {"video": "pixels in [0, 1]", "audio": "standardised log-mel"}
JOINT_SPACE = "video: pixels in [0, 1]; audio: standardised log-mel"
CURVES = ("jt", "ojt", "mmat", "crmt_step1", "crmt_jt", "crmt_mix", "crmt_at", "crmt_gradient")
"""Methods with curves of their own; more cannot be told apart."""
MAPPED = ("jt", "ojt", "crmt_step1", "crmt_jt", "crmt_gradient")
STYLED = (*CURVES, "radius_loss")
STYLE = {
    "font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#dddddd",
    "grid.linewidth": 0.6, "figure.facecolor": "white", "savefig.facecolor": "white", "legend.frameon": False,
    "axes.axisbelow": True,
}  # fmt: skip


@dataclass(frozen=True)
class Picture:
    """A picture of the report, with the function that draws it."""

    name: str
    caption: str
    draw: Callable[[Study], Figure | None]
    """None where the study has no number for it yet."""


def style_of(method: str) -> dict[str, Any]:
    """The same colour and marker for a method in every picture."""
    place = STYLED.index(method)
    return {"color": COLOURS[place], "marker": MARKERS[place], "markersize": 4.5, "linewidth": 1.6}


def _panels(count: int, height: float = 3.7) -> tuple[Figure, list[Axes]]:
    figure, axes = plt.subplots(1, count, figsize=(9.2, height), sharey=True, squeeze=False, layout="constrained")
    return figure, list(axes[0])


def _with_band(axis: Axes, x: Sequence[float], values: list[pd.Series], label: str, style: dict[str, Any]) -> None:
    known = [(e, v) for e, v in zip(x, values, strict=True) if len(v)]
    if not known:
        return
    at = [e for e, _ in known]
    mean = np.array([v.mean() for _, v in known])
    deviation = np.nan_to_num(np.array([v.std() for _, v in known]))
    axis.plot(at, mean, label=label, **style)
    axis.fill_between(at, mean - deviation, mean + deviation, color=style["color"], alpha=0.15, linewidth=0)


def _legend(figure: Figure, axis: Axes) -> None:
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels) if len(labels) < 8 else 4, fontsize=9)


def attack_curves(study: Study) -> Figure | None:
    """Accuracy against the radius of an attack on one modality alone."""
    methods = [m for m in CURVES if m in study.methods("curves")]
    if not methods:
        return None
    figure, axes = _panels(len(MODALITIES))
    for axis, modality in zip(axes, MODALITIES, strict=True):
        for method in methods:
            values = [study.values("curves", method, f"pgd:{modality}:{e:g}") for e in EPSILONS]
            _with_band(axis, EPSILONS, values, title(method), style_of(method))
        axis.set(title=f"{modality} attacked", xlabel=f"ℓ2 radius of the attack\n({SPACES[modality]})", ylim=(0, 102))
    axes[0].set_ylabel("accuracy, % (PGD-20)")
    _legend(figure, axes[0])
    return figure


def indicator_ratios(study: Study) -> Figure | None:
    """η of video over η of audio, method by method."""
    number = "indicator_ratio:estimate"
    found = {m: v for m in study.methods("final") if len(v := study.values("final", m, number))}
    if not found:
        return None
    figure, axis = plt.subplots(figsize=(9.2, 0.6 + 0.3 * len(found)), layout="constrained")
    rows = list(reversed(found))
    for y, method in enumerate(rows):
        values = found[method]
        colour = COLOURS[1] if method.startswith("crmt") else COLOURS[0]
        spread = float(np.nan_to_num(values.std()))
        axis.errorbar(
            values.mean(), y, xerr=spread, fmt="D" if method.startswith("crmt") else "o", color=colour, capsize=3
        )
    axis.axvline(1, color="#555555", linewidth=1, linestyle="--")
    axis.set_xscale("log")
    axis.set_yticks(range(len(rows)), [title(m) for m in rows])
    axis.xaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
    axis.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    low, high = axis.get_xlim()
    axis.set_xticks([t for t in RATIO_TICKS if low <= t <= high])
    axis.set_xlabel("vulnerability indicator η of video ÷ that of audio (log scale)")
    return figure


def rho_curves(study: Study) -> Figure | None:
    """Robust accuracy against ρ."""
    shown = {"clean": "clean", "pgd:joint:0.5": "joint .5", "pgd:joint:1": "joint 1", "pgd:video:1": "video 1",
             "pgd:audio:1": "audio 1"}  # fmt: skip
    values = {n: [study.values("rho", "crmt_jt", f"{n}@{r:g}") for r in RHOS] for n in shown}
    if not any(len(v) for found in values.values() for v in found):
        return None
    figure, (axis,) = _panels(1)
    for place, (number, name) in enumerate(shown.items()):
        style = {"color": COLOURS[place], "marker": MARKERS[place], "markersize": 5, "linewidth": 1.6}
        _with_band(axis, RHOS, values[number], name, style)
    axis.set_xscale("log")
    axis.set_xticks(RHOS, [f"{r:g}" for r in RHOS])
    axis.minorticks_off()
    axis.set(xlabel="ρ, the weight of the margin regulariser", ylabel="accuracy, % (PGD-20)", ylim=(0, 102))
    _legend(figure, axis)
    return figure


def budget_maps(study: Study) -> Figure | None:
    """Accuracy where both modalities are attacked, each within its own budget."""
    methods = [m for m in MAPPED if m in study.methods("curves")]
    if not methods:
        return None
    figure, axes = _panels(len(methods), 3.2)
    image = None
    for axis, method in zip(axes, methods, strict=True):
        grid = np.array([[_mean(study, method, v, a) for v in PAIR_BUDGETS] for a in PAIR_BUDGETS])
        image = axis.imshow(grid, origin="lower", vmin=0, vmax=100, cmap="cividis", aspect="auto")
        for (row, column), value in np.ndenumerate(grid):
            if not np.isnan(value):
                colour = "white" if value < 55 else "black"
                axis.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=9, color=colour)
        ticks = [f"{b:g}".lstrip("0") for b in PAIR_BUDGETS]
        axis.set_xticks(range(len(ticks)), ticks)
        axis.set_yticks(range(len(ticks)), ticks)
        axis.grid(visible=False)
        axis.set_title(title(method), fontsize=10)
        axis.set_xlabel("ε video (pixels)")
    axes[0].set_ylabel("ε audio (standardised log-mel)")
    assert image is not None
    figure.colorbar(image, ax=axes, label="accuracy, % (PGD-20)", shrink=0.9)
    return figure


def _mean(study: Study, method: str, video: float, audio: float) -> float:
    values = study.values("curves", method, f"pgd:product:audio={audio:g},video={video:g}")
    return float(values.mean()) if len(values) else float("nan")


def certified_curves(study: Study, phase: str, certificate: str) -> Figure | None:
    """Share of clips predicted right with radius at least ε, by ball."""
    radii = study.radii[(study.radii.phase == phase) & study.radii.final & (study.radii.certificate == certificate)]
    if not len(radii):
        return None
    order = [m for m in STYLED if m in set(radii.method)]
    figure, axes = _panels(1 + len(MODALITIES))
    finite = radii.radius[np.isfinite(radii.radius)]
    grid = np.linspace(0, max(float(finite.quantile(0.99)), 0.1), 80)[1:]
    for axis, ball in zip(axes, ("joint", *MODALITIES), strict=True):
        for method in order:
            mine = radii[(radii.method == method) & (radii.ball == ball)]
            curves = [100 * (r.to_numpy()[:, None] >= grid).mean(0) for _, r in mine.groupby("seed").radius]
            series = [pd.Series(c) for c in np.array(curves).T] if curves else []
            if series:
                style = style_of(method) | {"markevery": 13}
                _with_band(axis, list(grid), series, title(method), style)
        space = JOINT_SPACE.replace("; ", ";\n") if ball == "joint" else SPACES[ball]
        axis.set(title=ball, xlabel=f"ℓ2 radius ε\n({space})", ylim=(0, 102))
        if phase == "lipschitz" and ball == "joint":
            _mark_attack(axis, study, order)
    word = "predicted right and estimated" if certificate == "estimate" else "certified accuracy"
    axes[0].set_ylabel(f"{word}, %" if certificate != "estimate" else "right with estimated radius ≥ ε, %")
    _legend(figure, axes[0])
    return figure


def _mark_attack(axis: Axes, study: Study, methods: list[str]) -> None:
    """What the strongest attack leaves, as hollow points over the certified curves."""
    for method in methods:
        for e in (0.5, 1.0):
            values = study.values("lipschitz", method, f"auto:joint:{e:g}")
            if len(values):
                style = style_of(method)
                axis.plot(
                    e, values.mean(), marker=style["marker"], color=style["color"], fillstyle="none", linestyle="none"
                )


def audit_rates(study: Study) -> Figure | None:
    """How often the estimate broke, by method and ball."""
    found = audits(study, "final")
    found = found[found.certificate == "estimate"]
    if not len(found):
        return None
    methods = [m for m in reversed(study.methods("final")) if m in set(found.method)]
    figure, axis = plt.subplots(figsize=(9.2, 0.9 + 0.3 * len(methods)), layout="constrained")
    for place, ball in enumerate(("joint", *MODALITIES)):
        mine = found[found.ball == ball].set_index("method")
        rates = [100 * mine.violated.get(m, 0) / max(mine.audited.get(m, 1), 1) for m in methods]
        heights = np.arange(len(methods)) + 0.22 * (1 - place)
        axis.plot(rates, heights, MARKERS[place], color=COLOURS[place], label=ball, markersize=6)
    axis.set_yticks(range(len(methods)), [title(m) for m in methods])
    axis.set_xlim(left=-0.5)
    axis.set_xlabel("audited estimated radii broken by an attack at 0.99 of them, %")
    axis.legend(title="ball", loc="best")
    return figure


PICTURES = (
    Picture(
        "figure1",
        "Counterpart of the paper's Figure 1: accuracy against the radius of an attack on one modality alone. Mean of "
        "the seeds, band: one deviation.",
        attack_curves,
    ),
    Picture(
        "figure3",
        "Counterpart of the paper's Figure 3: the ratio of the modalities' vulnerability indicators η, averaged over "
        "the test set; bars: one deviation over seeds. Diamonds: CRMT's steps and variants. The two modalities' spaces "
        "differ, so 1 has no meaning of its own here: compare one method with another.",
        indicator_ratios,
    ),
    Picture(
        "figure4",
        "Counterpart of the paper's Figure 4, as far as it asks what the regulariser does: accuracy of CRMT-JT, clean "
        "and attacked, against its weight ρ.",
        rho_curves,
    ),
    Picture(
        "figure5",
        "Counterpart of the paper's Figure 5, as far as it asks which pairs of perturbations a model withstands: "
        "accuracy under PGD on both modalities, each within its own budget; OJT and CRMT-step-1 show what a part adds.",
        budget_maps,
    ),
    Picture(
        "lipschitz",
        "CERTIFIED accuracy, encoders that are 1-Lipschitz by construction. Hollow: what the strongest attack leaves.",
        lambda study: certified_curves(study, "lipschitz", "lipschitz"),
    ),
    Picture(
        "smoothing",
        "CERTIFIED accuracy (99.9 % a clip), randomised smoothing.",
        lambda study: certified_curves(study, "smoothing", "smoothing"),
    ),
    Picture(
        "estimate",
        "Not a certificate: share of test clips that are right with the paper's ESTIMATED radius at least ε.",
        lambda study: certified_curves(study, "final", "estimate"),
    ),
    Picture(
        "audit", "The estimate's audit: how often an attack strictly inside it changes the prediction.", audit_rates
    ),
)


def draw_all(study: Study, folder: Path) -> list[Picture]:
    """Draw every picture that the study has numbers for.

    Args:
        study: what has run so far.
        folder: gets one PNG for each picture.

    Returns: the pictures that were drawn.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    with matplotlib.rc_context(STYLE):
        for picture in PICTURES:
            figure = picture.draw(study)
            if figure is not None:
                figure.savefig(folder / f"{picture.name}.png", dpi=110)
                plt.close(figure)
                drawn.append(picture)
    return drawn
