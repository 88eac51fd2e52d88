"""An array that lies in a .npy or .npz file: its header, and its values as float32, every failure typed.

Nothing is unpickled, and nothing is read of a file whose header says another shape than the one that is wanted.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tokenize import TokenError
from typing import IO

import numpy as np
from numpy.typing import NDArray

from pipelines.decoding.errors import DecodeError

_NUMBERS = "biuf"
"""Kinds of numpy's types that are numbers: bool, int, unsigned and float."""
_BAD_HEADER = (ValueError, SyntaxError, TypeError, TokenError, KeyError, RecursionError, OverflowError, MemoryError)
"""What numpy raises where a header, which is Python's text of a dictionary, is none."""
_BAD_ARCHIVE = (
    zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, KeyError, OverflowError,
    RuntimeError,  # a password; and NotImplementedError, a compression that Python lacks
)  # fmt: skip


def array_shape(path: Path, key: str | None = None) -> tuple[int, ...]:
    """The shape that a file's header gives, without its values.

    Raises:
        DecodeError: `missing`, `unreadable`, `empty`, or `not_array`.
    """
    with _opened(path, key) as file:
        return _header(file)[0]


def read_array(
    path: Path, shape: tuple[int, ...], key: str | None = None, box: tuple[float, float] | None = None
) -> NDArray[np.float32]:
    """The values of an array in a file.

    Args:
        path: a .npy file, or an .npz file of one array or with `key`.
        shape: the shape that the array must have.
        key: the name of the array in an .npz file.
        box: the range that its values must lie in; None: any that are finite.

    Returns:
        float32, of shape `shape`, in the file's own units.

    Raises:
        DecodeError: `missing`, `unreadable`, `empty`, `not_array`, `wrong_shape`, `truncated`, or `bad_values`.
    """
    with _opened(path, key) as file:
        found, fortran, dtype = _header(file)
        if found != shape:
            raise DecodeError("wrong_shape", f"the array has shape {list(found)}, not {list(shape)}")
        size = int(np.prod(shape)) * dtype.itemsize
        content = file.read(size)
    if len(content) < size:
        raise DecodeError("truncated", f"the array has {len(content)} of {size} bytes")
    stored = np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused
        values = np.ascontiguousarray(stored, np.float32)
    if not np.isfinite(values).all():
        raise DecodeError("bad_values", "the array holds NaN or infinity")
    if box is not None and values.size and not (box[0] <= values.min() and values.max() <= box[1]):
        raise DecodeError("bad_values", f"values from {values.min():g} to {values.max():g} leave the box {list(box)}")
    return values


@contextmanager
def _opened(path: Path, key: str | None) -> Iterator[IO[bytes]]:
    """The stream of the array, at its beginning."""
    if not path.is_file():
        kind = "unreadable" if path.exists() else "missing"
        raise DecodeError(kind, "not a plain file" if path.exists() else "no such file")
    try:
        if path.stat().st_size == 0:
            raise DecodeError("empty", "0 bytes")
        if not zipfile.is_zipfile(path):
            if key is not None:
                raise DecodeError("not_array", f"it is no .npz file, which could hold an array {key!r}")
            with path.open("rb") as file:
                yield file
            return
        with zipfile.ZipFile(path) as archive, archive.open(_member(archive, key)) as file:
            yield file
    except OSError as error:
        raise DecodeError("unreadable", error.strerror or str(error)) from None
    except _BAD_ARCHIVE as error:
        raise DecodeError("not_array", f"the .npz file cannot be read: {error}") from None


def _member(archive: zipfile.ZipFile, key: str | None) -> str:
    names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    shown = ", ".join(names[:8]) or "no array"
    if key is None and len(names) != 1:
        raise DecodeError("not_array", f"the .npz file holds {shown}: say which with `key`")
    if key is not None and key not in names:
        raise DecodeError("not_array", f"the .npz file has no {key!r}; it holds {shown}")
    return f"{names[0] if key is None else key}.npy"


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether it lies in Fortran's order, and type."""
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
    except _BAD_HEADER as error:
        raise DecodeError("not_array", f"no .npy array: {' '.join(str(error).split())[:150]}") from None
    if dtype.kind not in _NUMBERS:
        raise DecodeError("not_array", f"the array holds {dtype}, which are no real numbers")
    return tuple(int(side) for side in shape), fortran, dtype
