"""From a configuration to clips that trials can read: index ▸ ingest ▸ the object store, or an index to stream by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipelines.clips.batches import (
    Clips,
    MemoryClips,
    Placement,
    Transform,
    choose_mode,
    modalities_of,
    read_table,
)
from pipelines.clips.cache import ClipCache
from pipelines.clips.ingest import clips_of, ingest
from pipelines.clips.loudness import far_apart
from pipelines.clips.streaming import StreamClips, StreamIndex
from pipelines.config.run_config import RunConfig
from pipelines.infra.entry import typed
from pipelines.sources.index import ClipIndex


@dataclass(frozen=True)
class ClipSource:
    """Small and picklable: every trial and worker opens its own view of the clips from it."""

    mode: str
    table: Any
    """memory: an ObjectRef of the `ClipTable`."""
    index: StreamIndex | None
    transform: Transform

    def open(self, place: Placement) -> Clips:
        """The clips as the worker at `place` sees them."""
        if self.mode == "memory":
            import ray

            return MemoryClips(ray.get(self.table), self.transform, place)
        assert self.index is not None
        return StreamClips(self.index, self.transform, place)


@dataclass(frozen=True)
class Prepared:
    """Decoded clips that trials can open."""

    cache: ClipCache
    source: ClipSource
    delivery: str
    """One sentence: how the clips reach the trials, and why this way."""


def prepare(config: RunConfig, say: Callable[[str], None] = print, index: ClipIndex | None = None) -> Prepared:
    """Decode (or find in the cache) the clips of a configuration. Needs a running Ray.

    Args:
        index: the configuration's list of clips, as `ingest.look_ahead` gave it; None: it is loaded here.

    Raises:
        BadInputError: lists or settings that cannot be used. CRMTError: too many clips failed.
    """
    import ray

    names = tuple(config.model.encoders)
    if index is None:
        index = clips_of(config.data, names)
    if str(index.listing):
        say(f"lists and files differ: {index.listing}; {typed('ingest')} --check says which")
    cache = ingest(index, config.data, names, say=say)
    for line in far_apart(cache.loudness):
        say(line)
    modalities_of(cache, config.data, names)
    stores = [n["Resources"].get("object_store_memory", 0) for n in ray.nodes() if n["Alive"]]
    store = int(min(stores, default=0))  # every node that runs a trial holds the whole set
    mode, why = choose_mode(cache, config.data, store)
    transform = Transform.of(cache, config.data)
    sentence = f"{'in the object store' if mode == 'memory' else 'streamed from Parquet'}: {why}"
    without = "".join(f", {count} without {m}" for m, count in cache.incomplete.items())
    say(f"clips: {cache.counts}, {cache.failed} failed{without}; {sentence}")
    if mode == "memory":
        source = ClipSource(mode, ray.put(read_table(cache, names)), None, transform)
    else:
        source = ClipSource(mode, None, StreamIndex.of(cache, names), transform)
    return Prepared(cache, source, sentence)
