"""One process at a time works on a run, and who it is is said; what a dead one left is taken over."""

from __future__ import annotations

import errno
import multiprocessing
import os
import socket
from collections.abc import Callable
from multiprocessing.synchronize import Event
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from crmt.errors import BadInputError
from pipelines import sweep, train
from pipelines.config.run_config import parse
from pipelines.runs import lock as locks
from pipelines.runs import run_folder
from pipelines.runs.lock import hold_run
from pipelines.runs.run_folder import CARD, write_card
from tests.pipelines.small import TINY, one_line


class NoLocks(locks.FileLock):  # type: ignore[misc, valid-type]
    """As on a file system that has none."""

    def acquire(self, *given: Any, **more: Any) -> Any:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


def hold(run: Path, without: bool, held: Event) -> None:
    """What another process does: it takes the lock and dies with it."""
    if without:
        locks.FileLock = NoLocks  # type: ignore[misc]
    with hold_run(run):
        held.set()
        multiprocessing.Event().wait()


@pytest.fixture(params=[False, True], ids=["locks", "no locks"])
def other(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """Starts a process that holds the run `tmp_path`; with a file system's locks and without."""
    without = bool(request.param)
    if without:
        monkeypatch.setattr(locks, "FileLock", NoLocks)
    context = multiprocessing.get_context("spawn")

    def start() -> Any:
        held = context.Event()
        process = context.Process(target=hold, args=(tmp_path, without, held), daemon=True)
        process.start()
        while not held.wait(1):
            assert process.is_alive()
        return process

    return start


def test_a_run_that_is_held_is_refused_and_taken_over_from_the_dead(
    tmp_path: Path, other: Callable[[], Any], request: pytest.FixtureRequest
) -> None:
    process = other()
    said = f"process {process.pid} on {socket.gethostname()} since 20"
    with pytest.raises(BadInputError, match=said) as refused, hold_run(tmp_path):
        raise AssertionError("held twice")
    assert "\n" not in str(refused.value)
    assert ("delete" in str(refused.value)) == ("no locks" in request.node.callspec.id)
    process.kill()
    process.join()
    with hold_run(tmp_path):
        pass
    with hold_run(tmp_path):  # and let go again
        pass
    assert not (tmp_path / locks.HOLDER).exists()


@pytest.mark.parametrize("command", [sweep, train], ids=["sweep", "train"])
def test_resume_of_a_run_that_is_alive_is_one_line(
    tmp_path: Path, other: Callable[[], Any], command: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before clips are looked for, or Ray is started."""
    config = parse({**TINY, "data": {**TINY["data"], "root": str(tmp_path / "no clips")}}, "a test")
    write_card(tmp_path, {"kind": command.__name__, "config": config.model_dump(mode="json")})
    before = (tmp_path / CARD).read_bytes()
    process = other()
    assert command.main(["--resume", str(tmp_path)]) == 2
    assert f"{tmp_path} is in use by process {process.pid}" in one_line(capsys.readouterr().err)
    assert (tmp_path / CARD).read_bytes() == before


def test_a_lock_of_another_host_on_a_file_system_without_locks_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "FileLock", NoLocks)
    (tmp_path / locks.MARKER).write_text("1\nelsewhere\n")
    (tmp_path / locks.HOLDER).write_text('{"pid": 1, "host": "elsewhere", "since": "2026-01-01T00:00:00+00:00"}')
    with pytest.raises(BadInputError, match=rf"process 1 on elsewhere .* delete .*{locks.MARKER}"), hold_run(tmp_path):
        raise AssertionError("taken from another host")
    (tmp_path / locks.MARKER).unlink()
    with hold_run(tmp_path):
        pass


def test_an_error_lets_go(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), hold_run(tmp_path):
        raise KeyboardInterrupt
    with hold_run(tmp_path):
        pass


def test_two_runs_in_the_same_second_take_two_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stopped(run_folder.datetime):  # type: ignore[misc, name-defined]
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return cls(2026, 1, 2, 3, 4, 5)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_folder, "datetime", Stopped)
    made = [run_folder.create_run(None, "avdigits", "sweep").name for _ in range(3)]
    first = "avdigits-sweep-20260102-030405"
    assert made == [first, f"{first}-2", f"{first}-3"]
