"""Which code computes: its commit, and whether it has been changed since; also where it was copied without its .git.

python -m pipelines.runs.code_version   # before the code is copied to a cluster: writes commit.json, which goes with it
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from crmt.errors import BadInputError
from pipelines.infra.entry import ROOT
from pipelines.infra.files import write_atomically

STAMP = "commit.json"
CODE = ("crmt", "pipelines", "tune_configs", "requirements.txt")
"""What decides the numbers of a run."""


@dataclass(frozen=True)
class CodeVersion:
    """`commit`: 40 hexadecimal digits; `dirty`: whether the code differs from it. None where nothing tells."""

    commit: str | None
    dirty: bool | None


def code_version(root: Path = ROOT) -> CodeVersion:
    """From git; in a copy without .git from the commit.json that was copied with it.

    A stamp that is older than the code beside it gives its commit, and `dirty` true: its digest no longer fits.
    """
    return _of_git(root) or _of_stamp(root) or CodeVersion(None, None)


def write_stamp(root: Path = ROOT) -> Path:
    """Write commit.json: the commit, whether the code differs from it, and a SHA-256 of the code as it is now.

    Raises:
        BadInputError: `root` is not a clone of the project.
    """
    version = _of_git(root)
    if version is None:
        raise BadInputError(f"{root} is not a git repository with a commit: clone the project, or commit what you have")
    stamp = {"commit": version.commit, "dirty": version.dirty, "sha256": _digest(root)}
    write_atomically(root / STAMP, json.dumps(stamp) + "\n")
    return root / STAMP


def _of_git(root: Path) -> CodeVersion | None:
    found = _git(root, "rev-parse", "--show-toplevel", "HEAD")
    if found is None:
        return None
    top, commit = found.splitlines()
    if Path(top).resolve() != root.resolve():  # installed inside a repository that is not ours
        return None
    changes = _git(root, "status", "--porcelain", "--", *CODE)
    return CodeVersion(commit, None if changes is None else bool(changes))


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=20
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _of_stamp(root: Path) -> CodeVersion | None:
    try:
        stamp = json.loads((root / STAMP).read_text())
        return CodeVersion(str(stamp["commit"]), bool(stamp["dirty"]) or stamp["sha256"] != _digest(root))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _digest(root: Path) -> str:
    """SHA-256 over the names and contents of all files of the code, in the order of their names."""
    listed = (path for name in CODE for path in (root / name, *(root / name).rglob("*")))
    total = hashlib.sha256()
    for path in sorted(p for p in listed if p.is_file() and "__pycache__" not in p.parts):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        total.update(f"{path.relative_to(root).as_posix()}\n{content}\n".encode())
    return total.hexdigest()


def main() -> int:
    """The command. Returns the exit code: 0, or 2 where there is no commit."""
    try:
        print(write_stamp())
    except BadInputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
