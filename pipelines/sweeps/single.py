"""Runs without a search: one model trained, or one saved model measured; each a run of one trial."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from rich.console import Console

from crmt.checkpoint import load_model
from crmt.errors import BadInputError, CRMTError
from pipelines.config.run_config import RunConfig
from pipelines.infra.entry import typed
from pipelines.infra.ray_errors import first_line
from pipelines.infra.storage import Folder, Where, folder_at
from pipelines.runs.disk import watch_disk
from pipelines.runs.live import LiveTable
from pipelines.runs.results import ResultsStore
from pipelines.runs.run_folder import now
from pipelines.runs.trial_rows import trial_row, updated_row
from pipelines.sweeps.prepare import PreparedRun, RunRequest, prepare_run
from pipelines.trials.evaluation import SavedModel, evaluate_saved
from pipelines.trials.launch import run_here, run_on_workers

TRAINING, EVALUATION = "train", "evaluation"
"""The trial of each kind of run."""


def run_training(
    config: RunConfig,
    folder: Path | None,
    resume: Where | None,
    address: str | None = None,
    storage: Folder | None = None,
) -> Where:
    """Train one model; returns the run's folder.

    Args:
        config: without a search; of a run that goes on, its own.
        folder: where a new run goes; None: runs/<dataset>-train-<time>.
        resume: the folder of the run that goes on.
        address: the address of a Ray cluster; None: one that runs on this machine, or else Ray is started here.
        storage: the folder on a server in which a new run gets a folder of its own, instead of `folder`.

    Raises:
        BadInputError: settings or clips that cannot be used.
        CRMTError: training failed.
    """
    console = Console()
    request = RunRequest("train", folder, resume, address, storage=storage)
    with ExitStack() as held:
        prepared = prepare_run(config, request, console, held)
        assert prepared is not None
        config, run = prepared.config, prepared.folder
        again = f"{typed('train')} --resume {run}"
        held.enter_context(watch_disk(run, again))
        start = run_on_workers if request.remote(config) else run_here
        with _one_trial(prepared, TRAINING, {}, console) as report:
            try:
                report |= start(config, prepared.given, prepared.source, TRAINING)
            except KeyboardInterrupt:
                console.print(f"go on with: {again}", markup=False, soft_wrap=True)
                raise
        _show(run, console)
        console.print(f"model: {run / 'models' / TRAINING}", markup=False, soft_wrap=True)
        return run


def run_evaluation(
    model: SavedModel,
    config: RunConfig,
    folder: Path | None,
    resume: Where | None,
    address: str | None = None,
    storage: Folder | None = None,
) -> Where:
    """Measure a saved model; returns the run's folder.

    τ̂ is estimated anew on training clips, standardised as the model's own training clips were.

    Args:
        model: as `load_saved` gave it.
        config: how it was trained, and how it is measured now; of a run that goes on, its own.
        folder: where a new run goes; None: runs/<dataset>-evaluation-<time>.
        resume: the folder of an evaluation that was stopped; clips that it had smoothed are not smoothed again.
        address: the address of a Ray cluster, whose workers then measure; None: this process measures, or, with more
            workers than one, a cluster on this machine.
        storage: as in `run_training`.

    Raises:
        BadInputError: settings that cannot be used, or clips that the model cannot take.
    """
    console = Console()
    request = RunRequest("evaluation", folder, resume, address, model.spec, storage=storage)
    with ExitStack() as held:
        prepared = prepare_run(config, request, console, held)
        assert prepared is not None
        config = prepared.config
        again = f"{typed('evaluate')} {model.folder} --resume {prepared.folder}"
        held.enter_context(watch_disk(prepared.folder, again))
        transform = prepared.source.transform.with_front_end(model.card["front_end"])
        source = replace(prepared.source, transform=transform)
        start = run_on_workers if request.remote(config) else run_here
        known = {**model.identity, "epochs": config.train.epochs}
        with _one_trial(prepared, EVALUATION, known, console) as report:
            report |= start(config, prepared.given, source, EVALUATION, work=partial(evaluate_saved, saved=model))
        _show(prepared.folder, console)
        return prepared.folder


def load_saved(folder: Where, resume: Where | None = None, *, trust_code: bool = False) -> SavedModel:
    """The model that `folder` holds.

    Args:
        folder: runs/NAME/models/TRIAL, here or on a server.
        resume: the evaluation that goes on, which must be of this model.
        trust_code: import what the model's card names by path.

    Raises:
        BadInputError: not a saved model, or another one than that of the evaluation.
    """
    with folder_at(folder).here() as files:
        if not list(files.glob("*")) and isinstance(folder, Folder):
            raise BadInputError(f"{folder} is not the folder of a saved model: nothing lies there")
        model, spec, card = load_model(files, trust_code=trust_code)
    if resume:
        stored = ResultsStore(resume / "results").read("trials", EVALUATION)
        if len(stored) and stored.weights_sha256.iloc[0] != card["weights_sha256"]:
            raise BadInputError(
                f"{resume} evaluates another model ({stored.model.iloc[0]}): give that one to go on with it"
            )
    return SavedModel(folder, spec, model.state_dict(), card)


@contextmanager
def _one_trial(
    prepared: PreparedRun, trial_id: str, known: dict[str, Any], console: Console
) -> Iterator[dict[str, Any]]:
    """The row of the run's only trial, before and after: the body fills in the last report."""
    started = perf_counter()
    store = ResultsStore(prepared.folder / "results")
    saved = trial_id == EVALUATION  # whose card has its method's own defaults written out
    row = trial_row(trial_id, prepared.config, {}, prepared.given.provenance, now(), resolved=saved) | known
    store.write("trials", trial_id, [row])
    console.print(f"results: {prepared.folder}", markup=False, soft_wrap=True)
    report: dict[str, Any] = {}
    try:
        with LiveTable(prepared.folder, 1, console):
            yield report
    except CRMTError as error:
        store.write("trials", trial_id, [row | {"status": "failed", "error": first_line(error)}])
        raise
    store.write("trials", trial_id, [updated_row(row, report, float(report.get("seconds", perf_counter() - started)))])


def _show(run: Where, console: Console) -> None:
    from pipelines.reporting import build  # draws figures: not before there is something to show
    from pipelines.reporting.summary import print_summary

    build.build_report(run)
    print_summary(run, console)
