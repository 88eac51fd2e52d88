"""A sweep from preflight to report."""

from __future__ import annotations

import logging
import os
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from crmt.errors import CRMTError
from pipelines.config.run_config import RunConfig
from pipelines.infra.entry import INTERRUPTED, typed
from pipelines.infra.ray_errors import first_line
from pipelines.infra.storage import Folder, Where, folder_at
from pipelines.runs.disk import watch_disk
from pipelines.runs.live import LiveTable
from pipelines.runs.results import ResultsStore
from pipelines.sweeps.prepare import RunRequest, prepare_run

if TYPE_CHECKING:
    from ray import tune


def run_sweep(
    config: RunConfig,
    folder: Path | None,
    resume: Where | None,
    dry_run: bool = False,
    address: str | None = None,
    storage: Folder | None = None,
) -> int:
    """A sweep from preflight to report; returns the exit code: 0 if a trial finished, 130 if it was stopped.

    Args:
        config: the sweep's; for a sweep that goes on, the one that it was started with.
        folder: where a new run goes; None: runs/<dataset>-sweep-<time>.
        resume: the folder of the sweep that goes on.
        dry_run: show what would run and what it needs, and stop.
        address: the address of a Ray cluster; None: one that runs on this machine, or else Ray is started here.
        storage: the folder on a server in which a new run gets a folder of its own, instead of `folder`.

    Raises:
        BadInputError: settings or clips that cannot be used.
        CRMTError: no trial finished.
    """
    console = Console()
    request = RunRequest("sweep", folder, resume, address, dry_run=dry_run, storage=storage)
    with ExitStack() as held:
        prepared = prepare_run(config, request, console, held)
        if prepared is None:
            return 0
        from pipelines.sweeps.loggers import only_these_loggers  # what imports Tune comes after what may refuse
        from pipelines.sweeps.tuner import tuner_of

        _quieten()
        held.enter_context(watch_disk(prepared.folder, f"{typed('sweep')} --resume {prepared.folder}"))
        tuner = tuner_of(prepared, resume=resume is not None)
        console.print(f"results: {prepared.folder}", markup=False, soft_wrap=True)
        names = prepared.config.sweep.loggers
        if folder_at(prepared.folder).local is None:
            names = names or []  # Tune's own would send every log of every trial anew at each of its notes
        with LiveTable(prepared.folder, prepared.plan.trials, console), only_these_loggers(names):
            _fit(tuner, prepared.folder)
        return _finish(prepared.folder, prepared.plan.trials, console)


def _fit(tuner: tune.Tuner, run: Where) -> None:
    """Run the trials; a server that stays away ends them in one line.

    Raises:
        CRMTError: see above.
    """
    from ray.tune import TuneError

    try:
        tuner.fit()
    except (TuneError, CRMTError, OSError) as error:
        tunes, _, what = first_line(error).rpartition("CRMTError: ")  # in a callback, Tune keeps its text alone
        if folder_at(run).local is not None or (isinstance(error, TuneError) and not tunes):
            raise
        raise CRMTError(f"{what}; go on with: {typed('sweep')} --resume {run}") from None


def _quieten() -> None:
    """Let the live table speak alone."""
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a trial's error is in its row, without a traceback
    warnings.filterwarnings("ignore", message="The reported value is ignored")  # a resumed trial repeats an epoch


def _finish(run: Where, planned: int, console: Console) -> int:
    """Report and summary of what there is; 0 if a trial finished, 1 if none did, 130 if it was stopped."""
    from pipelines.reporting.build import build_report
    from pipelines.reporting.summary import print_summary

    trials = ResultsStore(run / "results").read("trials")
    report = build_report(run)
    print_summary(run, console)
    ended = int((trials.status != "running").sum())
    if ended < planned:
        console.print(
            f"stopped after {ended} of {planned} trials; go on with: {typed('sweep')} --resume {run}",
            highlight=False,
            soft_wrap=True,
        )
        return INTERRUPTED
    if not (trials.status == "finished").any():
        raise CRMTError(f"no trial finished; the errors are in the table above and in {report}")
    return 0
