"""The console command of the installed package: `crmt-sweep sweep|train|evaluate|ingest|report`.

It runs the same `main` as the scripts. A shell completes it by argcomplete, where that is installed.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version

from pipelines.config.hints import nearest
from pipelines.infra.entry import CONSOLE

COMMANDS = ("sweep", "train", "evaluate", "ingest", "report")


def _parser() -> argparse.ArgumentParser:
    """All commands with their arguments: for --help and the shell's completion."""
    parser = argparse.ArgumentParser(
        prog=CONSOLE,
        description="Train classifiers that see and hear, attack them, and report how much attack each one survives.",
        epilog=f"{CONSOLE} COMMAND --help says what a command takes. Runs go to ./runs, decoded clips to $CRMT_CACHE "
        "or ~/.cache/crmt-sweep.",
    )
    parser.add_argument("--version", action="version", version=f"{CONSOLE} {version(CONSOLE)}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name in COMMANDS:
        module = import_module(f"pipelines.{name}")
        summary = (module.__doc__ or "").partition("\n")[0]
        commands.add_parser(name, parents=[module.arguments()], add_help=False, help=summary)
    return parser


def _complete(parser: argparse.ArgumentParser) -> None:
    """Answer the shell and exit, where it asks and argcomplete is installed."""
    try:
        import argcomplete
    except ImportError:
        return
    argcomplete.autocomplete(parser)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that is named first. Returns its exit code: 0, 1 a failure, 2 bad input, 130 stopped."""
    given = list(sys.argv[1:] if argv is None else argv)
    completing = "_ARGCOMPLETE" in os.environ
    if given and given[0] in COMMANDS and not completing:
        return int(import_module(f"pipelines.{given[0]}").main(given[1:]))
    if given and not given[0].startswith("-") and not completing:
        print(f"error: unknown command {given[0]!r}.{nearest(given[0], COMMANDS)}", file=sys.stderr)
        return 2
    parser = _parser()
    _complete(parser)
    parser.parse_args(given[:1])  # --help and --version end here, and so does what is no command
    return 0
