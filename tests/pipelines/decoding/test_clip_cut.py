"""Clips cut out of longer ones without decoding them, as downloaders do: frames are those that a player shows."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from pipelines.config.schema import AudioConfig, VideoConfig
from pipelines.decoding.clip import decode_clip
from pipelines.decoding.frame_child import frame_indices
from tests.pipelines.media import ffmpeg

SIZE = 32
VIDEO = VideoConfig(frames=4, candidates=1, size=SIZE, crop=SIZE)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """12 s at 25 frames a second, no two alike, under a tone."""
    folder = tmp_path_factory.mktemp("sources")
    light = "128+90*sin(0.9*N+X/3)*cos(0.37*N+Y/5)"
    picture = f"color=black:size={SIZE}x{SIZE}:rate=25:duration=12,format=gray,geq=lum='{light}'"
    kinds = {
        "one group": ["-g", "300", "-bf", "0"],
        "groups": ["-g", "60", "-bf", "2"],
        "open groups": ["-g", "60", "-bf", "2", "-x264-params", "open-gop=1"],
    }
    for name, options in kinds.items():
        inputs = ("-f", "lavfi", "-i", picture, "-f", "lavfi", "-i", "sine=duration=12")
        codec = ("-c:v", "libx264", "-crf", "16", "-sc_threshold", "0", "-pix_fmt", "yuv420p", *options)
        ffmpeg(*inputs, *codec, "-c:a", "aac", str(folder / f"{name}.mp4"))
    return {name: folder / f"{name}.mp4" for name in kinds}


def shown(path: Path) -> NDArray[np.int64]:
    """(N, SIZE, SIZE, 3): what PyAV shows. Frames before 0 are those that an edit list hides."""
    with av.open(str(path)) as container:
        frames = [f for f in container.decode(video=0) if f.pts is None or f.pts >= 0]
        return np.stack([f.to_ndarray(format="rgb24") for f in frames]).astype(np.int64)


@pytest.mark.parametrize("container", ["mp4", "mov", "mkv"])
@pytest.mark.parametrize("kind", ["one group", "groups", "open groups"])
@pytest.mark.parametrize(("start", "seconds"), [(0, 3), (4, 6), (7.3, 2), (8, 3)])
def test_a_clip_cut_without_decoding_gives_the_frames_that_are_shown(
    sources: dict[str, Path], container: str, kind: str, start: float, seconds: float, tmp_path: Path
) -> None:
    path = tmp_path / f"cut.{container}"
    ffmpeg("-ss", str(start), "-i", str(sources[kind]), "-t", str(seconds), "-c", "copy", str(path))
    right = shown(path)
    decoded = decode_clip(path, VIDEO, AudioConfig(seconds=2.0), 60)
    assert decoded.frames is not None
    apart = np.abs(right[None] - decoded.frames[:, None].astype(np.int64)).mean((2, 3, 4))
    assert apart.min(1).max() < 1  # each is one of the frames that are shown
    assert np.abs(apart.argmin(1) - frame_indices(len(right), 4, 1)).max() <= 1  # and in its place
