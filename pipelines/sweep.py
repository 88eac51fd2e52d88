"""The main command: a sweep over tune_configs/<dataset>.yaml on Ray Tune, with preflight, live table and resume.

python pipelines/sweep.py --dataset avdigits
"""

from __future__ import annotations

if __name__ == "__main__":
    from pipelines.infra.entry import run_as_module

    run_as_module(__file__)

import argparse
import logging
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import optuna
from rich.console import Console

from crmt.errors import BadInputError, CRMTError
from pipelines.clips.batches import modalities_of
from pipelines.clips.ingest import look_ahead
from pipelines.clips.prepare import prepare
from pipelines.command import INTERRUPTED, add_config_arguments, config_from, importing, run_command, start_ray
from pipelines.config.run_config import RunConfig, with_values
from pipelines.reporting.build import build_report
from pipelines.reporting.summary import print_summary
from pipelines.runs.live import LiveTable
from pipelines.runs.results import ResultsStore
from pipelines.runs.run_folder import check_free, latest_run, open_run, read_card
from pipelines.sweeps.preflight import check_settings, plan_sweep, settled
from pipelines.sweeps.search import search_space
from pipelines.sweeps.tuner import trainable_of, tuner_of


def run_sweep(config: RunConfig, folder: Path | None, resume: Path | None, dry_run: bool, address: str | None) -> int:
    """A sweep from preflight to report; returns the exit code."""
    console = Console()
    check_settings(config)
    check_free(folder)
    space = search_space(config)
    index = look_ahead(config.data)
    dashboard = start_ray(address, code=config.code)
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
    tuner = tuner_of(config, plan, space, run, trainable_of(config, given, prepared), given, resume is not None)
    console.print(f"results: {run}", markup=False, soft_wrap=True)
    with LiveTable(run, plan.trials, console):
        tuner.fit()
    return _finish(run, plan.trials, console)


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
            return run_sweep(importing(read_card(run)[1], options.code), None, run, options.dry_run, options.address)
        config = config_from(options)
        if options.trials and config.search and config.sweep.algorithm in ("grid", "points"):
            raise BadInputError(f"--trials: sweep.algorithm is {config.sweep.algorithm}, which says itself how many")
        changes = {"sweep.trials": options.trials, "sweep.workers": options.workers}
        config = with_values(config, {k: v for k, v in changes.items() if v is not None})
        return run_sweep(config, options.out, None, options.dry_run, options.address)

    return run_command(body, "A sweep that had begun goes on with: python pipelines/sweep.py --resume")
