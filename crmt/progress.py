"""How operations that take long say how much they have done."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int], None]
"""Called with the number of inputs done since the last call."""


def silent(_: int) -> None:
    """A `Progress` that does nothing."""
