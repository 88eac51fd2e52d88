"""The study's tables, each as Markdown for the report and as rows for a CSV file."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Any

import pandas as pd

from benchmarks.study.data import FEWER, Study, audits, difference, means_and_deviations, ordered_methods, title
from benchmarks.study.plan import RHOS, Point

MODALITIES = ("video", "audio")
NO_VALUE = "–"
FOOTNOTE = f"{FEWER} rests on fewer seeds than planned."
LONGEST_NUMBER = 40
"""A column with a longer cell is text, and is aligned on the left."""


@dataclass(frozen=True)
class Table:
    """One table of the report."""

    name: str
    """The name of its CSV file, without the ending."""
    heading: str
    note: str
    columns: list[str]
    rows: list[list[str]]
    raw: pd.DataFrame

    def markdown(self) -> str:
        """Heading, note and table."""
        if not self.rows:
            return f"### {self.heading}\n\nNothing yet.\n"
        numeric = [all(len(row[i]) < LONGEST_NUMBER for row in self.rows) for i in range(1, len(self.columns))]
        lines = [
            "| " + " | ".join(self.columns) + " |",
            "| --- |" + "".join(" ---: |" if n else " --- |" for n in numeric),
        ]
        lines += ["| " + " | ".join(row) + " |" for row in self.rows]
        if any(FEWER in text for row in self.rows for text in row):
            lines += ["", FOOTNOTE]
        return f"### {self.heading}\n\n{self.note}\n\n" + "\n".join(lines) + "\n"


def listed(words: list[str]) -> str:
    """`a, b and c`."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def cell(mean: float | None, deviation: float | None, digits: int = 1) -> str:
    """`97.9 ± 0.5`; without the deviation where it is unknown, a dash where the mean is."""
    if mean is None or math.isnan(mean):
        return NO_VALUE
    if deviation is None or math.isnan(deviation):
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ± {deviation:.{digits}f}"


def signed(mean: float, deviation: float, digits: int = 1) -> str:
    """`+1.8 ± 0.4`: the cell of a difference; one that rounds to 0 has a plus."""
    text = cell(abs(mean), deviation, digits)
    nothing = text.partition(" ")[0] == f"{0:.{digits}f}"
    return ("−" if mean < 0 and not nothing else "+") + text


def marked(study: Study, text: str, seeds: float) -> str:
    """The text of a cell, with a mark where it rests on fewer seeds than planned."""
    return text if text == NO_VALUE else text + study.mark(seeds)


def _methods_by_numbers(
    study: Study, phase: str, name: str, heading: str, note: str, numbers: dict[str, tuple[str, int]]
) -> Table:
    """A table with a row for each method. `numbers`: number to the name of its column and its digits."""
    found = means_and_deviations(study, phase, list(numbers))
    rows = []
    for method, values in found.iterrows():
        cells = [
            marked(study, cell(values[n, "mean"], values[n, "deviation"], digits), values[n, "seeds"])
            for n, (_, digits) in numbers.items()
        ]
        rows.append([title(str(method)), *cells])
    used = {n for n in numbers if len(found) and found[n, "mean"].notna().any()}
    keep = [0, *(i + 1 for i, n in enumerate(numbers) if n in used)]
    columns = ["", *(c for c, _ in numbers.values())]
    return Table(
        name, heading, note, [columns[i] for i in keep], [[r[i] for i in keep] for r in rows], _long_form(found)
    )


def _long_form(found: pd.DataFrame) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for method, values in found.iterrows():
        for number in dict.fromkeys(found.columns.get_level_values(0)):
            if not math.isnan(values[number, "mean"]):
                row = {k: values[number, k] for k in ("mean", "deviation", "seeds")}
                rows.append({"method": method, "number": number, **row})
    return pd.DataFrame(rows, columns=["method", "number", "mean", "deviation", "seeds"])


def joint_table(study: Study) -> Table:
    """Accuracy on clean clips and with all modalities attacked."""
    numbers = {"clean": ("clean", 1)}
    for attack in ("fgm", "pgd", "auto"):
        numbers |= {
            f"{attack}:joint:{e}": (f"{attack.upper() if attack != 'auto' else attack} {e}", 1) for e in ("0.5", "1")
        }
    note = "Accuracy in %: all test clips clean, then the attacked clips in the joint ball of ε .5 and 1."
    return _methods_by_numbers(study, "final", "joint", "Both modalities attacked", note, numbers)


def single_table(study: Study) -> Table:
    """Accuracy with one modality attacked, missing, or alone."""
    numbers = {f"auto:{m}:{e}": (f"{m} attacked {e}", 1) for m in MODALITIES for e in ("0.5", "1")}
    numbers |= {f"missing:{m}": (f"{m} missing", 1) for m in MODALITIES}
    numbers |= {f"unimodal:{m}": (f"by {m}'s scores", 1) for m in MODALITIES}
    note = (
        "Accuracy in %: `auto` on one modality alone; one modality replaced by its mean; and the prediction of one "
        "modality's scores. A model that ignores a modality looks robust to attacks on it: read the last columns too."
    )
    return _methods_by_numbers(study, "final", "single", "One modality attacked, missing or alone", note, numbers)


def radius_table(study: Study) -> Table:
    """Mean estimated radii, the ratio of the vulnerability indicators, and how often an attack broke a radius."""
    numbers = {f"mean_radius:estimate:{b}": (f"mean radius, {b}", 2) for b in ("joint", *MODALITIES)}
    numbers |= {"indicator_ratio:estimate": ("η video / audio", 2)}
    note = (
        "The ESTIMATED radius (the paper's; not a certificate) and its audit: the share of audited radii inside which "
        "`auto` changed the prediction, all balls and seeds together."
    )
    table = _methods_by_numbers(study, "final", "radius", "Estimated radius", note, numbers)
    return _with_audit(table, study, "final", "estimate")


def _with_audit(table: Table, study: Study, phase: str, certificate: str) -> Table:
    found = audits(study, phase)
    found = found[found.certificate == certificate].groupby("method")[["violated", "audited"]].sum()
    radii = study.radii[(study.radii.phase == phase) & study.radii.final & (study.radii.certificate == certificate)]
    seeds = radii.groupby("method").seed.nunique()
    names = {title(m): m for m in study.methods(phase)}
    rows = []
    for row in table.rows:
        method = names.get(row[0].removesuffix(", step 1").removesuffix(", step 2"))
        broken = "step 1" not in row[0] and method in found.index
        text = rate(*found.loc[method, ["violated", "audited"]]) if broken else NO_VALUE
        rows.append([*row, marked(study, text, seeds.get(method, 0))])
    raw = (
        found.reset_index()
        .melt("method", var_name="number", value_name="mean")
        .assign(number=lambda t: "audit:" + t.number)
    )
    columns = [*table.columns, "audit violations"]
    return Table(table.name, table.heading, table.note, columns, rows, pd.concat([table.raw, raw], ignore_index=True))


def rate(violated: float, audited: float) -> str:
    """`11 of 2865 (0.4 %)`."""
    return f"{violated:.0f} of {audited:.0f} ({100 * violated / audited:.1f} %)" if audited else NO_VALUE


STEP_NUMBERS = {
    "clean": ("clean", 1),
    "auto:joint:0.5": ("auto .5", 1),
    "auto:joint:1": ("auto 1", 1),
    "mean_radius:estimate:joint": ("mean estimated radius", 2),
    "train_mean_radius": ("the same on train", 2),
}


def step_table(study: Study) -> Table:
    """What step 2 changes, each model before and after it."""
    rows, raw = [], []
    for method in study.methods("final"):
        cells = []
        for number, (_, digits) in STEP_NUMBERS.items():
            before = study.values("final", method, number, "step1")
            after = study.values("final", method, number, "step2")
            found = difference(after, before)
            if found is None:
                cells.append(NO_VALUE)
                continue
            change = signed(found.mean, found.deviation, digits)
            text = f"{before.mean():.{digits}f} ▸ {after.mean():.{digits}f} ({change})"
            cells.append(marked(study, text, found.seeds))
            raw.append((method, number, before.mean(), after.mean(), found.mean, found.deviation, found.seeds))
        if any(c != NO_VALUE for c in cells):
            rows.append([title(method), *cells])
    names = ["method", "number", "step1", "step2", "change", "deviation", "seeds"]
    note = "After step 1 ▸ after step 2 (change ± its deviation over seeds), the same model before and after."
    columns = ["", *(c for c, _ in STEP_NUMBERS.values())]
    return Table("steps", "What step 2 changes", note, columns, rows, pd.DataFrame(raw, columns=names))


CONTRASTS = (
    ("crmt_jt", "jt", "CRMT in full"),
    ("crmt_mix", "mixup", "CRMT on mixed inputs"),
    ("crmt_at", "mmat", "CRMT on adversarial inputs"),
    ("crmt_gradient", "crmt_jt", "CRMT that pays for its gradient"),
    ("crmt_gradient", "crmt_at", "a gradient's length instead of adversarial inputs"),
    ("ojt", "jt", "the orthogonal head alone"),
    ("jt_log_term", "jt", "the log term on the fused logits, no orthogonal head"),
    ("crmt_step1", "jt_log_term", "the log term per modality, in the orthogonal frame, instead of fused"),
    ("ojt_unimodal_ce", "ojt", "uni-modal cross-entropy instead of nothing"),
    ("crmt_step1", "ojt_unimodal_ce", "the log term instead of uni-modal cross-entropy"),
    ("crmt_step1", "ojt", "the log term per modality"),
    ("crmt_step2", "ojt", "step 2, and what two searches chose apart; step 2 alone: the table of what it changes"),
)
"""Two methods and what the first adds to the second."""
CONTRAST_NUMBERS = {
    "clean": "clean",
    "auto:joint:0.5": "joint .5",
    "auto:joint:1": "joint 1",
    "auto:video:1": "video 1",
    "auto:audio:1": "audio 1",
    "missing:video": "video missing",
    "missing:audio": "audio missing",
}


def contrast_table(study: Study) -> Table:
    """Where a gain comes from: differences of two methods, seed by seed."""
    rows, raw = [], []
    for ours, theirs, meaning in CONTRASTS:
        cells = []
        for number in CONTRAST_NUMBERS:
            found = difference(study.values("final", ours, number), study.values("final", theirs, number))
            if found is None:
                cells.append(NO_VALUE)
                continue
            text = signed(found.mean, found.deviation)
            cells.append(marked(study, f"**{text}**" if found.beyond_two_deviations else text, found.seeds))
            raw.append((ours, theirs, number, found.mean, found.deviation, found.seeds, found.beyond_two_deviations))
        if any(c != NO_VALUE for c in cells):
            rows.append([f"{title(ours)} less {title(theirs)}: {meaning}", *cells])
    names = ["method", "against", "number", "mean", "deviation", "seeds", "beyond_two_deviations"]
    note = (
        "Differences in points, seed by seed, attacks by `auto`; bold where beyond two deviations of the difference. "
        "Each method has the learning rate and hyperparameter that its own search chose, so these may differ as well."
    )
    columns = ["", *CONTRAST_NUMBERS.values()]
    heading = "Where a gain comes from"
    return Table("contrasts", heading, note, columns, rows, pd.DataFrame(raw, columns=names))


def certified_table(study: Study, phase: str) -> Table:
    """Certified accuracy with a proven radius, after each step. `phase` is also the name of the certificate."""
    numbers = {"clean": ("clean", 1)}
    numbers |= {f"certified:{phase}:joint:{e}": (f"certified {e}", 1) for e in ("0.25", "0.5", "0.75", "1")}
    numbers |= {f"certified:{phase}:{m}:0.5": (f"{m} .5", 1) for m in MODALITIES}
    numbers |= {f"{a}:joint:{e}": (f"{a} {e}", 1) for a, e in (("auto", "0.5"), ("auto", "1")) if phase == "lipschitz"}
    numbers |= {f"mean_radius:{phase}:joint": ("mean radius", 2)}
    rows, raw = [], []
    for method in study.methods(phase):
        known = f"certified:{phase}:joint:0.5"
        stages = [s for s in ("step1", "step2") if len(study.values(phase, method, known, s))]
        for stage in stages:
            values = {n: study.values(phase, method, n, stage) for n in numbers}
            cells = [
                marked(study, cell(v.mean(), v.std(), numbers[n][1]) if len(v) else NO_VALUE, len(v))
                for n, v in values.items()
            ]
            rows.append([title(method) + (f", step {stage[-1]}" if len(stages) > 1 else ""), *cells])
            raw += [(method, stage, n, v.mean(), v.std(), len(v)) for n, v in values.items() if len(v)]
    long = pd.DataFrame(raw, columns=["method", "stage", "number", "mean", "deviation", "seeds"])
    heading, note = _CERTIFIED[phase]
    return _with_audit(
        Table(phase, heading, note, ["", *(c for c, _ in numbers.values())], rows, long), study, phase, phase
    )


_CERTIFIED = {
    "lipschitz": (
        "Certified radius: encoders that are 1-Lipschitz by construction",
        "Share of all test clips, in %, predicted right with a CERTIFIED radius ≥ ε; `auto` is what the strongest "
        "attack leaves of the attacked clips. The audit covers every ball and each seed.",
    ),
    "smoothing": (
        "Certified radius (99.9 %): randomised smoothing",
        "Share of the smoothed test clips, in %, predicted right with a radius ≥ ε that holds with 99.9 % a clip; "
        "trained with the same noise. `clean` is that of the model itself, not of its smoothed version.",
    ),
}


def search_table(study: Study) -> Table:
    """Every point that was tried, and which was chosen."""
    rows, raw, edge = [], [], []
    for search, tried in study.tried.items():
        for method in ordered_methods():
            mine = [t for t in tried if t.point["train.method"] == method]
            if not mine:
                continue
            best = study.chosen[search].get(method)
            texts = []
            for t in mine:
                picked = best is not None and all(t.point.get(p) == v for p, v in best.items())
                text = f"{settings_text(t.point)}: {NO_VALUE if t.value is None else f'{100 * t.value:.1f}'}"
                texts.append(f"**{text}**" if picked else text)
                raw.append((search, method, settings_text(t.point), t.value, picked, t.seconds))
            seconds = [t.seconds for t in mine if t.value is not None]
            time = f"{statistics.median(seconds):.0f}" if seconds else NO_VALUE
            label = title(method) + (" (1-Lipschitz)" if search == "lipschitz_search" else "")
            rows.append([label, "; ".join(texts), time])
            rates = [t.point["train.lr"] for t in mine]
            if best is not None and best["train.lr"] in (min(rates), max(rates)):
                edge.append(f"{label} at {best['train.lr']:g}")
    names = ["search", "method", "settings", "validation_robust_accuracy", "chosen", "seconds"]
    note = (
        "Accuracy in % under PGD in the joint ball of ε .5 on the VALIDATION split, one seed; bold: chosen. Median "
        "seconds of a trial: training and little else, two trials side by side, so what a method costs to train."
    )
    if edge:
        note += (
            f" Chosen at the edge of the learning rates that were tried, so perhaps not the best: {', '.join(edge)}."
        )
    columns = ["", "tried", "seconds"]
    return Table("search", "The search", note, columns, rows, pd.DataFrame(raw, columns=names))


def settings_text(point: Point) -> str:
    """The settings of a point in a few words: `lr 0.05, rho 2`."""
    skipped = ("train.method", "train.seed")
    words = [f"{p.rpartition('.')[2]} {v:g}" for p, v in point.items() if v is not None and p not in skipped]
    return ", ".join(words)


RHO_NUMBERS = {"clean": "clean", "pgd:joint:0.5": "PGD joint .5", "pgd:joint:1": "PGD joint 1",
               "pgd:video:1": "PGD video 1", "pgd:audio:1": "PGD audio 1",
               "mean_radius:estimate:joint": "mean estimated radius"}  # fmt: skip


def rho_table(study: Study) -> Table:
    """Robustness against the regulariser's weight."""
    rows, raw = [], []
    for rho in RHOS:
        values = {n: study.values("rho", "crmt_jt", f"{n}@{rho:g}") for n in RHO_NUMBERS}
        if any(len(v) for v in values.values()):
            digits = {n: 2 if "radius" in n else 1 for n in values}
            cells = [
                marked(study, cell(v.mean(), v.std(), digits[n]) if len(v) else NO_VALUE, len(v))
                for n, v in values.items()
            ]
            rows.append([f"{rho:g}", *cells])
            raw += [(rho, n, v.mean(), v.std(), len(v)) for n, v in values.items() if len(v)]
    names = ["rho", "number", "mean", "deviation", "seeds"]
    note = "CRMT-JT after step 2, by the weight ρ of its regulariser; everything else as in the phase final."
    return Table(
        "rho", "How strong the regulariser", note, ["ρ", *RHO_NUMBERS.values()], rows, pd.DataFrame(raw, columns=names)
    )


def all_tables(study: Study) -> list[Table]:
    """All tables in the order of the report, without those that have no row yet."""
    tables = [joint_table(study), single_table(study), radius_table(study), contrast_table(study), step_table(study)]
    tables += [certified_table(study, phase) for phase in ("lipschitz", "smoothing")]
    tables += [rho_table(study), search_table(study)]
    return [t for t in tables if t.rows]
