"""The boxes of an MP4 or MOV (ISO/IEC 14496-12) and how long each track says it is; nothing is decoded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_MOST_EDITS = 1000
_MOST_BOXES = 300_000  # of a file, on all levels; an hour of fragments of one frame each has fewer


def is_mp4(file: BinaryIO) -> bool:
    """Whether the file opens with a `ftyp` box."""
    file.seek(0)
    return file.read(8)[4:] == b"ftyp"


def a_budget() -> Iterator[int]:
    """One item for each box that may be read of a file, so that boxes in boxes end soon as well."""
    return iter(range(_MOST_BOXES))


def boxes(file: BinaryIO, start: int, stop: int, budget: Iterator[int]) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start of the content and end of each box between two positions; the last end may lie past `stop`. They
    end where the budget does."""
    for _ in budget:
        if start + 8 > stop:
            return
        file.seek(start)
        header = file.read(16)
        length, kind, body = int.from_bytes(header[:4], "big"), header[4:8], start + 8
        if length == 1:  # a 64-bit length follows
            length, body = int.from_bytes(header[8:16], "big"), start + 16
        if length == 0:  # up to the end
            length = stop - start
        if length < 8:
            return
        yield kind, body, start + length
        start += length


def track_seconds(path: Path) -> dict[int, float]:
    """Track id to seconds, of an MP4/MOV; a fragmented file declares none.

    A track lasts as long as its media (mdhd), or as the parts of them that its edit list plays (elst; ISO/IEC
    14496-12, 8.4.2 and 8.6.6): neither the wait before a late track nor an encoder's lead-in counts.
    """
    found: dict[int, float] = {}
    budget = a_budget()
    with path.open("rb") as file:
        if not is_mp4(file):
            return found
        for kind, start, end in boxes(file, 0, size := path.stat().st_size, budget):
            if kind != b"moov":
                continue
            movie_scale = 0
            for child, body, stop in _inside(file, start, min(end, size), budget):
                if child == b"mvhd":
                    movie_scale = _time(file, body)[0]
                if child == b"trak":
                    number, seconds = _track(file, body, stop, movie_scale, budget)
                    if seconds > 0:
                        found[number] = min(seconds, found.get(number, seconds))
    return found


def _inside(file: BinaryIO, start: int, stop: int, budget: Iterator[int]) -> Iterator[tuple[bytes, int, int]]:
    """The boxes of a box. None may reach past it: a file of boxes in boxes without end would keep its reader busy."""
    for kind, body, end in boxes(file, start, stop, budget):
        yield kind, body, min(end, stop)


def _track(file: BinaryIO, start: int, end: int, movie_scale: int, budget: Iterator[int]) -> tuple[int, float]:
    """Id and seconds of one `trak` box; 0 seconds where it does not say."""
    number, media, played = 0, 0.0, 0.0
    for kind, body, stop in _inside(file, start, end, budget):
        if kind == b"tkhd":
            file.seek(body)
            content = file.read(24)
            number = int.from_bytes(content[20:24] if content[:1] == b"\x01" else content[12:16], "big")
        if kind in (b"mdia", b"edts"):
            for child, inner, _ in _inside(file, body, stop, budget):
                if child == b"mdhd":
                    scale, duration = _time(file, inner)
                    media = duration / scale if scale else 0.0
                elif child == b"elst":
                    played = _played(file, inner) / movie_scale if movie_scale else 0.0
    return number, min(media, played) if played else media


def _time(file: BinaryIO, body: int) -> tuple[int, int]:
    """Ticks a second, and the ticks of an mvhd or mdhd box: 0 for all ones, which say that they are not known."""
    file.seek(body)
    content = file.read(32)
    wide = content[:1] == b"\x01"
    scale, ticks = (content[20:24], content[24:32]) if wide else (content[12:16], content[16:20])
    known = ticks != b"\xff" * len(ticks)
    return int.from_bytes(scale, "big"), int.from_bytes(ticks, "big") if known else 0


def _played(file: BinaryIO, body: int) -> int:
    """Ticks of the movie during which an elst box plays media at normal speed."""
    file.seek(body)
    head = file.read(8)
    size = 8 if head[:1] == b"\x01" else 4
    entries = file.read(min(int.from_bytes(head[4:8], "big"), _MOST_EDITS) * (2 * size + 4))
    total = 0
    for i in range(0, len(entries), 2 * size + 4):
        entry = entries[i : i + 2 * size + 4]
        if entry[size : 2 * size] != b"\xff" * size and entry[2 * size :] == b"\0\1\0\0":  # not empty, not frozen
            total += int.from_bytes(entry[:size], "big")
    return total
