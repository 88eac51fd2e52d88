"""Start trials: in this process, in a Ray task or a Tune trial, or on Ray Train workers through TorchTrainer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from crmt.errors import CRMTError
from pipelines.clips.batches import Clips, Placement
from pipelines.clips.prepare import ClipSource
from pipelines.config.run_config import RunConfig, parse, with_values
from pipelines.infra.code import use_in_worker
from pipelines.infra.ray_errors import first_line
from pipelines.infra.storage import folder_at
from pipelines.runs.heartbeat import last_report
from pipelines.runs.run_folder import TrialInput
from pipelines.trials.sessions import LocalSession, Session, TuneSession, WorkerSession, device_of
from pipelines.trials.trial import run_trial

Work = Callable[[RunConfig, TrialInput, Clips, Session], dict[str, Any]]
"""What one worker does with its share of the clips, the shares put together by its session; returns the last report."""
_RESIZE_SECONDS = 30.0
"""How often a trial with fewer workers than it may have looks for room for more."""
DRIVER_BYTES = 800 * 2**20
"""What a trial that waits for its workers takes of the head's memory: its own process and Train's controller, of which
each was measured to hold 400 MB."""
DRIVER = {"node:__internal_head__": 0.001, "memory": DRIVER_BYTES}
"""What such a trial takes: no CPU, since a whole one would deadlock a small machine in silence; a place on the head,
which is not taken away as workers' nodes are; and memory, so that 64 of them do not pile up there: the others wait."""


def tune_trial(
    params: dict[str, Any], *, base: dict[str, Any] | None = None, given: TrialInput, source: ClipSource
) -> None:
    """The function that Tune runs: one trial with these searched parameters."""
    from ray import tune
    from ray.tune.integration.ray_train import TuneReportCallback

    config = with_values(parse(base, "the run's configuration"), params)
    use_in_worker(config.code)
    trial_id = tune.get_context().get_trial_id()
    if config.sweep.most_workers > 1:
        run_on_workers(config, given, source, trial_id, [TuneReportCallback()])
        return
    place = _alone_at(config)
    run_trial(config, given, source.open(place), TuneSession(trial_id, given.run, place))


def run_here(
    config: RunConfig, given: TrialInput, source: ClipSource, trial_id: str, work: Work = run_trial
) -> dict[str, Any]:
    """One trial (or other work) by one worker; returns its last report.

    Without a GPU that is this very process. GPUs are Ray's to give, and may be another node's: what asks for them is a
    task that holds them, and starts again from the trial's own state if its node is lost.

    Args:
        config: of this trial.
        given: what all trials of the run share.
        source: from which the worker opens the clips.
        trial_id: names the rows.
        work: what the worker does.

    Raises:
        CRMTError: what the work raised, or the task was lost more often than `sweep.max_failures`.
    """
    sweep = config.sweep
    if not sweep.gpus_per_worker:
        return _alone(config, given, source, trial_id, work)
    import ray
    from ray.exceptions import RayError, RayTaskError

    leased = ray.remote(num_cpus=sweep.cpus_per_worker, num_gpus=sweep.gpus_per_worker, max_retries=sweep.max_failures)
    task = leased(_alone).remote(config, given, source, trial_id, work)
    try:
        return dict(ray.get(task))
    except KeyboardInterrupt:
        ray.cancel(task, force=True)
        raise
    except RayTaskError as error:
        if isinstance(error.cause, CRMTError | OSError):
            raise error.cause from None
        raise
    except RayError as error:
        raise CRMTError(f"{trial_id} failed: {first_line(error)}") from None


def _alone_at(config: RunConfig) -> Placement:
    sweep = config.sweep
    return Placement(device=device_of(sweep.gpus_per_worker or 0), input_cpus=sweep.input_cpus or 0.0)


def _alone(
    config: RunConfig, given: TrialInput, source: ClipSource, trial_id: str, work: Work = run_trial
) -> dict[str, Any]:
    use_in_worker(config.code)
    place = _alone_at(config)
    return work(config, given, source.open(place), LocalSession(trial_id, given.run, place))


def run_on_workers(
    config: RunConfig,
    given: TrialInput,
    source: ClipSource,
    trial_id: str,
    callbacks: Sequence[Any] = (),
    work: Work = run_trial,
) -> dict[str, Any]:
    """One trial (or other work) on `sweep.workers` Ray Train workers; returns rank 0's last report.

    The Train run is named after the trial: started again, it goes on from its checkpoint.

    Args:
        config: the trial's.
        given: what all trials of the run share.
        source: the decoded clips; every worker opens its share.
        trial_id: the trial's name in all tables.
        callbacks: passed on to Ray Train.
        work: what each worker does with its share.

    Raises:
        CRMTError: the workers failed more often than `sweep.max_failures`.
    """
    from ray import train
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.config import FailureConfig, ScalingConfig
    from ray.train.v2.api.exceptions import TrainingFailedError

    sweep, state = config.sweep, folder_at(given.run) / "workers"
    resources = {"CPU": sweep.cpus_per_worker}
    if sweep.gpus_per_worker:
        resources["GPU"] = sweep.gpus_per_worker
    trainer = TorchTrainer(
        _worker,
        train_loop_config={
            "config": config.model_dump(mode="json"),
            "given": given,
            "source": source,
            "trial_id": trial_id,
            "work": work,
        },
        scaling_config=ScalingConfig(
            num_workers=sweep.workers if isinstance(sweep.workers, int) else (sweep.fewest_workers, sweep.most_workers),
            use_gpu=bool(sweep.gpus_per_worker),
            resources_per_worker=resources,
            elastic_resize_monitor_interval_s=_RESIZE_SECONDS,
        ),
        run_config=train.RunConfig(
            name=trial_id,
            storage_path=state.root,
            storage_filesystem=state.patient,
            checkpoint_config=train.CheckpointConfig(num_to_keep=1),
            failure_config=FailureConfig(max_failures=sweep.max_failures, controller_failure_limit=1),
            callbacks=list(callbacks),
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        raise CRMTError(f"the workers of trial {trial_id} failed: {first_line(error)}") from None
    except SystemExit:  # how TorchTrainer ends after Ctrl-C
        raise KeyboardInterrupt from None
    return last_report(given.run, trial_id)


def _worker(settings: dict[str, Any]) -> None:
    """What each Ray Train worker runs."""
    from ray import train
    from ray.train.torch import get_device

    context = train.get_context()
    config = parse(settings["config"], "the run's configuration")
    use_in_worker(config.code)
    device = get_device() if config.sweep.gpus_per_worker else torch.device("cpu")
    place = Placement(context.get_world_rank(), context.get_world_size(), device, config.sweep.input_cpus or 0.0)
    session = WorkerSession(settings["trial_id"], settings["given"].run, place)
    settings["work"](config, settings["given"], settings["source"].open(place), session)
