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

from crmt.errors import BadInputError
from pipelines.command import (
    add_config_arguments,
    add_storage_argument,
    check_early,
    command_parser,
    config_from,
    importing,
    run_command,
    storage_of,
)


def arguments() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = command_parser("train", __doc__)
    add_config_arguments(parser)
    parser.add_argument("--workers", type=int, help="sweep.workers: more than one go through TorchTrainer")
    parser.add_argument("--out", type=Path, metavar="DIR", help="the run's folder; default runs/<dataset>-train-<time>")
    add_storage_argument(parser)
    parser.add_argument("--resume", metavar="RUN", help="go on with a training run (a folder or a URI)")
    parser.add_argument("--address", help="of a Ray cluster; default: one on this machine, else Ray is started here")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code: 0, 1 for a failure, 2 for bad input, 130 when stopped."""
    options = arguments().parse_args(argv)

    def body() -> int:
        check_early(options)
        if options.resume is not None:
            others = ("dataset", "config", "set", "data_root", "out", "storage", "workers")
            if any(getattr(options, name) for name in others):
                raise BadInputError("--resume takes the run's own configuration: leave out the other arguments")
            from pipelines.runs.place import run_at
            from pipelines.runs.run_folder import read_card
            from pipelines.sweeps.single import run_training

            run = run_at(options.resume, "--resume")
            run_training(importing(read_card(run)[1], options.code), None, run, options.address)
            return 0
        config = config_from(options, {"sweep.workers": options.workers})
        from pipelines.sweeps.single import run_training

        run_training(config.without_search(), options.out, None, options.address, storage_of(options))
        return 0

    return run_command(body)
