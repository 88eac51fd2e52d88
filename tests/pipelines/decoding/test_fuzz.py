"""The fuzz command on a few files: seeded, every file accounted for, and its verdict follows what happened."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import fuzz_decode
from pipelines.decoding.clip import decode_clip
from tests.pipelines.media import cut, make_media

ROOT = Path(__file__).resolve().parents[3]


def test_a_few_files_are_all_accounted_for(tmp_path: Path) -> None:
    out = tmp_path / "fuzz.json"
    command = [sys.executable, ROOT / "benchmarks" / "fuzz_decode.py", "--files", "24", "--seed", "5", "--out", out]
    done = subprocess.run(command, capture_output=True, text=True)
    counts = json.loads(out.read_text())
    assert done.returncode == 0, done.stdout + done.stderr
    assert counts["files"] == counts["accounted"] == sum(counts["outcomes"].values()) == 24
    assert counts["crashes"] == counts["hangs"] == 0 and len(counts["outcomes"]) > 1
    assert "24 of 24 files accounted for" in " ".join(done.stdout.split())


def test_the_files_are_those_of_the_seed() -> None:
    sources = {"a.mp4": bytes(range(256)) * 40, "b.mkv": bytes(range(255, -1, -1)) * 40}
    first, again, other = (
        [fuzz_decode.mutated(np.random.default_rng([seed, n]), sources) for n in range(40)] for seed in (0, 0, 1)
    )
    assert first == again and first != other
    assert {kind for _, kind, _ in first} == {mutation.__name__ for mutation in fuzz_decode.MUTATIONS}
    assert all(content not in sources.values() for _, kind, content in first if kind in ("cut", "flip_bits"))


@pytest.mark.parametrize(
    ("code", "expected"), [("import os; os.abort()", "crash"), ("import time; time.sleep(60)", "hang")]
)
def test_a_crash_and_a_hang_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, expected: str) -> None:
    """A decoding process that crashes or hangs as a whole: what the command exists to find."""
    monkeypatch.setattr(fuzz_decode, "HANG_SECONDS", 30.0)
    monkeypatch.setattr(fuzz_decode, "START_SECONDS", 0.0)
    monkeypatch.setattr(fuzz_decode, "serve", Broken(code))
    decoder = fuzz_decode.Decoder()
    assert decoder.outcome(tmp_path / "a.mp4")[0] == expected
    decoder.end()


class Broken:
    """What a process does instead of decoding."""

    def __init__(self, code: str) -> None:
        self.code = code

    def __call__(self, pipe: object) -> None:
        exec(self.code)


def test_what_ffmpeg_decodes_in_full_is_told_from_what_it_does_not(tmp_path: Path) -> None:
    """An MP4 whose index has its boxes in another order is whole; one that lost a part of its media is not."""
    source = make_media(tmp_path / "a.mp4")
    others = [
        fuzz_decode.reorder(np.random.default_rng(seed), bytearray(source.read_bytes()), b"") for seed in range(9)
    ]
    whole = [content for content in others if b"free" not in content[content.index(b"moov") :]]
    assert whole and all(len(content) == source.stat().st_size for content in others)
    for content in whole[:3]:
        path = tmp_path / "b.mp4"
        path.write_bytes(content)
        assert fuzz_decode.decoded_in_full(path)
        decode_clip(path, fuzz_decode.VIDEO, fuzz_decode.AUDIO, 60)
    assert not fuzz_decode.decoded_in_full(cut(source, tmp_path / "c.mp4", 0.5))


def test_a_container_says_something_else_of_itself(tmp_path: Path) -> None:
    content = make_media(tmp_path / "a.mp4").read_bytes()
    others = {bytes(fuzz_decode.edit_container(np.random.default_rng(n), bytearray(content), b"")) for n in range(20)}
    assert len(others) > 10 and all(len(other) == len(content) for other in others)
