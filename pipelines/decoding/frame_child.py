"""The child process that opens clips, with PyAV and decord: one request a line on stdin, one answer on stdout, until
stdin ends.

A native decoder can hang inside one call or crash on a hostile file. Here it does so without harm: the parent
(frames.py) kills the process and starts another. It starts in about 0.3 s: nothing here imports torch or Ray.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from collections.abc import Sequence
from typing import Any, BinaryIO

import av
import av.logging
import decord
import numpy as np
from av.error import FFmpegError
from decord.base import DECORDError
from numpy.typing import NDArray
from PIL import Image

from pipelines.decoding import media
from pipelines.decoding.flow import flow_between
from pipelines.decoding.formats import NAMED
from pipelines.decoding.pictures import PictureReader, TooLargeError, are_pictures

MEMORY = 6 * 2**30
"""Bytes of address space: libraries take 0.5 GiB, frames of the largest size 0.3 GiB more; some codecs keep many."""
_ALARM_AFTER = 5.0
_VARIABLE = 0.5  # in mean frames: a frame that starts so far from an even grid makes the frame rate a variable one
_ROUNDING = 1e-4
_LONGEST = 1e9  # seconds; decord gives a frame without a time one of -9.2e15
_FRAME_ERRORS = (
    *(DECORDError, RuntimeError, AssertionError, IndexError, StopIteration, ValueError, MemoryError, OSError),
    *(FFmpegError, media.BrokenStreamError),
)


class RefusedError(Exception):
    """A clip that is not decoded: a reason, and what was seen."""


def frame_indices(length: int, segments: int, candidates: int) -> NDArray[np.int64]:
    """The numbers of the frames to take: the middles of equal parts of equal segments of the clip.

    Args:
        length: frames of the clip.
        segments: of the clip.
        candidates: equal parts of each segment.

    Returns: (segments · candidates,), ascending.
    """
    count = segments * candidates
    return ((np.arange(count) + 0.5) * length / count).astype(np.int64)


def frames_by_time(stamps: NDArray[np.floating], segments: int, candidates: int) -> NDArray[np.int64]:
    """`frame_indices` for frames with times: by number where the frame rate is constant, else the frames that are on
    screen at the middles of equal parts of the clip's time.

    Args:
        stamps: start and end of each frame in seconds, (N, 2).
        segments: of the clip.
        candidates: equal parts of each segment.
    """
    length, count = len(stamps), segments * candidates
    starts = np.maximum.accumulate(stamps[:, 0]) - stamps[0, 0]
    span = max(float(stamps[-1, 1] - stamps[0, 0]), float(starts[-1]) * length / max(length - 1, 1))
    even = np.arange(length) * span / length
    if not 0 < span < _LONGEST or np.abs(starts - even).max() <= _VARIABLE * span / length:
        return frame_indices(length, segments, candidates)
    middles = (np.arange(count) + 0.5) * span / count
    return np.maximum(np.searchsorted(starts, middles, side="right") - 1, 0)


def hidden_frames(stamps: NDArray[np.floating], keys: Sequence[int]) -> int:
    """How many frames at the start decord counts but never gives: those before second 0, which an edit list leaves out,
    and those before the first key frame. A clip that was cut without decoding it has both. Past its end decord gives
    the last frame again and again.
    """
    starts = stamps[:, 0]
    early = int(np.searchsorted(starts, -_ROUNDING)) if starts[0] > -_LONGEST else 0
    hidden = max(early, keys[0] if len(keys) else 0)
    return hidden if hidden < len(stamps) else 0


def unpadded(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W, 3) of a frame of decord.

    decord2 3.4.0 takes a row's padded length for its number of channels where the first is a multiple of the
    width (32, 48, 96, 144 ... pixels): 32 × 32 arrives as (32, 32, 6), padding and all. (get_batch raises there.)
    """
    height, width, channels = frame.shape
    if channels == 3:
        return frame
    return frame.reshape(height, width * channels)[:, : width * 3].reshape(height, width, 3)


def square(frame: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resize the short side to `size` (bilinear, antialiased) and cut the centre."""
    height, width = frame.shape[:2]
    if (height, width) == (size, size):
        return frame
    scale = size / min(height, width)
    new_width, new_height = max(size, round(width * scale)), max(size, round(height * scale))
    # the resized image is cut while it is made: a strip of 1 × 10,000,000 pixels would else become a huge one
    left, top = (new_width - size) // 2, (new_height - size) // 2
    if new_width * new_height <= 16 * size * size:
        resized = Image.fromarray(frame).resize((new_width, new_height), Image.Resampling.BILINEAR)
        return np.asarray(resized)[top : top + size, left : left + size]
    across, down = width / new_width, height / new_height
    box = (left * across, top * down, (left + size) * across, (top + size) * down)
    return np.asarray(Image.fromarray(frame).resize((size, size), Image.Resampling.BILINEAR, box=box))


def end_of(first: NDArray[np.floating], last: NDArray[np.floating], count: int, start: float) -> float:
    """The second at which the last frame ends.

    decord counts from the picture's start where it knows that, else from the clip's. FLV gives the last frame no
    duration: it lasts as long as the mean one.

    Args:
        first: start and end of the first frame in seconds, (2,).
        last: those of the last frame.
        count: frames of the clip.
        start: the second at which the picture begins, as the container says.
    """
    span = max(float(last[1] - first[0]), float(last[0] - first[0]) * count / max(count - 1, 1))
    return max(float(first[0]), start) + span


def read_clip(request: dict[str, Any]) -> tuple[dict[str, Any], list[NDArray[np.uint8]]]:
    """What one request asks for: the second at which the last frame ends, and the arrays of `wanted`, in that order.

    `video`: (F, size, size, 3). `flow`: (F, 2, size, size), from each of those frames to the one that follows.
    decord reads where the request does not ask for PyAV; PyAV takes over what decord shows otherwise or cannot read.
    """
    if are_pictures(request["path"]):
        return _by_reader(request, PictureReader(request["path"], request["max_pixels"]))
    track = request.get("track")  # None: whichever decord takes
    if request.get("reader", "decord") == "decord":
        try:
            if track is None or media.is_rotation(media.display_matrix(request["path"], track)):
                return _by_reader(request, decord.VideoReader(request["path"], num_threads=1), track)
        except _FRAME_ERRORS:
            if track is None:
                raise
    return _by_pyav(request)


def _by_reader(
    request: dict[str, Any], reader: Any, track: int | None = None
) -> tuple[dict[str, Any], list[NDArray[np.uint8]]]:
    length = len(reader)
    _check_count(length, request)
    stamps = np.asarray(reader.get_frame_timestamp(list(range(length))), float)
    header = {"end": end_of(stamps[0], stamps[-1], length, request["start"])}
    if not request["wanted"]:
        return header, []
    hidden = hidden_frames(stamps, reader.get_key_indices())
    stamps = stamps[hidden:]
    indices, needed = _needed(stamps, request)
    squares = None if hidden or track is None else _referenced_squares(stamps, needed, request)
    if squares is None:
        squares = _squares(reader, needed, request)
    return header, _arrays(squares, len(stamps), indices, request)


def _by_pyav(request: dict[str, Any]) -> tuple[dict[str, Any], list[NDArray[np.uint8]]]:
    """The clip is decoded once where its packets tell its frames' times beforehand, as most do, else twice."""
    picture = media.VideoStream(request["path"], request["track"])
    stamps = picture.packet_stamps()
    if not request["wanted"] and len(stamps):
        return {"end": end_of(stamps[0], stamps[-1], len(stamps), request["start"])}, []
    needed: set[int] = set()
    while True:
        expected = needed = _needed(stamps, request)[1] if len(stamps) else set()
        pixels = media.Converter()
        squares: dict[int, NDArray[np.uint8]] = {}
        found: list[NDArray[np.float64]] = []
        for stamp, frame in picture.frames():
            if len(found) in needed:
                _check_pixels(frame.height, frame.width, request)
                squares[len(found)] = square(pixels(frame), request["size"])
            found.append(stamp)
            _check_count(len(found), request)
        if not found:
            raise RefusedError("failed", "no frame of the picture can be decoded")
        stamps = np.concatenate(
            found
        )  # in the order shown; where AVI's times are those of another, only they are wrong
        stamps = stamps[np.argsort(stamps[:, 0], kind="stable")]
        indices, needed = _needed(stamps, request)
        if needed == expected:
            end = end_of(stamps[0], stamps[-1], len(stamps), request["start"])
            return {"end": end}, _arrays(squares, len(stamps), indices, request)


def _needed(stamps: NDArray[np.floating], request: dict[str, Any]) -> tuple[list[int], set[int]]:
    """Numbers of the frames to take, and of all that are needed for them and their flow."""
    indices = frames_by_time(stamps, request["segments"], request["candidates"]).tolist()
    pairs = {j for i in indices for j in _pair(i, len(stamps))} if request["flow"] else set()
    return indices, set(indices) | pairs


def _pair(index: int, length: int) -> tuple[int, int]:
    """The two frames between which flow is computed: this one and the next; for the last one, that before and it."""
    first = max(min(index, length - 2), 0)
    return first, min(first + 1, length - 1)


def _arrays(
    squares: dict[int, NDArray[np.uint8]], length: int, indices: list[int], request: dict[str, Any]
) -> list[NDArray[np.uint8]]:
    arrays = {"video": np.stack([squares[i] for i in indices])}
    if request["flow"]:
        pairs = [_pair(i, length) for i in indices]
        bound = request["flow"]["bound"]
        motion = {p: flow_between(squares[p[0]], squares[p[1]], bound=bound) for p in set(pairs)}
        arrays["flow"] = np.stack([motion[p] for p in pairs])
    return [arrays[name] for name in request["wanted"]]


def _check_count(frames: int, request: dict[str, Any]) -> None:
    if frames > request["max_frames"]:
        raise RefusedError("too_long", f"{frames} frames, limit {request['max_frames']}")


def _check_pixels(height: int, width: int, request: dict[str, Any]) -> None:
    """A stream may change its size on the way."""
    if height * width > request["max_pixels"]:
        raise RefusedError("too_large", f"{width} × {height} pixels, limit {request['max_pixels']}")


def _referenced_squares(
    stamps: NDArray[np.floating], needed: set[int], request: dict[str, Any]
) -> dict[int, NDArray[np.uint8]] | None:
    """The frames of these numbers, by PyAV, where it need not decode all and sees what decord does."""
    pixels, squares = media.Converter(), {}
    try:
        for number, frame in media.referenced_frames(request["path"], request["track"], stamps[:, 0], needed):
            _check_pixels(frame.height, frame.width, request)
            squares[number] = square(pixels(frame), request["size"])
    except (FFmpegError, media.BrokenStreamError):
        return None
    return squares


def _squares(reader: Any, needed: set[int], request: dict[str, Any]) -> dict[int, NDArray[np.uint8]]:
    """The frames of these numbers. All before them are decoded: decord's seeking gives other frames of some clips (open
    groups of pictures, B-frames in AVI) and says nothing; it would save a third of the time."""
    squares = {}
    for number in range(max(needed) + 1):
        picture = reader.next()
        if number in needed:
            frame = unpadded(picture.asnumpy())
            _check_pixels(frame.shape[0], frame.shape[1], request)
            squares[number] = square(frame, request["size"])
    return squares


def _describe(request: dict[str, Any]) -> tuple[dict[str, Any], list[NDArray[np.uint8]]]:
    try:
        return media.describe(request["path"]), []
    except MemoryError:
        raise
    except PermissionError as error:
        raise RefusedError("unreadable", error.strerror or "it may not be opened") from None
    except FFmpegError as error:
        raise RefusedError("not_media", f"no container that is read ({error.strerror}). Read are {NAMED}") from None


def _last_packet(request: dict[str, Any]) -> tuple[dict[str, Any], list[NDArray[np.uint8]]]:
    return {"end": media.last_packet(request["path"])}, []


_ANSWERS = {"frames": read_clip, "describe": _describe, "last_packet": _last_packet}


def _answer(request: dict[str, Any]) -> tuple[dict[str, Any], list[NDArray[np.uint8]]]:
    try:
        return _ANSWERS[request.get("do", "frames")](request)
    except RefusedError as error:
        return {"reason": error.args[0], "detail": error.args[1]}, []
    except TooLargeError as error:
        return {"reason": "too_large", "detail": str(error)}, []
    except _FRAME_ERRORS as error:
        said = error.strerror if isinstance(error, FFmpegError) else str(error)  # without the file's name
        lines = [line for line in (said or "").splitlines() if line.strip()]
        return {"reason": "failed", "detail": " ".join(lines[0].split())[:200] if lines else repr(error)}, []


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer every request: a line of JSON with the arrays' shapes, then their bytes."""
    answers.write(b"{}\n")  # ready
    answers.flush()
    for line in requests:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, request["seconds"] + _ALARM_AFTER)  # should the parent have died
        header, arrays = _answer(request)
        answers.write(json.dumps({**header, "shapes": [a.shape for a in arrays]}).encode() + b"\n")
        for array in arrays:
            answers.write(np.ascontiguousarray(array).data)
        answers.flush()
        signal.setitimer(signal.ITIMER_REAL, 0)


def main() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    limits = [x for x in resource.getrlimit(resource.RLIMIT_AS) if x != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min([MEMORY, *limits]),) * 2)
    decord.logging.set_level(decord.logging.QUIET)
    av.logging.set_level(None)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
