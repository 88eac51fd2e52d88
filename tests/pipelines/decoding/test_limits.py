"""Commands that are held to a deadline, and to what they may write."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.config.schema import AudioConfig, VideoConfig
from pipelines.decoding import container, mp4
from pipelines.decoding.clip import decode_clip
from pipelines.decoding.errors import DecodeError
from pipelines.decoding.limits import run_limited
from pipelines.decoding.mp4 import track_seconds
from tests.pipelines.media import make_media


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_both_outputs_come_back_whole() -> None:
    code = "import sys; sys.stdout.write('a' * 300_000); sys.stderr.write('b' * 300_000)"
    assert run_limited(python(code), time.monotonic() + 60) == (b"a" * 300_000, b"b" * 300_000)


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_endless_output_is_ended(stream: str) -> None:
    code = f"import sys\nwhile True: sys.{stream}.write('no ' * 10_000)"
    with pytest.raises(DecodeError, match="wrote more than") as caught:
        run_limited(python(code), time.monotonic() + 60, most=10**6)
    assert caught.value.reason == "failed"


def test_the_deadline_holds_whoever_else_has_the_pipe(tmp_path: Path) -> None:
    """A grandchild keeps the pipes open; nothing waits for it."""
    note = tmp_path / "pid"
    code = "import subprocess as s, sys, time; p = s.Popen(['sleep', '60']); open(sys.argv[1], 'w').write(str(p.pid));"
    with pytest.raises(DecodeError) as caught:
        run_limited([*python(code + "time.sleep(60)"), str(note)], time.monotonic() + 3)
    assert caught.value.reason == "timeout"
    os.kill(int(note.read_text()), signal.SIGKILL)  # it is still there


def test_boxes_in_boxes_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second `moov` of tracks of empty boxes: few at each level, very many in all."""
    path = make_media(tmp_path / "a.mp4", seconds=1)
    whole, read = track_seconds(path), mp4.boxes
    track = (8 * 101).to_bytes(4, "big") + b"trak" + 100 * b"\0\0\0\x08free"
    content = 100 * track
    path.write_bytes(path.read_bytes() + (len(content) + 8).to_bytes(4, "big") + b"moov" + content)
    seen = []

    def counted(*arguments: Any) -> Iterator[tuple[bytes, int, int]]:
        for box in read(*arguments):
            seen.append(box)
            yield box

    monkeypatch.setattr(mp4, "boxes", counted)
    monkeypatch.setattr(mp4, "_MOST_BOXES", 3_000)
    assert track_seconds(path) == whole
    assert 1_000 < len(seen) <= 3_000


def test_an_error_of_the_disk_is_the_clips_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: Path) -> dict[bytes, float]:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(container, "track_seconds", broken)
    with pytest.raises(DecodeError) as caught:
        decode_clip(make_media(tmp_path / "a.mp4"), VideoConfig(), AudioConfig(), 60)
    assert (caught.value.reason, caught.value.detail) == ("unreadable", "Input/output error")
