"""A clip's container before its frames are decoded: what PyAV says of it, its sound, and whether it is whole."""

from __future__ import annotations

import contextlib
import functools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.config.schema import VideoConfig
from pipelines.decoding.errors import DecodeError
from pipelines.decoding.formats import FORMATS
from pipelines.decoding.frames import ask_child
from pipelines.decoding.limits import run_limited
from pipelines.decoding.mp4 import a_budget, boxes, is_mp4, track_seconds
from pipelines.decoding.riff import declared_bytes

_DECORDS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "flv")
"""Containers in which decord counts and finds frames by itself; PyAV reads those of all others."""
_MOST_AREA = 2**31 // 8  # what ffmpeg accepts of a picture's sides, each with 128 more
_BOXES_WITH_MEDIA = (b"moov", b"moof", b"mdat")
_SHORTFALL_SECONDS, _SHORTFALL_SHARE = 0.25, 0.05

_CLOCK = re.compile(r" *(\d+):(\d\d):(\d\d(?:\.\d+)?)")  # a tag of Matroska's writers


@dataclass(frozen=True, eq=False)
class Track:
    """The stream that was taken of a kind: its `index` of all streams, `number` of the `count` of its kind, from 0."""

    index: int
    number: int
    count: int
    default: bool

    def __str__(self) -> str:
        return f"{self.number} of {self.count}" + ", marked default" * self.default


@dataclass(frozen=True, eq=False)
class Container:
    """What PyAV says about a file before anything is decoded, and the samples of its sound.

    `kind`: ffmpeg's name of the container. `picture`, `sound`: the stream taken of each kind, None where there is none;
    `lacking`: what to say of each that is None. `reader`: of the frames, `decord` or `pyav`.
    `streams`: how many there are, of every kind. `seconds` is the declared duration of the longest stream, `video_end`
    and `sound_end` are each stream's own declared end; None where the container does not say. `pixels`: of a frame,
    None where there is no size that ffmpeg accepts. `video_start`: when the picture sets in. `read_end`: where the
    sound that could be read ends. All count from the clip's start, as the samples of `waveform` do.
    """

    kind: str
    seconds: float | None
    picture: Track | None
    sound: Track | None
    lacking: dict[str, str]
    reader: str
    streams: int
    pixels: tuple[int, int] | None
    video_start: float
    video_end: float | None
    sound_end: float | None
    read_end: float
    waveform: NDArray[np.float32]
    message: str

    @property
    def chosen_tracks(self) -> dict[str, str]:
        """`video` and `audio` to the stream that is taken, where the file has several: `1 of 2, marked default`."""
        taken = {"video": self.picture, "audio": self.sound}
        return {kind: str(track) for kind, track in taken.items() if track is not None and track.count > 1}


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
    """Turn an error of the disk into a refusal of this clip alone, so that the other clips go on."""
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
    """Refuse a clip in which a stream clearly ends before its own declared end.

    `video_end`: where the readable frames end (None: no video). `sound_limit`: to where sound was read (None: not).
    """
    declared_video, declared_sound = container.video_end, container.sound_end
    if declared_video is None and declared_sound is None:
        if container.streams > 1:
            _check_any(path, container, max(video_end or 0.0, container.read_end), deadline)
            return
        declared_video = declared_sound = (
            container.seconds
        )  # there is only one stream, so the container's duration is its own
    if video_end is not None and declared_video is not None:
        _check_length("video", video_end, declared_video)
    if sound_limit is not None and declared_sound is not None:
        _check_length("sound", container.read_end, min(declared_sound, sound_limit))


def _check_any(path: Path, container: Container, read_end: float, deadline: float) -> None:
    """Where only the longest stream's duration is declared (AVI, FLV ...), one of all streams must reach it."""
    if container.seconds is not None and _is_short(read_end, container.seconds):
        header, _ = ask_child({"do": "last_packet", "path": str(path)}, deadline)
        _check_length("the longest stream", max(read_end, header["end"]), container.seconds)


def _check_length(what: str, seconds: float, declared: float) -> None:
    if _is_short(seconds, declared):
        raise DecodeError("truncated", f"{what}: {seconds:.2f} s could be read of {declared:.2f} s declared")


def _is_short(seconds: float, declared: float) -> bool:
    return declared - seconds > max(_SHORTFALL_SECONDS, _SHORTFALL_SHARE * declared)


def open_container(
    path: Path,
    sample_rate: int,
    seconds: float,
    deadline: float,
    video_track: int | None = None,
    sound_track: int | None = None,
) -> Container:
    """What the container holds, and the first `seconds` of its sound as mono float32 (0: none is read).

    The sound follows the clip's clock: there is silence where it begins late or pauses.

    Args:
        path: the clip.
        sample_rate: of the sound that is returned, in Hz.
        seconds: how much of the sound is read.
        deadline: on the clock of time.monotonic.
        video_track: the number of the video stream to take, from 0, cover art not counted; None: the first that is
            marked default, or the first of all.
        sound_track: the number of the audio stream, likewise.
    """
    header, _ = ask_child({"do": "describe", "path": str(path)}, deadline)
    pictures = [s for s in header["streams"] if s["type"] == "video" and not s["cover"]]
    sounds = [s for s in header["streams"] if s["type"] == "audio"]
    seen, heard = _chosen(pictures, video_track), _chosen(sounds, sound_track)
    origin, longest = header["start"], header["seconds"]
    video_start, sound_start = (max((s["start"] or 0.0) - origin, 0.0) if s else 0.0 for s in (seen, heard))
    waveform, message = np.zeros(0, np.float32), ""
    if heard is not None and seconds > 0:
        late = sound_start if header["counts_from_read"] else 0.0
        waveform, message = _read_sound(path, sounds.index(heard), sample_rate, seconds, late, deadline)
    with _reading():
        tracks = track_seconds(path)
    plain = sum(s["type"] == "video" for s in header["streams"]) == 1 and longest is not None
    return Container(
        kind=header["kind"],
        seconds=longest,
        picture=_track(seen, pictures),
        sound=_track(heard, sounds),
        lacking={
            "video": _lacking("video", len(pictures), video_track),
            "audio": _lacking("audio", len(sounds), sound_track),
        },
        reader="decord" if plain and header["kind"] in _DECORDS else "pyav",
        streams=header["count"],
        pixels=_pixels(seen),
        video_start=video_start,
        video_end=_declared_end(seen, video_start, tracks, longest, origin),
        sound_end=_declared_end(heard, sound_start, tracks, longest, origin),
        read_end=len(waveform) / sample_rate,
        waveform=waveform,
        message=message,
    )


def _chosen(streams: list[dict[str, Any]], track: int | None) -> dict[str, Any] | None:
    """The stream of number `track`; without one, what players choose: readable, marked default, the first of these."""
    if track is not None:
        return streams[track] if track < len(streams) else None
    return max(streams, key=lambda s: (s["readable"], s["default"]), default=None)


def _track(stream: dict[str, Any] | None, streams: list[dict[str, Any]]) -> Track | None:
    if stream is None:
        return None
    return Track(stream["index"], streams.index(stream), len(streams), stream["default"])


def _lacking(kind: str, count: int, track: int | None) -> str:
    if not count or track is None:
        return f"the file has no {kind} stream"
    return f"the file has {count} {kind} streams, and data.{kind}.track asks for number {track}, counted from 0"


def _pixels(stream: dict[str, Any] | None) -> tuple[int, int] | None:
    """Width and height of a frame; None where there is no size, or none that ffmpeg accepts."""
    width, height = (stream and stream["size"]) or (0, 0)
    return (width, height) if width and height and (width + 128) * (height + 128) < _MOST_AREA else None


def _declared_end(
    stream: dict[str, Any] | None, start: float, tracks: dict[int, float], longest: float | None, origin: float
) -> float | None:
    """The second, from the clip's start, at which a stream says that it ends; a tag counts from 0, not `origin`."""
    if stream is None:
        return None
    if stream["id"] in tracks:
        return start + tracks[stream["id"]]
    found = next(filter(None, map(_CLOCK.match, stream["ends"])), None)
    if found is None or longest is None:
        return None
    return min(int(found[1]) * 3600 + int(found[2]) * 60 + float(found[3]), longest) - origin


def _read_sound(
    path: Path, number: int, sample_rate: int, seconds: float, late: float, deadline: float
) -> tuple[NDArray[np.float32], str]:
    """The samples, and the last line that ffmpeg wrote. `late`: silence to put in front, where ffmpeg counts from the
    start of the streams that it reads, here of the sound alone, and not from the clip's."""
    import ffmpeg

    sound: dict[str, str | float] = {
        "map": f"0:a:{number}",
        "format": "f32le",
        # async=1 fills and cuts by timestamps, from the clip's start, and stretches nothing. rematrix_maxval makes mono
        # a mean of the channels: to float, ffmpeg would add them up.
        "af": "aresample=async=1:first_pts=0:rematrix_maxval=1",
        "ac": 1,
        "ar": sample_rate,
        "t": seconds,
        "threads": 1,
    }
    # The prefix `file:` makes the name a name: it can be neither an option nor another protocol.
    source = ffmpeg.input(f"file:{path}", protocol_whitelist="file,pipe", format_whitelist=",".join(FORMATS))
    command = source.output("pipe:1", **sound).global_args("-nostdin", "-hide_banner").compile(cmd=_ffmpeg())
    samples, log = run_limited(command, deadline, most=4 * math.ceil(sample_rate * (seconds + 1)))
    waveform = np.frombuffer(samples[: len(samples) // 4 * 4], np.float32)
    if late and len(waveform):
        silence = np.zeros(round(min(late, seconds) * sample_rate), np.float32)
        waveform = np.concatenate([silence, waveform])[: round(seconds * sample_rate)]
    return waveform, " ".join(log.decode(errors="replace").strip().rpartition("\n")[2].split())[:200]


@functools.cache
def _ffmpeg() -> str:
    import imageio_ffmpeg

    return str(imageio_ffmpeg.get_ffmpeg_exe())
