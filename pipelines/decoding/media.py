"""What a container holds, by PyAV's typed answer, and its frames where decord does not read them rightly.

For the child process alone (frame_child.py): a native reader can crash or hang on a hostile file.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Set
from fractions import Fraction
from typing import Any

import av
import av.logging
import numpy as np
from av.error import FFmpegError
from av.filter import Graph
from av.format import Flags
from av.sidedata.sidedata import Type
from av.stream import Disposition
from numpy.typing import NDArray

from pipelines.decoding.formats import FORMATS

_GUESSED = "Estimating duration from bitrate"
"""libavformat's one word on this, and only in its log: the duration stands in no file, and is as good as unknown."""
_TENTH_OF_MILLISECOND, _MILLISECOND = 1e-4, 1e-3
_MOST_ERRORS = 0.05  # of the packets after the first frame; ffmpeg itself gives up at two thirds


class BrokenStreamError(Exception):
    """Too many packets of a picture that cannot be decoded."""


def open_media(path: str) -> Any:
    """PyAV's container. Its formats are files of media alone: none names another file or an address."""
    # the prefix `file:` makes the name a name: it can be neither an option nor another protocol
    options = {"protocol_whitelist": "file,pipe", "format_whitelist": ",".join(FORMATS)}
    return av.open(f"file:{path}", options=options, metadata_errors="replace")


def describe(path: str) -> dict[str, Any]:
    """What the header says, in seconds of the container's own clock; None for what it does not say.

    Raises:
        av.error.FFmpegError: no container that is read.
    """
    level = av.logging.get_level()
    av.logging.set_level(av.logging.WARNING)
    try:
        with av.logging.Capture() as said, open_media(path) as media:
            seconds = None if media.duration is None else media.duration / av.time_base
            return {
                "kind": media.format.name,
                "seconds": None if any(_GUESSED in message for _, _, message in said) else seconds,
                "start": (media.start_time or 0) / av.time_base,
                "counts_from_read": bool(Flags(media.format.flags) & Flags.ts_discont),
                "count": len(media.streams),
                "streams": [_stream(stream) for stream in media.streams if stream.type in ("video", "audio")],
            }
    finally:
        av.logging.set_level(level)


def _stream(stream: Any) -> dict[str, Any]:
    codec, disposition = stream.codec_context, Disposition(stream.disposition)
    start = None if stream.start_time is None else float(stream.start_time * stream.time_base)
    return {
        "type": stream.type,
        "index": stream.index,
        "id": stream.id,
        "default": bool(disposition & Disposition.default),
        "cover": bool(disposition & (Disposition.attached_pic | Disposition.timed_thumbnails)),
        "readable": codec is not None and bool(codec.width if stream.type == "video" else codec.sample_rate),
        "size": [codec.width, codec.height] if codec is not None and stream.type == "video" else None,
        "start": start,
        # Matroska's writers tag a stream with its own end; the name may carry a language
        "ends": [str(value) for name, value in stream.metadata.items() if name.startswith("DURATION")],
    }


def last_packet(path: str) -> float:
    """Seconds from the clip's start at which the last packet of any stream ends, without decoding one."""
    with open_media(path) as media:
        ends = [_stamp(p, p.stream)[1] for p in media.demux() if p.size]
        return max((end for end in ends if not math.isnan(end)), default=0.0) - (media.start_time or 0) / av.time_base


def display_matrix(path: str, index: int) -> list[int] | None:
    """The nine numbers by which the picture is turned and mirrored, where its first frame says so."""
    with open_media(path) as media:
        stream = media.streams[index]
        stream.codec_context.thread_count = 1
        return next((_matrix(frame) for frame in _frames(media, stream)), None)


def _matrix(frame: Any) -> list[int] | None:
    found = frame.side_data.get(Type.DISPLAYMATRIX)
    content = bytes(found) if found is not None else b""
    return np.frombuffer(content, np.int32).tolist() if len(content) == 36 else None


def angle(matrix: list[int]) -> int:
    """The angle by which ffmpeg turns a picture with this display matrix: degrees clockwise, in [0, 360)."""
    first, second = math.hypot(matrix[0], matrix[3]), math.hypot(matrix[1], matrix[4])
    return round(math.degrees(math.atan2(matrix[1] / second, matrix[0] / first))) % 360 if first and second else 0


def is_rotation(matrix: list[int] | None) -> bool:
    """Whether a display matrix turns by quarters and mirrors nothing: only such does decord follow as it should."""
    return matrix is None or (angle(matrix) % 90 == 0 and matrix[0] * matrix[4] - matrix[1] * matrix[3] > 0)


def turned(frame: NDArray[np.uint8], degrees: int) -> NDArray[np.uint8]:
    """A frame (H, W, 3) turned clockwise by a multiple of 90 degrees."""
    return np.rot90(frame, -degrees // 90)


def upright(frame: NDArray[np.uint8], matrix: list[int] | None) -> NDArray[np.uint8]:
    """A stored frame (H, W, 3) as ffmpeg shows it: by the rules of its automatic rotation, mirrors among them.

    Angles that are no multiple of 90 degrees leave it as it is: a filter of the converter turns it by those.
    """
    if matrix is None:
        return frame
    degrees = angle(matrix)
    if degrees == 90 and matrix[3] > 0:  # mirrored as well: rows become columns
        return frame.transpose(1, 0, 2)
    if degrees == 270 and matrix[3] < 0:
        return frame[::-1, ::-1].transpose(1, 0, 2)
    if degrees in (90, 270):
        return turned(frame, degrees)
    if degrees == 180:
        frame = frame[:, ::-1] if matrix[0] < 0 else frame
    return frame[::-1] if degrees in (0, 180) and matrix[4] < 0 else frame


def _frames(media: Any, stream: Any) -> Iterator[Any]:
    """The frames of a stream that ffmpeg shows. Packets that cannot be decoded are skipped, as ffmpeg does, if they are
    few; before the first frame any number of them, since a recording may begin between two key frames."""
    packets, errors, shown = 0, 0, False
    for packet in media.demux(stream):
        if not packet.size and packet.dts is not None:  # as AVI and Ogg write where the last frame stays on
            continue
        packets += 1
        try:
            found = packet.decode()
        except FFmpegError as error:
            errors += shown
            if isinstance(error, av.error.MemoryError):
                raise
            continue
        shown = shown or bool(found)
        yield from found
    if errors > max(1, _MOST_ERRORS * packets):
        raise BrokenStreamError(f"{errors} of {packets} packets of the picture cannot be decoded")


class VideoStream:
    """One video stream, read from its beginning as often as asked for."""

    def __init__(self, path: str, index: int) -> None:
        self._path, self._index = path, index

    def packet_stamps(self) -> NDArray[np.float64]:
        """(N, 2): start and end of each packet by time. Of most codecs a packet is a frame."""
        with open_media(self._path) as media:
            stream = media.streams[self._index]
            stamps = [_stamp(p, stream) for p in media.demux(stream) if p.size and not p.is_discard]
            return _of_clip(np.asarray(sorted(stamps), float).reshape(-1, 2), media)

    def frames(self) -> Iterator[tuple[NDArray[np.float64], Any]]:
        """Start and end (1, 2) in seconds from the clip's start, and PyAV's frame, of each that is shown."""
        with open_media(self._path) as media:
            stream = media.streams[self._index]
            stream.codec_context.thread_count = 1
            for frame in _frames(media, stream):
                stamp = _of_clip(np.asarray([_stamp(frame, stream)], float), media)
                if not stamp[0, 0] < -_TENTH_OF_MILLISECOND:  # an edit list hides it
                    yield stamp, frame


def referenced_frames(
    path: str, index: int, starts: NDArray[np.floating], wanted: Set[int]
) -> Iterator[tuple[int, Any]]:
    """Frames of H.264 with their numbers, at two thirds of the cost of decoding all up to the last: those that no other
    frame refers to are left out, which changes no pixel of the rest.

    Args:
        path: of the clip.
        index: the picture's, among all streams.
        starts: when each frame starts, in seconds from whatever moment, as another reader counts them: (N,), ascending.
        wanted: numbers of frames.

    Raises:
        BrokenStreamError: the stream is not a plain one of which both readers see the same.
    """
    with open_media(path) as media:
        stream = media.streams[index]
        if stream.codec_context.name != "h264":
            raise BrokenStreamError("another codec")
        packets = [(p.pts, p.is_discard) for p in media.demux(stream) if p.size]
        if len(packets) != len(starts) or any(pts is None or discarded for pts, discarded in packets):
            raise BrokenStreamError("other frames")
        stamps = sorted(pts for pts, _ in packets)
        seconds = (np.asarray(stamps, float) - stamps[0]) * float(stream.time_base)
        if len(set(stamps)) < len(stamps) or np.abs(seconds - (starts - starts[0])).max() > _MILLISECOND:
            raise BrokenStreamError("other times")
    numbers = {stamps[number]: number for number in wanted}
    with open_media(path) as media:
        stream = media.streams[index]
        stream.codec_context.thread_count = 1
        for packet in media.demux(stream):
            stream.codec_context.skip_frame = "DEFAULT" if packet.pts in numbers else "NONREF"
            for frame in packet.decode():
                if frame.is_corrupt or frame.interlaced_frame or _matrix(frame) is not None:
                    raise BrokenStreamError("no plain frame")
                if frame.pts in numbers:
                    yield numbers.pop(frame.pts), frame
            if not numbers:
                return
    raise BrokenStreamError("frames are missing")


def _stamp(timed: Any, stream: Any) -> tuple[float, float]:
    """Start and end of a packet or frame, in seconds of the stream's clock; not a number where it has no time."""
    start = timed.pts if timed.pts is not None else timed.dts
    if start is None:
        return math.nan, math.nan
    return float(start * stream.time_base), float((start + (timed.duration or 0)) * stream.time_base)


def _of_clip(stamps: NDArray[np.float64], media: Any) -> NDArray[np.float64]:
    return stamps - (media.start_time or 0) / av.time_base


class Converter:
    """Frames of PyAV to (H, W, 3), RGB and upright, by ffmpeg's own filter: `to_ndarray` leaves out where a picture's
    colours lie between its pixels, so that edges of 10-bit, odd-sized and DV pictures differ."""

    def __init__(self) -> None:
        self._kind: tuple[int, int, str] | None = None
        self._graph: Any = None

    def __call__(self, frame: Any) -> NDArray[np.uint8]:
        kind = (frame.width, frame.height, frame.format.name)
        if kind != self._kind:  # a stream may change on the way
            self._graph, self._kind = _graph(frame), kind
        self._graph.vpush(frame)
        return upright(self._graph.vpull().to_ndarray(), _matrix(frame))


def _graph(frame: Any) -> Any:
    graph = Graph()
    matrix, filters = _matrix(frame), [("scale", ""), ("format", "rgb24")]
    if matrix is not None and angle(matrix) % 90:
        filters.insert(0, ("rotate", str(math.radians(angle(matrix)))))
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base or Fraction(1, 1000)
    )
    graph.link_nodes(source, *(graph.add(name, options) for name, options in filters), graph.add("buffersink"))
    graph.configure()
    return graph
