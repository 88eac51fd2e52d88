"""Measure one model on a split: the rows of `metrics`, `curves` and `radii` that a trial or `evaluate.py` stores."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from crmt.attacks.base import AttackSettings
from crmt.attacks.curves import AttackPlan
from crmt.certificates.audit import AuditPlan
from crmt.certification import Host
from crmt.evaluation import EvaluationPlan, TrainingFacts, evaluate
from crmt.gradients import GradientConstants
from crmt.modality import Batch
from crmt.model import MultiModalModel
from pipelines.clips.batches import Clips
from pipelines.config.run_config import RunConfig
from pipelines.trials.certify import TrialClipStore

Rows = list[dict[str, Any]]
Gather = Callable[[Any], list[Any]]
PhaseProgress = Callable[[str, float], None]
"""Called with a phase and the fraction of it that is done."""


@dataclass
class Counter:
    """Counts what a phase has done and says how far it is, from its first moment on."""

    progress: PhaseProgress
    phase: str
    total: float
    done: int = 0

    def __post_init__(self) -> None:
        self(0)

    def __call__(self, count: int) -> None:
        self.done += count
        self.progress(self.phase, min(1.0, self.done / max(self.total, 1)))

    @staticmethod
    def of(
        progress: PhaseProgress, phase: str, clips: Clips, split: str, limit: int | None = None, passes: int = 1
    ) -> Counter:
        """A counter of this rank's share of a split's clips.

        Args:
            progress: told how far the phase is.
            phase: its name.
            clips: as this rank sees them.
            split: its name.
            limit: at most this many clips over all ranks; None: all.
            passes: how often each is gone through.
        """
        count = clips.count(split)
        clipped = count if limit is None else min(limit, count)
        return Counter(progress, phase, clipped * passes / clips.place.world_size)


@dataclass(frozen=True)
class Measured:
    """All rows of one stage; the same on every rank."""

    metrics: Rows
    curves: Rows
    radii: Rows

    def value(self, name: str, modality: str | None = None, certificate: str | None = None) -> float | None:
        """One number of the table `metrics`.

        Args:
            name: of the metric.
            modality: None: all together.
            certificate: its name, for numbers about radii.
        """
        key = (name, modality, certificate)
        return next((r["value"] for r in self.metrics if (r["name"], r["modality"], r.get("certificate")) == key), None)


def attack_plan(config: RunConfig, balls: tuple[str, ...] | None = None) -> AttackPlan:
    """The attacks of the configuration.

    Args:
        config: the trial's.
        balls: attack in these balls only; None: in all of the configuration.
    """
    attack = config.attack
    return AttackPlan(
        names=tuple(attack.names),
        balls=balls or tuple(attack.balls),
        epsilons=tuple(attack.epsilons),
        norm=attack.norm,
        settings=AttackSettings(
            loss=attack.loss,
            steps=attack.steps,
            restarts=attack.restarts,
            targets=attack.targets,
            queries=attack.queries,
        ),
        product={m: tuple(budgets) for m, budgets in attack.product.items()} if balls is None else {},
        precision=config.train.precision,
        seed=config.train.seed,
    )


def evaluation_plan(config: RunConfig, final: bool = True, balls: tuple[str, ...] | None = None) -> EvaluationPlan:
    """What the configuration asks for.

    Args:
        final: False leaves out audits and the certificates that only a final model is worth.
        balls: attack in these balls only; None: in all of the configuration.
    """
    certify, attack, seed = config.certify, config.attack, config.train.seed
    settings = AttackSettings(
        steps=certify.audit_steps, restarts=certify.audit_restarts, queries=attack.queries, targets=attack.targets
    )
    samples = certify.audit_samples if final else 0
    return EvaluationPlan(
        attacks=attack_plan(config, balls),
        attacked=attack.samples,
        certificates=tuple(c for c in config.certificates() if final or not c.final_only),
        audit=AuditPlan(attack=certify.audit_attack, settings=settings, samples=samples, seed=seed),
        tau_samples=config.train.tau_samples,
        seed=seed,
    )


@dataclass(frozen=True)
class Measurement:
    """How a model is measured: over this rank's share of the split, then put together."""

    config: RunConfig
    clips: Clips
    gather: Gather
    progress: PhaseProgress
    split: str = "test"
    stored: TrialClipStore | None = None
    """Keeps what certificates found, clip by clip, so that a stopped trial goes on there."""

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
            constants: τ̂ from training clips.
            reference: mean contributions of training clips, `(M, K)`.
            stage: `step1` or `step2`.
            final: whether this stage's model is the one that is saved.
            balls: attack in these balls only; None: in all of the configuration.
        """
        host = Host(
            gather=self.gather,
            progress=lambda phase, limit, passes: Counter.of(
                self.progress, f"{stage}: {phase}", self.clips, self.split, limit, passes
            ),
            store=self.stored,
        )
        plan = evaluation_plan(self.config, final, balls)
        facts = TrainingFacts(constants, reference)
        rows = evaluate(model, self._batches, plan, training=facts, host=host).rows()
        tag = {"stage": stage, "final": final}
        return Measured(
            [{**tag, "split": self.split, "low": None, "high": None, **row} for row in rows["metrics"]],
            [{**tag, "split": self.split, **row} for row in rows["curves"]],
            [{**tag, **row} for row in rows["radii"]],
        )

    def _batches(self, limit: int | None) -> Iterator[Batch]:
        return self.clips.ordered(self.split, limit, self.config.data.seed)
