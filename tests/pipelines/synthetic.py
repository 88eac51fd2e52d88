"""A synthetic run: a store with the rows that a sweep of several methods, stages and fates would leave."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.stats import binomtest

from pipelines.runs.results import ResultsStore

BUDGETS = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0)
SPACES = {"video": "pixels in [0, 1]", "audio": "standardised log-mel", "flow": "flow in [0, 1]", "radar": "watts"}
HOSTILE = "<script>alert('x')</script>"
# trial, method, status, ρ, learning rate, strength of the model
TRIALS = (
    ("d4f1_00000", "crmt_jt", "finished", 2.0, 0.05, 1.35),
    ("d4f1_00001", "crmt_jt", "finished", 4.71, 0.021, 1.22),
    ("d4f1_00002", "jt", "finished", None, 0.05, 0.92),
    ("d4f1_00003", "jt", "finished", None, 0.013, 0.85),
    ("d4f1_00004", "crmt_jt", "stopped", 0.13, 0.09, 0.7),
    ("d4f1_00005", "jt", "stopped", None, 0.0021, 0.5),
    ("d4f1_00006", "crmt_jt", "failed", 8.4, 0.2, 0.0),
    ("d4f1_00007", "crmt_jt", "finished", 0.9, 0.034, 1.1),
    ("d4f1_00008", "crmt_jt", "running", 1.4, 0.004, 0.8),
)


def interval(count: int, n: int) -> dict[str, Any]:
    """The Wilson interval, as evaluation writes it."""
    found = binomtest(count, n).proportion_ci(method="wilson")
    return {"low": float(found.low), "high": float(found.high), "n": n}


def make_run(
    run: Path,
    modalities: tuple[str, ...] = ("video", "audio"),
    trials: tuple[tuple[Any, ...], ...] = TRIALS,
    clips: int = 597,
    step2: bool = True,
    certificates: tuple[str, ...] = ("estimate",),
    epochs: int = 20,
    attacks: Sequence[str] = ("pgd", "fgm"),
    product: Mapping[str, Sequence[float]] | None = None,
    harmful: Sequence[str] = (),
) -> ResultsStore:
    """A run as the sweep leaves it: every clip has a true distance in each ball, and all tables follow from it.

    `product`: budgets by modality of the product ball. `harmful`: trials whose step 2 lowers validation accuracy.
    """
    store = ResultsStore(run / "results")
    for place, (trial_id, method, status, rho, lr, strength) in enumerate(trials):
        rng = np.random.default_rng(place)
        store.write("trials", trial_id, [_trial(trial_id, method, status, rho, lr, strength, epochs)])
        store.write("epochs", trial_id, _epochs(trial_id, status, strength, epochs, rng))
        if status != "finished":
            continue
        metrics, curves, radii = [], [], []
        stages = ("step1", "step2") if step2 and method.startswith("crmt") else ("step1",)
        for stage in stages:
            stronger = strength * (1.0 if stage == "step1" else 1.12)
            world = World(stage, stage == stages[-1], stronger, modalities, clips, certificates, attacks, product or {})
            rows = _stage(trial_id, world, rng)
            metrics += rows[0]
            curves += rows[1]
            radii += rows[2]
        if len(stages) == 2:
            metrics += _step2(trial_id, strength, trial_id in harmful)
        store.write("metrics", trial_id, metrics)
        store.write("curves", trial_id, curves)
        store.write("radii", trial_id, radii)
    return store


def _trial(
    trial_id: str, method: str, status: str, rho: float | None, lr: float, strength: float, epochs: int
) -> dict[str, Any]:
    ran = {"finished": epochs, "stopped": epochs // 3, "running": epochs // 4, "failed": 1}[status]
    return {
        "trial_id": trial_id,
        "status": status,
        "error": f"RuntimeError: loss is not finite in epoch 2 at {HOSTILE}" if status == "failed" else None,
        "method": method,
        "params": json.dumps({"train.method": method, "train.rho": rho, "train.lr": lr}),
        "config": json.dumps({"select": {"metric": "robust_accuracy", "epsilon": 0.5}}),
        "seed": 0,
        "epochs": ran,
        "workers": 1,
        "seconds": 3.4 * ran,
        "started": "2026-01-05T10:00:00",
        "selected_by": "robust_accuracy",
        "selected_value": None if status in ("failed", "running") else round(0.55 + 0.25 * strength, 4),
        "clips_sha256": "ab" * 32,
        "commit": "0123456789abcdef",
    }


def _epochs(trial_id: str, status: str, strength: float, epochs: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    ran = {"finished": epochs, "stopped": epochs // 3, "running": epochs // 4, "failed": 1}[status]
    rows = []
    for epoch in range(1, ran + 1):
        loss = 2.3 * np.exp(-epoch / 5) / max(strength, 0.4) + 0.05 * rng.random()
        values = {"loss": loss, "lr": 0.05, "train_accuracy": 1 - loss / 3}
        if epoch % 5 == 0 or epoch == epochs:
            clean = min(0.99, 0.6 + 0.3 * strength * (1 - np.exp(-epoch / 4)))
            values |= {"val_accuracy": clean, "val_robust_accuracy": clean - 0.3 / (1 + strength)}
        rows += [{"trial_id": trial_id, "epoch": epoch, "name": k, "value": v} for k, v in values.items()]
    return rows


def _step2(trial_id: str, strength: float, harmful: bool) -> list[dict[str, Any]]:
    """What a trial notes of its step 2 on training and validation clips."""
    rows: list[dict[str, Any]] = []
    for stage, gain, lost in (("step1", 1.0, 0.0), ("step2", 1.1, 0.07 if harmful else -0.005)):
        keys = {"trial_id": trial_id, "stage": stage, "final": stage == "step2", "split": "validation"}
        rows.append({**keys, "name": "val_accuracy", "value": 0.91 - lost})
        rows.append({**keys, "name": "val_robust_accuracy", "value": 0.55 + 0.1 * gain - lost})
        radius = {"name": "train_mean_radius", "value": 0.6 * strength * gain, "certificate": "estimate", "n": 1200}
        rows.append({**keys, "split": "train", **radius})
    return [*rows, {**keys, "name": "step2_harmful", "value": float(harmful)}]


@dataclass(frozen=True)
class World:
    """What one stage of one trial is measured with."""

    stage: str
    final: bool
    strength: float
    modalities: tuple[str, ...]
    clips: int
    certificates: tuple[str, ...]
    attacks: Sequence[str]
    product: Mapping[str, Sequence[float]]

    def space(self, ball: str) -> str:
        return "; ".join(f"{m}: {SPACES[m]}" for m in ([ball] if ball in self.modalities else self.modalities))


WEAKNESS = {"auto": 1.0, "pgd": 1.0, "apgd_ce": 1.02, "apgd_dlr": 1.01, "minimal_norm": 1.05, "square": 1.4, "fgm": 1.2}
ATTACK_SETTINGS = {
    "fgm": {"steps": 1, "loss": "margin"},
    "noise": {"seed": 0},
    "square": {"queries": 500, "seed": 0},
    "auto": {"steps": 20, "restarts": 1, "seed": 0, "loss": "margin", "queries": 500},
}
AUDIT = {"audit": "auto", "steps": 20, "restarts": 2}
RESTS_ON: dict[str, dict[str, Any]] = {
    "estimate": {"tau_samples": 512, **AUDIT},
    "lipschitz": {"lipschitz_constants": {"video": 1.0, "audio": 0.5}, **AUDIT},
    "smoothing": {"sigmas": {"video": 0.25, "audio": 0.5}, "n0": 100, "n": 1000, "alpha": 0.001},
}
FACTORS = {"estimate": 0.55, "lipschitz": 0.35, "smoothing": 0.45}
SMOOTHED = 100
ALLOWED = 3
Rows = list[dict[str, Any]]


def _stage(trial_id: str, world: World, rng: np.random.Generator) -> tuple[Rows, Rows, Rows]:
    keys = {"trial_id": trial_id, "stage": world.stage, "final": world.final}
    clips, modalities = world.clips, world.modalities
    label = rng.integers(0, 10, clips)
    right = rng.random(clips) < min(0.90 + 0.06 * world.strength, 0.995)
    predicted = np.where(right, label, (label + 1) % 10)
    joint = np.where(right, rng.gamma(3.0, 0.42 * world.strength, clips), 0.0)
    metrics: Rows = []

    def share(name: str, count: int, modality: str | None = None) -> None:
        row = {"split": "test", "name": name, "modality": modality, "value": count / clips, **interval(count, clips)}
        metrics.append({**keys, **row})

    share("clean_accuracy", int(right.sum()))
    for i, m in enumerate(modalities):
        share("unimodal_accuracy", int((0.83 + 0.05 * i) * clips), m)
        share("missing_accuracy", int(min(0.45 + 0.25 * i * world.strength, 0.97) * clips), m)
    true = {"joint": joint} | {m: joint * (1.4 - 0.5 * i) for i, m in enumerate(modalities)}
    curves = [{**keys, "split": "test", "norm": "l2", **row} for row in _curves(world, right, true)]
    radii: Rows = []
    for certificate in world.certificates:
        if certificate == "smoothing" and not world.final:
            continue
        found = _radii(world, certificate, label, predicted, true)
        radii += [{**keys, **row} for row in found]
        metrics += [{**keys, "split": "test", **row} for row in _of_radii(world, certificate, found)]
    return metrics, curves, radii


def _curves(world: World, right: np.ndarray, true: Mapping[str, np.ndarray]) -> Rows:
    rows: Rows = []

    def add(attack: str, ball: str, count: int, **where: Any) -> None:
        more = {"steps": 20, "restarts": 1, "loss": "margin", "seed": 0}
        settings = json.dumps(ATTACK_SETTINGS.get(attack, more))
        row = {"attack": attack, "ball": ball, "space": world.space(ball), "accuracy": count / world.clips}
        rows.append({**row, **where, **interval(count, world.clips), "settings": settings})

    for attack in world.attacks:
        for ball, distance in true.items():
            for epsilon in BUDGETS:
                standing = right & (WEAKNESS.get(attack, 9.0) * distance > epsilon)
                add(attack, ball, int(standing.sum()), epsilon=epsilon)
        for budgets in itertools.product(*world.product.values()) if world.product else ():
            given = dict(zip(world.product, budgets, strict=True))
            used = sum((given[m] / np.maximum(true[m], 1e-9)) ** 2 for m in given)
            add(attack, "product", int((right & (used < WEAKNESS.get(attack, 9.0))).sum()), budgets=json.dumps(given))
    return rows


def _radii(
    world: World, certificate: str, label: np.ndarray, predicted: np.ndarray, true: Mapping[str, np.ndarray]
) -> Rows:
    count = min(SMOOTHED, world.clips) if certificate == "smoothing" else world.clips
    clip = np.arange(count)
    guess = np.where((clip % 17 == 3) & (certificate == "smoothing"), -1, predicted[:count])
    settings = json.dumps(RESTS_ON.get(certificate, AUDIT))
    rows: Rows = []
    for ball, distance in true.items():
        radius = FACTORS.get(certificate, 0.4) * np.where(guess == -1, 0.0, distance[:count])
        audited = (clip < 128) & (radius > 0)
        violated = audited & (clip % 61 == 5) & (certificate == "estimate")
        same = {"certificate": certificate, "ball": ball, "space": world.space(ball), "settings": settings}
        for c in range(count):
            row = {"clip_id": f"clip{c:04d}", "label": int(label[c]), "predicted": int(guess[c])}
            row |= {"radius": float(radius[c]), "audited": bool(audited[c]), "violated": bool(violated[c])}
            rows.append({**same, **row})
    return rows


def _of_radii(world: World, certificate: str, radii: Rows) -> Rows:
    rows: Rows = []
    for ball in ("joint", *world.modalities):
        mine = [r for r in radii if r["ball"] == ball]
        audited = sum(r["audited"] for r in mine)
        values = {"mean_radius": float(np.mean([r["radius"] for r in mine]))}
        values["audit_violations"] = float(sum(r["violated"] for r in mine))
        if certificate == "smoothing":
            values["audit_allowed"] = float(ALLOWED)
        same = {"modality": None if ball == "joint" else ball, "certificate": certificate, "n": audited}
        rows += [{"name": name, "value": value, **same} for name, value in values.items()]
    if certificate != "smoothing":
        ratio = {"name": "indicator_ratio", "value": (1.7 if certificate == "estimate" else 0.9) / world.strength}
        rows.append({**ratio, "certificate": certificate, "n": world.clips})
    return rows


NEW = {"metrics": ["certificate"], "curves": ["budgets"], "radii": ["settings"]}


def make_old(store: ResultsStore) -> None:
    """Leave the files of a run as they were before certificates, budgets and settings had columns."""
    for table, columns in NEW.items():
        for part in (store.root / table).glob("*.parquet"):
            found = pq.read_table(part).drop_columns(columns)
            pq.write_table(found, part)
    for part in (store.root / "metrics").glob("*.parquet"):
        found = pq.read_table(part).to_pandas()
        names = ["val_accuracy", "val_robust_accuracy", "step2_harmful", "audit_allowed"]
        pq.write_table(pa.Table.from_pandas(found[~found["name"].isin(names)], preserve_index=False), part)


def provenance(run: Path, **more: Any) -> None:
    """run.json as the sweep writes it."""
    found = {
        "name": "avdigits-demo",
        "dataset": "avdigits",
        "command": "python pipelines/sweep.py --dataset avdigits",
        "commit": "0123456789abcdef",
        "dirty": True,
        "versions": {"python": "3.11.2", "torch": "2.13.0", "ray": "2.60.0"},
        "hardware": {"cpus": 2, "memory_gib": 24.0, "gpus": 0},
        "started": "2026-01-05T10:00:00+00:00",
        "clips": {"train": 1020, "validation": 180, "test": 597, "failed": 0},
        "clips_sha256": "ab" * 32,
        "classes": 10,
        "spaces": {"video": SPACES["video"], "audio": SPACES["audio"]},
    }
    (run / "run.json").write_text(json.dumps({**found, **more}))
