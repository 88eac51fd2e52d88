"""Every run from its settings to decoded clips: what is wrong is said before anything costs time."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from crmt.errors import BadInputError
from crmt.modality import Modality
from crmt.model import ModelSpec
from pipelines.clips.batches import modalities_of
from pipelines.clips.cache import ClipCache
from pipelines.clips.ingest import look_ahead
from pipelines.clips.prepare import ClipSource, prepare
from pipelines.config.run_config import RunConfig
from pipelines.infra.cluster import start_ray
from pipelines.infra.storage import Folder, Where
from pipelines.runs.lock import hold_run
from pipelines.runs.run_folder import RUNS, TrialInput, check_free, open_run
from pipelines.sources.text import alike
from pipelines.sweeps.clip_checks import check_clips
from pipelines.sweeps.preflight import Plan, check_settings, plan_sweep, with_resources


@dataclass(frozen=True)
class RunRequest:
    """What a command asks of a run beside its configuration."""

    kind: str
    """`sweep`, `train` or `evaluation`, in the run's card and in its folder's name."""
    folder: Path | None = None
    """The folder of a new run; None: runs/<dataset>-<kind>-<time>."""
    resume: Where | None = None
    """Where the run lies that goes on."""
    address: str | None = None
    """The address of a Ray cluster; None: one that runs on this machine, or else Ray is started here."""
    model: ModelSpec | None = None
    """The saved model that is measured; None: models are trained."""
    dry_run: bool = False
    """Stop after the plan."""
    storage: Folder | None = None
    """The folder on a server in which a new run gets a folder of its own; None: this machine."""

    @property
    def tunes(self) -> bool:
        """Whether there is a search, which shows its plan first."""
        return self.kind == "sweep"

    def remote(self, config: RunConfig) -> bool:
        """Whether the work goes to workers of the cluster, and not into this very process."""
        return config.sweep.most_workers > 1 or (self.model is not None and self.address is not None)

    def leases(self, config: RunConfig) -> bool:
        """Whether the work holds resources of the cluster: without, nothing computes on a GPU."""
        return self.remote(config) or bool(config.sweep.gpus_per_worker)


@dataclass(frozen=True)
class PreparedRun:
    """A run whose folder is open and whose clips are decoded."""

    config: RunConfig
    """The configuration, with `sweep.gpus_per_worker` as a number."""
    plan: Plan
    source: ClipSource
    given: TrialInput

    @property
    def folder(self) -> Where:
        """Where the run lies."""
        return self.given.run


def prepare_run(config: RunConfig, request: RunRequest, console: Console, held: ExitStack) -> PreparedRun | None:
    """Settings ▸ lists ▸ Ray ▸ what the cluster has ▸ clips ▸ the run's folder; None after a dry run.

    Nothing is started or decoded before settings, the output folder and lists are checked.

    Args:
        config: the run's; for a run that goes on, the one that it was started with.
        request: the kind of run, and where it goes.
        console: takes the plan and what is said about the clips.
        held: takes the lock of the run's folder, and is closed when the run has ended.

    Raises:
        BadInputError: settings, lists, clips or a cluster that cannot be used, or a run that another process works on.
        CRMTError: too many clips failed, or no cluster answers.
    """
    model_bytes = check_settings(config, request.model)
    if request.resume is None:
        if request.storage is None:
            check_free(request.folder)
    elif not request.dry_run:
        held.enter_context(hold_run(request.resume))
    index = look_ahead(config.data, config.model.encoders)
    for line in alike(index.classes) if index is not None else ():
        console.print(f"note: {line}", highlight=False, markup=False)
    if index is not None and request.model is None and request.resume is None:
        check_clips(config, index, choosing=request.tunes)
    if request.tunes:
        from pipelines.sweeps.search import check_search  # imports Tune: all else is refused without it

        check_search(config)
    dashboard = start_ray(request.address, dashboard=request.tunes, code=config.code)
    config = with_resources(config)
    on_server = request.storage is not None
    folder = None if request.resume is not None or on_server else request.folder or RUNS
    plan = plan_sweep(config, None, folder, model_bytes)
    if request.tunes:
        plan.show(console)
    if request.model is None or request.leases(config):  # what this process measures holds no CPUs of the cluster
        plan.check()
    if request.dry_run:
        console.print("dry run: nothing was started")
        return None
    if request.tunes and dashboard:
        console.print(f"Ray dashboard: {dashboard}")
    prepared = prepare(config, lambda text: console.print(text, highlight=False), index)
    if request.tunes or request.leases(config):
        plan = plan_sweep(
            config, prepared.source.mode, folder, model_bytes
        )  # streaming takes CPUs that no trial may hold
        plan.check()
    modalities = _modalities(config, request.model, prepared.cache)
    given = open_run(
        config,
        prepared,
        modalities,
        request.kind,
        held=held,
        folder=request.folder,
        storage=request.storage,
        resume=request.resume,
    )
    return PreparedRun(config, plan, prepared.source, given)


def _modalities(config: RunConfig, model: ModelSpec | None, cache: ClipCache) -> Sequence[Modality]:
    """What trials train on, or what the saved model takes: clips of its own classes and shapes alone.

    Raises:
        BadInputError: clips that the saved model cannot take.
    """
    if model is None:
        return modalities_of(cache, config.data, list(config.model.encoders))
    if model.classes != cache.classes:
        raise BadInputError(
            f"the model knows {len(model.classes)} classes ({', '.join(model.classes[:5])} …), the clips have "
            f"{len(cache.classes)} ({', '.join(cache.classes[:5])} …): give the data set that it was trained on"
        )
    names = [m.name for m in model.modalities]
    for own, clips in zip(model.modalities, modalities_of(cache, config.data, names), strict=True):
        if own.shape != clips.shape:
            raise BadInputError(f"the model takes {own.name} of shape {own.shape}, the clips give {clips.shape}")
    return model.modalities
