"""Clips on disk to Parquet, once: a Ray Data task a shard, a cache named by what made it, and a quarantine list.

`python pipelines/ingest.py --dataset X` decodes without training. Costs about 20 ms a short clip and core; the second
call with the same clips and settings opens what is there, and a call after a kill goes on with the missing shards.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table

from crmt.errors import BadInputError, CRMTError
from pipelines import datasets
from pipelines.command import add_config_arguments, config_from, run_command, start_ray
from pipelines.datasets.index import SPLITS, ClipIndex, cache_root
from pipelines.decode import REASONS, DecodedClip, DecodeError, decode_clip
from pipelines.schema import AudioConfig, DataConfig, VideoConfig
from pipelines.tasks import Piece, only_one, run_pieces

__all__ = ["FORMAT", "ClipCache", "ModalityMeta", "cache_root", "check_modalities", "ingest", "load_cache"]

FORMAT = 2
"""Version of what the files look like and of how clips are decoded. A change makes every cache a new one."""

_SHARD_CLIPS, _MOST_SHARDS = 64, 512
MODALITIES = ("video", "audio")
_FULL_CHROMA_SIDE = 128  # JPEGs of at most this side keep their colours at full resolution
_QUARANTINE = ("clip_id", "path", "split", "reason", "detail")


@dataclass(frozen=True)
class ModalityMeta:
    """One modality of a cache: video (F, 3, H, W) uint8, or audio (1, mels, frames) float16.

    `mean` and `std` are over the train split: video per channel of pixels in [0, 1], audio one value each.
    """

    shape: tuple[int, ...]
    dtype: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class ClipCache:
    """A finished, decoded set of clips in the folder `path`.

    A row of its Parquet parts is id, label (int32), split, group, `video` (list of JPEGs, one a frame, segment by
    segment) and `audio` (the bytes of float16). A part holds clips of one split, in the order of the index.
    `counts`: decoded clips by split. `failed`: clips in `quarantine` (clip_id, path, split, reason, detail).
    """

    path: Path
    key: str
    name: str
    classes: tuple[str, ...]
    modalities: dict[str, ModalityMeta]
    counts: dict[str, int]
    failed: int
    clips_sha256: str
    quarantine: pd.DataFrame

    @property
    def parts(self) -> list[Path]:
        """The Parquet parts: train's, then validation's, then test's."""
        return sorted(self.path.glob("part-*.parquet"))

    @property
    def nbytes(self) -> int:
        """Bytes of the whole set as arrays: uint8 video and float16 audio."""
        one = sum(int(np.prod(m.shape)) * np.dtype(m.dtype).itemsize for m in self.modalities.values())
        return one * sum(self.counts.values())


def ingest(
    index: ClipIndex, data: DataConfig, modalities: tuple[str, ...] = ("video", "audio"), progress: bool = True
) -> ClipCache:
    """Decode every clip of `index` into a cache, or open the cache that the same clips and settings made before.

    Needs a running Ray. A clip that cannot be decoded becomes a row of the quarantine, with its reason.

    Raises:
        CRMTError: more than `data.max_failure_share` of the clips failed. What was decoded stays in the cache.
        BadInputError: an unknown modality, or a class or a split of which no clip could be decoded.
    """
    check_modalities(modalities)
    modalities = tuple(m for m in MODALITIES if m in modalities)
    key = cache_key(index, data, modalities)
    folder = cache_root(data) / "clips" / f"{index.name}-{key[:16]}"
    if not (folder / "cache.json").exists():
        with only_one(folder):
            if not (folder / "cache.json").exists():
                _build(folder, key, index, data, modalities, progress)
    cache = load_cache(folder)
    _check_failures(cache, index, data.max_failure_share)
    return cache


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

    data.decode_timeout is among them: it decides which clips are quarantined, and a longer one tries them again.
    Left out because no stored byte depends on it: video.crop, which is applied to batches.
    """
    settings = {"video": data.video.model_dump(exclude={"crop"}), "audio": data.audio.model_dump()}
    digest = hashlib.sha256()
    decoding = {"timeout": data.decode_timeout, **{m: settings[m] for m in modalities}}
    digest.update(json.dumps([FORMAT, index.sha256, decoding], sort_keys=True).encode())
    for content in _contents(index):
        digest.update(f"{content}\n".encode())
    return digest.hexdigest()


def load_cache(folder: Path) -> ClipCache:
    """Open a finished cache.

    Raises:
        CRMTError: there is none, or parts of it are gone.
    """
    try:
        card = json.loads((folder / "cache.json").read_text())
    except FileNotFoundError:
        raise CRMTError(f"{folder} holds no finished set of decoded clips. Run ingest.py again") from None
    except json.JSONDecodeError:
        raise CRMTError(f"{folder / 'cache.json'} is damaged. Delete the folder and run ingest.py again") from None
    cache = ClipCache(
        path=folder,
        key=card["key"],
        name=card["name"],
        classes=tuple(card["classes"]),
        modalities={
            name: ModalityMeta(tuple(m["shape"]), m["dtype"], tuple(m["mean"]), tuple(m["std"]))
            for name, m in card["modalities"].items()
        },
        counts=card["counts"],
        failed=len(card["quarantine"]),
        clips_sha256=card["clips_sha256"],
        quarantine=pd.DataFrame(card["quarantine"], columns=list(_QUARANTINE)),
    )
    if len(cache.parts) != card["parts"]:
        found = len(cache.parts)
        raise CRMTError(f"{folder} has {found} of {card['parts']} parts. Delete the folder and run ingest.py again")
    return cache


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


def _build(
    folder: Path, key: str, index: ClipIndex, data: DataConfig, modalities: tuple[str, ...], progress: bool
) -> None:
    """Decode the shards that are not there yet, then write the quarantine and, last, cache.json."""
    shards = _shards(index)
    settings = {
        "folder": str(folder),
        "video": data.video.model_dump(mode="json"),
        "audio": data.audio.model_dump(mode="json"),
        "timeout": data.decode_timeout,
        "modalities": list(modalities),
    }
    pieces = []
    for number, shard in enumerate(shards):
        if not _card_path(folder, number).exists():
            pieces.append(Piece({**settings, "number": number, "clips": shard.to_dict("records")}, len(shard)))
    run_pieces(pieces, _decode_shard, f"Decoding {index.name}", progress)
    cards = [json.loads(_card_path(folder, number).read_text()) for number in range(len(shards))]
    quarantine = [row for card in cards for row in card["quarantine"]]
    table = pd.DataFrame(quarantine, columns=list(_QUARANTINE))
    _write(folder / "quarantine.csv", table.to_csv(index=False).encode())
    counts = {split: sum(c["decoded"] for c in cards if c["split"] == split) for split in SPLITS}
    card = {
        "key": key,
        "format": FORMAT,
        "name": index.name,
        "classes": list(index.classes),
        "modalities": {m: asdict(_meta(m, data, [c["sums"][m] for c in cards])) for m in modalities},
        "counts": counts,
        "clips_sha256": index.sha256,
        "parts": len(shards),
        "quarantine": quarantine,
    }
    _write(folder / "cache.json", json.dumps(card, indent=1).encode())


def _shards(index: ClipIndex) -> list[pd.DataFrame]:
    """The clips in the order of the index, cut into shards of one split each: a reader of one split reads no other."""
    size = max(_SHARD_CLIPS, -(-len(index) // _MOST_SHARDS))
    shards = []
    for split in SPLITS:
        clips = index.clips[index.clips["split"] == split]
        shards += [clips.iloc[i : i + size] for i in range(0, len(clips), size)]
    return shards


def _card_path(folder: Path, number: int) -> Path:
    return folder / f"part-{number:05d}.json"


def _decode_shard(task: dict[str, Any]) -> dict[str, Any]:
    """Decode one shard (a Ray Data task): write its Parquet part, then the card beside it that marks it finished."""
    folder, modalities = Path(task["folder"]), tuple(task["modalities"])
    video, audio = VideoConfig(**task["video"]), AudioConfig(**task["audio"])
    rows: list[dict[str, Any]] = []
    quarantine: list[dict[str, str]] = []
    sums: dict[str, dict[str, Any]] = {m: {"count": 0, "total": [], "squares": []} for m in modalities}
    for clip in task["clips"]:
        try:
            decoded = decode_clip(Path(clip["path"]), video, audio, task["timeout"], modalities)
        except DecodeError as error:
            found = {"clip_id": clip["id"], "path": clip["path"], "split": clip["split"]}
            quarantine.append({**found, "reason": error.reason, "detail": error.detail})
            continue
        if clip["split"] == "train":
            _add(sums, decoded)
        rows.append({**{c: clip[c] for c in ("id", "label", "split", "group")}, **_stored(decoded, video)})
    schema = _schema(video, audio, modalities)
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), buffer, compression="zstd")
    _write(folder / f"part-{task['number']:05d}.parquet", buffer.getvalue())
    split = task["clips"][0]["split"]
    card = {"split": split, "decoded": len(rows), "quarantine": quarantine, "sums": sums}
    _write(_card_path(folder, task["number"]), json.dumps(card).encode())
    return {}


def _stored(decoded: DecodedClip, video: VideoConfig) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    if decoded.frames is not None:
        columns["video"] = [_jpeg(frame, video.jpeg_quality) for frame in decoded.frames]
    if decoded.audio is not None:
        columns["audio"] = decoded.audio.astype("<f2").tobytes()
    return columns


def _jpeg(frame: NDArray[np.uint8], quality: int) -> bytes:
    buffer = io.BytesIO()
    subsampling = "4:4:4" if max(frame.shape[:2]) <= _FULL_CHROMA_SIDE else "4:2:0"
    Image.fromarray(frame).save(buffer, "JPEG", quality=quality, subsampling=subsampling)
    return buffer.getvalue()


def _shapes(video: VideoConfig, audio: AudioConfig) -> dict[str, tuple[int, ...]]:
    return {
        "video": (video.frames * video.candidates, 3, video.size, video.size),
        "audio": (1, audio.mels, audio.frames),
    }


def _schema(video: VideoConfig, audio: AudioConfig, modalities: tuple[str, ...]) -> pa.Schema:
    """Columns of a part; the shapes of what the bytes hold are in the schema's metadata, as JSON."""
    types = {"video": pa.list_(pa.binary()), "audio": pa.binary()}
    fields = [("id", pa.string()), ("label", pa.int32()), ("split", pa.string()), ("group", pa.string())]
    shapes = {m: json.dumps(_shapes(video, audio)[m]) for m in modalities}
    return pa.schema(fields + [(m, types[m]) for m in modalities], metadata=shapes)


def _add(sums: dict[str, dict[str, Any]], decoded: DecodedClip) -> None:
    """Add a clip to the sums of a shard: exact whole numbers for pixels, float64 for sound."""
    arrays = {"video": decoded.frames, "audio": decoded.audio}
    for name, entry in sums.items():
        array = arrays[name]
        assert array is not None  # every wanted modality was decoded
        columns = array.reshape(-1, 3).astype(np.int64) if name == "video" else array.reshape(-1, 1).astype(float)
        entry["count"] += len(columns)
        for field, values in (("total", columns.sum(0)), ("squares", (columns**2).sum(0))):
            entry[field] = [a + b for a, b in zip(entry[field] or [0] * len(values), values.tolist(), strict=True)]


def _meta(modality: str, data: DataConfig, sums: list[dict[str, Any]]) -> ModalityMeta:
    """Mean and deviation over all shards' sums (0 and 1 where train has no clip: such a set is refused later)."""
    scale = 255.0 if modality == "video" else 1.0
    filled = [s for s in sums if s["count"]]
    count = sum(s["count"] for s in filled)
    channels = 3 if modality == "video" else 1
    mean, std = [0.0] * channels, [1.0] * channels
    for c in range(channels if count else 0):
        mean[c] = sum(s["total"][c] for s in filled) / count
        variance = sum(s["squares"][c] for s in filled) / count - mean[c] ** 2
        mean[c], std[c] = mean[c] / scale, max(variance, 1e-12) ** 0.5 / scale
    dtype = "uint8" if modality == "video" else "float16"
    return ModalityMeta(_shapes(data.video, data.audio)[modality], dtype, tuple(mean), tuple(std))


def _write(target: Path, content: bytes) -> None:
    """A reader sees the whole file or none."""
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=".", suffix=".tmp", delete=False) as file:
        temporary = Path(file.name)
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            temporary.chmod(0o644)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)


def _by_reason(cache: ClipCache) -> str:
    counts = cache.quarantine["reason"].value_counts()
    return ", ".join(f"{counts[r]} {r}" for r in REASONS if r in counts)


def _check_failures(cache: ClipCache, index: ClipIndex, allowed: float) -> None:
    where = f"Each is listed in {cache.path / 'quarantine.csv'}"
    if cache.failed > allowed * len(index):
        raise CRMTError(
            f"{cache.failed} of {len(index)} clips of {cache.name} could not be decoded ({_by_reason(cache)}); "
            f"data.max_failure_share allows {allowed:.0%}. {where}. Mend them, or raise data.max_failure_share"
        )
    bad = set(cache.quarantine["clip_id"])
    good = index.clips[~index.clips["id"].isin(bad)]
    for split in sorted(set(index.clips["split"])):
        if not cache.counts[split]:
            raise BadInputError(f"no clip of {cache.name}'s {split} split could be decoded. {where}")
    learnt = set(good.loc[good["split"] == "train", "label"])
    lost = [name for label, name in enumerate(cache.classes) if label not in learnt]
    if lost:
        raise BadInputError(
            f"{len(lost)} classes of {cache.name} have no train clip that could be decoded, {lost[0]!r} first. {where}"
        )


def _summary(cache: ClipCache, seconds: float) -> Table:
    table = Table("", "", show_header=False, title=f"{cache.name}: {sum(cache.counts.values())} clips decoded")
    for split in SPLITS:
        table.add_row(split, f"{cache.counts[split]} clips")
    table.add_row("quarantined", f"{cache.failed}" + (f" ({_by_reason(cache)})" if cache.failed else ""))
    for name, meta in cache.modalities.items():
        table.add_row(name, f"{' × '.join(map(str, meta.shape))} {meta.dtype}")
    table.add_row("decoded size", f"{cache.nbytes / 2**20:.0f} MiB")
    table.add_row("clip list", cache.clips_sha256[:16])
    table.add_row("folder", str(cache.path))
    table.add_row("took", f"{seconds:.1f} s")
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code: 0, 1 for a failure, 2 for bad input, 130 when stopped."""
    parser = argparse.ArgumentParser(
        prog="ingest.py", description="Decode a data set into the cache, without training."
    )
    add_config_arguments(parser)
    options = parser.parse_args(arguments)

    def body() -> int:
        started = time.monotonic()
        config = config_from(options)
        datasets.check(config.data)
        start_ray(dashboard=False)
        cache = ingest(datasets.load(config.data), config.data, tuple(config.model.encoders))
        Console().print(_summary(cache, time.monotonic() - started))
        return 0

    return run_command(body, "The same command goes on where this one was.")


if __name__ == "__main__":
    from pipelines.ingest import main as run  # under its real name, so that pickles name the module, not __main__

    sys.exit(run())
