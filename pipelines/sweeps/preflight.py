"""Preflight: what a sweep will run and certify, what it needs, and whether the cluster has it; before it starts."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from crmt.attacks import find_attack
from crmt.certificates import Certificate
from crmt.doors import is_path
from crmt.errors import BadInputError
from crmt.heads import HEADS
from crmt.methods import method_class
from crmt.model import ModelSpec
from crmt.precision import check_compiler
from pipelines.clips.kinds import kinds_of
from pipelines.clips.streaming import READ_CPUS
from pipelines.config.consistency import check_consistency, check_share, methods_of, values_of
from pipelines.config.paths import cache_root, clips_root
from pipelines.config.run_config import RunConfig, with_values
from pipelines.infra.nodes import Cluster, Resources, cluster_now, counted, resources_text
from pipelines.runs.disk import RESERVED_BYTES
from pipelines.sweeps.encoder_checks import check_certified, check_encoder
from pipelines.trials.launch import DRIVER_BYTES

_MINIMUM_FREE = 2**30
_MOST_INPUT_CPUS = 16


@dataclass(frozen=True)
class Room:
    """The disk that takes the folder of a new run, and what the run writes: models and the states of training."""

    where: Path
    free_bytes: int
    wanted_bytes: int

    @staticmethod
    def of(config: RunConfig, folder: Path, model_bytes: int, trials: int, concurrent: int) -> Room:
        """The room of a run.

        A trial that ended leaves its model and its last state, which holds the weights and the optimiser's one (sgd) or
        two (adam) numbers for each; one that runs has two states for a moment.
        """
        where = _existing(folder.resolve())
        numbers = 3 if "adam" in values_of(config, "train.optimizer") else 2
        wanted = RESERVED_BYTES + model_bytes * (trials * (1 + numbers) + concurrent * numbers)
        return Room(where, shutil.disk_usage(where).free, wanted)

    def check(self) -> None:
        """Refuse a run that its disk cannot hold.

        Raises:
            BadInputError: with both numbers.
        """
        if self.free_bytes < self.wanted_bytes:
            raise BadInputError(
                f"{self.where} has {_mebibytes(self.free_bytes)} free, and the run writes "
                f"{_mebibytes(self.wanted_bytes)} of models and states there: make room, name another disk with --out, "
                "or plan fewer trials or smaller models"
            )


@dataclass(frozen=True)
class Needs:
    """What one worker takes from a node of the cluster while it runs."""

    cpus: float
    gpus: float
    text: str

    def workers_on(self, node: Resources) -> int:
        """How many workers a node has room for."""
        room = math.floor(node.get("CPU", 0) / self.cpus + 1e-9)
        return min(room, math.floor(node.get("GPU", 0) / self.gpus + 1e-9)) if self.gpus else room


@dataclass(frozen=True)
class Plan:
    """What a sweep will do."""

    config: RunConfig
    trials: int
    concurrent: int
    """How many trials run at once, when the cluster has grown as far as it may; 0 where not even one fits."""
    needs: Needs
    cluster: Cluster
    busy: str
    """What of the cluster others hold, where that keeps trials from running at once; else empty."""
    free_bytes: int | None
    """Free bytes on the disk of the decoded clips; None where they go to a remote cache."""
    where: Path
    room: Room | None = None
    """Where the run's folder goes; None for a run that goes on, whose folder holds its part already."""

    def check(self) -> None:
        """Refuse a sweep that would wait for ever, or that its disks cannot hold.

        Raises:
            BadInputError: with the numbers that do not fit.
        """
        if self.concurrent < 1:
            raise BadInputError(
                f"one trial needs {self.needs.text}; the cluster's nodes have {self.cluster}: lower sweep.workers, "
                "sweep.cpus_per_worker, sweep.input_cpus or sweep.gpus_per_worker, or add nodes"
            )
        if self.free_bytes is not None and self.free_bytes < _MINIMUM_FREE:
            raise BadInputError(f"{self.where} has {_mebibytes(self.free_bytes)} free; at least 1 GiB is needed")
        if self.room is not None:
            self.room.check()

    def _growth(self) -> dict[str, str]:
        """The lines about nodes that will be asked for, and about those that others hold."""
        asked = self.cluster.asked(self.needs.workers_on, self.concurrent * self.config.sweep.most_workers)
        lines = {"it will ask for": ", ".join(f"{count} × {name}" for name, count in asked.items())}
        return {name: text for name, text in (lines | {"the cluster is busy": self.busy}).items() if text}

    def _disks(self) -> dict[str, str]:
        """The lines about where decoded clips and the run's models go."""
        lines = {"decoded clips": f"in {clips_root(self.config.data)}"}
        if self.free_bytes is not None:
            lines = {"disk": f"{self.free_bytes / 2**30:.0f} GiB free for the cache in {cache_root(self.config.data)}"}
        if self.room is not None:
            lines["models"] = (
                f"up to {_mebibytes(self.room.wanted_bytes)} with the states of training; "
                f"{_mebibytes(self.room.free_bytes)} free"
            )
        return lines

    def show(self, console: Console) -> None:
        """A table for a person to look over."""
        config, sweep, attack = self.config, self.config.sweep, self.config.attack
        table = Table(title="preflight", title_justify="left", show_header=False)
        for name, text in {
            "data set": f"{config.data.dataset}, batches: {config.data.mode}",
            "trials": f"{self.trials} "
            + ("given points" if sweep.algorithm == "points" else f"by {sweep.algorithm}")
            + _scheduler(config),
            "methods": ", ".join(method_class(m).title for m in methods_of(config)),
            "searched": "; ".join(f"{p} {next(iter(s.items()))[1]}" for p, s in config.search.items()) or "nothing",
            "training": f"{config.train.epochs} epochs, batch {config.train.batch_size}, {config.train.precision}"
            + ", compiled" * config.train.compile,
            "chosen by": f"validation {config.select.metric}"
            + (
                f" (PGD-{config.select.steps}, joint ε {config.select.epsilon:g})"
                * (config.select.metric != "accuracy")
            ),
            "attacks": f"{', '.join(attack.names)} in {', '.join(attack.balls)} balls, {attack.norm}, "
            f"ε {', '.join(f'{e:g}' for e in attack.epsilons)}, on {attack.samples or 'all'} test clips",
            "certificates": "; ".join(c.described() for c in config.certificates()),
            "a trial takes": self.needs.text,
            "the nodes have": f"{self.cluster}; {self.concurrent} trials side by side",
            **self._growth(),
            **self._disks(),
        }.items():
            table.add_row(name, escape(text))
        console.print(table)


def _mebibytes(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def _scheduler(config: RunConfig) -> str:
    sweep = config.sweep
    if sweep.scheduler == "asha":
        return f", ASHA after {sweep.grace_epochs} epochs"
    return "" if sweep.scheduler == "none" else f", scheduler {sweep.scheduler}"


def check_settings(config: RunConfig, trained: ModelSpec | None = None) -> int:
    """Refuse what the schema admits and no trial can do, before clips are decoded or Ray is started.

    Returns the bytes of the largest encoders that a trial may get, together; 0 where a saved model is measured.

    Args:
        config: the run's.
        trained: the specification of a saved model that is only measured: its method is not imported, its encoders are
            not built again, and its workers share no batches. None: models are trained.

    Raises:
        BadInputError: an unknown method, encoder or ball, an encoder that cannot be built or does not give the features
            that it should, a modality that the model does not have, a certificate that the encoders do not admit, or
            batches that the workers of a trial cannot share.
    """
    check_consistency(config, training=trained is None)
    certificates = config.certificates()
    for name in methods_of(config):
        head = HEADS[trained.head if trained else method_class(name).head]
        for certificate in certificates:
            certificate.check_head(head, name)
    if trained is None:
        _check_options(config)
        if any(values_of(config, "train.compile")) and not config.sweep.gpus_per_worker:
            check_compiler(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    find_attack(config.certify.audit_attack)
    kinds_of(config.data)  # refuses what is declared wrongly
    for certificate in certificates:
        for encoders in values_of(config, "model.encoders"):
            certificate.check_modalities(list(encoders))
        check_share(f"certify.{certificate.name}.samples", certificate.samples, config.sweep.most_workers)
    return _check_encoders(config, certificates, build=trained is None)


def _check_encoders(config: RunConfig, certificates: Sequence[Certificate], build: bool) -> int:
    """Every encoder that a trial may get, in every width; returns the bytes of the largest of each modality."""
    verify = any(certificate.lipschitz_encoders for certificate in certificates)
    checked: list[Any] = []
    largest: dict[str, int] = {}
    for encoders in values_of(config, "model.encoders"):
        for modality, own in encoders.items():
            for given in values_of(config, f"model.encoders.{modality}", own):
                if (modality, given) in checked:
                    continue
                checked.append((modality, given))
                for certificate in certificates:
                    check_certified(certificate, modality, given)
                for width in values_of(config, "model.features") if build else ():
                    size = check_encoder(
                        config.data,
                        modality,
                        given,
                        width,
                        verify=verify,
                        seed=config.train.seed,
                        precision="bf16" if "bf16" in values_of(config, "train.precision") else "fp32",
                    )
                    largest[modality] = max(size, largest.get(modality, 0))
    return sum(largest.values())


def _check_options(config: RunConfig) -> None:
    """Refuse `train.options` that a method of the user's own does not take."""
    for name in methods_of(config):
        if is_path(name):
            with_values(config.without_search(), {"train.method": name}).training_method()


def with_resources(config: RunConfig) -> RunConfig:
    """The configuration with `sweep.gpus_per_worker` and `sweep.input_cpus` as numbers. Needs a running Ray."""
    sweep, cluster = config.sweep, cluster_now()
    gpus, cpus = sweep.gpus_per_worker, sweep.input_cpus
    if gpus is None:
        gpus = 1.0 if cluster.has_gpus() else 0.0
    if cpus is None:
        nodes = [*cluster.nodes, *(kind.resources for kind in cluster.types)]
        shares = [n.get("CPU", 0) * gpus / n["GPU"] - sweep.cpus_per_worker for n in nodes if n.get("GPU", 0)]
        cpus = float(min(max(math.floor(min(shares)), 0), _MOST_INPUT_CPUS)) if gpus and shares else 0.0
    return config.model_copy(update={"sweep": sweep.model_copy(update={"gpus_per_worker": gpus, "input_cpus": cpus})})


def needs_of(config: RunConfig, mode: str) -> Needs:
    """The CPUs and GPUs of one worker of a trial, with those that make its batches.

    Args:
        config: the run's.
        mode: `memory` or `stream`.
    """
    sweep = config.sweep
    gpus, own = sweep.gpus_per_worker or 0.0, sweep.input_cpus or 0.0
    own = max(own, READ_CPUS) if mode == "stream" else own
    text = f", {own:g} of the CPUs for input" * bool(own)
    cpus = sweep.cpus_per_worker + own
    one = resources_text({"CPU": cpus, "GPU": gpus})
    return Needs(cpus, gpus, f"{_workers(config)} of {one}{text}")


def _workers(config: RunConfig) -> str:
    fewest, most = config.sweep.fewest_workers, config.sweep.most_workers
    return counted(most, "worker") if fewest == most else f"{fewest} to {most} workers"


def plan_sweep(config: RunConfig, mode: str | None = None, folder: Path | None = None, model_bytes: int = 0) -> Plan:
    """Compare what a sweep needs with what the cluster has or can grow to, node by node. Needs a running Ray.

    Args:
        config: the run's.
        mode: how batches reach the trials, once that is known; default: as `data.mode` says.
        folder: where a new run's folder will be.
        model_bytes: of one model, as `check_settings` gives it.
    """
    needs, cluster = needs_of(config, mode or config.data.mode), cluster_now()
    room = cluster.room(needs.workers_on)
    fitting = max(room // config.sweep.most_workers, int(room >= config.sweep.fewest_workers))
    if config.sweep.most_workers > 1:  # each has a process on the head that waits for its workers
        fitting = min(fitting, int(cluster.head.get("memory", math.inf) // DRIVER_BYTES))
    trials = config.sweep.trials
    if not config.search:
        trials = 1
    elif config.sweep.algorithm == "points":
        trials = len(config.start_points())
    elif config.sweep.algorithm == "grid":
        trials = math.prod(len(next(iter(s.values()))) for s in config.search.values())
    asked = config.sweep.max_concurrent or fitting
    root = _existing(cache_root(config.data))
    free = shutil.disk_usage(root).free if clips_root(config.data).local else None
    concurrent = min(fitting, asked, trials)
    disk = Room.of(config, folder, model_bytes, trials, concurrent) if folder is not None else None
    busy = _busy(cluster, needs, concurrent * config.sweep.most_workers)
    return Plan(config, trials, concurrent, needs, cluster, busy, free, root, disk)


def _busy(cluster: Cluster, needs: Needs, workers: int) -> str:
    """Which part of the nodes others hold, where less room is left than the trials take; else empty."""
    import ray

    free = ray.available_resources()
    total = {name: sum(node.get(name, 0) for node in cluster.nodes) for name in ("CPU", "GPU")}
    held = {name: total[name] - free.get(name, 0) for name in total}
    if cluster.grows or needs.workers_on(free) >= min(workers, sum(map(needs.workers_on, cluster.nodes))):
        return ""
    return f"others hold {resources_text(held)} of {resources_text(total)}; trials wait until they are free"


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path
