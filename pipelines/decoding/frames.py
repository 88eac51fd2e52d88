"""Frames and flow of a clip, from a child process (frame_child.py) that ends when its time or memory does.

The child is started once per process and serves clip after clip: 0.3 s at the first, well under a millisecond at each.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crmt.errors import CRMTError
from pipelines.config.schema import FlowConfig, VideoConfig
from pipelines.decoding.errors import DecodeError

_START_SECONDS, _LAST_SECONDS = 120.0, 2.0
_CLIPS_EACH = 2000  # a child is then replaced, whatever its libraries may leak


@dataclass(frozen=True, eq=False)
class Frames:
    """`video`: uint8 (F, size, size, 3), RGB; `flow`: uint8 (F, 2, size, size); None where not asked for.

    `end`: the second at which the last frame ends.
    """

    video: NDArray[np.uint8] | None
    flow: NDArray[np.uint8] | None
    end: float


class FrameProcess:
    """One child process, started again whenever it had to be ended."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._served = 0
        self._lock = threading.Lock()

    @property
    def pid(self) -> int:
        """The process id of the child, which is started where there is none."""
        return self._running().pid

    def ask(self, request: dict[str, Any], deadline: float) -> tuple[dict[str, Any], list[NDArray[np.uint8]]]:
        """The child's answer to a request.

        Raises:
            DecodeError: `timeout` at the deadline (the child is killed), `failed` where the child crashed.
            CRMTError: no child can be started.
        """
        with self._lock:
            process, late = self._running(), threading.Event()

            def end() -> None:
                late.set()
                process.kill()

            timer = threading.Timer(max(deadline - time.monotonic(), 0.0), end)
            timer.start()
            answer = None
            try:
                answer = _exchange(process, {**request, "seconds": max(deadline - time.monotonic(), 0.0)})
            finally:  # also at Ctrl-C
                timer.cancel()
                timer.join()
                self._served += 1
                code = None if answer is not None and not late.is_set() else self.close()
            if answer is None and late.is_set():
                raise DecodeError("timeout", "the frames were not decoded in time and their decoder was stopped")
            if answer is None:
                raise DecodeError("failed", f"the decoder of the frames crashed ({_death(code)})")
            return answer

    def start(self) -> None:
        """Start the child where there is none."""
        self._running()

    def close(self) -> int | None:
        """End the child; returns its exit code if it had ended by itself."""
        process, self._process = self._process, None
        if process is None:
            return None
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(OSError):  # a pipe that broke
            process.stdin.close()  # the child ends where its requests do
        try:
            process.wait(_LAST_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
        return process.returncode

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and (self._served >= _CLIPS_EACH or self._process.poll() is not None):
            self.close()
        if self._process is None:
            self._process, self._served = _start(), 0
        return self._process


@functools.cache
def frame_process(pid: int) -> FrameProcess:
    """The child of the process `pid`: a fork must not talk to its parent's."""
    del pid
    process = FrameProcess()
    atexit.register(process.close)
    return process


def ask_child(request: dict[str, Any], deadline: float) -> tuple[dict[str, Any], list[NDArray[np.uint8]]]:
    """This process's child's answer (see FrameProcess.ask); a refusal is raised with the child's own reason."""
    header, arrays = frame_process(os.getpid()).ask(request, deadline)
    if "reason" in header:
        raise DecodeError(header["reason"], header["detail"])
    return header, arrays


def read_frames(
    path: Path,
    video: VideoConfig,
    flow: FlowConfig | None,
    deadline: float,
    start: float,
    wanted: Sequence[str],
    track: int,
    reader: str,
) -> Frames:
    """Decode the modalities in `wanted` (`video`, `flow`), or with none of them only where the last frame ends.

    Args:
        start: the second at which the picture sets in, as the container says.
        track: the picture's index among all streams of the file.
        reader: `decord`, or `pyav` where decord would take another stream or misread the container.

    Raises:
        DecodeError: `failed`, `timeout`, `too_large`, `too_long`.
    """
    request = {
        "path": str(path),
        "segments": video.frames,
        "candidates": video.candidates,
        "size": video.size,
        "max_pixels": video.max_pixels,
        "max_frames": video.max_frames,
        "flow": flow.model_dump() if flow is not None and "flow" in wanted else None,
        "start": start,
        "wanted": list(wanted),
        "track": track,
        "reader": reader,
    }
    header, arrays = ask_child(request, deadline)
    found = dict(zip(wanted, arrays, strict=True))
    return Frames(found.get("video"), found.get("flow"), float(header["end"]))


def _start() -> subprocess.Popen[bytes]:
    """A child that is ready. Its start does not count against any clip's time."""
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    process = subprocess.Popen(
        [
            sys.executable,
            "-P",
            "-m",
            "pipelines.decoding.frame_child",
        ],  # -P: modules of the current folder are not ours
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        start_new_session=True,  # Ctrl-C is for the parent
    )
    timer = threading.Timer(_START_SECONDS, process.kill)
    timer.start()
    try:
        ready = process.stdout is not None and process.stdout.readline() == b"{}\n"
    except BaseException:
        process.kill()
        raise
    finally:
        timer.cancel()
    if not ready:
        process.kill()
        process.wait()
        command = "python -c 'import pipelines.decoding.frame_child'"
        raise CRMTError(f"the process that decodes frames does not start ({_death(process.returncode)}). Try {command}")
    return process


def _exchange(
    process: subprocess.Popen[bytes], request: dict[str, Any]
) -> tuple[dict[str, Any], list[NDArray[np.uint8]]] | None:
    """Send, and read the answer; None when the child ended before it was whole."""
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(json.dumps(request).encode() + b"\n")
        process.stdin.flush()
        line = process.stdout.readline()
        if not line.endswith(b"\n"):
            return None
        header = json.loads(line)
        arrays = []
        for shape in header.pop("shapes"):
            content = process.stdout.read(int(np.prod(shape)))
            if len(content) < int(np.prod(shape)):
                return None
            arrays.append(np.frombuffer(content, np.uint8).reshape(shape))
    except BrokenPipeError:
        return None
    return header, arrays


def _death(code: int | None) -> str:
    if code is not None and code < 0:
        return signal.Signals(-code).name
    return f"exit code {code}"
