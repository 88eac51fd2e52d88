"""The main command: a sweep over tune_configs/<dataset>.yaml on Ray Tune, with preflight, live table and resume.

python pipelines/sweep.py --dataset avdigits
"""

from __future__ import annotations

if __name__ == "__main__":
    from pipelines.infra.entry import run_as_module

    run_as_module(__file__)

import argparse
from collections.abc import Sequence
from pathlib import Path

from crmt.errors import BadInputError
from pipelines.command import (
    add_config_arguments,
    add_storage_argument,
    check_early,
    command_parser,
    config_from,
    field_names,
    importing,
    offer,
    run_command,
    storage_of,
)
from pipelines.infra.entry import typed
from pipelines.infra.files import check_ours


def arguments() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = command_parser("sweep", __doc__)
    add_config_arguments(parser)
    parser.add_argument("--trials", type=int, help="sweep.trials")
    parser.add_argument("--workers", type=int, help="sweep.workers: workers of one trial")
    parser.add_argument("--out", type=Path, metavar="DIR", help="the run's folder; default runs/<dataset>-sweep-<time>")
    add_storage_argument(parser)
    parser.add_argument(
        "--resume",
        nargs="?",
        const="latest",
        metavar="RUN",
        help="go on with a sweep, by its folder or URI; default: the newest",
    )
    parser.add_argument(
        "--trust", action="store_true", help="--resume: also where other users may have written to the run's folder"
    )
    parser.add_argument("--dry-run", action="store_true", help="show what would run and what it needs, and stop")
    fields = parser.add_argument(
        "--fields", nargs="?", const="", metavar="PATH", help="print every field of the configuration (under PATH)"
    )
    offer(fields, field_names)
    parser.add_argument("--address", help="of a Ray cluster; default: one on this machine, else Ray is started here")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code: 0, 1 for a failure, 2 for bad input, 130 when stopped."""
    options = arguments().parse_args(argv)

    def body() -> int:
        if options.fields is not None:
            from rich.console import Console

            from pipelines.config.fields import print_fields

            print_fields(options.fields, Console())
            return 0
        check_early(options)
        if options.resume is not None:
            others = ("dataset", "config", "set", "data_root", "out", "storage", "trials", "workers")
            if any(getattr(options, name) for name in others):
                raise BadInputError("--resume takes the run's own configuration: leave out the other arguments")
            from pipelines.runs.place import run_at
            from pipelines.runs.run_folder import latest_run, read_card
            from pipelines.sweeps.run import run_sweep

            run = latest_run() if options.resume == "latest" else run_at(options.resume, "--resume")
            if isinstance(run, Path) and (run / "tune").is_dir() and not options.trust:
                check_ours(run / "tune")
            return run_sweep(importing(read_card(run)[1], options.code), None, run, options.dry_run, options.address)
        config = config_from(options, {"sweep.trials": options.trials, "sweep.workers": options.workers})
        if options.trials and config.search and config.sweep.algorithm in ("grid", "points"):
            raise BadInputError(f"--trials: sweep.algorithm is {config.sweep.algorithm}, which says itself how many")
        from pipelines.sweeps.run import run_sweep

        return run_sweep(config, options.out, None, options.dry_run, options.address, storage_of(options))

    return run_command(body, f"A sweep that had begun goes on with: {typed('sweep')} --resume")
