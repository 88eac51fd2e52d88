"""A clip's container before its frames are decoded: what ffmpeg says of it, its sound, and whether it is whole."""

from __future__ import annotations

import contextlib
import functools
import math
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.config.schema import VideoConfig
from pipelines.decoding.errors import DecodeError
from pipelines.decoding.limits import run_limited
from pipelines.decoding.mp4 import a_budget, boxes, is_mp4, track_seconds
from pipelines.decoding.riff import declared_bytes

# Real containers only: playlists and subtitle-like formats could name other files and are never followed.
_FORMATS = "mov,matroska,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,rm,wav,mp3,flac,aac"
_WITHOUT_INDEX = ("mpegts", "mpeg", "avi", "asf", "ogg")
_FROM_READ_STREAMS = ("mpegts", "mpeg")
"""Containers in which ffmpeg counts from the start of the streams that are read, here of the sound, not of the clip."""
_BOXES_WITH_MEDIA = (b"moov", b"moof", b"mdat")
_SHORTFALL_SECONDS, _SHORTFALL_SHARE = 0.25, 0.05

_CLOCK = r"(\d+):(\d\d):(\d\d(?:\.\d+)?)"
_DURATION = re.compile(rf"^  Duration: {_CLOCK}(?:, start: (-?[\d.]+))?", re.MULTILINE)
_GUESSED = "Estimating duration from bitrate"
_STREAM = re.compile(r"^  (?=Stream #0:)", re.MULTILINE)
_VIDEO_STREAM = re.compile(r"Stream #0:\S+ Video: (?!.*\(attached pic\)).*?, (\d+)x(\d+)[ ,]?")
_ANY_VIDEO_STREAM = re.compile(r"Stream #0:\S+ Video: (?!.*\(attached pic\))")
_AUDIO_STREAM = re.compile(r"Stream #0:\S+ Audio: ")
_STREAM_START = re.compile(r"^Stream .*, start (-?[\d.]+)")
_STREAM_END = re.compile(rf"^ +DURATION\S* *: {_CLOCK}", re.MULTILINE)  # a tag of Matroska's writers
_PROGRESS = re.compile(rf"time={_CLOCK}")


@dataclass(frozen=True, eq=False)
class Container:
    """What ffmpeg says about a file before anything is decoded, and the samples of its sound.

    `kind`: ffmpeg's name of the container. `seconds` is the declared duration of the longest stream, `video_end` and
    `sound_end` are each stream's own declared end; None where the container does not say. `pixels`: of a frame, None
    where ffmpeg cannot read or accept its size. `video_start`: when the picture sets in. `read_end`: where the sound
    that could be read ends. All count from the clip's start, as the samples of `waveform` do.
    """

    kind: str
    seconds: float | None
    has_video: bool
    pixels: tuple[int, int] | None
    has_audio: bool
    video_start: float
    video_end: float | None
    sound_end: float | None
    read_end: float
    waveform: NDArray[np.float32]
    message: str


def check_file(path: Path) -> None:
    with _reading():
        if not path.is_file():
            kind = "unreadable" if path.exists() else "missing"
            raise DecodeError(kind, "not a plain file" if path.exists() else "no such file")
        if path.stat().st_size == 0:
            raise DecodeError("empty", "0 bytes")
        _check_boxes(path)
        _check_size(path)


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    """What the disk refuses is a reason of this clip alone."""
    try:
        yield
    except OSError as error:
        raise DecodeError("unreadable", error.strerror or str(error)) from None


def _check_boxes(path: Path) -> None:
    """Refuse an MP4/MOV whose top-level boxes run past the end of the file, or that lost its index.

    A file cut inside `mdat` decodes short without any error when its index stands in front, so this is read from
    the container itself (ISO/IEC 14496-12, 4.2).
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        if not is_mp4(file):
            return
        indexed = False
        for kind, _, end in boxes(file, 0, size, a_budget()):
            indexed = indexed or kind == b"moov"
            if end > size and kind in _BOXES_WITH_MEDIA:  # anything else is trailing rubbish, which players ignore
                raise DecodeError("truncated", f"the file ends {end - size} bytes before its {kind.decode()} box")
    if not indexed:
        raise DecodeError("truncated", "the file ends before its index (moov box)")


def _check_size(path: Path) -> None:
    """Refuse an AVI, WAV or Matroska file that clearly has fewer bytes than it says."""
    size, declared = path.stat().st_size, declared_bytes(path)
    if declared is not None and declared - size > _SHORTFALL_SHARE * declared:
        raise DecodeError("truncated", f"the file has {size} of {declared} bytes")


def check_limits(container: Container, video: VideoConfig) -> None:
    """Refuse what is declared to be larger or longer than the configuration allows, before any frame is decoded."""
    if container.pixels is not None and math.prod(container.pixels) > video.max_pixels:
        width, height = container.pixels
        raise DecodeError("too_large", f"{width} × {height} pixels, limit {video.max_pixels}")
    ends = (container.seconds, container.video_end, container.sound_end)
    seconds = max((end for end in ends if end is not None), default=0.0)
    if seconds > video.max_seconds:
        raise DecodeError("too_long", f"{seconds:.0f} s, limit {video.max_seconds:g}")


def check_lengths(
    path: Path, container: Container, video_end: float | None, sound_limit: float | None, deadline: float
) -> None:
    """Refuse a clip of which a stream clearly ends before that stream's own declared end.

    `video_end`: where the readable frames end (None: no video). `sound_limit`: to where sound was read (None: not).
    """
    declared_video, declared_sound = container.video_end, container.sound_end
    if declared_video is None and declared_sound is None:
        if video_end is not None and container.has_audio:
            _check_either(path, container, video_end, deadline)
            return
        declared_video = declared_sound = container.seconds  # of the only stream
    if video_end is not None and declared_video is not None:
        _check_length("video", video_end, declared_video)
    if sound_limit is not None and declared_sound is not None:
        _check_length("sound", container.read_end, min(declared_sound, sound_limit))


def _check_either(path: Path, container: Container, video_end: float, deadline: float) -> None:
    """Where only the longest stream's duration is declared (AVI, FLV ...), one of video and sound must reach it."""
    if container.seconds is not None and _is_short(video_end, container.seconds):
        longest = max(video_end, _sound_end(path, deadline))
        _check_length("the longer of video and sound", longest, container.seconds)


def _check_length(what: str, seconds: float, declared: float) -> None:
    if _is_short(seconds, declared):
        raise DecodeError("truncated", f"{what}: {seconds:.2f} s could be read of {declared:.2f} s declared")


def _is_short(seconds: float, declared: float) -> bool:
    return declared - seconds > max(_SHORTFALL_SECONDS, _SHORTFALL_SHARE * declared)


def open_container(path: Path, sample_rate: int, seconds: float, deadline: float) -> Container:
    """Read the container's header and the first `seconds` of its sound as mono float32, in one ffmpeg process.

    The sound is laid on the clip's clock: silence stands where it sets in late or pauses.
    """
    sound: dict[str, str | float] = {
        "map": "0:a:0?",
        "format": "f32le",
        # async=1 fills and cuts by timestamps, from the clip's start, and stretches nothing. rematrix_maxval makes mono
        # a mean of the channels: to float, ffmpeg would add them up.
        "af": "aresample=async=1:first_pts=0:rematrix_maxval=1",
        "ac": 1,
        "ar": sample_rate,
        "t": seconds,
        "threads": 1,
    }
    samples, log = _run_ffmpeg(path, "pipe:1", deadline, sound, most=4 * math.ceil(sample_rate * (seconds + 1)))
    text = log.decode(errors="replace").replace(f"file:{path}", "")  # a name may look like ffmpeg's own lines
    header = text.partition("\nStream mapping:")[0].partition("\nOutput #0")[0]
    message = " ".join(text.strip().rpartition("\n")[2].split())[:200]
    if "\nInput #0, " not in f"\n{header}":
        raise DecodeError("not_media", message or "no known container")
    duration = None if _GUESSED in header else _DURATION.search(header)
    longest = _seconds(duration) if duration else None
    streams = _STREAM.split(header)[1:]
    picture = next((s for s in streams if _VIDEO_STREAM.match(s)), None)
    heard = next((s for s in streams if _AUDIO_STREAM.match(s)), None)
    pixels = _VIDEO_STREAM.match(picture) if picture else None
    waveform = np.frombuffer(samples[: len(samples) // 4 * 4], np.float32)
    origin = float((duration and duration[4]) or 0)
    video_start, sound_start = (max(_start(s) - origin, 0.0) if s else 0.0 for s in (picture, heard))
    kind = header.partition("Input #0, ")[2].partition(", from")[0]
    if kind in _FROM_READ_STREAMS and len(waveform):
        silence = np.zeros(round(min(sound_start, seconds) * sample_rate), np.float32)
        waveform = np.concatenate([silence, waveform])[: round(seconds * sample_rate)]
    with _reading():
        tracks = track_seconds(path)
    video_end, sound_end = _tagged_end(picture, longest, origin), _tagged_end(heard, longest, origin)
    return Container(
        kind=kind,
        seconds=longest,
        has_video=any(_ANY_VIDEO_STREAM.match(s) for s in streams),
        pixels=(int(pixels[1]), int(pixels[2])) if pixels else None,
        has_audio=heard is not None,
        video_start=video_start,
        video_end=video_start + tracks[b"vide"] if b"vide" in tracks else video_end,
        sound_end=sound_start + tracks[b"soun"] if b"soun" in tracks else sound_end,
        read_end=len(waveform) / sample_rate,
        waveform=waveform,
        message=message,
    )


@contextlib.contextmanager
def seekable(path: Path, container: Container, deadline: float) -> Iterator[Path]:
    """The clip in a container that decord can seek in: packets of one without an index are copied to Matroska."""
    if container.kind not in _WITHOUT_INDEX:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="crmt-") as folder:
        copy = Path(folder) / "clip.mkv"
        _run_ffmpeg(path, f"file:{copy}", deadline, {"map": "0:v:0", "c": "copy"}, fflags="+genpts")
        yield copy


def _run_ffmpeg(
    path: Path, target: str, deadline: float, output: dict[str, str | float], most: int = 0, **reading: str
) -> tuple[bytes, bytes]:
    """What ffmpeg writes to stdout, at most so many bytes, and stderr when it turns the clip into `target`."""
    import ffmpeg

    # The prefix `file:` makes the name a name: it can be neither an option nor another protocol.
    source = ffmpeg.input(f"file:{path}", protocol_whitelist="file,pipe", format_whitelist=_FORMATS, **reading)
    made = source.output(target, **output).global_args("-nostdin", "-hide_banner")
    return run_limited(made.compile(cmd=_ffmpeg()), deadline, most)


def _seconds(match: re.Match[str]) -> float:
    return int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3])


def _tagged_end(stream: str | None, longest: float | None, origin: float) -> float | None:
    """End of a stream by its own tag, which does not count from the clip's start (`origin`) but from 0."""
    end = _STREAM_END.search(stream) if stream else None
    return min(_seconds(end), longest) - origin if end and longest is not None else None


def _start(stream: str) -> float:
    start = _STREAM_START.match(stream)
    return float(start[1]) if start else 0.0


def _sound_end(path: Path, deadline: float) -> float:
    """Seconds at which the last packet of the sound ends, without decoding it."""
    _, log = _run_ffmpeg(path, "pipe:1", deadline, {"map": "0:a:0", "c": "copy", "f": "null"})
    return _progress(log)


def _progress(log: bytes) -> float:
    """Seconds to which ffmpeg says that it came."""
    times = list(_PROGRESS.finditer(log.decode(errors="replace")))
    return _seconds(times[-1]) if times else 0.0


@functools.cache
def _ffmpeg() -> str:
    import imageio_ffmpeg

    return str(imageio_ffmpeg.get_ffmpeg_exe())
