"""A command with a deadline, and limits to the memory, processor time and text that it may use."""

from __future__ import annotations

import contextlib
import math
import os
import resource
import selectors
import subprocess
import time
from typing import IO

from pipelines.decoding.errors import DecodeError

_MEMORY = 6 * 2**30  # bytes of address space
_MOST_LOG = 8 * 2**20  # bytes; a decoder that complains about every packet of a whole film writes less
_CHUNK = 2**16


def run_limited(command: list[str], deadline: float, most: int = 2**30) -> tuple[bytes, bytes]:
    """What a command writes to stdout (at most `most` bytes) and stderr. It is stopped at the deadline.

    Raises:
        DecodeError: `timeout` at the deadline, `failed` where it writes too much.
    """
    seconds = max(deadline - time.monotonic(), 0.001)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        try:
            with contextlib.suppress(ProcessLookupError):  # it has ended already
                resource.prlimit(process.pid, resource.RLIMIT_AS, (_MEMORY, _MEMORY))
                cpu = math.ceil(seconds) + 1  # should this process be killed, it ends nevertheless
                resource.prlimit(process.pid, resource.RLIMIT_CPU, (cpu, cpu))
            output, log = _read({process.stdout: most, process.stderr: _MOST_LOG}, deadline)
            process.wait(max(deadline - time.monotonic(), 0.001))
        except (TimeoutError, subprocess.TimeoutExpired):
            process.kill()
            raise DecodeError("timeout", "ffmpeg did not finish in time and was stopped") from None
        except BaseException:
            process.kill()  # Ctrl-C must not leave a decoder behind
            raise
    return output, log


def _read(pipes: dict[IO[bytes], int], deadline: float) -> list[bytes]:
    """All that comes out of each pipe, in their order."""
    found = {pipe: bytearray() for pipe in pipes}
    with selectors.DefaultSelector() as selector:
        for pipe in pipes:
            selector.register(pipe, selectors.EVENT_READ, pipe)
        while selector.get_map():
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            for key, _ in selector.select(left):
                pipe = key.data
                chunk = os.read(key.fd, _CHUNK)
                if not chunk:
                    selector.unregister(pipe)
                found[pipe] += chunk
                if len(found[pipe]) > pipes[pipe]:
                    raise DecodeError("failed", f"ffmpeg wrote more than {pipes[pipe]} bytes and was stopped")
    return [bytes(content) for content in found.values()]
