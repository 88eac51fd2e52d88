"""One training run: a trial without Tune. Trains, measures and saves a model, and writes its report.

python pipelines/train.py --dataset avdigits --set train.method=jt
"""

from __future__ import annotations

if __name__ == "__main__":
    from pipelines.infra.entry import run_as_module

    run_as_module(__file__)

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from crmt.errors import BadInputError, CRMTError
from pipelines.clips.batches import modalities_of
from pipelines.clips.ingest import look_ahead
from pipelines.clips.prepare import prepare
from pipelines.command import add_config_arguments, config_from, importing, run_command, start_ray
from pipelines.config.run_config import RunConfig, with_values
from pipelines.infra.ray_errors import first_line
from pipelines.reporting.build import build_report
from pipelines.reporting.summary import print_summary
from pipelines.runs.live import LiveTable
from pipelines.runs.results import ResultsStore
from pipelines.runs.run_folder import check_free, now, open_run, read_card
from pipelines.runs.trial_rows import trial_row, updated_row
from pipelines.sweeps.preflight import check_settings, plan_sweep, settled
from pipelines.trials.launch import fit_with_workers, local_trial

TRIAL = "train"


def run_training(config: RunConfig, folder: Path | None, resume: Path | None, address: str | None = None) -> Path:
    """Train one model; returns the run's folder.

    Raises:
        BadInputError: settings or clips that cannot be used. CRMTError: training failed.
    """
    console = Console()
    check_settings(config)
    check_free(folder)
    index = look_ahead(config.data)
    start_ray(address, dashboard=False, code=config.code)
    config = settled(config)
    plan_sweep(config).check()
    prepared = prepare(config, lambda text: console.print(text, highlight=False), index)
    if config.sweep.workers > 1:
        plan_sweep(config, prepared.source.mode).check()
    modalities = modalities_of(prepared.cache, config.data, list(config.model.encoders))
    given = open_run(config, prepared, modalities, "train", folder=folder, resume=resume)
    run = given.run
    store = ResultsStore(run / "results")
    row = trial_row(TRIAL, config, {}, given.provenance, now())
    store.write("trials", TRIAL, [row])
    console.print(f"results: {run}", markup=False, soft_wrap=True)
    report: dict[str, Any] = {}
    try:
        with LiveTable(run, 1, console):
            if config.sweep.workers > 1:
                report = fit_with_workers(config, given, prepared.source, TRIAL, [])
            else:
                report = local_trial(config, given, prepared.source, TRIAL)
    except CRMTError as error:
        store.write("trials", TRIAL, [row | {"status": "failed", "error": first_line(error)}])
        raise
    except KeyboardInterrupt:
        console.print(f"go on with: python pipelines/train.py --resume {run}", markup=False, soft_wrap=True)
        raise
    store.write("trials", TRIAL, [updated_row(row, report, float(report.get("seconds", 0.0)))])
    build_report(run)
    print_summary(run, console)
    console.print(f"model: {run / 'models' / TRIAL}", markup=False, soft_wrap=True)
    return run


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code: 0, 1 for a failure, 2 for bad input, 130 when stopped."""
    parser = argparse.ArgumentParser(
        prog="train.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add_config_arguments(parser)
    parser.add_argument("--workers", type=int, help="sweep.workers: more than one go through TorchTrainer")
    parser.add_argument("--out", type=Path, metavar="DIR", help="the run's folder; default runs/<dataset>-train-<time>")
    parser.add_argument("--resume", type=Path, metavar="DIR", help="go on with a training run that was stopped")
    parser.add_argument("--address", help="of a Ray cluster; default: one on this machine, else Ray is started here")
    options = parser.parse_args(argv)

    def body() -> int:
        if options.resume is not None:
            others = ("dataset", "config", "set", "data_root", "out", "workers")
            if any(getattr(options, name) for name in others):
                raise BadInputError("--resume takes the run's own configuration: leave out the other arguments")
            run = options.resume.resolve()
            run_training(importing(read_card(run)[1], options.code), None, run, options.address)
            return 0
        config = config_from(options)
        if options.workers is not None:
            config = with_values(config, {"sweep.workers": options.workers})
        run_training(config.without_search(), options.out, None, options.address)
        return 0

    return run_command(body)
