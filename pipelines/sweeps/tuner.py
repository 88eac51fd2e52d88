"""The Tuner of a sweep: new, or restored from what a killed one left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray import cloudpickle, tune
from ray.tune.search import BasicVariantGenerator
from ray.tune.search.search_generator import SearchGenerator

from pipelines.infra.files import write_atomically
from pipelines.runs.results import ResultsStore
from pipelines.sweeps.loggers import loggers_of
from pipelines.sweeps.prepare import PreparedRun
from pipelines.sweeps.recorder import Recorder
from pipelines.sweeps.search import search_space, tune_config
from pipelines.trials.launch import DRIVER, tune_trial

TUNE = "tune"


def tuner_of(prepared: PreparedRun, resume: bool) -> tune.Tuner:
    """The Tuner of a prepared sweep.

    Args:
        prepared: its settings, clips and folder.
        resume: whether to go on with what Tune left in that folder, if it left anything.
    """
    config, run = prepared.config, prepared.folder
    trainable = _trainable(prepared)
    if resume and tune.Tuner.can_restore(str(run / TUNE)):
        _replace_noted(run)
        _relocate(run)
        return tune.Tuner.restore(str(run / TUNE), trainable, resume_unfinished=True, resume_errored=True)
    return tune.Tuner(
        trainable,
        param_space=search_space(config),
        tune_config=tune_config(config, prepared.plan),
        run_config=tune.RunConfig(
            name=TUNE,
            storage_path=str(run),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=config.sweep.max_failures),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
            callbacks=[Recorder(config, prepared.given.provenance), *loggers_of(config)],
        ),
    )


def _trainable(prepared: PreparedRun) -> Any:
    """One trial as Tune runs it, with what it takes of the cluster."""
    sweep = prepared.config.sweep
    alone = sweep.most_workers == 1
    resources = {"CPU": sweep.cpus_per_worker} if alone else dict(DRIVER)
    if alone and sweep.gpus_per_worker:
        resources["GPU"] = sweep.gpus_per_worker
    base = prepared.config.without_search().model_dump(mode="json")
    bound = tune.with_parameters(tune_trial, base=base, given=prepared.given, source=prepared.source)
    return tune.with_resources(bound, resources)


def _replace_noted(run: Path) -> None:
    """Put an empty folder in the place of every checkpoint of an unfinished trial that gave way to a later one.

    Tune insists on the checkpoint that it noted, at most 10 s before a kill; that one may be deleted by then.
    `TuneSession` takes the furthest state whatever Tune notes, and passes over empty folders.
    """
    trials = ResultsStore(run / "results").read("trials")
    for trial_id in trials.trial_id[trials.status != "finished"]:
        for folder in (run / TUNE).glob(f"tune_trial_{trial_id}_*"):
            numbers = [int(found.name.rpartition("_")[2]) for found in folder.glob("checkpoint_*")]
            for number in range(max(numbers, default=0)):
                (folder / f"checkpoint_{number:06d}").mkdir(exist_ok=True)


def _relocate(run: Path) -> None:
    """Say to the search where the run lies now, when its folder was moved or copied.

    Tune tells the trials that it restores, but not the search, whose new trials would go to the old place.
    """
    for pattern in (BasicVariantGenerator.CKPT_FILE_TMPL, SearchGenerator.CKPT_FILE_TMPL):
        file = max((run / TUNE).glob(pattern.format("*")), default=None)  # the newest, which alone Tune reads
        state = cloudpickle.loads(file.read_bytes()) if file else {}
        found = [storage for storage in _storages(state) if storage.storage_fs_path != str(run)]
        for storage in found:
            storage.storage_fs_path = str(run)
        if file and found:
            write_atomically(file, cloudpickle.dumps(state))


def _storages(state: dict[str, Any]) -> list[Any]:
    """Where the trials that a search has yet to make are stored, in what it saved of itself."""
    experiment = state.get("experiment")
    specs = [iterator.unresolved_spec for iterator in state.get("_iterators", ())]
    if experiment is not None:
        specs.append(experiment.spec)
    return [spec["storage"] for spec in specs] + ([] if experiment is None else [experiment.storage])
