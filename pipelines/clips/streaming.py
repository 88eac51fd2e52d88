"""Batches of sets too big for memory: Ray Data reads and shards the Parquet, the worker decodes what was drawn.

Tasks hand on the bytes of clips as they are stored, a sixth of what they are decoded. Clips are shuffled, frames drawn
and only these decoded in the process that trains, by threads: decoders leave Python's lock to others.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, cast

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from crmt.errors import BadInputError
from crmt.modality import Batch
from pipelines.clips.background import in_background, sharing
from pipelines.clips.batches import EVALUATION_BATCH, chosen_of, per_rank
from pipelines.clips.cache import ClipCache
from pipelines.clips.kinds import ModalityMeta
from pipelines.clips.placement import Placement
from pipelines.clips.random_choices import RandomChoices
from pipelines.clips.rows import Encoded, present_column
from pipelines.clips.stored import Each
from pipelines.clips.transform import Transform
from pipelines.infra.storage import Folder

READ_TASK_CPUS = 0.25
READ_CPUS = 2 * READ_TASK_CPUS
"""The least that the Data tasks of one streaming worker take."""
_READ_SHARE = 0.25  # of a worker's input CPUs: reading costs a fraction of decoding
_SHUFFLE_BUFFER_BATCHES = 8
_SPLIT, _READ_COLUMNS = "split", ("id", "label")

Row = tuple[Any, ...]
"""A clip as it is stored: id, label, and what each modality's column holds."""


@dataclass(frozen=True)
class StreamIndex:
    """Where the clips of a streamed set lie: one row a clip (id, split, part), read from Parquet without its bytes."""

    folder: Folder
    paths: tuple[str, ...]
    """The Parquet files to read, opened with `folder.filesystem`."""
    metas: dict[str, ModalityMeta]
    """By name, how each modality that is read was stored."""
    rows: pd.DataFrame

    @staticmethod
    def of(cache: ClipCache, names: Sequence[str]) -> StreamIndex:
        metas = {m: cache.modalities[m] for m in names}
        return StreamIndex(cache.folder, cache.parts, metas, cache.listed())


@dataclass(frozen=True)
class StreamClips:
    """Clips that Ray Data streams from Parquet. In training a rank reads whole parts, dealt out anew every epoch."""

    index: StreamIndex
    transform: Transform
    place: Placement = field(default_factory=Placement)

    def count(self, split: str) -> int:
        return int((self.index.rows.split == split).sum())

    def training(self, epoch: int, batch_size: int, seed: int) -> Iterator[Batch]:
        return in_background(self._training(epoch, batch_size, seed))

    def _training(self, epoch: int, batch_size: int, seed: int) -> Generator[Batch]:
        local = per_rank(batch_size, self.place.world_size)
        counts = self.index.rows[self.index.rows.split == "train"].groupby("part").size()
        order = np.random.default_rng([seed, epoch]).permutation(counts.index.to_numpy())
        dealt = [order[r :: self.place.world_size] for r in range(self.place.world_size)]
        steps = min(int(counts.loc[parts].sum()) for parts in dealt) // local  # the same on every rank
        if len(order) < self.place.world_size:
            raise BadInputError(
                f"train has {len(order)} decoded parts, too few to stream to a trial's {self.place.world_size} "
                "workers: set data.mode to memory, or lower sweep.workers"
            )
        rng = np.random.default_rng([seed, epoch, 1])
        rows = _shuffled(self._read(dealt[self.place.rank], "train", None), _SHUFFLE_BUFFER_BATCHES * local, rng)
        with sharing(self.place.threads) as each:
            for step in range(steps):
                choices = self.transform.draw(local, (seed, epoch, step, self.place.rank))
                yield self._batch(list(islice(rows, local)), choices, each)

    def ordered(self, split: str, limit: int | None = None, seed: int = 0) -> Iterator[Batch]:
        return in_background(self._ordered(split, limit, seed))

    def _ordered(self, split: str, limit: int | None, seed: int) -> Generator[Batch]:
        rows = self.index.rows[self.index.rows.split == split].sort_values("id", kind="stable")
        world = self.place.world_size
        rows = rows.iloc[chosen_of(split, len(rows), limit, seed, world)]
        if world > 1:  # neighbours in one part go to one rank; a part at a border is read by two
            rows = rows.sort_values("part", kind="stable")
            rows = rows.iloc[np.array_split(np.arange(len(rows)), world)[self.place.rank]]
        wanted = frozenset(rows.id) if limit is not None or world > 1 else None
        read = self._read(np.unique(rows.part.to_numpy()), split, wanted)
        with sharing(self.place.threads) as each:
            while batch := list(islice(read, EVALUATION_BATCH)):
                yield self._batch(batch, None, each)

    def _read(self, parts: np.ndarray, split: str, ids: frozenset[str] | None) -> Iterator[Row]:
        if len(parts) == 0:
            return
        import ray.data

        columns = (*_READ_COLUMNS, *self.index.metas)
        read = partial(_part, folder=self.index.folder, columns=columns, split=split, ids=ids)
        # not read_parquet: it looks into the files of every new data set, which here is every epoch
        dataset = ray.data.from_items(
            [{"path": self.index.paths[part]} for part in parts], override_num_blocks=len(parts)
        ).map_batches(read, batch_size=None, batch_format="pyarrow", num_cpus=READ_TASK_CPUS)
        options = dataset.context.execution_options
        options.preserve_order = True  # the same order for the same seed
        # what preflight set aside for one worker; without a limit Data takes the CPUs of other trials for free ones
        cpus = max(READ_CPUS, _READ_SHARE * self.place.input_cpus)
        options.resource_limits = ray.data.ExecutionResources(cpu=cpus)
        blocks = cast(Iterator[pa.Table], iter(dataset.iter_batches(batch_size=None, batch_format="pyarrow")))
        for block in blocks:
            # copied: rows that wait in the shuffle would hold on to whole blocks of the object store
            yield from zip(*(block[name].to_pylist() for name in columns), strict=True)

    def _batch(self, rows: Sequence[Row], choices: RandomChoices | None, each: Each) -> Batch:
        ids, labels, *columns = zip(*rows, strict=True)
        metas = self.index.metas.items()
        encoded = {name: Encoded(column, meta) for (name, meta), column in zip(metas, columns, strict=True)}
        present = {present_column(name): clips.present for name, clips in encoded.items()}
        inputs = self.transform({**encoded, **present}, choices, self.place.device, each)
        return Batch(inputs, torch.tensor(labels, dtype=torch.int64, device=self.place.device), ids)


def _shuffled(rows: Iterable[Row], buffer: int, rng: np.random.Generator) -> Iterator[Row]:
    """The rows in another order: each new one takes the place of a random one of those that wait."""
    waiting: list[Row] = []
    for row in rows:
        if len(waiting) < buffer:
            waiting.append(row)
            continue
        place = int(rng.integers(buffer))
        yield waiting[place]
        waiting[place] = row
    for place in rng.permutation(len(waiting)):
        yield waiting[place]


def _part(listed: pa.Table, folder: Folder, columns: Sequence[str], split: str, ids: frozenset[str] | None) -> pa.Table:
    """The wanted clips of the parts whose paths are listed (a Ray Data task)."""
    tables = []
    for path in listed["path"].to_pylist():
        table = pq.read_table(path, columns=[*columns, _SPLIT], filesystem=folder.filesystem, use_threads=False)
        keep = np.asarray([s == split for s in table[_SPLIT].to_pylist()], dtype=bool)
        if ids is not None:
            keep &= np.asarray([i in ids for i in table["id"].to_pylist()], dtype=bool)
        tables.append(table.select(columns) if keep.all() else table.select(columns).filter(pa.array(keep)))
    return pa.concat_tables(tables)
