"""How long AVI, WAV and Matroska files say that they are: a cut one often plays to its new end without any error."""

from __future__ import annotations

from pathlib import Path

_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
_UNKNOWN_RIFF = 0x7FFFFFFF  # recorders that cannot go back write such sizes, or 0


def declared_bytes(path: Path) -> int | None:
    """Bytes that the file must have by its own head; None where that does not say.

    RIFF: the size of the first list (a file over 1 GB has more of them). Matroska (RFC 9559): that of its Segment.
    """
    with path.open("rb") as file:
        head = file.read(64)
    if head[:4] == b"RIFF":
        size = int.from_bytes(head[4:8], "little")
        return 8 + size if 0 < size < _UNKNOWN_RIFF else None
    if head[:4] != _EBML:
        return None
    start, length = _number(head, 4)
    if length is None or head[start + length : start + length + 4] != _SEGMENT:
        return None
    start, length = _number(head, start + length + 4)
    return None if length is None else start + length


def _number(head: bytes, place: int) -> tuple[int, int | None]:
    """Where an EBML number ends, and its value: the zeros in front count its bytes. All ones: not known."""
    width = 9 - head[place].bit_length() if place < len(head) else 9
    if width > 8 or place + width > len(head):
        return place, None
    value = int.from_bytes(head[place : place + width], "big") & ((1 << 7 * width) - 1)
    return place + width, None if value == (1 << 7 * width) - 1 else value
