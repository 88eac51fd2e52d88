"""How a command is started and written: `python pipelines/NAME.py` or `crmt-sweep NAME`. Standard library alone."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import NoReturn

INTERRUPTED = 130
"""Exit code of a command that was stopped."""
CONSOLE = "crmt-sweep"
"""The console command of the installed package."""
ROOT = Path(__file__).resolve().parents[2]
"""The clone, or the site-packages of an installed package."""


def typed(command: str) -> str:
    """A command of ours as the user of this process types it: `python pipelines/NAME.py`, or `crmt-sweep NAME`.

    The second where this process was started so, and where there is no clone to run a script of.

    Args:
        command: its name, such as `sweep`.
    """
    if Path(sys.argv[0]).stem == CONSOLE or not (ROOT / "pyproject.toml").exists():
        return f"{CONSOLE} {command}"
    return f"python pipelines/{command}.py"


def run_as_module(file: str) -> NoReturn:
    """Run `main` of a command that was started as a file, and exit with the code that it returns.

    Python puts a script's folder first on the import path, in this process and through Ray in every worker; there
    our own `sources` or `config` would hide packages of other people that a user's encoder imports. The command also
    runs under its real name, so that pickles name the module and not `__main__`.

    Args:
        file: `__file__` of the command, in the folder `pipelines`.
    """
    folder = Path(file).resolve().parent
    sys.path[:] = [entry for entry in sys.path if not entry or Path(entry).resolve() != folder]
    sys.path.append(str(folder.parent))
    sys.exit(import_module(f"pipelines.{Path(file).stem}").main())
