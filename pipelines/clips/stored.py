"""The clips of a batch as they are stored, one modality of them: read whole, or picture by picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Each = Callable[[Callable[[int], None], int], None]
"""Calls a function with every number below a count, in any order and perhaps in several threads."""


class Stored(Protocol):
    """One modality of some clips. What is not asked for is neither decoded nor copied."""

    def __len__(self) -> int:
        """The number of clips."""
        ...

    def whole(self) -> NDArray[Any]:
        """All that is stored, `(B, *shape)`; zeros for a clip that lacks the modality."""
        ...

    def picture(self, clip: int, number: int) -> NDArray[np.uint8]:
        """One stored picture, `(C, H, W)`; zeros where the clip lacks the modality.

        Args:
            clip: its place in the batch.
            number: of the picture, along the first axis of the clip's shape.
        """
        ...


@dataclass(frozen=True)
class InMemory:
    """Some rows of an array of decoded clips, which may not be written to."""

    array: NDArray[Any]
    """Of all clips, `(N, *shape)`."""
    rows: NDArray[np.integer]
    """Those of the batch."""

    def __len__(self) -> int:
        return len(self.rows)

    def whole(self) -> NDArray[Any]:
        return self.array[self.rows]

    def picture(self, clip: int, number: int) -> NDArray[np.uint8]:
        return self.array[self.rows[clip], number]


def in_turn(work: Callable[[int], None], count: int) -> None:
    """`Each` without threads."""
    for number in range(count):
        work(number)
