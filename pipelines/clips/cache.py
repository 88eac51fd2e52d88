"""A finished set of decoded clips in a folder, which is named by what made it: reading it, and its name."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from crmt.errors import CRMTError
from pipelines.clips.contents import made_of
from pipelines.clips.kinds import Kind, ModalityMeta
from pipelines.config.schema import DataConfig
from pipelines.infra.entry import typed
from pipelines.infra.storage import READERS, Folder
from pipelines.sources.index import ClipIndex

CARD, QUARANTINE_FILE = "cache.json", "quarantine.csv"
CLIPS = "clips.json"
"""What each clip was when it was decoded, as `contents.MadeOf.rows`."""
QUARANTINE = ("clip_id", "path", "split", "reason", "detail")


@dataclass(frozen=True, eq=False)
class ClipCache:
    """A finished, decoded set of clips in a folder, which may be remote.

    `parts`: paths of the Parquet files for pyarrow, to be opened with `folder.filesystem`: train's, then validation's,
    then test's. They hold rows as pipelines/clips/rows.py says, a part those of one split; train's mix the classes.
    `counts`: decoded clips by split. `failed`: clips in `quarantine` (clip_id, path, split, reason, detail). `missing`:
    by modality and split, the decoded clips that lack it (data.missing_modality `keep`).
    `loudness`: by modality of sound, `splits` and `classes`: the mean dBFS of their clips.
    `tracks`: which stream was taken of clips with several (`audio 1 of 2, marked default`) to the number of such clips.
    """

    folder: Folder
    parts: tuple[str, ...]
    key: str
    name: str
    classes: tuple[str, ...]
    modalities: dict[str, ModalityMeta]
    counts: dict[str, int]
    failed: int
    missing: dict[str, dict[str, int]]
    clips_sha256: str
    quarantine: pd.DataFrame
    tracks: dict[str, int]
    loudness: dict[str, dict[str, dict[str, float]]]

    @property
    def nbytes(self) -> int:
        """Bytes of the whole set as arrays, in the types that they are stored in."""
        one = sum(int(np.prod(m.shape)) * np.dtype(m.dtype).itemsize for m in self.modalities.values())
        return one * sum(self.counts.values())

    @property
    def incomplete(self) -> dict[str, int]:
        """Modality to the decoded clips that lack it, of all splits; without those that none lacks."""
        totals = {m: sum(splits.values()) for m, splits in self.missing.items()}
        return {m: total for m, total in totals.items() if total}

    def listed(self) -> pd.DataFrame:
        """`id`, `split` and `part` (its position in `parts`) of every decoded clip, read without the clips' bytes."""
        read = partial(pq.read_table, columns=["id", "split"], filesystem=self.folder.filesystem)
        with ThreadPoolExecutor(READERS) as pool:  # a remote cache takes a request for every part
            tables = [table.to_pandas().assign(part=i) for i, table in enumerate(pool.map(read, self.parts))]
        return pd.concat(tables, ignore_index=True)


def cache_key(index: ClipIndex, data: DataConfig, modalities: Iterable[str]) -> str:
    """SHA-256 over the format, the list, what stands for each clip's content, and the decode settings."""
    return made_of(index, data, modalities).key


def load_cache(folder: Folder) -> ClipCache:
    """Open a finished cache.

    Raises:
        CRMTError: there is none, or parts of it are gone.
    """
    try:
        card = json.loads(folder.read(CARD))
    except FileNotFoundError:
        raise CRMTError(f"{folder} holds no finished set of decoded clips. Run {typed('ingest')} again") from None
    except json.JSONDecodeError:
        raise CRMTError(f"{folder / CARD} is damaged. Delete the folder and run {typed('ingest')} again") from None
    parts = folder.names("part-*.parquet")
    if len(parts) != card["parts"]:
        raise CRMTError(
            f"{folder} has {len(parts)} of {card['parts']} parts. Delete the folder and run {typed('ingest')} again"
        )
    return ClipCache(
        folder=folder,
        parts=tuple(map(folder.path, parts)),
        key=card["key"],
        name=card["name"],
        classes=tuple(card["classes"]),
        modalities={
            name: ModalityMeta(tuple(m["shape"]), m["dtype"], tuple(m["mean"]), tuple(m["std"]))
            for name, m in card["modalities"].items()
        },
        counts=card["counts"],
        failed=len(card["quarantine"]),
        missing=card["missing"],
        clips_sha256=card["clips_sha256"],
        quarantine=pd.DataFrame(card["quarantine"], columns=list(QUARANTINE)),
        tracks=card["tracks"],
        loudness=card["loudness"],
    )


def with_constants(cache: ClipCache, kinds: Mapping[str, Kind]) -> ClipCache:
    """The cache with the constants that the configuration gives, in place of those of its train split."""
    return replace(
        cache, modalities={name: kinds[name].with_constants(meta) for name, meta in cache.modalities.items()}
    )
