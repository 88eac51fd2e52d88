"""Measure one model on a split: the rows of `metrics`, `curves` and `radii` that a trial or `evaluate.py` stores."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from scipy.stats import binomtest
from torch import Tensor

from crmt.certificates.audit import Audit
from crmt.certificates.estimate import estimated_radii
from crmt.certificates.radius import Radii
from crmt.evaluate import AttackPlan, Predictions, Robustness, attack_curves, audit_batches, predict
from crmt.fit import Batch
from crmt.lipschitz import GradientConstants
from crmt.model import MultiModalModel
from pipelines.batches import Clips
from pipelines.config import RunConfig

Rows = list[dict[str, Any]]
Gather = Callable[[Any], list[Any]]
Progress = Callable[[str, float], None]


def share(successes: int, n: int) -> dict[str, Any]:
    """A share with its 95 % Wilson interval."""
    if n == 0:
        return {"value": None, "low": None, "high": None, "n": 0}
    interval = binomtest(successes, n).proportion_ci(0.95, method="wilson")
    return {"value": successes / n, "low": interval.low, "high": interval.high, "n": n}


@dataclass(frozen=True)
class Measured:
    """All rows of one stage; the same on every rank."""

    metrics: Rows
    curves: Rows
    radii: Rows

    def value(self, name: str, modality: str | None = None) -> float | None:
        """One number of `metrics`."""
        return next((r["value"] for r in self.metrics if r["name"] == name and r["modality"] == modality), None)


def attack_plan(config: RunConfig, balls: tuple[str, ...] | None = None) -> AttackPlan:
    """The attacks of the configuration; `balls` narrows them."""
    attack = config.attack
    return AttackPlan(
        names=tuple(attack.names),
        balls=balls or tuple(attack.balls),
        epsilons=tuple(attack.epsilons),
        norm=attack.norm,
        loss=attack.loss,
        steps=attack.steps,
        restarts=attack.restarts,
        seed=config.train.seed,
    )


@dataclass(frozen=True)
class Measurement:
    """How a model is measured: over this rank's share of the split, then put together."""

    config: RunConfig
    clips: Clips
    gather: Gather
    progress: Progress
    split: str = "test"

    def __call__(
        self,
        model: MultiModalModel,
        constants: GradientConstants,
        reference: Tensor,
        stage: str,
        final: bool,
        *,
        balls: tuple[str, ...] | None = None,
    ) -> Measured:
        """Measure `model`.

        Args:
            constants: τ̂ from training clips. reference: mean contributions of training clips, `(M, K)`.
            stage: `step1` or `step2`. final: whether this stage's model is the one that is saved.
            balls: narrows the attacks of the configuration.
        """
        tag = {"stage": stage, "final": final}
        predictions = self._predictions(model)
        radii = estimated_radii(model.head, predictions.scores, predictions.labels, constants)
        audits = self._audit(model, constants, stage)
        metrics = [
            *self._accuracies(model, predictions, reference),
            *_radius_metrics(radii),
            *_audit_metrics(audits),
        ]
        return Measured(
            [{**tag, "split": self.split, "low": None, "high": None, **row} for row in metrics],
            [{**tag, "split": self.split, **row} for row in self._curves(model, stage, balls)],
            [{**tag, **row} for row in self._radius_rows(model, predictions, radii, audits)],
        )

    def _batches(self, limit: int | None) -> Iterator[Batch]:
        return self.clips.ordered(self.split, limit, self.config.data.seed)

    def _predictions(self, model: MultiModalModel) -> Predictions:
        return Predictions.concatenated(self.gather(predict(model, self._batches(None))))

    def _accuracies(self, model: MultiModalModel, predictions: Predictions, reference: Tensor) -> Rows:
        labels, n = predictions.labels, len(predictions.labels)

        def row(name: str, modality: str | None, predicted: Tensor) -> dict[str, Any]:
            return {"name": name, "modality": modality, **share(int((predicted == labels).sum()), n)}

        single = predictions.unimodal(model.head, reference)
        rows = [row("clean_accuracy", None, predictions.logits(model.head).argmax(1))]
        for i, m in enumerate(model.modalities):
            rows.append(row("unimodal_accuracy", m, single[:, i]))
            rows.append(row("missing_accuracy", m, predictions.missing[:, i]))
        return rows

    def _curves(self, model: MultiModalModel, stage: str, balls: tuple[str, ...] | None) -> Rows:
        plan = attack_plan(self.config, balls)
        report = _Fraction(
            self, f"{stage}: attacks", self.config.attack.samples, len(plan.attacked(list(model.modalities)))
        )
        mine = attack_curves(model, self._batches(self.config.attack.samples), plan, report)
        space = space_of(model, plan.norm)
        settings = {"steps": plan.steps, "restarts": plan.restarts, "loss": plan.loss, "seed": plan.seed}
        rows = []
        for parts in zip(*self.gather(mine), strict=True):
            curve: Robustness = parts[0]
            robust = torch.cat([p.robust for p in parts])
            alone = {"steps": 1, "loss": plan.loss} if curve.attack == "fgm" else settings
            for epsilon, kept in zip(curve.epsilons, robust.T, strict=True):
                numbers = share(int(kept.sum()), len(kept))
                numbers["accuracy"] = numbers.pop("value")
                names = {"attack": curve.attack, "ball": curve.ball, "norm": plan.norm, "space": space}
                rows.append({**names, "epsilon": epsilon, **numbers, "settings": json.dumps(alone)})
        return rows

    def _audit(
        self, model: MultiModalModel, constants: GradientConstants, stage: str
    ) -> dict[str, dict[str, tuple[bool, bool]]]:
        """Ball to clip id to (audited, violated)."""
        certify = self.config.certify
        if certify.audit_samples == 0:
            return {}
        sample = predict(model, self._batches(certify.audit_samples))
        radii = estimated_radii(model.head, sample.scores, sample.labels, constants)
        found = audit_batches(
            model,
            self._batches(certify.audit_samples),
            radii,
            steps=certify.audit_steps,
            restarts=certify.audit_restarts,
            seed=self.config.train.seed,
            progress=_Fraction(self, f"{stage}: audit", certify.audit_samples, 1),
        )
        result: dict[str, dict[str, tuple[bool, bool]]] = {}
        for ids, audits in self.gather((sample.ids, found)):
            for ball, one in audits.items():
                result.setdefault(ball, {}).update(_by_id(ids, one))
        return result

    def _radius_rows(
        self,
        model: MultiModalModel,
        predictions: Predictions,
        radii: Radii,
        audits: dict[str, dict[str, tuple[bool, bool]]],
    ) -> Rows:
        predicted = predictions.logits(model.head).argmax(1).tolist()
        space = space_of(model, "l2")
        columns: dict[str, tuple[list[float], list[float | None]]] = {
            "joint": (radii.joint.tolist(), [None] * len(predicted))
        }
        for i, m in enumerate(radii.modalities):
            columns[m] = (radii.unimodal[:, i].tolist(), radii.indicator[:, i].tolist())
        rows = []
        for ball, (values, indicators) in columns.items():
            found = audits.get(ball, {})
            for clip, label, guess, radius, eta in zip(
                predictions.ids, predictions.labels.tolist(), predicted, values, indicators, strict=True
            ):
                audited, violated = found.get(clip, (False, False))
                rows.append(
                    {
                        "clip_id": clip,
                        "label": label,
                        "predicted": guess,
                        "certificate": radii.certificate,
                        "ball": ball,
                        "space": space,
                        "radius": radius,
                        "indicator": eta,
                        "audited": audited,
                        "violated": violated,
                    }
                )
        return rows


@dataclass
class _Fraction:
    """Counts inputs and tells the session how far a phase is; the total is an estimate in streamed sets."""

    measurement: Measurement
    phase: str
    limit: int | None
    passes: int
    done: int = 0

    def __call__(self, count: int) -> None:
        self.done += count
        world = self.measurement.clips.place.world
        total = (self.limit or self.measurement.clips.count(self.measurement.split)) * self.passes / world
        self.measurement.progress(self.phase, min(1.0, self.done / max(total, 1)))


def _by_id(ids: tuple[str, ...], one: Audit) -> dict[str, tuple[bool, bool]]:
    return dict(zip(ids, zip(one.audited.tolist(), one.violated.tolist(), strict=True), strict=True))


def _audit_metrics(audits: dict[str, dict[str, tuple[bool, bool]]]) -> Rows:
    rows = []
    for ball, found in audits.items():
        audited = sum(a for a, _ in found.values())
        violated = sum(v for _, v in found.values())
        modality = None if ball == "joint" else ball
        rows.append({"name": "audit_violations", "modality": modality, "value": float(violated), "n": audited})
    return rows


def _radius_metrics(radii: Radii) -> Rows:
    rows = []
    values = {None: radii.joint} | {m: radii.unimodal[:, i] for i, m in enumerate(radii.modalities)}
    for modality, radius in values.items():
        finite = radius[radius.isfinite()]
        if len(finite):
            numbers = {"mean_radius": float(finite.mean()), "median_radius": float(finite.median())}
            rows += [{"name": k, "modality": modality, "value": v, "n": len(finite)} for k, v in numbers.items()]
    if {"video", "audio"} <= set(radii.modalities):
        video, audio = (radii.indicator[:, radii.modalities.index(m)] for m in ("video", "audio"))
        ratio = (video / audio)[(radii.joint > 0) & (audio > 0)]
        if len(ratio):
            mean = float(ratio.mean())
            rows.append({"name": "indicator_ratio", "modality": None, "value": mean, "n": len(ratio)})
    return rows


def space_of(model: MultiModalModel, norm: str) -> str:
    """The space that budgets and radii are distances in, for tables."""
    return f"{norm}; " + "; ".join(f"{m.name}: {m.space}" for m in model.modalities.values())
