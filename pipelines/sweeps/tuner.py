"""The Tuner of a sweep: new, or restored from what a killed one left."""

from __future__ import annotations

from typing import Any

from pyarrow.fs import LocalFileSystem
from ray import cloudpickle, tune
from ray.tune.search import BasicVariantGenerator
from ray.tune.search.search_generator import SearchGenerator

from pipelines.infra.remote import location_of
from pipelines.infra.storage import Where, folder_at
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
    config, run = prepared.config, folder_at(prepared.folder)
    trainable, filesystem = _trainable(prepared), run.patient
    if resume and tune.Tuner.can_restore(run.path(TUNE), storage_filesystem=filesystem):
        _replace_noted(run)
        _relocate(run)
        return tune.Tuner.restore(
            run.path(TUNE), trainable, resume_unfinished=True, resume_errored=True, storage_filesystem=filesystem
        )
    return tune.Tuner(
        trainable,
        param_space=search_space(config),
        tune_config=tune_config(config, prepared.plan),
        run_config=tune.RunConfig(
            name=TUNE,
            storage_path=run.root,
            storage_filesystem=filesystem,
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


def _replace_noted(run: Where) -> None:
    """Put an empty folder in the place of every checkpoint of an unfinished trial that gave way to a later one.

    Tune insists on the checkpoint that it noted, at most 10 s before a kill; that one may be deleted by then.
    `TuneSession` takes the furthest state whatever Tune notes, and passes over empty folders.
    """
    trials = ResultsStore(run / "results").read("trials")
    tune_folder = folder_at(run) / TUNE
    for trial_id in trials.trial_id[trials.status != "finished"]:
        for name in tune_folder.folders(f"tune_trial_{trial_id}_*"):
            folder = tune_folder / name
            found = folder.folders("checkpoint_*")
            numbers = [int(checkpoint.rpartition("_")[2]) for checkpoint in found]
            for number in range(max(numbers, default=0)):
                if (gone := f"checkpoint_{number:06d}") not in found:
                    folder.make_empty(gone)


def _relocate(run: Where) -> None:
    """Say to the search where the run lies now, when its folder was moved or copied.

    Tune tells the trials that it restores, but not the search, whose new trials would go to the old place.
    """
    folder, where = folder_at(run) / TUNE, folder_at(run)
    for pattern in (BasicVariantGenerator.CKPT_FILE_TMPL, SearchGenerator.CKPT_FILE_TMPL):
        file = max(folder.names(pattern.format("*")), default=None)  # the newest, which alone Tune reads
        state = cloudpickle.loads(folder.read(file)) if file else {}
        here = (where.root, None if where.local else where.location)
        found = [s for s in _storages(state) if (s.storage_fs_path, location_of(s.storage_filesystem)) != here]
        for storage in found:
            storage.storage_fs_path = where.root
            storage.storage_filesystem = where.patient or LocalFileSystem()
        if file and found:
            folder.write(file, cloudpickle.dumps(state), durable=False)


def _storages(state: dict[str, Any]) -> list[Any]:
    """Where the trials that a search has yet to make are stored, in what it saved of itself."""
    experiment = state.get("experiment")
    specs = [iterator.unresolved_spec for iterator in state.get("_iterators", ())]
    if experiment is not None:
        specs.append(experiment.spec)
    return [spec["storage"] for spec in specs] + ([] if experiment is None else [experiment.storage])
