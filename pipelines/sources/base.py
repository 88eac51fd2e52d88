"""What a data set is: a function from the configuration to a list of clips, and what it declares about itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pipelines.config.schema import DataConfig
from pipelines.sources.index import ClipIndex


@dataclass(frozen=True)
class Source:
    """One data set."""

    load: Callable[[DataConfig], ClipIndex]
    """Reads the lists; raises BadInputError where they are missing or malformed."""
    makes_clips: bool = False
    """Whether it makes its clips itself, on first use, for which it needs a running Ray."""
    takes: tuple[str, ...] = ()
    """Which of the settings `split` and `lists` it reads; one that it does not read is refused."""
    look: Callable[[DataConfig], object] | None = None
    """Finds the lists and reads none; raises BadInputError where they are not there. None: only `load` can tell."""
    listed: Callable[[DataConfig], ClipIndex] | None = None
    """Of one that makes its clips: what `load` gives, with none of them made; they may be decoded already."""
