"""Frames of H.264 without decoding those that no other refers to: the very pixels of decoding them all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipelines.decoding import frame_child, media
from tests.pipelines.media import ffmpeg

ENCODINGS: dict[str, list[str]] = {
    "plain": [],
    "many B-frames": ["-bf", "8", "-b_strategy", "2"],
    "B-frames that others refer to": ["-x264-params", "b-pyramid=strict:bframes=5:b-adapt=0"],
    "none": ["-bf", "0"],
    "open groups": ["-x264-params", "open-gop=1:keyint=20:bframes=3:b-adapt=0"],
    "no key frame after the first": ["-x264-params", "intra-refresh=1:keyint=20"],
    "ten bits": ["-pix_fmt", "yuv420p10le"],
    "whole range": ["-pix_fmt", "yuvj420p", "-color_range", "pc", "-colorspace", "bt709"],
    "slices": ["-x264-params", "slices=4"],
}


def clip(path: Path, *encoding: str, source: str = "testsrc2=size=96x64:rate=25:duration=4") -> dict[str, Any]:
    """A request for the frames of a clip that is made here."""
    pixels = [] if "-pix_fmt" in encoding else ["-pix_fmt", "yuv420p"]
    moving = f"{source},rotate=0.7*t,noise=all_seed=3:alls=6:allf=t"
    ffmpeg("-f", "lavfi", "-i", moving, *pixels, "-c:v", "libx264", *encoding, f"file:{path}")
    limits = {"max_pixels": 10**7, "max_frames": 10**5}
    cut = {"segments": 3, "candidates": 3, "size": 64, "wanted": ["video", "flow"], "flow": {"bound": 15.0}}
    return {"path": str(path), **limits, **cut, "start": 0.0, "track": 0}


def read(request: dict[str, Any], patch: pytest.MonkeyPatch, short: bool) -> tuple[list[NDArray[np.uint8]], list[bool]]:
    """The arrays, and whether the short way was gone; it is barred where `short` is False."""
    used, usual = [], frame_child._referenced_squares

    def watched(*arguments: Any) -> Any:
        found = usual(*arguments) if short else None
        used.append(found is not None)
        return found

    with patch.context() as own:
        own.setattr(frame_child, "_referenced_squares", watched)
        return frame_child.read_clip(request)[1], used


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_short_way_gives_the_pixels_of_the_long_one(
    encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = clip(tmp_path / "a.mp4", *ENCODINGS[encoding])
    short, used = read(request, monkeypatch, True)
    whole, _ = read(request, monkeypatch, False)
    assert used == [True]
    assert all(np.array_equal(a, b) for a, b in zip(short, whole, strict=True))


def test_what_is_not_plain_goes_the_long_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interlaced = clip(tmp_path / "i.mp4", "-flags", "+ilme+ildct")
    assert read(interlaced, monkeypatch, True)[1] == [False]
    whole = clip(tmp_path / "whole.mp4", "-g", "20")
    ffmpeg("-ss", "0.3", "-i", whole["path"], "-c", "copy", f"file:{tmp_path / 'cut.mp4'}")
    hidden = {**whole, "path": str(tmp_path / "cut.mp4")}  # an edit list hides its first frames
    assert read(hidden, monkeypatch, True)[1] in ([], [False])


def test_other_frames_than_the_other_reader_saw_are_refused(tmp_path: Path) -> None:
    path = clip(tmp_path / "a.mp4")["path"]
    starts = np.arange(100) / 25
    assert sorted(n for n, _ in media.referenced_frames(path, 0, starts + 7, {3, 50})) == [3, 50]
    late = np.where(np.arange(100) < 60, starts, starts + 0.01)
    for other in (starts[:-1], late):
        with pytest.raises(media.BrokenStreamError):
            list(media.referenced_frames(path, 0, other, {3}))
