"""Small real media for tests, made by the ffmpeg that imageio-ffmpeg brings."""

from __future__ import annotations

import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from numpy.typing import NDArray


def ffmpeg(*arguments: str) -> bytes:
    """Run ffmpeg quietly and return what it wrote to stdout."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-loglevel", "error", "-y", *arguments]
    return subprocess.run(command, check=True, capture_output=True).stdout


def make_media(
    path: Path,
    *,
    width: int = 64,
    height: int = 48,
    fps: int = 10,
    seconds: float = 2.0,
    sound_seconds: float | None = None,
    sound_start: float = 0.0,
    tone: float | None = 440.0,
    sample_rate: int = 16000,
    picture: bool = True,
    faststart: bool = False,
    codecs: tuple[str, str] = ("libx264", "aac"),
) -> Path:
    """A test pattern with a sine as sound; `tone=None` leaves the sound out, `picture=False` the video.

    The sound lasts as long as the video unless `sound_seconds` says otherwise, and sets in at `sound_start`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    inputs: list[str] = []
    outputs: list[str] = []
    if picture:
        inputs += ["-f", "lavfi", "-i", f"testsrc=size={width}x{height}:rate={fps}:duration={seconds}"]
        outputs += ["-c:v", codecs[0], "-pix_fmt", "yuv420p" if width % 2 + height % 2 == 0 else "yuv444p"]
    if tone is not None:
        sine = f"sine=frequency={tone}:sample_rate={sample_rate}:duration={sound_seconds or seconds}"
        inputs += ["-itsoffset", str(sound_start), "-f", "lavfi", "-i", sine]
        outputs += ["-c:a", codecs[1]]
    if faststart:
        outputs += ["-movflags", "+faststart"]
    ffmpeg(*inputs, *outputs, f"file:{path}")
    return path


CODECS = {
    ".mp4": ("libx264", "aac"),
    ".webm": ("libvpx-vp9", "libopus"),
    ".mkv": ("libx265", "aac"),
    ".avi": ("mpeg4", "libmp3lame"),
    ".mov": ("libx264", "pcm_s16le"),
    ".mpg": ("mpeg2video", "mp2"),
    ".wmv": ("wmv2", "wmav2"),
    ".ogv": ("libtheora", "libvorbis"),
}
"""What clips of each container usually hold."""
_TINTS = (("1", "0.2", "0.2"), ("0.2", "1", "0.2"), ("0.2", "0.2", "1"))
_QUIET = {"libx265": ["-x265-params", "log-level=none"], "libsvtav1": ["-svtav1-params", "lp=1"]}


def class_clip(path: Path, label: int, codecs: tuple[str, str] | None = None) -> Path:
    """A second of a clip of class 0, 1 or 2: red, green or blue, still or moving left or right, 300, 700 or 1,500 Hz.

    By default in the codecs of its container; a sound codec of "" leaves the sound out.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    video, audio = codecs or CODECS[path.suffix.lower()]
    red, green, blue = (f"val*{share}" for share in _TINTS[label])
    picture = f"testsrc2=size=64x64:rate=25:duration=1,lutrgb={red}:{green}:{blue},scroll=h={(0, 0.06, -0.06)[label]}"
    sound = ["-f", "lavfi", "-i", f"sine=frequency={(300, 700, 1500)[label]}:sample_rate=44100:duration=1"]
    ffmpeg("-f", "lavfi", "-i", picture, *(sound if audio else []), "-c:v", video, *_QUIET.get(video, []),
           "-pix_fmt", "yuv420p", *(["-c:a", audio, "-ar", "48000"] if audio else []), f"file:{path}")  # fmt: skip
    return path


def cut(source: Path, target: Path, share: float) -> Path:
    """The first `share` of a file's bytes."""
    content = source.read_bytes()
    target.write_bytes(content[: int(len(content) * share)])
    return target


def lose_end(source: Path, target: Path, share: float) -> Path:
    """Cut an MP4 whose index stands in front, and shorten its mdat box to fit: only the tracks know what is missing."""
    content = bytearray(source.read_bytes()[: int(source.stat().st_size * share)])
    start = content.index(b"mdat") - 4
    content[start : start + 4] = (len(content) - start).to_bytes(4, "big")
    target.write_bytes(content)
    return target


def raw_frames(path: Path, width: int, height: int) -> NDArray[np.uint8]:
    """Every frame by ffmpeg itself: uint8 (N, H, W, 3)."""
    raw = ffmpeg("-i", f"file:{path}", "-f", "rawvideo", "-pix_fmt", "rgb24", "pipe:1")
    return np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3)


def bad_files(folder: Path) -> dict[str, Path]:
    """The broken clips that every ingest must survive, by the reason they are to be given."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = make_media(folder / "whole.mp4")
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("this is not a video\n" * 40)
    paths = {
        "truncated": cut(whole, folder / "truncated.mp4", 0.6),
        "no_audio": make_media(folder / "silent.mp4", tone=None),
        "empty": folder / "empty.mp4",
        "not_media": folder / "text.mp4",
    }
    whole.unlink()
    return paths
