"""One protocol over a test set, in one call: accuracies, curves under attack, and radii with their audits.

found = evaluate(model, test_batches, EvaluationPlan(), training=training_batches)
found.accuracy("clean_accuracy"), found.rows()["curves"]
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from crmt.arguments import check_batches, check_factory, check_model
from crmt.attacks.curves import AttackPlan, Budget, attack_curves
from crmt.certificates import Certificate
from crmt.certificates.audit import AuditPlan
from crmt.certificates.estimate import Estimate, gradient_constants
from crmt.certification import Batches, Certified, Certifier, Host, Row
from crmt.errors import BadInputError
from crmt.gradients import GradientConstants
from crmt.modality import Batch
from crmt.model import MultiModalModel
from crmt.precision import exact
from crmt.predictions import Predictions, predict


class Share(NamedTuple):
    """A share of n clips with its 95 % Wilson interval; None where there are no clips."""

    value: float | None
    low: float | None
    high: float | None
    n: int

    @staticmethod
    def of(successes: int, n: int) -> Share:
        """The share of `successes` among `n` clips."""
        if n == 0:
            return Share(None, None, None, 0)
        from scipy.stats import binomtest  # slow to import: not before there are clips

        interval = binomtest(successes, n).proportion_ci(0.95, method="wilson")
        return Share(successes / n, float(interval.low), float(interval.high), n)


@dataclass(frozen=True)
class Accuracy:
    """How many clean predictions are right."""

    name: str
    """`clean_accuracy`; `unimodal_accuracy`: from one modality alone; `missing_accuracy`: without that modality."""
    modality: str | None
    """None: all modalities together."""
    share: Share


@dataclass(frozen=True)
class Curve:
    """Accuracy under one attack in one kind of ball, by budget."""

    attack: str
    """By name, or `package.module:Name`."""
    ball: str
    """`joint`, `product` or a modality's name."""
    norm: str
    space: str
    """What the budgets are distances in."""
    budgets: tuple[Budget, ...]
    """ε, or for `product` ε by modality."""
    shares: tuple[Share, ...]
    """For each budget, the share of attacked clips whose prediction stayed right."""
    settings: dict[str, Any]
    """The settings that the attack took."""

    def rows(self) -> list[Row]:
        """One row a budget."""
        names = {"attack": self.attack, "ball": self.ball, "norm": self.norm, "space": self.space}
        rows = []
        for budget, share in zip(self.budgets, self.shares, strict=True):
            one = isinstance(budget, float | int)
            where = {"epsilon": budget if one else None, "budgets": None if one else json.dumps(budget)}
            numbers = {"low": share.low, "high": share.high, "n": share.n, "accuracy": share.value}
            rows.append({**names, **where, **numbers, "settings": json.dumps(self.settings)})
        return rows


@dataclass(frozen=True)
class Evaluation:
    """All that was measured of one model."""

    accuracies: tuple[Accuracy, ...]
    curves: tuple[Curve, ...]
    certified: tuple[Certified, ...]
    """Radii and audits, one entry a certificate."""
    space: str
    """What radii are distances in."""

    def accuracy(self, name: str, modality: str | None = None) -> Share:
        """One of the accuracies.

        Args:
            name: as in `Accuracy`.
            modality: its name; None for the clean accuracy.

        Raises:
            BadInputError: it was not measured.
        """
        for found in self.accuracies:
            if (found.name, found.modality) == (name, modality):
                return found.share
        raise BadInputError(f"no {name} of {modality or 'all modalities'} was measured")

    def rows(self) -> dict[str, list[Row]]:
        """The same as plain rows of three tables: `metrics`, `curves` and `radii`."""
        metrics = [{"name": a.name, "modality": a.modality, **a.share._asdict()} for a in self.accuracies]
        return {
            "metrics": [*metrics, *(row for c in self.certified for row in c.metrics())],
            "curves": [row for curve in self.curves for row in curve.rows()],
            "radii": [row for c in self.certified for row in c.rows(self.space)],
        }


@dataclass(frozen=True, kw_only=True)
class EvaluationPlan:
    """What is measured."""

    attacks: AttackPlan = field(default_factory=AttackPlan)
    """Which attacks run, in which balls, and how hard they try."""
    attacked: int | None = None
    """How many clips are attacked, the first ones; None: all."""
    certificates: tuple[Certificate, ...] = (Estimate(),)
    """As `crmt.certificates.create` gives them."""
    audit: AuditPlan = field(default_factory=AuditPlan)
    """What tries to break their radii."""
    tau_samples: int = 512
    """Training clips whose gradients estimate τ."""
    seed: int = 0
    """Seeds the noise of certificates that sample; attacks and audit have seeds of their own in their plans."""

    def __post_init__(self) -> None:
        names = [c.name for c in self.certificates]
        twice = [n for i, n in enumerate(names) if n in names[:i]]
        if twice:
            raise BadInputError(f"two certificates are called {twice[0]!r}: give one of them another name")


DEFAULT_PLAN = EvaluationPlan()
ALONE = Host()


@dataclass(frozen=True)
class TrainingFacts:
    """What an evaluation needs to know of the training clips."""

    tau: GradientConstants | None
    """τ̂; None where no certificate of the plan needs it."""
    contributions: Tensor
    """Mean contributions of each modality to the logits, `(M, K)`: what stands in for the others where one modality is
    measured alone."""


def training_facts(
    model: MultiModalModel, training: Batches | Iterable[Batch], tau_samples: int = 512
) -> TrainingFacts:
    """What an evaluation needs to know of the training clips: about one pass over them.

    Args:
        model: in any mode; it is measured in evaluation mode and left as it was.
        training: labelled clips that the model was trained on; a list of batches, or as `evaluate` takes them.
        tau_samples: clips whose gradients estimate τ.
    """
    batches = _factory(training)
    tau = gradient_constants(model, batches(tau_samples))
    return TrainingFacts(tau, predict(model, batches(None), missing=False).mean_contributions(model.head))


def evaluate(
    model: MultiModalModel,
    batches: Batches | Iterable[Batch],
    plan: EvaluationPlan = DEFAULT_PLAN,
    *,
    training: Batches | Iterable[Batch] | TrainingFacts | None = None,
    host: Host = ALONE,
) -> Evaluation:
    """Clean, uni-modal and missing-modality accuracies, curves under attack, and radii with their audits.

    Args:
        model: in any mode; it is measured in evaluation mode.
        batches: the test set, on the model's device: a list of batches, or a function that takes a number of clips
            (None: all) and gives the first ones, in the same order each time.
        plan: which attacks and certificates.
        training: training clips, in the same way, or what `training_facts` gave for them. Without them there is no
            uni-modal accuracy, and the estimated radius, whose τ̂ comes from them, is refused.
        host: the workers that share the clips, a display of progress, and a store to go on from.

    Raises:
        BadInputError: batches that do not fit the model, a plan that does not, a certificate that lacks what it needs.
        CRMTError: a model that a certificate cannot vouch for.
    """
    check_model(model)
    source = _factory(batches)
    with exact(model.head.bias.device):  # scores and τ̂ are what radii are made of
        facts = (
            training
            if isinstance(training, TrainingFacts) or training is None
            else training_facts(model, training, plan.tau_samples)
        )
        clean = predict(model, source(None), host.progress("clean predictions", None, 1))
        predictions = Predictions.concatenated(host.gather(clean))
    certifier = Certifier(model, source, plan.audit, plan.seed, host)
    tau = None if facts is None else facts.tau
    certified = tuple(certifier(certificate, predictions, tau) for certificate in plan.certificates)
    accuracies = _accuracies(model, predictions, None if facts is None else facts.contributions)
    return Evaluation(accuracies, _curves(model, source, plan, host), certified, space_of(model, "l2"))


def _accuracies(model: MultiModalModel, predictions: Predictions, reference: Tensor | None) -> tuple[Accuracy, ...]:
    labels = predictions.labels

    def accuracy(name: str, modality: str | None, predicted: Tensor) -> Accuracy:
        return Accuracy(name, modality, Share.of(int((predicted == labels).sum()), len(labels)))

    found = [accuracy("clean_accuracy", None, predictions.logits(model.head).argmax(1))]
    # where the head is not additive, no score is of one modality alone
    single = predictions.unimodal(model.head, reference) if model.head.additive and reference is not None else None
    for i, m in enumerate(model.modalities):
        if single is not None:
            found.append(accuracy("unimodal_accuracy", m, single[:, i]))
        found.append(accuracy("missing_accuracy", m, predictions.missing[:, i]))
    return tuple(found)


def _curves(model: MultiModalModel, batches: Batches, plan: EvaluationPlan, host: Host) -> tuple[Curve, ...]:
    attacks = plan.attacks
    progress = host.progress("attacks", plan.attacked, len(attacks.attacked(list(model.modalities))))
    mine = attack_curves(model, batches(plan.attacked), attacks, progress)
    space = space_of(model, attacks.norm)
    curves = []
    for parts in zip(*host.gather(mine), strict=True):
        first = parts[0]
        robust = torch.cat([p.robust for p in parts])
        shares = tuple(Share.of(int(kept.sum()), len(kept)) for kept in robust.T)
        settings = attacks.settings_of(first.attack)
        curves.append(Curve(first.attack, first.ball, attacks.norm, space, first.budgets, shares, settings))
    return tuple(curves)


def space_of(model: MultiModalModel, norm: str) -> str:
    """The space that budgets and radii are distances in, for tables."""
    return f"{norm}; " + "; ".join(f"{m.name}: {m.space}" for m in model.modalities.values())


def _factory(source: Batches | Iterable[Batch]) -> Batches:
    """A function that gives the first clips; a list of batches becomes one. An iterator is refused: it has one pass."""
    if callable(source):
        check_factory(source, "limit")
        return source
    check_batches(source)
    if iter(source) is source:
        raise BadInputError("these batches can be gone through once only: give a list, or a function that opens them")
    return lambda limit: _first(source, limit)


def _first(batches: Iterable[Batch], limit: int | None) -> Iterator[Batch]:
    left = limit
    for batch in batches:
        if left is None or len(batch.labels) <= left:
            yield batch
        elif left:
            yield Batch({m: x[:left] for m, x in batch.inputs.items()}, batch.labels[:left], batch.ids[:left])
        left = None if left is None else max(0, left - len(batch.labels))
