"""Preflight: what a sweep will run and certify, what it needs, and whether the cluster has it; before it starts."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from rich.console import Console
from rich.table import Table

from crmt.encoders import ENCODERS
from crmt.errors import BadInputError
from crmt.methods import method_class
from pipelines.batches import STREAM_TASK_CPUS
from pipelines.config import RunConfig, value_at
from pipelines.ingest import cache_root
from pipelines.measure import attack_plan

MEANING = {"estimate": "estimated radius from training gradients: not sound, audited by attack"}
_MINIMUM_FREE = 2**30


@dataclass(frozen=True)
class Needs:
    """What one trial takes from the cluster while it runs."""

    cpus: float
    gpus: float
    text: str


@dataclass(frozen=True)
class Plan:
    """What a sweep will do."""

    config: RunConfig
    trials: int
    concurrent: int
    """Trials side by side; 0 where not even one fits."""
    needs: Needs
    cpus: float
    gpus: float
    free_bytes: int
    where: Path

    def check(self) -> None:
        """Refuse a sweep that would wait for ever.

        Raises:
            BadInputError: with the numbers that do not fit.
        """
        if self.concurrent < 1:
            raise BadInputError(
                f"one trial needs {self.needs.cpus:g} CPUs and {self.needs.gpus:g} GPUs ({self.needs.text}); "
                f"the cluster has {self.cpus:g} CPUs and {self.gpus:g} GPUs: lower sweep.workers, "
                "sweep.cpus_per_worker or sweep.gpus_per_worker, or add nodes"
            )
        if self.free_bytes < _MINIMUM_FREE:
            raise BadInputError(f"{self.where} has {self.free_bytes / 2**20:.0f} MiB free; at least 1 GiB is needed")

    def show(self, console: Console) -> None:
        """A table for a person to look over."""
        config, sweep, attack = self.config, self.config.sweep, self.config.attack
        table = Table(title="preflight", title_justify="left", show_header=False)
        for name, text in {
            "data set": f"{config.data.dataset}, batches: {config.data.mode}",
            "trials": f"{self.trials} by {sweep.algorithm}"
            + (f", ASHA after {sweep.grace_epochs} epochs" if sweep.scheduler == "asha" else ""),
            "methods": ", ".join(method_class(m).title for m in methods_of(config)),
            "searched": "; ".join(f"{p} {next(iter(s.items()))[1]}" for p, s in config.search.items()) or "nothing",
            "training": f"{config.train.epochs} epochs, batch {config.train.batch_size}",
            "chosen by": f"validation {config.select.metric}"
            + (
                f" (PGD-{config.select.steps}, joint ε {config.select.epsilon:g})"
                * (config.select.metric != "accuracy")
            ),
            "attacks": f"{', '.join(attack.names)} in {', '.join(attack.balls)} balls, {attack.norm}, "
            f"ε {', '.join(f'{e:g}' for e in attack.epsilons)}, on {attack.samples or 'all'} test clips",
            "certificates": "; ".join(f"{c}: {MEANING[c]}" for c in config.certify.certificates),
            "a trial takes": f"{self.needs.cpus:g} CPUs, {self.needs.gpus:g} GPUs ({self.needs.text})",
            "the cluster has": f"{self.cpus:g} CPUs, {self.gpus:g} GPUs; {self.concurrent} trials side by side",
            "disk": f"{self.free_bytes / 2**30:.0f} GiB free for the cache in {cache_root(config.data)}",
        }.items():
            table.add_row(name, text)
        console.print(table)


def methods_of(config: RunConfig) -> list[str]:
    """Methods that trials may get."""
    return [str(m) for m in _values_of(config, "train.method")]


def _values_of(config: RunConfig, path: str) -> list[Any]:
    """What trials may get for a field; the ends of a range."""
    entry = config.search.get(path)
    return list(next(iter(entry.values()))) if entry else [value_at(config, path)]


def check_settings(config: RunConfig) -> None:
    """Refuse what the schema admits and no trial can do, before clips are decoded or Ray is started.

    Raises:
        BadInputError: an unknown method, encoder or ball, a width that no encoder has, or batches that the workers of
            a trial cannot share.
    """
    for name in methods_of(config):
        method_class(name)
    encoders, workers = config.model.encoders, config.sweep.workers
    if not encoders:
        raise BadInputError("model.encoders names no modality")
    for modality in encoders:
        for name in _values_of(config, f"model.encoders.{modality}"):
            if name not in ENCODERS:
                raise BadInputError(f"model.encoders.{modality}: no encoder {name!r}. Valid: {', '.join(ENCODERS)}")
    for width in _values_of(config, "model.features"):
        if width % 8:
            raise BadInputError(f"model.features must be a multiple of 8, not {width}")
    attack_plan(config).attacked(list(encoders))
    for size in _values_of(config, "train.batch_size"):
        if size % workers:
            raise BadInputError(f"train.batch_size ({size}) must be a multiple of sweep.workers ({workers})")


def needs_of(config: RunConfig, mode: str) -> Needs:
    """What one trial takes: its workers, and Data tasks where batches stream."""
    sweep = config.sweep
    cpus = sweep.workers * sweep.cpus_per_worker
    parts = [f"{sweep.workers} × {sweep.cpus_per_worker:g} CPU for workers"]
    if mode == "stream":
        data = 2 * STREAM_TASK_CPUS * sweep.workers
        cpus += data
        parts.append(f"{data:g} for Data tasks")
    return Needs(cpus, sweep.workers * sweep.gpus_per_worker, ", ".join(parts))


def plan_sweep(config: RunConfig, mode: str | None = None) -> Plan:
    """Set what a sweep needs against what the cluster has. Needs a running Ray.

    Args:
        mode: how batches reach the trials, once that is known; default: as `data.mode` says.
    """
    total = ray.cluster_resources()
    cpus, gpus = float(total.get("CPU", 0)), float(total.get("GPU", 0))
    needs = needs_of(config, mode or config.data.mode)
    fitting = math.floor(cpus / needs.cpus + 1e-9)
    if needs.gpus:
        fitting = min(fitting, math.floor(gpus / needs.gpus + 1e-9))
    trials = config.sweep.trials
    if config.sweep.algorithm == "grid":
        trials = math.prod(len(next(iter(s.values()))) for s in config.search.values())
    elif not config.search:
        trials = 1
    asked = config.sweep.max_concurrent or fitting
    root = _existing(cache_root(config.data))
    return Plan(config, trials, min(fitting, asked, trials), needs, cpus, gpus, shutil.disk_usage(root).free, root)


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path
