"""Sound with several channels, mixed to one."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from pipelines.decoding.container import open_container
from tests.pipelines.media import ffmpeg


@pytest.mark.parametrize("name", ["a.mp4", "a.webm", "a.flac", "a.wav"])
@pytest.mark.parametrize("channels", ["mono", "stereo", "5.1", "7.1"])
def test_the_mix_is_as_loud_as_a_channel(tmp_path: Path, name: str, channels: str) -> None:
    """A loud sine on every channel: a sum would be louder with each of them and reach past 1."""
    layout = "5.1(side)" if channels == "5.1" and name.endswith(("flac", "wav")) else channels
    path = tmp_path / name
    codec = ["-c:a", "libopus", "-mapping_family", "1"] if name.endswith("webm") else []
    mapping = {"mono": 1, "stereo": 2, "5.1": 6, "7.1": 8}[channels]
    sine = "0.8*sin(2*PI*440*t)"
    source = f"aevalsrc={'|'.join([sine] * mapping)}:c={layout}:s=48000:d=1"
    ffmpeg("-f", "lavfi", "-i", source, *codec, str(path))
    waveform = open_container(path, 16000, 2.0, time.monotonic() + 60).waveform[2000:14000]
    assert np.sqrt(np.mean(waveform**2)) == pytest.approx(0.8 / np.sqrt(2), rel=0.05)
