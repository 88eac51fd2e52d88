"""A finished set of decoded clips in a folder, which is named by what made it: reading it, and its name."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from crmt.errors import CRMTError
from pipelines.clips.kinds import Kind, ModalityMeta, kinds_of
from pipelines.config.modality import PATH
from pipelines.config.schema import DataConfig
from pipelines.decoding.pictures import are_pictures, picture_files
from pipelines.infra.storage import Folder
from pipelines.sources.index import ClipIndex

FORMAT = 6
"""Version of what the files look like and of how clips are decoded. A change makes every cache a new one."""
CARD, QUARANTINE_FILE = "cache.json", "quarantine.csv"
QUARANTINE = ("clip_id", "path", "split", "reason", "detail")


@dataclass(frozen=True, eq=False)
class ClipCache:
    """A finished, decoded set of clips in a folder, which may be remote.

    `parts`: paths of the Parquet files for pyarrow, to be opened with `folder.filesystem`: train's, then validation's,
    then test's. They hold rows as pipelines/clips/rows.py says, a part those of one split; train's mix the classes.
    `counts`: decoded clips by split. `failed`: clips in `quarantine` (clip_id, path, split, reason, detail). `missing`:
    by modality and split, the decoded clips that lack it (data.missing_modality `keep`).
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


def cache_key(index: ClipIndex, data: DataConfig, modalities: Iterable[str]) -> str:
    """SHA-256 over the format, the list, each clip's content (size and time, or fingerprint) and the decode settings.

    data.decode_timeout and the limits are among them: they decide which clips are quarantined, and a longer one tries
    them again. Left out is what no stored byte depends on, such as video.crop and audio.standardise, which batches
    apply.

    Args:
        modalities: those that are decoded.
    """
    declared = kinds_of(data)
    kinds = {name: declared[name] for name in modalities}
    limits = {name: getattr(data.video, name) for name in ("max_pixels", "max_frames", "max_seconds")}
    digest = hashlib.sha256()
    decoding = {"timeout": data.decode_timeout, **limits, "missing": data.missing_modality}
    decoding |= {name: _settings(kind) for name, kind in kinds.items()}
    digest.update(json.dumps([FORMAT, index.sha256, decoding], sort_keys=True).encode())
    for column in sorted({kind.column for kind in kinds.values()}, key=lambda c: (c != PATH, c)):
        for content in _contents(index, column):
            digest.update(f"{content}\n".encode())
    return digest.hexdigest()


def _settings(kind: Kind) -> dict[str, Any]:
    """What decides a modality's bytes, and where they come from where that is not what its name says."""
    where = {} if (kind.name, kind.column) == (kind.kind, PATH) else {"kind": kind.kind, "column": kind.column}
    return {**kind.decides_bytes(), **where}


def load_cache(folder: Folder) -> ClipCache:
    """Open a finished cache.

    Raises:
        CRMTError: there is none, or parts of it are gone.
    """
    try:
        card = json.loads(folder.read(CARD))
    except FileNotFoundError:
        raise CRMTError(f"{folder} holds no finished set of decoded clips. Run ingest.py again") from None
    except json.JSONDecodeError:
        raise CRMTError(f"{folder / CARD} is damaged. Delete the folder and run ingest.py again") from None
    parts = folder.names("part-*.parquet")
    if len(parts) != card["parts"]:
        raise CRMTError(
            f"{folder} has {len(parts)} of {card['parts']} parts. Delete the folder and run ingest.py again"
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
    )


def with_constants(cache: ClipCache, kinds: Mapping[str, Kind]) -> ClipCache:
    """The cache with the constants that the configuration gives, in place of those of its train split."""
    return replace(
        cache, modalities={name: kinds[name].with_constants(meta) for name, meta in cache.modalities.items()}
    )


def _contents(index: ClipIndex, column: str) -> Iterable[str]:
    """For each clip, its fingerprint or its file's size and time, in the order of the index."""
    if column == PATH and "fingerprint" in index.clips:
        return index.clips["fingerprint"].tolist()
    return map(_file_state, index.clips[column])


def _file_state(path: str) -> str:
    """Size and time of a file, or of every picture that a folder or pattern names."""
    if not path:
        return "none"
    try:
        state = os.stat(path)  # noqa: PTH116 - hot loop
    except OSError:
        return _pictures_state(path) if are_pictures(path) else "absent"
    return _pictures_state(path) if stat.S_ISDIR(state.st_mode) else f"{state.st_size} {state.st_mtime_ns}"


def _pictures_state(path: str) -> str:
    digest = hashlib.sha256()
    for file in picture_files(path):
        digest.update(f"{os.path.basename(file)} {_file_state(file)}\n".encode())  # noqa: PTH119 - hot loop
    return digest.hexdigest()
