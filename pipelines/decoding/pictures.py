"""A clip whose pictures lie in files of their own (JPEG, PNG): a folder of them, or one in each of several folders.

`clips/a` is the folder's pictures, and `frames/frame_*/a.jpg` is `frames/frame_0/a.jpg`, `frames/frame_1/a.jpg` and so
on. They are sorted as people count: frame_2 comes before frame_10.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

EXTENSIONS = (".jpg", ".jpeg", ".png")
"""File extensions of pictures, in upper or lower case."""
_NUMBER = re.compile(r"(\d+)")


def is_picture(name: str) -> bool:
    """Whether a file of this name counts as a picture: not where it is hidden."""
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".")


def are_pictures(path: str | Path) -> bool:
    """Whether a path names pictures: a folder, or a pattern with `*` that is no file's own name."""
    return os.path.isdir(path) or ("*" in str(path) and not os.path.exists(path))  # noqa: PTH110, PTH112 - hot loop


def counted(name: str) -> tuple[Any, ...]:
    """A key to sort names by, numbers in them by value."""
    return tuple(int(part) if i % 2 else part for i, part in enumerate(_NUMBER.split(name)))


def picture_files(path: str | Path) -> list[str]:
    """The pictures that a path names, in order; none where the folder is not there or may not be read."""
    where = str(path)
    if os.path.isdir(where):  # noqa: PTH112
        return [os.path.join(where, name) for name in sorted(filter(is_picture, _names(where)), key=counted)]  # noqa: PTH118
    above, name, rest = split_pattern(where)
    matches = pattern_of(name)
    found = (os.path.join(above, folder, *rest) for folder in sorted(filter(matches, _names(above)), key=counted))  # noqa: PTH118
    return [file for file in found if is_picture(os.path.basename(file)) and os.path.isfile(file)]  # noqa: PTH113, PTH119


def split_pattern(path: str) -> tuple[str, str, list[str]]:
    """The folder above the first part with a `*`, that part, and the parts below it."""
    parts = Path(path).parts
    first = next((i for i, part in enumerate(parts) if "*" in part), len(parts) - 1)
    return str(Path(*parts[:first])), parts[first], list(parts[first + 1 :])


@functools.cache
def pattern_of(name: str) -> Callable[[str], object]:
    """Whether a name fits one with `*`, which alone is special."""
    return re.compile(re.escape(name).replace(r"\*", ".*")).fullmatch


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208 - names are all that is wanted
    except OSError:
        return []


class PictureReader:
    """Pictures in files, with the part of decord.VideoReader that frame_child.py uses. One a second."""

    def __init__(self, path: str, max_pixels: int) -> None:
        self._files, self._next, self._max_pixels = picture_files(path), 0, max_pixels

    def __len__(self) -> int:
        return len(self._files)

    def get_frame_timestamp(self, numbers: list[int]) -> NDArray[np.float64]:
        """Start and end of each, in seconds."""
        return np.asarray([(i, i + 1) for i in numbers], float).reshape(-1, 2)

    def get_key_indices(self) -> list[int]:
        """Every picture stands alone."""
        return list(range(len(self)))

    def next(self) -> PictureFile:
        """The next picture, not yet decoded."""
        self._next += 1
        return PictureFile(self._files[self._next - 1], self._max_pixels)


class PictureFile:
    """One picture in a file, decoded when it is asked for."""

    def __init__(self, file: str, max_pixels: int) -> None:
        self._file, self._max_pixels = file, max_pixels

    def asnumpy(self) -> NDArray[np.uint8]:
        """uint8 (H, W, 3), RGB.

        Raises:
            OSError: it cannot be read, or has more pixels than allowed.
        """
        from PIL import Image

        Image.MAX_IMAGE_PIXELS = None  # data.video.max_pixels says it
        name = Path(self._file).name
        try:
            with Image.open(self._file) as image:
                if image.width * image.height > self._max_pixels:
                    raise TooLargeError(f"{name}: {image.width} × {image.height} pixels, limit {self._max_pixels}")
                return np.asarray(image.convert("RGB"))
        except TooLargeError:
            raise
        except Exception as error:  # noqa: BLE001 - PIL's decoders raise almost anything
            raise OSError(f"{name} cannot be read: {error}") from None


class TooLargeError(Exception):
    """A picture of more pixels than allowed."""
