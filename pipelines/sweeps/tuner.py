"""The Tuner of a sweep: new, or restored from what a killed one left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray import tune

from pipelines.clips.prepare import Prepared
from pipelines.config.run_config import RunConfig
from pipelines.runs.results import ResultsStore
from pipelines.runs.run_folder import TrialInput
from pipelines.sweeps.preflight import Plan
from pipelines.sweeps.recorder import Recorder
from pipelines.sweeps.search import tune_config
from pipelines.trials.launch import DRIVER, tune_trial

TUNE = "tune"


def trainable_of(config: RunConfig, given: TrialInput, prepared: Prepared) -> Any:
    sweep = config.sweep
    alone = sweep.workers == 1
    resources = {"CPU": sweep.cpus_per_worker} if alone else dict(DRIVER)
    if alone and sweep.gpus_per_worker:
        resources["GPU"] = sweep.gpus_per_worker
    base = config.without_search().model_dump(mode="json")
    bound = tune.with_parameters(tune_trial, base=base, given=given, source=prepared.source)
    return tune.with_resources(bound, resources)


def tuner_of(
    config: RunConfig, plan: Plan, space: dict[str, Any], run: Path, trainable: Any, given: TrialInput, resume: bool
) -> tune.Tuner:
    if resume and tune.Tuner.can_restore(str(run / TUNE)):
        _replace_noted(run)
        return tune.Tuner.restore(str(run / TUNE), trainable, resume_unfinished=True, resume_errored=True)
    return tune.Tuner(
        trainable,
        param_space=space,
        tune_config=tune_config(config, plan),
        run_config=tune.RunConfig(
            name=TUNE,
            storage_path=str(run),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=config.sweep.max_failures),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
            callbacks=[Recorder(run, config, given.provenance)],
        ),
    )


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
