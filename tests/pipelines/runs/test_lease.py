"""One process at a time works on a run on a server, by claims that are renewed as long as they hold."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from pathlib import Path

import pytest

from crmt.errors import BadInputError, CRMTError
from pipelines import sweep, train
from pipelines.config.run_config import parse
from pipelines.infra.storage import Folder
from pipelines.runs import lease
from pipelines.runs.lock import hold_run
from pipelines.runs.run_folder import write_card
from tests.pipelines.small import TINY, one_line


def test_a_run_that_is_held_is_refused_and_let_go(run: Folder) -> None:
    with hold_run(run):
        with (
            pytest.raises(BadInputError, match=rf"process {os.getpid()} on .* since .* is gone") as refused,
            hold_run(run),
        ):
            raise AssertionError("held twice")
        assert "\n" not in str(refused.value) and len((run / lease.CLAIMS).names()) == 1
    assert (run / lease.CLAIMS).names() == []
    with hold_run(run):
        pass


@pytest.mark.parametrize("who", ["dead", "stale", "elsewhere"])
def test_a_claim_is_taken_over_from_the_dead_and_the_silent_alone(
    run: Folder, who: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = socket.gethostname() if who == "dead" else "elsewhere"
    claim = {"host": host, "pid": 2**22 + 1, "since": "2026-01-01T00:00:00+00:00"}
    (run / lease.CLAIMS).write("other.json", json.dumps(claim).encode())
    if who == "elsewhere":
        with pytest.raises(BadInputError, match="on elsewhere since 2026-01-01"), hold_run(run):
            raise AssertionError("taken from another host")
        assert (run / lease.CLAIMS).names() == ["other.json"]
        return
    if who == "stale":
        monkeypatch.setattr(lease, "STALE_SECONDS", 1.0)
        time.sleep(2.1)  # a server's seconds are whole
    with hold_run(run):
        assert len((run / lease.CLAIMS).names()) == 1 and "other.json" not in (run / lease.CLAIMS).names()


def test_of_many_at_once_one_at_most_holds(run: Folder) -> None:
    start, held, let_go = threading.Barrier(4), [], threading.Barrier(4)

    def contend(number: int) -> None:
        start.wait()
        try:
            with hold_run(run):
                held.append(number)
                let_go.wait()
        except BadInputError:
            let_go.wait()

    threads = [threading.Thread(target=contend, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(held) <= 1 and (run / lease.CLAIMS).names() == []


def test_a_run_that_was_taken_over_ends_as_by_ctrl_c(run: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEWED_SECONDS", 0.1)
    with pytest.raises(CRMTError, match="was taken over by another process"), hold_run(run):
        claims = run / lease.CLAIMS
        time.sleep(0.5)  # renewed, and still ours
        (own,) = claims.names()
        for _ in range(200):
            claims.remove(own)
            time.sleep(0.1)
        raise AssertionError("it went on")


def test_a_claim_that_was_silent_gives_way_to_whoever_came(run: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where it is written again in the moment in which it is taken over."""
    monkeypatch.setattr(lease, "RENEWED_SECONDS", 0.1)
    monkeypatch.setattr(lease, "STALE_SECONDS", 0.0)
    with pytest.raises(CRMTError, match="was taken over by another process"), hold_run(run):
        (run / lease.CLAIMS).write("other.json", b"{}")
        time.sleep(20)
        raise AssertionError("it went on")


@pytest.mark.parametrize("command", [sweep, train], ids=["sweep", "train"])
def test_resume_of_a_run_that_is_alive_is_one_line(
    run: Folder, tmp_path: Path, command: object, capsys: pytest.CaptureFixture[str]
) -> None:
    config = parse({**TINY, "data": {**TINY["data"], "root": str(tmp_path / "no clips")}}, "a test")
    write_card(run, {"kind": "sweep", "config": config.model_dump(mode="json")})
    with hold_run(run):
        assert command.main(["--resume", str(run)]) == 2  # type: ignore[attr-defined]
    assert f"{run} is in use by process {os.getpid()}" in one_line(capsys.readouterr().err)
