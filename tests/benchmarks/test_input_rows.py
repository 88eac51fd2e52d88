"""benchmarks/input_rows.py: both sides of a row do the same work, and all processes that do it count."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import input_before, input_rows
from pipelines.clips.batches import MemoryClips
from pipelines.config.reading import CONFIG_DIR
from pipelines.config.run_config import load_config
from tests.pipelines.media import make_media

BURN = "import time\nwhile time.process_time() < 0.5: pass"


def test_the_time_of_children_counts_while_they_run_and_after() -> None:
    before = input_rows.processor_seconds()
    subprocess.run([sys.executable, "-c", BURN], check=True)
    waiting = subprocess.Popen(
        [sys.executable, "-c", f"{BURN}\nprint(flush=True)\ninput()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert waiting.stdout is not None
    waiting.stdout.readline()
    assert input_rows.processor_seconds() - before > 0.9
    waiting.communicate(b"\n")


def test_a_ratio_is_of_the_rounds_after_the_first() -> None:
    turns: list[tuple[str, int]] = []

    def side(name: str) -> Callable[[int], None]:
        def run(turn: int) -> None:
            turns.append((name, turn))
            end = time.process_time() + 0.1  # ten ticks of the clock that is read
            while time.process_time() < end:
                pass

        return run

    found = input_rows.spent(side("ours"), side("theirs"), 2)
    assert sorted(turns) == [(side, t) for side in ("ours", "theirs") for t in range(3)]
    assert [side for side, _ in turns[:4]] == ["theirs", "ours", "ours", "theirs"]
    assert found.ours > 0 and found.theirs > 0 and found.ratio > 0


def test_the_compared_paths_give_the_same_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = make_media(tmp_path / "clip.mp4", width=80, height=64, seconds=1)
    monkeypatch.setattr(input_rows, "EPOCH", 64)
    monkeypatch.setattr(input_rows, "_make", lambda work, count: [clip])
    data = load_config(CONFIG_DIR / "vggsound.yaml", []).data
    made = input_rows._decoded_set(tmp_path, data)
    (ours,) = MemoryClips(made.table, made.transform).training(1, 64, 0)
    (before,) = input_before.memory_epoch(made.table, made.transform, 64, 1)
    assert ours.ids == before.ids and torch.equal(ours.labels, before.labels)
    torch.testing.assert_close(ours.inputs["audio"], before.inputs["audio"])
    away = (ours.inputs["video"] - before.inputs["video"]).abs()
    assert (
        away.mean() < 0.01
    )  # the very boxes and frames; beyond a box's edge, the path before looked at what lies there
    files = input_rows._Files(tmp_path / "files", made.table.labels, data)
    video, audio, label = files[5]
    assert video.shape == ours.inputs["video"].shape[1:] and audio.shape[1:] == ours.inputs["audio"].shape[2:]
    assert video.min() >= 0 and video.max() <= 1 and label == made.table.labels[5]
    np.testing.assert_allclose(audio[0], ours.inputs["audio"][ours.ids.index("00005"), 0], atol=1e-3)


def test_both_baselines_of_ingest_write_frames_and_sound(tmp_path: Path) -> None:
    clip = make_media(tmp_path / "clip.mp4", width=80, height=64, seconds=3, fps=10)
    data = load_config(CONFIG_DIR / "vggsound.yaml", []).data
    for name, run, count in (("bare", input_rows._bare, 9), ("released", input_rows._released, 3)):
        run(clip, tmp_path / name, data)
        assert len(list((tmp_path / name).glob("*.jpg"))) == count
        assert np.load(tmp_path / name / "sound.npy").shape == (128, 1024)
