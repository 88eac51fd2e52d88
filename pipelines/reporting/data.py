"""What a report is made of: the tables of a run, its provenance, the best trials, one row a trial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binomtest, norm

from pipelines.infra.storage import Where, folder_at
from pipelines.reporting.names import JOINT, PRODUCT, Names, in_order, json_object, names_of
from pipelines.runs.results import TABLES, ResultsStore, open_store

PAGE = "report.html"
"""The report, in the folder of its run."""
BUDGETS_SHOWN = 3
DEFAULT_SPACES = {"video": "pixels in [0, 1]", "audio": "standardised log-mel", "flow": "flow in [0, 1]"}


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

    run: Where
    provenance: dict[str, Any]
    names: Names
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
    by_chance: frozenset[str]
    """Certificates that hold with a probability below 1: chance allows some violations, and they may abstain."""
    attacks: list[str]
    """Attacks that ran, the strongest first."""
    attack: str
    """The headline's attack, in tables and tiles: `auto` where it ran, else PGD, else the strongest that ran."""
    budgets: list[float]
    """Joint ℓ2 budgets of that attack, ascending."""
    headline: float | None
    """The budget of the headline: the one that the trials were selected by, or else the middle one."""
    chance: float | None

    @property
    def selected_by(self) -> str:
        """What hyperparameters were chosen by, in words: `robust accuracy`; empty where no trial says it."""
        names = sorted({str(n).removeprefix("val_") for n in self.tables["trials"].selected_by.dropna()})
        return ", ".join(names).replace("_", " ")

    def column(self, epsilon: float) -> str:
        """The summary's column of accuracy under the headline's attack."""
        return f"{self.attack}_joint_{epsilon:g}"

    def trial(self, trial_id: str) -> pd.Series:
        """A trial's row in the table of trials."""
        return self.rows_of("trials", trial_id).iloc[-1]

    def space_of(self, ball: str) -> str:
        """`video: pixels in [0, 1]; audio: standardised log-mel`, or one modality's part of it."""
        in_card = self.provenance.get("spaces")
        spaces = in_card if isinstance(in_card, dict) else {}
        names = self.modalities if ball in (JOINT, PRODUCT) else [ball]
        known = [(m, spaces.get(m) or DEFAULT_SPACES.get(m)) for m in names]
        if not all(space for _, space in known):
            curves = self.tables["curves"]
            return next(iter(sorted(distinct(curves[curves.ball == ball].space))), "")
        return "; ".join(f"{m}: {space}" for m, space in known if space)

    def rows_of(self, table: str, trial_id: str) -> pd.DataFrame:
        """The rows of one trial."""
        return self.parts[table].get(trial_id, self.tables[table].iloc[:0])

    def metric(
        self,
        trial_id: str,
        name: str,
        modality: str | None = None,
        stage: str | None = None,
        split: str = "test",
        certificate: str | None = None,
    ) -> Share:
        """One number of the metrics table; the final stage unless `stage` is given."""
        rows = self.rows_of("metrics", trial_id)
        rows = rows[(rows["name"] == name) & (rows.split == split)]
        rows = rows[_of_modality(rows.modality, modality) & _of_certificate(rows.certificate, certificate)]
        return _share(rows[rows.stage == stage] if stage else final_rows(rows))

    def attacked(
        self, trial_id: str, epsilon: float, ball: str = JOINT, attack: str | None = None, stage: str | None = None
    ) -> Share:
        """Accuracy under an ℓ2 attack, that of the headline unless given, at one budget."""
        rows = self.rows_of("curves", trial_id)
        rows = rows[(rows.attack == (attack or self.attack)) & (rows.ball == ball)]
        rows = rows[(rows.norm == "l2") & np.isclose(rows.epsilon.astype(float), epsilon)]
        rows = rows[rows.stage == stage] if stage else final_rows(rows)
        return _share(rows.rename(columns={"accuracy": "value"}))

    def radii(self, trial_id: str, certificate: str, ball: str = JOINT) -> pd.DataFrame:
        """Rows of the radii table, final stage."""
        rows = final_rows(self.rows_of("radii", trial_id))
        return rows[(rows.certificate == certificate) & (rows.ball == ball)]

    def mean_radius(self, trial_id: str, certificate: str = "estimate", ball: str = JOINT) -> Share:
        """Mean over the test clips (0 where the prediction is wrong) with a normal 95 % interval."""
        radius = self.radii(trial_id, certificate, ball).radius.astype(float)
        radius = radius[np.isfinite(radius)]
        if len(radius):
            half = norm.ppf(0.975) * radius.std(ddof=1) / np.sqrt(len(radius)) if len(radius) > 1 else np.nan
            mean = float(radius.mean())
            return Share(mean, max(mean - half, 0.0), mean + half, len(radius))
        return self.metric(trial_id, "mean_radius", ball, certificate=certificate)

    def audit(self, trial_id: str, certificate: str = "estimate", ball: str = JOINT) -> tuple[int, int] | None:
        """(violations, audited clips); None where nothing was audited."""
        rows = self.radii(trial_id, certificate, ball)
        audited = rows[_true(rows.audited)]
        if len(audited):
            return int(_true(audited.violated).sum()), len(audited)
        found = self.metric(trial_id, "audit_violations", ball, certificate=certificate)
        return (round(found.value), found.n) if np.isfinite(found.value) and found.n else None

    def allowed(self, trial_id: str, certificate: str, ball: str = JOINT, stage: str | None = None) -> int:
        """The most violations of a sound certificate that chance explains: 0 for those that hold in every case."""
        value = self.metric(trial_id, "audit_allowed", ball, stage, certificate=certificate).value
        return round(value) if np.isfinite(value) else 0

    def abstained(self, trial_id: str, certificate: str) -> tuple[int, int] | None:
        """(clips on which the classifier abstained, clips); None without radii."""
        rows = self.radii(trial_id, certificate)
        return (int((rows.predicted == -1).sum()), len(rows)) if len(rows) else None

    def rests_on(self, trial_id: str, certificate: str) -> dict[str, Any]:
        """What the radii of a trial rest on: samples of τ̂, constants, σ, the attack of the audit."""
        found = self.radii(trial_id, certificate).settings.dropna()
        return json_object(found.iloc[0]) if len(found) else {}

    def certificate_name(self, certificate: str) -> str:
        """`estimated`, `certified`, `certified (99.9 %, smoothing)`: what a radius may be called."""
        word = self.names.certificate(certificate).word
        found = self.tables["radii"]
        texts = found[found.certificate == certificate].settings.dropna().unique()
        alphas = {json_object(text).get("alpha") for text in texts}
        alpha = alphas.pop() if len(alphas) == 1 else None
        if not isinstance(alpha, float) or "%" in word:
            return word
        first, bracket, rest = word.partition(" (")
        return f"{first} ({100 * (1 - alpha):.6g} %{', ' + rest if bracket else ')'}"

    def is_sound(self, certificate: str) -> bool:
        """Whether a violation of its radii, beyond what chance explains, is a bug."""
        return self.names.certificate(certificate).sound


def _of_modality(column: pd.Series, modality: str | None) -> pd.Series:
    return (column.isna() | (column == JOINT)) if modality in (None, JOINT) else column == modality


def _of_certificate(column: pd.Series, certificate: str | None) -> pd.Series:
    if certificate is None:
        return column.isna()
    # older runs had the estimate alone and did not say so
    return (column == certificate) | (column.isna() & (certificate == "estimate"))


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
    """Share of clips that are predicted right with radius ≥ ε, for each ε."""
    right = (rows.predicted == rows.label) & rows.radius.notna()
    radius = np.sort(rows.radius[right].to_numpy(dtype=float))
    at_least = len(radius) - np.searchsorted(radius, np.asarray(epsilons, dtype=float), side="left")
    return at_least / max(len(rows), 1)


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


def budgets_for_tables(budgets: Sequence[float], middle: float | None) -> list[float]:
    """Up to three budgets: the headline's (`middle`) and one on either side of it."""
    values = sorted(budgets)
    if len(values) <= BUDGETS_SHOWN or middle is None:
        return values[:BUDGETS_SHOWN]
    i = min(max(values.index(middle), 1), len(values) - 2)
    below, above = (i - 1) // 2 if i > 2 else i - 1, i + max(1, (len(values) - 1 - i) // 2)
    return [values[below], values[i], values[above]]


def load_run(run: Where) -> RunData:
    """Read a run, here or on a server.

    Raises:
        BadInputError: `run` is not the folder of a run.
    """
    return from_store(open_store(run), run=run, provenance=_read_provenance(run))


def _read_provenance(run: Where) -> dict[str, Any]:
    # a run that was killed early has no run.json, or half of one: the numbers are still worth a page
    try:
        return json_object(folder_at(run).read("run.json").decode())
    except (FileNotFoundError, UnicodeDecodeError):
        return {}


def from_store(store: ResultsStore, run: Where, provenance: dict[str, Any]) -> RunData:
    """Gather what a report needs from a results store."""
    tables = {name: store.read(name) for name in TABLES}
    trials, curves = tables["trials"], tables["curves"]
    joint = curves[(curves.ball == JOINT) & (curves.norm == "l2") & curves.epsilon.notna()]
    attacks = in_order("attacks", distinct(curves.attack))
    strongest = [a for a in in_order("attacks", distinct(joint.attack)) if a != "noise"]
    attack = strongest[0] if strongest else "pgd"
    joint = joint[joint.attack == attack]
    budgets = sorted(float(e) for e in joint.epsilon.dropna().unique())
    names, kinds = names_of(provenance, distinct(trials.method)), (tables[t].certificate for t in ("radii", "metrics"))
    certificates = in_order("certificates", set[str]().union(*map(distinct, kinds)))
    bare = RunData(
        run=run,
        provenance=provenance,
        names=names,
        tables=tables,
        parts={n: {str(k): r for k, r in t.groupby("trial_id")} for n, t in tables.items() if "trial_id" in t},
        summary=pd.DataFrame(),
        best=_best(trials),
        modalities=_modalities(tables),
        certificates=certificates,
        by_chance=frozenset(c for c in certificates if names.certificate(c).by_chance or _shows_chance(tables, c)),
        attacks=attacks,
        attack=attack,
        budgets=budgets,
        headline=_headline(trials, budgets),
        chance=_chance(provenance, tables["radii"]),
    )
    return replace(bare, summary=_summary(bare))


def distinct(column: pd.Series) -> set[str]:
    """The values that occur, without nulls."""
    return {str(v) for v in column.dropna().unique()}


def _shows_chance(tables: dict[str, pd.DataFrame], certificate: str) -> bool:
    """Whether its rows allow violations or abstain: a certificate of the user's own says it in no other way."""
    metrics, radii = tables["metrics"], tables["radii"]
    allowed = metrics[(metrics["name"] == "audit_allowed") & (metrics.certificate == certificate)].value
    return bool((allowed > 0).any() or ((radii.certificate == certificate) & (radii.predicted == -1)).any())


def _modalities(tables: dict[str, pd.DataFrame]) -> list[str]:
    columns = (tables["metrics"].modality, tables["curves"].ball, tables["radii"].ball)
    found = set[str]().union(*(distinct(c) for c in columns)) - {JOINT, PRODUCT}
    return [m for m in DEFAULT_SPACES if m in found] + sorted(found - set(DEFAULT_SPACES))


def _best(trials: pd.DataFrame) -> dict[str, str]:
    """Best trial of each method by validation metric: a finished one if there is one, else a stopped one."""
    found: dict[str, str] = {}
    for method in in_order("methods", distinct(trials.method)):
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
        select = json_object(text).get("select")
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
    clean_accuracy, unimodal_accuracy_<modality>, missing_accuracy_<modality>, <attack>_joint_<epsilon> of the
    headline's attack (auto, else pgd), then for every certificate with c = estimated | certified | smoothed (or the
    name of one that is not ours): <c>_mean_radius, <c>_mean_radius_<modality>, <c>_violations, <c>_audited (of the
    joint ball), and where chance plays a part <c>_violations_allowed, <c>_abstained; step2_harmful; error. Shares lie
    in [0, 1]; NaN where a trial has no such number.
    """
    return from_store(store, run=store.root.parent, provenance={}).summary


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
        row[data.column(epsilon)] = data.attacked(trial_id, epsilon).value
    for certificate in data.certificates or ["estimate"]:
        prefix = data.names.certificate(certificate).column
        row[f"{prefix}_mean_radius"] = data.mean_radius(trial_id, certificate).value
        for m in data.modalities:
            row[f"{prefix}_mean_radius_{m}"] = data.mean_radius(trial_id, certificate, m).value
        violations, audited = data.audit(trial_id, certificate) or (np.nan, np.nan)
        row[f"{prefix}_violations"], row[f"{prefix}_audited"] = violations, audited
        if certificate in data.by_chance:
            abstained = data.abstained(trial_id, certificate)
            row[f"{prefix}_violations_allowed"] = data.allowed(trial_id, certificate) if audited > 0 else np.nan
            row[f"{prefix}_abstained"] = abstained[0] if abstained else np.nan
    row["step2_harmful"] = data.metric(trial_id, "step2_harmful", split="validation").value
    return {**row, "error": trial["error"]}


def has_product(data: RunData) -> bool:
    """Whether a budget grid was attacked."""
    return bool((data.tables["curves"].ball == PRODUCT).any())
