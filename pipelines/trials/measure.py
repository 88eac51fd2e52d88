"""Measure one model on a split: the rows of `metrics`, `curves` and `radii` that a trial or `evaluate.py` stores."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from scipy.stats import binomtest
from torch import Tensor

from crmt.attacks.curves import AttackPlan, Robustness, attack_curves
from crmt.certificates.estimate import GradientConstants
from crmt.modality import Batch
from crmt.model import MultiModalModel
from crmt.predictions import Predictions, predict
from pipelines.clips.batches import Clips
from pipelines.config.run_config import RunConfig
from pipelines.trials.certify import Certifier, SmoothingStore

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

    def value(self, name: str, modality: str | None = None, certificate: str | None = None) -> float | None:
        """One number of `metrics`; of a radius, by its certificate."""
        key = (name, modality, certificate)
        return next((r["value"] for r in self.metrics if (r["name"], r["modality"], r.get("certificate")) == key), None)


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
        targets=attack.targets,
        queries=attack.queries,
        product={m: tuple(budgets) for m, budgets in attack.product.items()} if balls is None else {},
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
    stored: SmoothingStore | None = None
    """Where smoothing keeps what it has, clip by clip."""

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
        certifier = Certifier(
            self.config,
            self._batches,
            self.gather,
            lambda phase, limit: _Fraction(self, phase, limit, 1),
            self.stored,
            phase=stage,
        )
        certified = certifier(model, predictions, constants, final)
        metrics = [*self._accuracies(model, predictions, reference), *(row for c in certified for row in c.metrics())]
        space = space_of(model, "l2")
        return Measured(
            [{**tag, "split": self.split, "low": None, "high": None, **row} for row in metrics],
            [{**tag, "split": self.split, **row} for row in self._curves(model, stage, balls)],
            [{**tag, **row} for c in certified for row in c.rows(space)],
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
            if model.head.additive:  # else no score is of one modality alone
                rows.append(row("unimodal_accuracy", m, single[:, i]))
            rows.append(row("missing_accuracy", m, predictions.missing[:, i]))
        return rows

    def _curves(self, model: MultiModalModel, stage: str, balls: tuple[str, ...] | None) -> Rows:
        plan = attack_plan(self.config, balls)
        passes = len(plan.attacked(list(model.modalities)))
        report = _Fraction(self, f"{stage}: attacks", self.config.attack.samples, passes)
        mine = attack_curves(model, self._batches(self.config.attack.samples), plan, report)
        space = space_of(model, plan.norm)
        rows = []
        for parts in zip(*self.gather(mine), strict=True):
            curve: Robustness = parts[0]
            robust = torch.cat([p.robust for p in parts])
            names = {"attack": curve.attack, "ball": curve.ball, "norm": plan.norm, "space": space}
            settings = json.dumps(_settings(plan, curve.attack))
            for budget, kept in zip(curve.budgets, robust.T, strict=True):
                numbers = share(int(kept.sum()), len(kept))
                numbers["accuracy"] = numbers.pop("value")
                one = isinstance(budget, float | int)
                where = {"epsilon": budget if one else None, "budgets": None if one else json.dumps(budget)}
                rows.append({**names, **where, **numbers, "settings": settings})
        return rows


def _settings(plan: AttackPlan, attack: str) -> dict[str, Any]:
    """What of a plan an attack takes notice of."""
    takes = {
        "fgm": ("loss",),
        "pgd": ("loss", "steps", "restarts", "seed"),
        "apgd_ce": ("steps", "restarts", "seed"),
        "apgd_dlr": ("steps", "restarts", "targets", "seed"),
        "minimal_norm": ("steps", "restarts", "seed"),
        "square": ("queries", "seed"),
        "noise": ("seed",),
    }
    every = ("loss", "steps", "restarts", "targets", "queries", "seed")
    return {name: getattr(plan, name) for name in takes.get(attack, every)}


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


def space_of(model: MultiModalModel, norm: str) -> str:
    """The space that budgets and radii are distances in, for tables."""
    return f"{norm}; " + "; ".join(f"{m.name}: {m.space}" for m in model.modalities.values())
