"""A finished set of decoded clips in a folder, which is named by what made it: reading it, and its name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from crmt.errors import BadInputError, CRMTError
from pipelines.clips.rows import MODALITIES, ModalityMeta
from pipelines.config.schema import AudioConfig, DataConfig
from pipelines.decoding.sound import PUBLISHED_FBANK
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
        """Bytes of the whole set as arrays: uint8 video and float16 audio."""
        one = sum(int(np.prod(m.shape)) * np.dtype(m.dtype).itemsize for m in self.modalities.values())
        return one * sum(self.counts.values())

    @property
    def incomplete(self) -> dict[str, int]:
        """Modality to the decoded clips that lack it, of all splits; without those that none lacks."""
        totals = {m: sum(splits.values()) for m, splits in self.missing.items()}
        return {m: total for m, total in totals.items() if total}


def check_modalities(names: Iterable[str]) -> None:
    """Refuse what no clip has.

    Raises:
        BadInputError: an unknown modality, or none at all.
    """
    unknown = sorted(set(names) - set(MODALITIES))
    if unknown or not set(names):
        raise BadInputError(f"clips have the modalities {' and '.join(MODALITIES)}, not {', '.join(unknown) or 'none'}")


def cache_key(index: ClipIndex, data: DataConfig, modalities: tuple[str, ...]) -> str:
    """SHA-256 over the format, the list, each clip's content (size and time, or fingerprint) and the decode settings.

    data.decode_timeout and the limits are among them: they decide which clips are quarantined, and a longer one tries
    them again. Left out because no stored byte depends on them: video.crop and audio.standardise, which batches apply.
    """
    video = data.video.model_dump(exclude={"crop"})
    audio = data.audio.model_dump(exclude={"standardise"})
    settings = {"video": video, "audio": audio, "flow": {**video, **data.flow.model_dump()}}
    limits = {name: video[name] for name in ("max_pixels", "max_frames", "max_seconds")}
    digest = hashlib.sha256()
    decoding = {"timeout": data.decode_timeout, **limits, "missing": data.missing_modality}
    decoding |= {m: settings[m] for m in modalities}
    digest.update(json.dumps([FORMAT, index.sha256, decoding], sort_keys=True).encode())
    for content in _contents(index):
        digest.update(f"{content}\n".encode())
    return digest.hexdigest()


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


def standardised(cache: ClipCache, audio: AudioConfig) -> ClipCache:
    """The cache with the constants that the configuration gives for sound, in place of those of its train split."""
    if "audio" not in cache.modalities or audio.standardise == "train":
        return cache
    mean, std = PUBLISHED_FBANK if audio.standardise == "published" else audio.standardise
    meta = replace(cache.modalities["audio"], mean=(mean,), std=(std,))
    return replace(cache, modalities={**cache.modalities, "audio": meta})


def _contents(index: ClipIndex) -> Iterable[str]:
    """What stands for each clip's content, in the order of the index."""
    if "fingerprint" in index.clips:
        return index.clips["fingerprint"].tolist()
    return map(_file_state, index.clips["path"])


def _file_state(path: str) -> str:
    try:
        state = Path(path).stat()
    except OSError:
        return "absent"
    return f"{state.st_size} {state.st_mtime_ns}"
