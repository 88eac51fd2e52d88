"""One process at a time works on a run on a server, which has no locks: claims that are renewed as long as they hold.

Each process writes a claim of its own and then lists all of them: of two that come at once, at least one sees the
other, and whoever sees another's claim withdraws. Two that see each other both do: no server needs to order writes.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from crmt.errors import BadInputError, CRMTError
from pipelines.infra.storage import Folder
from pipelines.runs.holder import holder_here, said_of

CLAIMS = "claims"
RENEWED_SECONDS, STALE_SECONDS = 20.0, 150.0
"""How often a claim is written again (two requests), and after how long without it is taken over: longer than writes
wait for a server that is away, so that a run that outlives that keeps its claim."""
_LOG = logging.getLogger(__name__)


@contextmanager
def hold_lease(run: Folder) -> Iterator[None]:
    """Hold a run on a server while the block runs, which ends as Ctrl-C ends it where another process takes the run.

    Args:
        run: its folder.

    Raises:
        BadInputError: another process holds it.
        CRMTError: another process has taken it over, since the server did not hear of this one for long.
    """
    claims, own = run / CLAIMS, f"{uuid.uuid4().hex}.json"
    content = json.dumps(holder_here()).encode()
    claims.write(own, content)
    try:
        _check_alone(run, claims, own)
    except BaseException:
        claims.remove(own)
        raise
    ended, lost = threading.Event(), threading.Event()
    main = threading.current_thread() is threading.main_thread()
    renewing = threading.Thread(target=_renew, args=(claims, own, content, ended, lost, main), daemon=True)
    before = signal.signal(signal.SIGUSR1, signal.default_int_handler) if main else None
    renewing.start()
    try:
        yield
    except BaseException:
        if lost.is_set():
            raise _taken(run) from None
        raise
    finally:
        ended.set()
        renewing.join(5)  # its signal comes while it is still caught
        if main:
            signal.signal(signal.SIGUSR1, before or signal.SIG_DFL)
        _let_go(claims, own)
    if lost.is_set():
        raise _taken(run)


def _check_alone(run: Folder, claims: Folder, own: str) -> None:
    """Refuse a run that another claim holds; forget those of dead processes. Ages are told by the server's clock."""
    written = claims.stamps()
    for name in written.keys() - {own}:
        age = written[own] - written[name]
        try:
            found = json.loads(claims.read(name))
        except (FileNotFoundError, ValueError):
            continue
        if age < STALE_SECONDS and not _is_dead(found):
            raise BadInputError(
                f"{run} is in use by {said_of(found)}, who said so {max(age, 0):.0f} s ago: wait until it has ended, "
                f"or stop it; if it is gone, the run is free in {STALE_SECONDS - max(age, 0):.0f} s"
            )
        claims.remove(name)


def _is_dead(holder: dict[str, Any]) -> bool:
    """Whether it was a process of this host that is gone: of another host nobody can tell."""
    if holder.get("host") != socket.gethostname() or not isinstance(holder.get("pid"), int):
        return False
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _renew(claims: Folder, own: str, content: bytes, ended: threading.Event, lost: threading.Event, main: bool) -> None:
    last = time.monotonic()
    while not ended.wait(RENEWED_SECONDS):
        try:
            mine = claims.has(own)
            if mine:
                claims.write(own, content)
                silent, last = time.monotonic() - last, time.monotonic()
                # who took a silent claim over wrote its own before: it is seen, even if this one has just come back
                mine = silent < STALE_SECONDS / 2 or claims.names() == [own]
        except (CRMTError, OSError) as error:
            _LOG.warning("the claim on the run could not be renewed: %s", error)
            continue
        if mine:
            continue
        if not ended.is_set():
            lost.set()
            if main:
                os.kill(os.getpid(), signal.SIGUSR1)
        return


def _let_go(claims: Folder, own: str) -> None:
    try:
        claims.remove(own)
    except (CRMTError, OSError) as error:
        _LOG.warning("the claim on the run stays until it is stale: %s", error)


def _taken(run: Folder) -> CRMTError:
    return CRMTError(f"{run} was taken over by another process while its server heard nothing of this one")
