"""The commit in a run's provenance: from git, or from the stamp that was copied with the code."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from crmt.errors import BadInputError
from pipelines.runs.code_version import STAMP, CodeVersion, code_version, write_stamp


def git(root: Path, *arguments: str) -> str:
    """git with a name of its own, whatever this machine has."""
    who = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")
    return subprocess.run(["git", "-C", root, *who, *arguments], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A repository with the folders of the project."""
    root = tmp_path / "clone"
    for folder in ("crmt", "pipelines/sub", "tune_configs", "tests"):
        (root / folder).mkdir(parents=True)
    for name in ("crmt/a.py", "pipelines/sub/b.py", "tune_configs/c.yaml", "requirements.txt", "tests/d.py"):
        (root / name).write_text(name)
    (root / ".gitignore").write_text(f"{STAMP}\n__pycache__/\n")
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "one")
    return root


def copied(clone: Path) -> Path:
    """As rsync leaves it on a node: all but .git."""
    node = clone.parent / "node"
    shutil.rmtree(node, ignore_errors=True)
    shutil.copytree(clone, node, ignore=shutil.ignore_patterns(".git"))
    return node


def test_a_clone_says_its_commit_and_what_was_changed(clone: Path) -> None:
    head = git(clone, "rev-parse", "HEAD").strip()
    assert code_version(clone) == CodeVersion(head, False)
    (clone / "tests/d.py").write_text("no number depends on it")
    assert code_version(clone) == CodeVersion(head, False)
    (clone / "crmt/new.py").write_text("a method of one's own")
    assert code_version(clone) == CodeVersion(head, True)


@pytest.mark.parametrize("dirty", [False, True])
def test_a_copy_says_what_its_clone_said(clone: Path, dirty: bool) -> None:
    if dirty:
        (clone / "crmt/a.py").write_text("changed")
    write_stamp(clone)
    node = copied(clone)
    (node / "crmt/__pycache__").mkdir()
    (node / "crmt/__pycache__/a.pyc").write_bytes(b"made on the node")
    assert code_version(node) == code_version(clone) == CodeVersion(git(clone, "rev-parse", "HEAD").strip(), dirty)


@pytest.mark.parametrize("change", ["crmt/a.py", "pipelines/sub/b.py", "tune_configs/new.yaml", "requirements.txt"])
def test_a_stamp_older_than_the_code_is_dirty(clone: Path, change: str) -> None:
    write_stamp(clone)
    (clone / change).write_text("later")
    git(clone, "add", ".")
    git(clone, "commit", "-q", "-m", "two")
    found = code_version(copied(clone))
    assert found == CodeVersion(git(clone, "rev-parse", "HEAD~").strip(), True)


def test_a_moved_file_is_another_code(clone: Path) -> None:
    write_stamp(clone)
    node = copied(clone)
    (node / "crmt/a.py").rename(node / "crmt/z.py")
    assert code_version(node).dirty


def test_without_git_and_stamp_nothing_is_claimed(clone: Path) -> None:
    node = copied(clone)
    assert code_version(node) == CodeVersion(None, None)
    for broken in ("", "{}", "[]", json.dumps({"commit": "a" * 40})):
        (node / STAMP).write_text(broken)
        assert code_version(node) == CodeVersion(None, None)
    with pytest.raises(BadInputError, match="git"):
        write_stamp(node)


def test_the_commit_of_another_repository_around_it_is_not_ours(clone: Path) -> None:
    inside = clone / "venv/site-packages"
    (inside / "crmt").mkdir(parents=True)
    assert code_version(inside) == CodeVersion(None, None)
