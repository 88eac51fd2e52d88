"""Reads a study folder into tidy tables: one row for each trial and number, of the phases that have run so far."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.study.plan import (
    Options,
    Phase,
    Point,
    Tried,
    chosen_points,
    matches,
    phases_of,
    points_in,
    points_of,
    points_of_new_methods,
    search_results,
)
from crmt.certificates.smoothing_audit import violations_allowed
from crmt.methods import method_class, method_names
from pipelines.runs.results import ResultsStore
from pipelines.runs.run_folder import CARD, read_card

ACCURACIES = {"clean_accuracy": "clean", "unimodal_accuracy": "unimodal", "missing_accuracy": "missing"}
WHOLE_MODEL_METRICS = ("indicator_ratio", "train_mean_radius")
RADIUS_METRICS = ("mean_radius", "median_radius")
CERTIFIED_AT = (0.25, 0.5, 0.75, 1.0)
PROVEN = ("lipschitz", "smoothing")
"""The certificates whose radii are proven; `estimate` is none."""
FEWER = "†"
"""Marks what rests on fewer seeds than planned."""
COLUMNS = ["phase", "trial_id", "method", "seed", "stage", "final", "number", "value", "n"]


@dataclass(frozen=True)
class Failure:
    """A planned trial that failed for good."""

    point: Point
    error: str


@dataclass(frozen=True)
class PhaseRun:
    """One phase of a study, as far as it has run."""

    phase: Phase
    planned: list[Point]
    """Empty where the search that it needs has not chosen."""
    trials: pd.DataFrame
    """One row a planned point that finished: the row of `trials`, with `rho` of its configuration and its `sweep`."""
    cards: dict[str, dict[str, Any]]
    """Folder name to run card of each sweep: one, and one more for methods that joined later; empty if not begun."""
    stores: dict[str, ResultsStore] = field(default_factory=dict)
    failed: tuple[Failure, ...] = ()

    @property
    def card(self) -> dict[str, Any] | None:
        """The run card of the first sweep; None where the phase has not begun."""
        return next(iter(self.cards.values()), None)

    def read(self, table: str) -> pd.DataFrame:
        """The rows of a results table over all sweeps of the phase; `trial_id` begins with the sweep's folder name."""
        return concatenated([_named(store.read(table), sweep) for sweep, store in self.stores.items()])


@dataclass(frozen=True)
class Study:
    """All that a study folder holds."""

    options: Options
    runs: dict[str, PhaseRun]
    chosen: dict[str, dict[str, Point]]
    """Search to method to the point that the search chose."""
    tried: dict[str, list[Tried]]
    numbers: pd.DataFrame
    """phase, trial_id, method, seed, stage, final, number, value, n; accuracies in %."""
    radii: pd.DataFrame
    """phase, method, seed, stage, final and the columns of `radii`."""

    @cached_property
    def _rows(self) -> dict[Any, pd.DataFrame]:
        """The rows of `numbers` by (phase, method, number)."""
        return dict(list(self.numbers.groupby(["phase", "method", "number"])))

    def mark(self, seeds: float) -> str:
        """`†` for a number that rests on fewer seeds than planned."""
        return FEWER if seeds < len(self.options.seeds) else ""

    def methods(self, phase: str) -> list[str]:
        """The methods with a number in a phase, in the order of the tables."""
        found = set(self.numbers.method[self.numbers.phase == phase])
        return [m for m in ordered_methods() if m in found]

    def values(self, phase: str, method: str, number: str, stage: str = "final") -> pd.Series:
        """The value of each seed.

        Args:
            phase: a phase of the study that measures models.
            method: a training method.
            number: as in `numbers`, such as `auto:joint:0.5`.
            stage: final, step1 or step2.

        Returns: seed to value; empty where the study has none.
        """
        rows = self._rows.get((phase, method, number))
        if rows is None:
            return pd.Series(dtype=float)
        rows = rows[rows.final] if stage == "final" else rows[rows.stage == stage]
        return rows.drop_duplicates("seed").set_index("seed").value.sort_index()


ORDER = (
    "jt", "gb", "ogm_ge", "pmr", "msefm", "mixup", "mmat", "ojt", "jt_log_term", "ojt_unimodal_ce", "crmt_step1",
    "crmt_step2", "crmt_jt", "crmt_mix", "crmt_at", "crmt_gradient", "radius_loss",
)  # fmt: skip
"""The order of methods in tables; one that is not here comes last."""


def ordered_methods() -> list[str]:
    """Every method in the order of the tables."""
    known = method_names()
    return [m for m in ORDER if m in known] + [m for m in known if m not in ORDER]


def title(method: str) -> str:
    """A method's name in the tables."""
    return method_class(method).title


def read_study(folder: Path) -> Study:
    """Read a study folder.

    Raises:
        BadInputError: not the folder of a study.
    """
    options = Options.read(folder)
    runs: dict[str, PhaseRun] = {}
    chosen: dict[str, dict[str, Point]] = {}
    tried: dict[str, list[Tried]] = {}
    for phase in phases_of(options):
        run = _read_phase(folder, phase, options, chosen)
        runs[phase.name] = run
        if phase.search and run.cards:
            tried[phase.search] = tried.get(phase.search, []) + search_results(run.read("trials"), run.planned)
            chosen[phase.search] = chosen_points(tried[phase.search])
    measured = [r for r in runs.values() if not r.phase.search and len(r.trials)]
    radii = [r for r in map(_radii, measured) if len(r)]
    all_radii = pd.concat(radii, ignore_index=True) if radii else _empty(_RADII)
    parts = [p for p in (_certified(all_radii), *map(_numbers, runs.values())) if len(p)]
    numbers = pd.concat(parts, ignore_index=True) if parts else _empty(COLUMNS)
    return Study(options, runs, chosen, tried, numbers[COLUMNS], all_radii)


def _empty(columns: list[str]) -> pd.DataFrame:
    """A table without rows. Columns that select rows are boolean: an empty object column could not select."""
    return pd.DataFrame(
        {c: pd.Series(dtype=bool if c in ("final", "audited", "violated") else object) for c in columns}
    )


def _read_phase(folder: Path, phase: Phase, options: Options, chosen: dict[str, dict[str, Point]]) -> PhaseRun:
    planned: list[Point] = []
    trials: list[pd.DataFrame] = []
    cards: dict[str, dict[str, Any]] = {}
    failures: list[Failure] = []
    stores: dict[str, ResultsStore] = {}
    for where in sweeps_of(folder, phase):
        cards[where.name], config = read_card(where)
        points = points_in(config)
        stores[where.name] = ResultsStore(where / "results")
        table = _named(stores[where.name].read("trials"), where.name)
        done = one_trial_a_point(table, points, "finished").assign(sweep=where.name)
        failed = one_trial_a_point(table, points, "failed")
        if len(failed) and len(done):
            failed = failed[~failed.point.isin(done.point)]
        failures += [Failure(points[t.point], str(t.error)) for t in failed.itertuples()]
        planned += points
        trials.append(done)
    known = chosen.get(phase.needs, {}) if phase.needs else {}
    planned += points_of_new_methods(points_of(phase, options, known), planned)
    return PhaseRun(phase, planned, concatenated(trials), cards, stores, tuple(failures))


def _named(table: pd.DataFrame, sweep: str) -> pd.DataFrame:
    return table.assign(trial_id=[f"{sweep}/{t}" for t in table.trial_id]) if len(table) else table


def concatenated(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """The rows of all tables, one after the other; where all are empty, the first one's columns."""
    parts = [t for t in tables if len(t)] or tables[:1]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def sweeps_of(folder: Path, phase: Phase) -> list[Path]:
    """The folders of a phase's sweeps in a study folder, in the order in which they ran: `final`, `final-2`, …"""
    names = itertools.chain([phase.name], (f"{phase.name}-{i}" for i in itertools.count(2)))
    return list(itertools.takewhile(lambda where: (where / CARD).exists(), (folder / name for name in names)))


def one_trial_a_point(trials: pd.DataFrame, points: list[Point], status: str) -> pd.DataFrame:
    """The trials with a status, at most one for each point: a killed sweep may have tried a point twice."""
    rows = []
    for row in trials[trials.status == status].to_dict("records"):
        config = json.loads(row["config"])
        place = next((i for i, point in enumerate(points) if matches(config, point)), None)
        if place is not None:
            rows.append({**row, "point": place, "rho": config["train"].get("rho")})
    return pd.DataFrame(rows).drop_duplicates("point") if rows else pd.DataFrame()


def has_ended(store: ResultsStore, points: list[Point]) -> bool:
    """Whether every point has a trial that finished or failed.

    A phase that has ended is not gone on with: `--resume` tries its failed trials no more, and the report names them.
    """
    trials = store.read("trials")
    configs = [json.loads(c) for c in trials.config[trials.status.isin(["finished", "failed"])]]
    return all(any(matches(config, point) for config in configs) for point in points)


def _numbers(run: PhaseRun) -> pd.DataFrame:
    if not len(run.trials):
        return pd.DataFrame(columns=COLUMNS)
    seconds = [
        {"trial_id": t.trial_id, "stage": None, "final": True, "number": "seconds", "value": t.seconds, "n": 1}
        for t in run.trials.itertuples()
    ]
    rows = pd.DataFrame(seconds)
    if not run.phase.search:
        parts = [_metrics(run.read("metrics")), _curves(run.read("curves")), rows]
        rows = pd.concat([p for p in parts if len(p)], ignore_index=True)
    return _tagged(rows, run)


def _tagged(rows: pd.DataFrame, run: PhaseRun) -> pd.DataFrame:
    """Adds phase, method and seed to rows of the phase's trials. In the ρ phase a number ends in `@` and its ρ."""
    keys = run.trials[["trial_id", "method", "seed", "rho"]]
    if run.phase.name == "rho":
        rows = rows.merge(keys, on="trial_id")
        return rows.assign(phase="rho", number=[f"{n}@{r:g}" for n, r in zip(rows.number, rows.rho, strict=True)])
    return rows.merge(keys.drop(columns="rho"), on="trial_id").assign(phase=run.phase.name)


def _metrics(table: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for row in table[table.split.isin(["test", "train"])].itertuples():
        name, ball = str(row.name), row.modality if isinstance(row.modality, str) else "joint"
        certificate = row.certificate if isinstance(row.certificate, str) else "estimate"
        value = float(row.value)
        if row.split == "train" and name not in WHOLE_MODEL_METRICS:
            continue
        if name in ACCURACIES:
            number = ACCURACIES[name] + (f":{row.modality}" if ball != "joint" else "")
            value *= 100
        elif name in RADIUS_METRICS:
            number = f"{name}:{certificate}:{ball}"
        elif name == "audit_violations":
            number = f"violations:{certificate}:{ball}"
        elif name == "indicator_ratio":
            number = f"indicator_ratio:{certificate}"
        elif name in WHOLE_MODEL_METRICS:
            number = name
        else:
            continue
        rows.append((row.trial_id, row.stage, bool(row.final), number, value, row.n))
    return pd.DataFrame(rows, columns=["trial_id", "stage", "final", "number", "value", "n"])


def _curves(table: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for row in table[table.split == "test"].itertuples():
        number = f"{row.attack}:{row.ball}:{_budget(row)}"
        rows.append((row.trial_id, row.stage, bool(row.final), number, 100 * float(row.accuracy), row.n))
    return pd.DataFrame(rows, columns=["trial_id", "stage", "final", "number", "value", "n"])


def _budget(row: Any) -> str:
    if row.ball != "product":
        return f"{row.epsilon:g}"
    return ",".join(f"{m}={e:g}" for m, e in sorted(json.loads(row.budgets).items()))


_RADII = [
    "phase",
    "trial_id",
    "method",
    "seed",
    "stage",
    "final",
    "certificate",
    "ball",
    "radius",
    "audited",
    "violated",
]


def _radii(run: PhaseRun) -> pd.DataFrame:
    table = run.read("radii")
    table = table[["trial_id", "stage", "final", "certificate", "ball", "radius", "audited", "violated"]]
    keys = run.trials[["trial_id", "method", "seed"]]
    return table.merge(keys, on="trial_id").assign(phase=run.phase.name)[_RADII] if len(table) else table


def _certified(radii: pd.DataFrame) -> pd.DataFrame:
    """Share of test clips with radius ≥ ε: `certified:<certificate>:<ball>:<ε>`; a wrong prediction has radius 0.

    Only of certificates whose radii are proven: what the estimate reaches is not certified.
    """
    keys = ["phase", "trial_id", "method", "seed", "stage", "final", "certificate", "ball"]
    rows = []
    for key, radius in radii[(radii.phase != "rho") & radii.certificate.isin(PROVEN)].groupby(keys).radius:
        named = dict(zip(keys, key, strict=True))
        certificate, ball = named.pop("certificate"), named.pop("ball")
        for epsilon in CERTIFIED_AT:
            value = 100 * float(np.mean(radius >= epsilon))
            number = f"certified:{certificate}:{ball}:{epsilon:g}"
            rows.append({**named, "number": number, "value": value, "n": len(radius)})
    return pd.DataFrame(rows, columns=COLUMNS)


def audits(study: Study, phase: str) -> pd.DataFrame:
    """Audited and violated radii of the final models: by method, certificate and ball, summed over seeds."""
    radii = study.radii[(study.radii.phase == phase) & study.radii.final]
    if not len(radii):
        return pd.DataFrame(columns=["method", "certificate", "ball", "audited", "violated"])
    grouped = radii[radii.audited].groupby(["method", "certificate", "ball"])
    return grouped.agg(audited=("audited", "sum"), violated=("violated", "sum")).reset_index()


def smoothing_audits(study: Study) -> pd.DataFrame:
    """Violations of smoothing's certificate by method and ball, and the most that chance explains (at 99.9 %).

    The seeds of one method have noise of their own, so their clips add up; those of two methods share it. What counts
    is every clip that entered an audit, not only those with a radius: see `violations_allowed`.
    """
    columns = ["method", "ball", "clips", "violated", "allowed"]
    run = study.runs.get("smoothing")
    radii = study.radii[(study.radii.phase == "smoothing") & study.radii.final]
    radii = radii[radii.certificate == "smoothing"]
    if run is None or run.card is None or not len(radii):
        return pd.DataFrame(columns=columns)
    certify = run.card["config"]["certify"]
    models = radii.groupby(["method", "ball", "trial_id"]).agg(clips=("radius", "size"), violated=("violated", "sum"))
    models["clips"] = models.clips.clip(upper=certify["audit_samples"])
    found = models.groupby(["method", "ball"]).sum().reset_index()
    return found.assign(allowed=[violations_allowed(int(n), certify["smoothing"]["alpha"]) for n in found.clips])


def means_and_deviations(study: Study, phase: str, numbers: list[str], stage: str = "final") -> pd.DataFrame:
    """Mean, deviation and count of seeds of each number, method by method.

    Args:
        study: what has run so far.
        phase: a phase that measures models.
        numbers: as in `Study.numbers`.
        stage: final, step1 or step2.

    Returns: one row a method; columns are (number, mean | deviation | seeds). The deviation of one seed is NaN.
    """
    rows = {}
    for method in study.methods(phase):
        cells: dict[tuple[str, str], float] = {}
        for number in numbers:
            values = study.values(phase, method, number, stage)
            if len(values):
                cells[number, "mean"] = values.mean()
                cells[number, "deviation"] = values.std()
                cells[number, "seeds"] = len(values)
        if cells:
            rows[method] = cells
    columns = pd.MultiIndex.from_product([numbers, ["mean", "deviation", "seeds"]])
    return (
        pd.DataFrame.from_dict(rows, orient="index").reindex(columns=columns) if rows else pd.DataFrame(columns=columns)
    )


@dataclass(frozen=True)
class Difference:
    """One method's number less another's, seed by seed."""

    mean: float
    deviation: float
    seeds: int

    @property
    def beyond_two_deviations(self) -> bool:
        """Beyond two deviations of the difference (with three seeds a two-sided t-test at about 7 %)."""
        return self.seeds > 1 and abs(self.mean) > 2 * self.deviation


def difference(ours: pd.Series, theirs: pd.Series) -> Difference | None:
    """The difference of two methods, paired by seed.

    Args:
        ours: seed to value.
        theirs: seed to value.

    Returns: None where they have no seed in common.
    """
    pairs = (ours - theirs).dropna()
    if not len(pairs):
        return None
    return Difference(float(pairs.mean()), float(pairs.std()), len(pairs))
