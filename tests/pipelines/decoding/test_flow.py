"""Optical flow: known motion, bytes and their meaning, and video + flow from clips to a trained CRMT model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipelines import train
from pipelines.config.schema import AudioConfig, FlowConfig, VideoConfig
from pipelines.decoding.clip import decode_clip
from pipelines.decoding.flow import ZERO, flow_between
from pipelines.runs.results import ResultsStore
from tests.pipelines.media import ffmpeg, make_media
from tests.pipelines.small import merged

FLOW: dict[str, object] = {
    "data": {"video": {"frames": 2, "size": 32, "crop": 28}, "mode": "memory", "augment": {"flip": False}},
    "model": {"encoders": {"video": "small_resnet", "flow": "small_resnet"}, "features": 16},
    "train": {"method": "crmt_jt", "epochs": 12, "batch_size": 8, "lr": 0.05, "tau_samples": 8, "step2": {"steps": 10}},
    "select": {"steps": 2, "every": 3, "samples": 4},
    "attack": {"epsilons": [0.5], "steps": 2, "samples": 6},
    "certify": {"audit_samples": 2, "audit_steps": 2, "audit_attack": "pgd"},
    "sweep": {"trials": 1, "scheduler": "none", "grace_epochs": 1},
}


def texture(side: int, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth random colours."""
    coarse = np.random.default_rng(seed).integers(0, 256, (side // 4 + 3,) * 2 + (3,))
    fine = coarse.repeat(8, 0).repeat(8, 1).astype(float)
    for axis in (0, 1):
        fine = sum(np.roll(fine, shift, axis) for shift in range(-4, 5)) / 9
    return fine[: 2 * side, : 2 * side].astype(np.uint8)


@settings(max_examples=15, deadline=None)
@given(right=st.integers(-4, 4), down=st.integers(-4, 4), seed=st.integers(0, 20))
def test_a_shift_is_found_in_pixels_right_and_down(right: int, down: int, seed: int) -> None:
    image = texture(64, seed)
    first, second = image[20:84, 20:84], image[20 - down : 84 - down, 20 - right : 84 - right]
    flow = flow_between(first, second, 15.0)
    assert flow.shape == (2, 64, 64) and flow.dtype == np.uint8
    inner = (flow[:, 12:-12, 12:-12].astype(float) - ZERO) * 15 / 127
    np.testing.assert_allclose(np.median(inner, axis=(1, 2)), (right, down), atol=0.5)


def test_no_motion_is_128_and_fast_motion_is_cut_at_the_bound() -> None:
    image = texture(64)
    assert (flow_between(image[:64, :64], image[:64, :64], 15.0) == ZERO).all()
    fast = flow_between(image[20:84, 20:84], image[20:84, 14:78], 2.0)
    assert np.median(fast[0]) == 255 and fast.min() >= 1


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 40), (15, 15), (17, 33)])
def test_any_size_has_a_flow(height: int, width: int) -> None:
    image = texture(64)
    flow = flow_between(image[:height, :width], image[1 : height + 1, :width], 15.0)
    assert flow.shape == (2, height, width)


def test_flow_of_a_clip_is_that_to_the_next_frame(tmp_path: Path) -> None:
    """Each kept frame has one, the last frame that of the pair it ends."""
    path = make_media(tmp_path / "a.mp4", width=64, height=64, fps=10, seconds=1)
    audio = AudioConfig()
    every = VideoConfig(frames=10, size=64, crop=64)
    clip = decode_clip(path, every, audio, 60, ("video", "flow"), FlowConfig(bound=3.0))
    assert clip.frames is not None and clip.flow is not None and clip.audio is None
    assert clip.flow.shape == (10, 2, 64, 64)
    for i in range(9):
        assert np.array_equal(clip.flow[i], flow_between(clip.frames[i], clip.frames[i + 1], 3.0))
    assert np.array_equal(clip.flow[9], clip.flow[8])
    few = decode_clip(path, VideoConfig(frames=2, size=64, crop=64), audio, 60, ("flow",), FlowConfig(bound=3.0))
    assert few.frames is None and np.array_equal(few.flow, clip.flow[[2, 7]])


def moving(path: Path, direction: int, seed: int) -> Path:
    """A second of texture that goes right (1) or left (-1): only motion tells which."""
    source = path.with_suffix(".raw")
    image, frames = texture(64, seed), []
    for i in range(10):
        left = 40 - direction * 2 * (i - 5)
        frames.append(image[20:68, left : left + 48])
    source.write_bytes(np.ascontiguousarray(np.stack(frames)).tobytes())
    ffmpeg("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "48x48", "-r", "10", "-i", str(source),
           "-pix_fmt", "yuv420p", str(path))  # fmt: skip
    source.unlink()
    return path


def test_crmt_trains_on_video_and_flow(ray_cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two classes that differ in the direction of motion alone, without sound: ingest, train, attack, certify."""
    rows = []
    for i in range(32):
        split = "train" if i < 20 else "validation" if i < 24 else "test"
        direction = 1 if i % 2 else -1
        path = moving(tmp_path / f"{i:02d}.mp4", direction, i)
        rows.append((path.name, "right" if direction == 1 else "left", split))
    pd.DataFrame(rows, columns=["path", "label", "split"]).to_csv(tmp_path / "manifest.csv", index=False)
    config, run = tmp_path / "c.json", tmp_path / "run"
    config.write_text(json.dumps(merged(FLOW, {"data": {"cache": str(tmp_path / "cache")}})))
    arguments = ["--dataset", "manifest", "--data-root", str(tmp_path), "--config", str(config), "--out", str(run)]
    assert train.main(arguments) == 0, capsys.readouterr().err
    metrics = ResultsStore(run / "results").read("metrics")
    final = metrics[metrics.final & (metrics.split == "test")].set_index("name")
    assert final.value["clean_accuracy"] >= 0.75
    alone = final.loc["unimodal_accuracy"].set_index("modality").value
    assert alone["flow"] >= 0.75 and set(alone.index) == {"video", "flow"}
    assert "flow" in (run / "models" / "train" / "model.json").read_text()
