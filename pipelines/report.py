"""The report of a run: one self-contained report.html and its tables as CSV, from any results store.

python pipelines/report.py RUN

Works on a run that is still going, was stopped or failed in part: it shows what is there.
"""

from __future__ import annotations

if __name__ == "__main__":
    from pipelines.infra.entry import run_as_module

    run_as_module(__file__)

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from crmt.errors import BadInputError, CRMTError
from pipelines.command import command_parser
from pipelines.infra.files import check_place


def arguments() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = command_parser("report", __doc__)
    parser.add_argument("run", metavar="RUN", help="folder of a run or its URI, as printed at its end")
    parser.add_argument("--out", type=Path, metavar="DIR", help="a folder to write to; default: the run's own")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Exit code 2 where RUN is not the folder of a run."""
    options = arguments().parse_args(argv)
    from rich.console import Console

    from pipelines.reporting.build import build_report
    from pipelines.reporting.summary import print_summary
    from pipelines.runs.place import run_at

    try:
        check_place(options.out)
        run = run_at(options.run, "RUN")
        page = build_report(run, options.out)
        print_summary(run, Console(), page)
    except CRMTError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, BadInputError) else 1
    return 0
