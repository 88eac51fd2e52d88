"""A synthetic run: a store with the rows that a sweep of several methods, stages and fates would leave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

from pipelines.results import ResultsStore

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
) -> ResultsStore:
    """A run as the sweep leaves it: every clip has a true distance in each ball, and all tables follow from it."""
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
            rows = _stage(trial_id, stage, stage == stages[-1], stronger, modalities, clips, certificates, rng)
            metrics += rows[0]
            curves += rows[1]
            radii += rows[2]
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


def _stage(
    trial_id: str,
    stage: str,
    final: bool,
    strength: float,
    modalities: tuple[str, ...],
    clips: int,
    certificates: tuple[str, ...],
    rng: np.random.Generator,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    keys = {"trial_id": trial_id, "stage": stage, "final": final}
    label = rng.integers(0, 10, clips)
    right = rng.random(clips) < min(0.90 + 0.06 * strength, 0.995)
    predicted = np.where(right, label, (label + 1) % 10)
    joint = np.where(right, rng.gamma(3.0, 0.42 * strength, clips), 0.0)
    metrics: list[dict[str, Any]] = []

    def add(name: str, value: float, modality: str | None = None, split: str = "test", **more: Any) -> None:
        metrics.append({**keys, "split": split, "name": name, "modality": modality, "value": value, **more})

    def share(name: str, count: int, modality: str | None = None) -> None:
        add(name, count / clips, modality, **interval(count, clips))

    share("clean_accuracy", int(right.sum()))
    add("train_mean_radius", float(0.55 * joint.mean()), None, "train", n=1200)
    add("indicator_ratio", 1.7 / strength, n=clips)
    curves: list[dict[str, Any]] = []
    radii: list[dict[str, Any]] = []
    for i, ball in enumerate(("joint", *modalities)):
        true = joint * (1.0 if ball == "joint" else 1.9 - 0.5 * i)
        space = "; ".join(f"{m}: {SPACES[m]}" for m in ([ball] if ball != "joint" else modalities))
        for attack, factor in (("pgd", 1.0), ("fgm", 1.2)):
            for epsilon in BUDGETS:
                count = int((right & (factor * true > epsilon)).sum())
                settings = json.dumps({"steps": 20, "restarts": 1, "loss": "margin", "seed": 0})
                row: dict[str, Any] = {"split": "test", "attack": attack, "ball": ball, "norm": "l2", "space": space}
                row |= {"epsilon": epsilon, "accuracy": count / clips, "settings": settings}
                curves.append({**keys, **row, **interval(count, clips)})
        for certificate in certificates:
            radius = (0.55 if certificate == "estimate" else 0.35) * true
            audited = (np.arange(clips) < 128) & (radius > 0)
            violated = audited & (np.arange(clips) % 61 == 5) & (certificate == "estimate")
            for c in range(clips):
                row = {"clip_id": f"clip{c:04d}", "label": int(label[c]), "predicted": int(predicted[c])}
                row |= {"certificate": certificate, "ball": ball, "space": space, "radius": float(radius[c])}
                row |= {"audited": bool(audited[c]), "violated": bool(violated[c])}
                radii.append({**keys, **row})
        modality = None if ball == "joint" else ball
        add("mean_radius", float(0.55 * true.mean()), modality, n=clips)
        if modality:
            share("unimodal_accuracy", int((0.78 + 0.05 * i) * clips), modality)
            share("missing_accuracy", int(min(0.2 + 0.25 * i * strength, 0.97) * clips), modality)
    return metrics, curves, radii


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
