"""What a report is made of: the tables of a run, its provenance, the best trials, one row a trial."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binomtest, norm

from pipelines.results import TABLES, ResultsStore, open_store

JOINT = "joint"
BUDGETS_SHOWN = 3

METHOD_NAMES = {
    "crmt_jt": "CRMT-JT",
    "jt": "JT",
    "ojt": "OJT",
    "crmt_step_1": "CRMT-step-1",
    "crmt_step_2": "CRMT-step-2",
    "crmt_at": "CRMT-AT",
    "crmt_mix": "CRMT-Mix",
    "mmat": "MMAT",
    "mixup": "Mixup",
    "gb": "GB",
    "ogm_ge": "OGM-GE",
    "pmr": "PMR",
    "msefm": "MSEFM",
}
# what a radius may be called: "certified" only where it is sound (method.md, section 4)
CERTIFICATE_NAMES = {
    "estimate": "estimated",
    "lipschitz": "certified",
    "smoothing": "certified (99.9 %, smoothing)",
}
DEFAULT_SPACES = {
    "video": "pixels in [0, 1]",
    "audio": "standardised log-mel",
    "flow": "flow in [0, 1]",
}


@dataclass(frozen=True)
class Share:
    """A number with its 95 % interval (NaN where there is none) and the count behind it (0 where unknown)."""

    value: float
    low: float = np.nan
    high: float = np.nan
    n: int = 0

    @property
    def has_interval(self) -> bool:
        return bool(np.isfinite(self.low) and np.isfinite(self.high))


MISSING = Share(np.nan)


@dataclass(frozen=True)
class RunData:
    """Everything that the figures and the page read."""

    run: Path
    provenance: dict[str, Any]
    tables: dict[str, pd.DataFrame]
    parts: dict[str, dict[str, pd.DataFrame]]
    """table: trial_id: its rows. A big run has millions of radii; each look-up must not scan them all."""
    summary: pd.DataFrame
    """One row a trial, best first (see `summary`)."""
    best: dict[str, str]
    """method: trial_id, chosen on validation; the methods in the order in which the page shows them."""
    modalities: list[str]
    certificates: list[str]
    """Kinds of radii that occur, the estimate first."""
    budgets: list[float]
    """Joint ℓ2 PGD budgets, ascending."""
    headline: float | None
    """The budget of the headline: the one that the trials were selected by, or else the middle one."""
    chance: float | None

    def trial(self, trial_id: str) -> pd.Series:
        """Its row in the table of trials."""
        return self.of("trials", trial_id).iloc[-1]

    def space_of(self, ball: str) -> str:
        """`video: pixels in [0, 1]; audio: standardised log-mel`, or one modality's part of it."""
        given = self.provenance.get("spaces")
        spaces = given if isinstance(given, dict) else {}
        names = self.modalities if ball == JOINT else [ball]
        known = [(m, spaces.get(m) or DEFAULT_SPACES.get(m)) for m in names]
        if not all(space for _, space in known):
            curves = self.tables["curves"]
            return next(iter(sorted(distinct(curves[curves.ball == ball].space))), "")
        return "; ".join(f"{m}: {space}" for m, space in known if space)

    def of(self, table: str, trial_id: str) -> pd.DataFrame:
        """The rows of one trial."""
        return self.parts[table].get(trial_id, self.tables[table].iloc[:0])

    def metric(
        self,
        trial_id: str,
        name: str,
        modality: str | None = None,
        stage: str | None = None,
        split: str = "test",
    ) -> Share:
        """One number of the metrics table; the final stage unless `stage` is given."""
        rows = self.of("metrics", trial_id)
        rows = rows[(rows["name"] == name) & (rows.split == split)]
        rows = rows[_same(rows.modality, modality)]
        return _share(rows[rows.stage == stage] if stage else final_rows(rows))

    def attacked(
        self, trial_id: str, epsilon: float, ball: str = JOINT, attack: str = "pgd", stage: str | None = None
    ) -> Share:
        """Accuracy under an ℓ2 attack at one budget."""
        rows = self.of("curves", trial_id)
        rows = rows[(rows.attack == attack) & (rows.ball == ball)]
        rows = rows[(rows.norm == "l2") & np.isclose(rows.epsilon, epsilon)]
        rows = rows[rows.stage == stage] if stage else final_rows(rows)
        return _share(rows.rename(columns={"accuracy": "value"}))

    def radii(self, trial_id: str, certificate: str, ball: str = JOINT) -> pd.DataFrame:
        """Rows of the radii table, final stage."""
        rows = final_rows(self.of("radii", trial_id))
        return rows[(rows.certificate == certificate) & (rows.ball == ball)]

    def mean_radius(self, trial_id: str, certificate: str = "estimate", ball: str = JOINT) -> Share:
        """Mean over the test clips (0 where the prediction is wrong) with a normal 95 % interval."""
        radius = self.radii(trial_id, certificate, ball).radius.dropna()
        if len(radius):
            half = norm.ppf(0.975) * radius.std(ddof=1) / np.sqrt(len(radius)) if len(radius) > 1 else np.nan
            mean = float(radius.mean())
            return Share(mean, max(mean - half, 0.0), mean + half, len(radius))
        if certificate != "estimate":
            return MISSING
        return self.metric(trial_id, "mean_radius", None if ball == JOINT else ball)

    def audit(self, trial_id: str, certificate: str = "estimate", ball: str = JOINT) -> tuple[int, int] | None:
        """(violations, audited clips); None where nothing was audited."""
        rows = self.radii(trial_id, certificate, ball)
        audited = rows[_true(rows.audited)]
        if len(audited):
            return int(_true(audited.violated).sum()), len(audited)
        if certificate != "estimate":
            return None
        found = self.metric(trial_id, "audit_violations", None if ball == JOINT else ball)
        return (round(found.value), found.n) if np.isfinite(found.value) and found.n else None


def _same(column: pd.Series, modality: str | None) -> pd.Series:
    return (column.isna() | (column == JOINT)) if modality is None else column == modality


def _true(column: pd.Series) -> pd.Series:
    return column.fillna(False).astype(bool)


def _share(rows: pd.DataFrame) -> Share:
    if rows.empty:
        return MISSING
    row = rows.iloc[-1]
    n = 0 if pd.isna(row["n"]) else int(row["n"])
    return Share(float(row["value"]), float(row["low"]), float(row["high"]), n)


def final_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of the stage whose model is saved."""
    return rows[_true(rows["final"])]


def wilson(count: int, n: int) -> Share:
    """A share with its 95 % Wilson interval."""
    if n == 0:
        return MISSING
    interval = binomtest(count, n).proportion_ci(method="wilson")
    return Share(count / n, float(interval.low), float(interval.high), n)


def accuracy_from_radii(rows: pd.DataFrame, epsilons: Sequence[float] | np.ndarray) -> np.ndarray:
    """Share of clips that are predicted right with radius ≥ ε, for each ε (method.md, section 4)."""
    right = (rows.predicted == rows.label) & rows.radius.notna()
    radius = np.sort(rows.radius[right].to_numpy(dtype=float))
    at_least = len(radius) - np.searchsorted(radius, np.asarray(epsilons, dtype=float), side="left")
    return at_least / max(len(rows), 1)


def method_name(method: Any) -> str:
    """The name that people know a method by."""
    return METHOD_NAMES.get(str(method), "unknown method" if _is_null(method) else str(method))


def _is_null(value: Any) -> bool:
    return value is None or (isinstance(value, float) and np.isnan(value))


def params_of(text: Any) -> dict[str, Any]:
    """The searched parameters of a trial from their JSON; empty where it cannot be read."""
    try:
        params = json.loads(text) if isinstance(text, str) else {}
    except json.JSONDecodeError:
        return {}
    return params if isinstance(params, dict) else {}


def short_name(path: str) -> str:
    """`train.rho` to `ρ`."""
    leaf = path.rpartition(".")[2]
    return {"rho": "ρ", "lr": "learning rate"}.get(leaf, leaf.replace("_", " "))


def params_text(params: Mapping[str, Any]) -> str:
    """`ρ 2.1, lr 0.05`: without the method, which has a column of its own, and without what has no effect."""
    shown = {k: v for k, v in params.items() if not k.endswith("method") and v is not None}
    names = {k: short_name(k).replace("learning rate", "lr") for k in shown}
    return ", ".join(f"{names[k]} {format_value(v)}" for k, v in shown.items())


def format_value(value: Any) -> str:
    """Three significant digits where it is a float."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def few(budgets: Sequence[float], middle: float | None) -> list[float]:
    """Up to three budgets for a table: the headline's and one on either side of it."""
    values = sorted(budgets)
    if len(values) <= BUDGETS_SHOWN or middle is None:
        return values[:BUDGETS_SHOWN]
    i = min(max(values.index(middle), 1), len(values) - 2)
    below, above = (i - 1) // 2 if i > 2 else i - 1, i + max(1, (len(values) - 1 - i) // 2)
    return [values[below], values[i], values[above]]


def load_run(run: Path) -> RunData:
    """Read a run folder.

    Raises:
        BadInputError: `run` is not the folder of a run.
    """
    store = open_store(run)
    return from_store(store, run=Path(run), provenance=_read_provenance(Path(run) / "run.json"))


def _read_provenance(path: Path) -> dict[str, Any]:
    # a run that was killed early has no run.json, or half of one: the numbers are still worth a page
    try:
        found = json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        return {}
    return found if isinstance(found, dict) else {}


def from_store(store: ResultsStore, run: Path, provenance: dict[str, Any]) -> RunData:
    """Gather what a report needs from a results store."""
    tables = {name: store.read(name) for name in TABLES}
    trials, curves = tables["trials"], tables["curves"]
    joint = curves[(curves.attack == "pgd") & (curves.ball == JOINT) & (curves.norm == "l2")]
    budgets = sorted(float(e) for e in joint.epsilon.dropna().unique())
    bare = RunData(
        run=run,
        provenance=provenance,
        tables=tables,
        parts={name: _by_trial(table) for name, table in tables.items()},
        summary=pd.DataFrame(),
        best=_best(trials),
        modalities=_modalities(tables),
        certificates=_certificates(tables["radii"]),
        budgets=budgets,
        headline=_headline(trials, budgets),
        chance=_chance(provenance, tables["radii"]),
    )
    return replace(bare, summary=_summary(bare))


def _by_trial(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    return {str(k): rows for k, rows in table.groupby("trial_id")} if "trial_id" in table else {}


def distinct(column: pd.Series) -> set[str]:
    """The values that occur, without nulls."""
    return {str(v) for v in column.dropna().unique()}


def _certificates(radii: pd.DataFrame) -> list[str]:
    found = distinct(radii.certificate)
    return [c for c in CERTIFICATE_NAMES if c in found] + sorted(found - set(CERTIFICATE_NAMES))


def _modalities(tables: dict[str, pd.DataFrame]) -> list[str]:
    columns = (tables["metrics"].modality, tables["curves"].ball, tables["radii"].ball)
    found = set[str]().union(*(distinct(c) for c in columns)) - {JOINT}
    return [m for m in DEFAULT_SPACES if m in found] + sorted(found - set(DEFAULT_SPACES))


def _best(trials: pd.DataFrame) -> dict[str, str]:
    """Best trial of each method by validation metric: a finished one if there is one, else a stopped one."""
    found: dict[str, str] = {}
    found_methods = distinct(trials.method)
    order = [m for m in METHOD_NAMES if m in found_methods]
    order += sorted(found_methods - set(order))
    for method in order:
        rows = trials[trials.method == method]
        done = rows[rows.status == "finished"]
        done = done if len(done) else rows[(rows.status == "stopped") & rows.selected_value.notna()]
        if len(done):
            ranked = done.sort_values(["selected_value", "trial_id"], ascending=[False, True])
            found[method] = str(ranked.trial_id.iloc[0])
    return found


def _headline(trials: pd.DataFrame, budgets: list[float]) -> float | None:
    if not budgets:
        return None
    for text in trials.config.dropna():
        select = params_of(text).get("select")
        epsilon = select.get("epsilon") if isinstance(select, dict) else None
        near = [b for b in budgets if isinstance(epsilon, int | float) and np.isclose(b, epsilon)]
        if near:
            return near[0]
    return budgets[(len(budgets) - 1) // 2]


def _chance(provenance: dict[str, Any], radii: pd.DataFrame) -> float | None:
    classes = provenance.get("classes")
    count = len(classes) if isinstance(classes, list | dict) else classes
    if not isinstance(count, int) or count < 1:
        count = radii.label.nunique()
    return 1 / count if count else None


def summary(store: ResultsStore) -> pd.DataFrame:
    """One row a trial, best first, with the numbers of its final stage on the test split.

    Columns: trial_id, method, status, params (JSON), seed, epochs, seconds, selected_by, selected_value,
    clean_accuracy, unimodal_accuracy_<modality>, missing_accuracy_<modality>, pgd_joint_<epsilon>, then for
    every certificate with c = estimated | certified | smoothed: <c>_mean_radius, <c>_mean_radius_<modality>,
    <c>_violations, <c>_audited; error. Shares lie in [0, 1]; NaN where a trial has no such number.
    """
    return from_store(store, run=store.root.parent, provenance={}).summary


COLUMN_OF = {"estimate": "estimated", "lipschitz": "certified", "smoothing": "smoothed"}


def _summary(data: RunData) -> pd.DataFrame:
    trials = data.tables["trials"]
    rows = [_summary_row(data, trial) for _, trial in trials.iterrows()]
    table = pd.DataFrame(rows, columns=list(rows[0]) if rows else ["trial_id", "method", "status", "params"])
    if not rows:
        return table
    rank = table.status.map({"finished": 0, "stopped": 1, "running": 2, "failed": 3}).fillna(4)
    order = pd.DataFrame({"rank": rank, "value": -table.selected_value.astype(float), "id": table.trial_id})
    return table.loc[order.sort_values(["rank", "value", "id"]).index].reset_index(drop=True)


def _summary_row(data: RunData, trial: pd.Series) -> dict[str, Any]:
    trial_id = str(trial.trial_id)
    kept = ("method", "status", "params", "seed", "epochs", "seconds", "selected_by", "selected_value")
    row: dict[str, Any] = {"trial_id": trial_id, **{k: trial[k] for k in kept}}
    row["clean_accuracy"] = data.metric(trial_id, "clean_accuracy").value
    for name in ("unimodal_accuracy", "missing_accuracy"):
        for m in data.modalities:
            row[f"{name}_{m}"] = data.metric(trial_id, name, m).value
    for epsilon in data.budgets:
        row[f"pgd_joint_{epsilon:g}"] = data.attacked(trial_id, epsilon).value
    for certificate in data.certificates or ["estimate"]:
        prefix = COLUMN_OF.get(certificate, certificate)
        row[f"{prefix}_mean_radius"] = data.mean_radius(trial_id, certificate).value
        for m in data.modalities:
            row[f"{prefix}_mean_radius_{m}"] = data.mean_radius(trial_id, certificate, m).value
        violations, audited = data.audit(trial_id, certificate) or (np.nan, np.nan)
        row[f"{prefix}_violations"], row[f"{prefix}_audited"] = violations, audited
    return {**row, "error": trial["error"]}
