"""The main command: a sweep over tune_configs/<dataset>.yaml on Ray Tune, with preflight, live table and resume.

python pipelines/sweep.py --dataset avdigits
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from rich.console import Console

from crmt.errors import BadInputError, CRMTError
from pipelines.batches import modalities_of
from pipelines.command import INTERRUPTED, add_config_arguments, config_from, run_command, start_ray
from pipelines.config import RunConfig, with_values
from pipelines.ingest import look_ahead
from pipelines.launch import DRIVER, tune_trial
from pipelines.live import LiveTable
from pipelines.preflight import Plan, check_settings, plan_sweep, settled
from pipelines.prepare import Prepared, prepare
from pipelines.recorder import Recorder
from pipelines.report import build_report, print_summary
from pipelines.results import ResultsStore
from pipelines.run_folder import check_free, latest_run, open_run, read_card
from pipelines.trial import TrialInput

TUNE = "tune"


def search_space(config: RunConfig) -> dict[str, Any]:
    """`search` as Tune's domains.

    Raises:
        BadInputError: a continuous range in a grid.
    """
    grid = config.sweep.algorithm == "grid"
    space: dict[str, Any] = {}
    for path, entry in config.search.items():
        kind, values = next(iter(entry.items()))
        if kind in ("choice", "grid"):
            space[path] = tune.grid_search(values) if grid else tune.choice(values)
        elif grid:
            raise BadInputError(f"search.{path}: sweep.algorithm is grid, which needs a list of values, not {kind}")
        elif kind == "int":
            space[path] = tune.randint(int(values[0]), int(values[1]) + 1)
        else:
            space[path] = (tune.uniform if kind == "uniform" else tune.loguniform)(*values)
    return space


def _scheduler(config: RunConfig) -> ASHAScheduler | None:
    """ASHA whose last rung is the last validation before the end: a trial that was trained in full is never cut, since
    step 2, attacks and radii are still to come."""
    every, epochs = config.select.every, config.train.epochs
    last = (epochs - 1) // every * every
    if config.sweep.scheduler == "none" or last < 1:
        return None
    return ASHAScheduler(
        time_attr="epoch",
        max_t=last,
        grace_period=min(config.sweep.grace_epochs, last),
        reduction_factor=config.sweep.reduction_factor,
        stop_last_trials=False,
    )


def _tune_config(config: RunConfig, plan: Plan) -> tune.TuneConfig:
    from ray.tune.search import BasicVariantGenerator, SearchAlgorithm, Searcher
    from ray.tune.search.optuna import OptunaSearch

    sweep = config.sweep
    points = config.start_points()
    algorithm: Searcher | SearchAlgorithm
    if sweep.algorithm in ("optuna", "points") and config.search:
        algorithm = OptunaSearch(points_to_evaluate=points or None, seed=sweep.seed)
    else:
        chosen = points if sweep.algorithm == "random" else None
        algorithm = BasicVariantGenerator(points_to_evaluate=chosen, random_state=sweep.seed)
    return tune.TuneConfig(
        metric="selected",
        mode="max",
        search_alg=algorithm,
        scheduler=_scheduler(config),
        num_samples=1 if sweep.algorithm == "grid" else plan.trials,
        max_concurrent_trials=plan.concurrent,
    )


def _trainable(config: RunConfig, given: TrialInput, prepared: Prepared) -> Any:
    sweep = config.sweep
    alone = sweep.workers == 1
    resources = {"CPU": sweep.cpus_per_worker} if alone else dict(DRIVER)
    if alone and sweep.gpus_per_worker:
        resources["GPU"] = sweep.gpus_per_worker
    base = config.without_search().model_dump(mode="json")
    bound = tune.with_parameters(tune_trial, base=base, given=given, source=prepared.source)
    return tune.with_resources(bound, resources)


def run_sweep(config: RunConfig, folder: Path | None, resume: Path | None, dry_run: bool, address: str | None) -> int:
    """A sweep from preflight to report; returns the exit code."""
    console = Console()
    check_settings(config)
    check_free(folder)
    space = search_space(config)
    index = look_ahead(config.data)
    dashboard = start_ray(address)
    config = settled(config)
    plan = plan_sweep(config)
    plan.show(console)
    plan.check()
    if dry_run:
        console.print("dry run: nothing was started")
        return 0
    if dashboard:
        console.print(f"Ray dashboard: {dashboard}")
    prepared = prepare(config, lambda text: console.print(text, highlight=False), index)
    plan = plan_sweep(config, prepared.source.mode)  # streaming takes CPUs that no trial may hold
    plan.check()
    modalities = modalities_of(prepared.cache, config.data, list(config.model.encoders))
    given = open_run(config, prepared, modalities, "sweep", folder=folder, resume=resume)
    run = given.run
    tuner = _tuner(config, plan, space, run, _trainable(config, given, prepared), given, resume is not None)
    console.print(f"results: {run}", markup=False, soft_wrap=True)
    with LiveTable(run, plan.trials, console):
        tuner.fit()
    return _finish(run, plan.trials, console)


def _tuner(
    config: RunConfig, plan: Plan, space: dict[str, Any], run: Path, trainable: Any, given: TrialInput, resume: bool
) -> tune.Tuner:
    if resume and tune.Tuner.can_restore(str(run / TUNE)):
        _replace_noted(run)
        return tune.Tuner.restore(str(run / TUNE), trainable, resume_unfinished=True, resume_errored=True)
    return tune.Tuner(
        trainable,
        param_space=space,
        tune_config=_tune_config(config, plan),
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


def _finish(run: Path, planned: int, console: Console) -> int:
    """Report and summary of what there is; 0 if a trial finished, 1 if none did, 130 if it was stopped."""
    trials = ResultsStore(run / "results").read("trials")
    report = build_report(run)
    print_summary(run, console)
    ended = int((trials.status != "running").sum())
    if ended < planned:
        console.print(
            f"stopped after {ended} of {planned} trials; go on with: python pipelines/sweep.py --resume {run}",
            highlight=False,
            soft_wrap=True,
        )
        return INTERRUPTED
    if not (trials.status == "finished").any():
        raise CRMTError(f"no trial finished; the errors are in the table above and in {report}")
    return 0


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sweep.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add_config_arguments(parser)
    parser.add_argument("--trials", type=int, help="sweep.trials")
    parser.add_argument("--workers", type=int, help="sweep.workers: workers of one trial")
    parser.add_argument("--out", type=Path, metavar="DIR", help="the run's folder; default runs/<dataset>-sweep-<time>")
    parser.add_argument(
        "--resume", nargs="?", const="latest", metavar="DIR", help="go on with a sweep; default: the newest"
    )
    parser.add_argument("--dry-run", action="store_true", help="show what would run and what it needs, and stop")
    parser.add_argument("--address", help="of a Ray cluster; default: one on this machine, else Ray is started here")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code: 0, 1 for a failure, 2 for bad input, 130 when stopped."""
    options = _arguments().parse_args(argv)
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a trial's error is in its row, without a traceback
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", message="The reported value is ignored")  # a resumed trial repeats an epoch

    def body() -> int:
        if options.resume is not None:
            others = ("dataset", "config", "set", "data_root", "out", "trials", "workers")
            if any(getattr(options, name) for name in others):
                raise BadInputError("--resume takes the run's own configuration: leave out the other arguments")
            run = latest_run() if options.resume == "latest" else Path(options.resume).resolve()
            return run_sweep(read_card(run)[1], None, run, options.dry_run, options.address)
        config = config_from(options)
        if options.trials and config.search and config.sweep.algorithm in ("grid", "points"):
            raise BadInputError(f"--trials: sweep.algorithm is {config.sweep.algorithm}, which says itself how many")
        changes = {"sweep.trials": options.trials, "sweep.workers": options.workers}
        config = with_values(config, {k: v for k, v in changes.items() if v is not None})
        return run_sweep(config, options.out, None, options.dry_run, options.address)

    return run_command(body, "A sweep that had begun goes on with: python pipelines/sweep.py --resume")


if __name__ == "__main__":
    from pipelines.sweep import main as run  # under its real name, so that pickles name the module, not __main__

    sys.exit(run())
