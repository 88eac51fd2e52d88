"""Who works on a run, as its lock says it."""

from __future__ import annotations

import os
import socket
from datetime import UTC, datetime
from typing import Any


def holder_here() -> dict[str, Any]:
    """This process, from now on."""
    since = datetime.now(UTC).isoformat(timespec="seconds")
    return {"host": socket.gethostname(), "pid": os.getpid(), "since": since}


def said_of(holder: Any) -> str:
    """A holder in words; `another process` where it is damaged."""
    try:
        return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    except (KeyError, TypeError):
        return "another process"
