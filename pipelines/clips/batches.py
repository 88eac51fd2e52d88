"""Parquet ▸ batches on the training device: augmented for training, plain and in order for evaluation.

Small sets are read once into Ray's object store and every trial reads them in place; big ones stream from Parquet
(pipelines/clips/streaming.py). Both give equal numbers of steps on every rank, and make the next batch in a thread
while the model is at work on this one. The random choices come first: only frames that were drawn are read.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, cast

import numpy as np
import pyarrow as pa
import torch

from crmt.errors import BadInputError
from crmt.modality import Batch, Modality
from pipelines.clips.background import in_background, sharing
from pipelines.clips.cache import ClipCache
from pipelines.clips.kinds import ModalityMeta, kinds_of
from pipelines.clips.placement import Placement
from pipelines.clips.random_choices import RandomChoices
from pipelines.clips.rows import decode_rows, present_column, statistics
from pipelines.clips.stored import Each, InMemory
from pipelines.clips.transform import Transform
from pipelines.config.modality import check_modalities
from pipelines.config.schema import DataConfig

EVALUATION_BATCH = 128
_READ_COLUMNS = ("id", "label", "split")


def modalities_of(cache: ClipCache, data: DataConfig, names: Sequence[str]) -> tuple[Modality, ...]:
    """What a model of these clips takes, with the statistics of the cache's train split.

    Raises:
        BadInputError: a modality that the clips do not have.
    """
    kinds = kinds_of(data)
    for name in names:
        if name not in cache.modalities:
            raise BadInputError(
                f"model.encoders: the clips of {cache.name!r} have no modality {name!r}; "
                f"they have {', '.join(cache.modalities)}"
            )
    return tuple(kinds[name].modality(cache.modalities[name]) for name in names)


def expected_modalities(data: DataConfig, names: Sequence[str]) -> tuple[Modality, ...]:
    """`modalities_of` before anything is decoded: shapes, boxes and spaces as they will be, means 0 and deviations 1.

    Raises:
        BadInputError: a modality that data.modalities does not declare, or a wrong declaration.
    """
    kinds = kinds_of(data)
    check_modalities(names, kinds)
    return tuple(kinds[name].modality(kinds[name].with_constants(statistics(kinds[name], []))) for name in names)


@dataclass(frozen=True)
class ClipTable:
    """A whole decoded set, sorted by id. Put into the object store once; workers read its arrays in place.

    `arrays` are those of pipelines/clips/rows.py's `decode_rows`, by modality and `present_<modality>`.
    """

    ids: np.ndarray
    labels: np.ndarray
    splits: np.ndarray
    arrays: dict[str, np.ndarray]


def read_table(cache: ClipCache, names: Sequence[str]) -> ClipTable:
    """Decode the whole cache in Ray Data tasks.

    Args:
        cache: the decoded set.
        names: the modalities that are wanted.

    Raises:
        BadInputError: the cache holds no clip.
    """
    metas = {m: cache.modalities[m] for m in names}
    columns = [*_READ_COLUMNS, *names]
    import ray.data

    ids = np.sort(cache.listed()["id"].to_numpy().astype(str))
    if not len(ids):
        raise BadInputError(f"no clip of {cache.name!r} could be decoded: see the quarantine in {cache.folder}")
    dataset = ray.data.read_parquet(list(cache.parts), filesystem=cache.folder.filesystem, columns=columns)
    decoded = dataset.map_batches(partial(_decode_with_split, metas=metas), batch_format="pyarrow")
    batches = cast(Iterator[dict[str, np.ndarray]], iter(decoded.iter_batches(batch_size=None, batch_format="numpy")))
    whole: dict[str, np.ndarray] = {}
    for batch in batches:  # each goes to its place and is forgotten: a set is as large as a node's memory allows
        rows = np.searchsorted(ids, batch["id"].astype(str))
        for key in batch.keys() - {"id"}:
            if key not in whole:
                whole[key] = np.empty((len(ids), *batch[key].shape[1:]), batch[key].dtype)
            whole[key][rows] = batch[key]
    arrays = {key: whole[key] for key in (*names, *map(present_column, names))}
    return ClipTable(ids, whole["label"], whole["split"].astype(str), arrays)


def _decode_with_split(table: pa.Table, metas: dict[str, ModalityMeta]) -> dict[str, np.ndarray]:
    return decode_rows(table, metas) | {"split": np.asarray(table["split"].to_pylist(), dtype=object)}


class Clips(Protocol):
    """The clips of a run as one worker of a trial sees them."""

    @property
    def place(self) -> Placement: ...

    @property
    def transform(self) -> Transform: ...

    def count(self, split: str) -> int:
        """The number of clips of a split, over all ranks."""
        ...

    def training(self, epoch: int, batch_size: int, seed: int) -> Iterator[Batch]:
        """This rank's share of one epoch's augmented batches. The last, smaller batch is dropped.

        Args:
            epoch: counted from 1; with the seed it fixes order and augmentation.
            batch_size: clips in a batch over all ranks.
            seed: fixes order and augmentation.
        """
        ...

    def ordered(self, split: str, limit: int | None = None, seed: int = 0) -> Iterator[Batch]:
        """This rank's share of a split, in a fixed order and without augmentation.

        Args:
            split: its name.
            limit: at most this many clips over all ranks; None: all.
            seed: fixes which.
        """
        ...


def per_rank(batch_size: int, world: int) -> int:
    if batch_size % world:
        raise BadInputError(f"train.batch_size ({batch_size}) must be a multiple of the workers of a trial ({world})")
    return batch_size // world


def chosen_of(split: str, count: int, limit: int | None, seed: int, world: int) -> np.ndarray:
    """At most `limit` of `count` positions, drawn by seed, in order.

    Raises:
        BadInputError: fewer than ranks, on every rank: one without clips would fail while the others wait for it.
    """
    chosen = min(count, count if limit is None else limit)
    if chosen < world:
        raise BadInputError(f"the {split} split gives {chosen} clips to a trial's {world} workers: lower sweep.workers")
    if chosen == count:
        return np.arange(count)
    return np.sort(np.random.default_rng([seed, 7]).permutation(count)[:limit])


@dataclass(frozen=True)
class MemoryClips:
    """Clips from a `ClipTable`: exact, reproducible, and the same whatever the number of workers."""

    table: ClipTable
    transform: Transform
    place: Placement = field(default_factory=Placement)

    def count(self, split: str) -> int:
        return int((self.table.splits == split).sum())

    def training(self, epoch: int, batch_size: int, seed: int) -> Iterator[Batch]:
        return in_background(self._training(epoch, batch_size, seed))

    def _training(self, epoch: int, batch_size: int, seed: int) -> Generator[Batch]:
        per_rank(batch_size, self.place.world_size)
        rows = np.flatnonzero(self.table.splits == "train")
        order = np.random.default_rng([seed, epoch]).permutation(rows)
        with sharing(self.place.threads) as each:
            for step in range(len(order) // batch_size):
                whole = order[step * batch_size : (step + 1) * batch_size]
                choices = self.transform.draw(batch_size, (seed, epoch, step))
                yield self._batch(self.place.mine(whole), choices.mine(self.place), each)

    def ordered(self, split: str, limit: int | None = None, seed: int = 0) -> Iterator[Batch]:
        return in_background(self._ordered(split, limit, seed))

    def _ordered(self, split: str, limit: int | None, seed: int) -> Generator[Batch]:
        rows = np.flatnonzero(self.table.splits == split)
        rows = self.place.mine(rows[chosen_of(split, len(rows), limit, seed, self.place.world_size)])
        with sharing(self.place.threads) as each:
            for start in range(0, len(rows), EVALUATION_BATCH):
                yield self._batch(rows[start : start + EVALUATION_BATCH], None, each)

    def _batch(self, rows: np.ndarray, choices: RandomChoices | None, each: Each) -> Batch:
        clips = {m: InMemory(a, rows) if m in self.transform.kinds else a[rows] for m, a in self.table.arrays.items()}
        labels = torch.from_numpy(self.table.labels[rows]).to(self.place.device)
        inputs = self.transform(clips, choices, self.place.device, each)
        return Batch(inputs, labels, tuple(self.table.ids[rows].tolist()))


def choose_mode(cache: ClipCache, data: DataConfig, store_bytes: int) -> tuple[str, str]:
    """How clips reach the trials: `memory` or `stream`, and a sentence that says why.

    Args:
        cache: the decoded set.
        data: says which way, or how much of the store the set may take.
        store_bytes: the smallest object store of the nodes that run trials.
    """
    size, room = cache.nbytes / 2**20, data.memory_share * store_bytes / 2**20
    if data.mode != "auto":
        return data.mode, f"data.mode is {data.mode} ({size:.0f} MiB decoded)"
    mode = "memory" if size <= room else "stream"
    verb = "fit" if mode == "memory" else "do not fit"
    return mode, f"{size:.0f} MiB decoded {verb} in {room:.0f} MiB of the object store"
