"""Clips on disk to Parquet, once: a Ray Data task a shard, a cache named by what made it, and a quarantine list.

Costs about 20 ms a short clip and core; the second call with the same clips and settings opens what is there, and a
call after a kill goes on with the missing shards.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from crmt.errors import BadInputError, CRMTError
from pipelines import sources
from pipelines.clips.cache import (
    CARD,
    CLIPS,
    QUARANTINE,
    QUARANTINE_FILE,
    ClipCache,
    load_cache,
    with_constants,
)
from pipelines.clips.contents import FORMAT, MadeOf, made_of
from pipelines.clips.kinds import Kind, check_files, kinds_of
from pipelines.clips.lookup import folder_name, look_up
from pipelines.clips.loudness import Sums, add_loudness, mean_loudness
from pipelines.clips.reading import ClipError, read_clip
from pipelines.clips.rows import add_clip, empty_sums, encode_row, present_column, schema_of, statistics
from pipelines.config.modality import check_modalities
from pipelines.config.paths import cache_root, clips_root
from pipelines.config.schema import DataConfig
from pipelines.decoding.errors import REASONS
from pipelines.infra.entry import typed
from pipelines.infra.metrics import count
from pipelines.infra.storage import Folder, folder_at
from pipelines.infra.tasks import Piece, only_one, run_pieces
from pipelines.sources.index import SPLITS, ClipIndex

RETRIED = {"unreadable", "timeout", "failed"}
"""Reasons of the quarantine whose cause may be the machine and not the clip."""
_SHARD_CLIPS = 64  # of one task and Parquet part: what a task holds does not grow with the set


def look_ahead(data: DataConfig, modalities: Iterable[str] | None = None) -> ClipIndex | None:
    """What can be checked before Ray is started: that the cache can be reached, and the list of clips
    (`sources.load_without_ray`).

    It has the columns of data.modalities, and the first arrays are of the shapes that are given there.

    Args:
        data: the section of the configuration.
        modalities: those that will be decoded; None: all that it declares.

    Raises:
        BadInputError: a cache, lists or modalities that cannot be used, or lists of which no clip is there, decoded or
            not.
    """
    kinds = kinds_of(data)
    index = sources.load_without_ray(data)
    if index is not None:
        check_files(index, kinds.values())
    if data.cache is not None:
        folder_at(data.cache).check()
    if index is not None and index.listing.nothing_there:
        names = [name for name in kinds if modalities is None or name in set(modalities)]
        if look_up(clips_root(data), made_of(index, data, names)).folder is None:
            raise BadInputError(index.listing.nothing_there)
    return index


def clips_of(data: DataConfig, modalities: tuple[str, ...]) -> ClipIndex:
    """The clips of a configuration. Those that its data set makes are made, unless they are decoded already.

    Raises:
        BadInputError: lists that cannot be used.
    """
    if sources.lists_before_making(data.dataset):
        index = sources.load(data, make=False)
        if look_up(clips_root(data), made_of(index, data, modalities)).folder is not None:
            return index
    return sources.load(data, or_decoded=True)


def ingest(
    index: ClipIndex,
    data: DataConfig,
    modalities: tuple[str, ...] = ("video", "audio"),
    progress: bool = True,
    retry: bool = False,
    say: Callable[[str], None] | None = None,
) -> ClipCache:
    """Decode every clip of `index` into a cache, or open the cache that the same clips and settings made before.

    Needs a running Ray, unless the cache is finished. A clip that cannot be decoded becomes a row of the quarantine,
    with its reason.

    Args:
        retry: decode once more the parts of the cache with a clip that the machine may have failed (`RETRIED`).
        say: takes a line where a finished cache is opened without its clips' files, or how the nearest one differs.

    Raises:
        CRMTError: more than `data.max_failure_share` of the clips have no file, of which none is then decoded, or
            failed. What was decoded stays in the cache.
        BadInputError: an unknown modality, one that no train clip has, a column that the list lacks, or a class or a
            split of which no clip could be decoded.
    """
    declared = kinds_of(data)
    check_modalities(modalities, declared)
    kinds = {name: kind for name, kind in declared.items() if name in modalities}
    check_files(index, kinds.values())
    made = made_of(index, data, kinds)
    found = look_up(clips_root(data), made)
    if say is not None and found.said:
        say(found.said)
    if retry and found.gone:
        raise BadInputError(
            f"--retry decodes whole parts again, and {found.gone} clips of {found.folder} have no file any more: "
            "leave it out, or bring the files back"
        )
    if found.folder is None:
        _check_missing(index, {kind.column for kind in kinds.values()}, data.max_failure_share)
    folder = found.folder or clips_root(data) / folder_name(made)
    if retry or found.folder is None:
        with only_one(_lock_folder(folder, data), str(folder)):
            if retry:
                _forget_failures(folder)
            if not folder.has(CARD):
                _build(folder, made, data, kinds, progress)
    cache = load_cache(folder)
    _check_failures(cache, index, data.max_failure_share)
    return with_constants(cache, kinds)


def decoded_before(data: DataConfig, modalities: Iterable[str]) -> ClipCache | None:
    """The finished cache of a configuration on a disk of this machine, if there is one; nothing is decoded.

    Raises:
        BadInputError: lists that cannot be used.
    """
    index, root = sources.load_without_ray(data), clips_root(data)
    if index is None or not root.local or not root.folders(f"{index.name}-*"):
        return None
    folder = look_up(root, made_of(index, data, modalities)).folder
    return load_cache(folder) if folder else None


def _lock_folder(folder: Folder, data: DataConfig) -> Path:
    """Where the lock of a set lies: in its folder, or for a remote set in a folder on this machine named after it.

    So two machines can decode the same set into one remote cache at the same time. Each writes whole files, equal where
    the clips decode alike: only a clip that runs into data.decode_timeout on one of them alone can be in a part and in
    the quarantine.
    """
    name = hashlib.sha256(str(folder).encode()).hexdigest()[:16]
    return folder.local or cache_root(data) / "locks" / name


def _build(folder: Folder, made: MadeOf, data: DataConfig, kinds: dict[str, Kind], progress: bool) -> None:
    """Decode the shards that are not there yet, then write the quarantine, the clips and, last, cache.json."""
    index = made.index
    shards = _shards(index)
    settings = {
        "folder": str(folder),
        "data": data.model_dump(mode="json"),
        "modalities": list(kinds),
    }
    pieces, done = [], set(folder.names("part-*.json"))
    for number, shard in enumerate(shards):
        if _card_name(number) not in done:
            pieces.append(Piece({**settings, "number": number, "clips": shard.to_dict("records")}, len(shard)))
    run_pieces(pieces, _decode_shard, f"Decoding {index.name}", progress)
    cards = [json.loads(text) for text in folder.read_all([_card_name(number) for number in range(len(shards))])]
    quarantine = [row for card in cards for row in card["quarantine"]]
    table = pd.DataFrame(quarantine, columns=list(QUARANTINE))
    folder.write(QUARANTINE_FILE, table.to_csv(index=False).encode())
    folder.write(CLIPS, json.dumps(made.rows()).encode())
    counts = {split: sum(c["decoded"] for c in cards if c["split"] == split) for split in SPLITS}
    card = {
        "key": made.key,
        "format": FORMAT,
        "settings": made.settings,
        "name": index.name,
        "classes": list(index.classes),
        "modalities": {m: asdict(statistics(kind, [c["sums"][m] for c in cards])) for m, kind in kinds.items()},
        "counts": counts,
        "missing": {
            m: {split: sum(c["missing"][m] for c in cards if c["split"] == split) for split in SPLITS} for m in kinds
        },
        "clips_sha256": index.sha256,
        "listing": index.listing.summary(),
        "parts": len(shards),
        "quarantine": quarantine,
        "tracks": dict(sum((Counter(c["tracks"]) for c in cards), Counter())),
        "loudness": mean_loudness(cards, index.classes),
    }
    folder.write(CARD, json.dumps(card, indent=1).encode())


def _forget_failures(folder: Folder) -> None:
    """Take the mark of being finished from every part with a clip that may succeed in a second attempt."""
    names = folder.names("part-*.json")
    cards = [json.loads(text) for text in folder.read_all(names)]
    again = [n for n, card in zip(names, cards, strict=True) if RETRIED & {row["reason"] for row in card["quarantine"]}]
    if again:
        folder.remove(CARD)  # first: a set without some of its parts is not finished
    for name in again:
        folder.remove(name)


def _shards(index: ClipIndex) -> list[pd.DataFrame]:
    """The clips cut into shards of one split each: a reader of one split reads no other.

    Those of train go by a hash of their ids. In the order of the index, whose ids often begin with the class, a shard
    would be of one class, and so would most of a streamed training batch.
    """
    shards = []
    for split in SPLITS:
        clips = index.clips[index.clips["split"] == split]
        if split == "train":
            clips = clips.sort_values("id", key=lambda ids: ids.map(_hashed))
        shards += [clips.iloc[i : i + _SHARD_CLIPS] for i in range(0, len(clips), _SHARD_CLIPS)]
    return shards


def _hashed(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _card_name(number: int) -> str:
    return f"part-{number:05d}.json"


def _decode_shard(task: dict[str, Any]) -> dict[str, Any]:
    """Decode one shard (a Ray Data task): write its Parquet part, then the card beside it that marks it finished."""
    folder, data = folder_at(task["folder"]), DataConfig(**task["data"])
    kinds = {name: kind for name, kind in kinds_of(data).items() if name in task["modalities"]}
    rows: list[dict[str, Any]] = []
    quarantine: list[dict[str, str]] = []
    sums = empty_sums(kinds)
    tracks: Counter[str] = Counter()
    loudness: Sums = {}
    for clip in task["clips"]:
        try:
            loud: dict[str, float] = {}
            arrays = read_clip(clip, kinds, data, tracks, loud)
        except ClipError as error:
            found = {"clip_id": clip["id"], "path": error.path, "split": clip["split"]}
            quarantine.append({**found, "reason": error.reason, "detail": error.detail})
            continue
        add_loudness(loudness, clip["label"], loud)
        if clip["split"] == "train":
            add_clip(sums, arrays, kinds)
        rows.append({**{c: clip[c] for c in ("id", "label", "split", "group")}, **encode_row(arrays, kinds)})
    schema = schema_of(kinds)
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), buffer, compression="zstd")
    folder.write(f"part-{task['number']:05d}.parquet", buffer.getvalue())
    split = task["clips"][0]["split"]
    missing = {m: sum(not row[present_column(m)] for row in rows) for m in kinds}
    card = {
        "split": split,
        "decoded": len(rows),
        "missing": missing,
        "quarantine": quarantine,
        "sums": sums,
        "tracks": tracks,
        "loudness": loudness,
    }
    folder.write(_card_name(task["number"]), json.dumps(card).encode())
    count("crmt_clips_decoded", len(rows), dataset=data.dataset)
    for reason, clips in Counter(row["reason"] for row in quarantine).items():
        count("crmt_clips_quarantined", clips, dataset=data.dataset, reason=reason)
    return {}


def by_reason(cache: ClipCache) -> str:
    counts = cache.quarantine["reason"].value_counts()
    return ", ".join(f"{counts[r]} {r}" for r in REASONS if r in counts)


def _check_missing(index: ClipIndex, columns: set[str], allowed: float) -> None:
    if index.listing.nothing_there:
        raise BadInputError(index.listing.nothing_there)
    missing = len(index.listing.missing_in(columns))
    if missing > allowed * len(index):
        raise CRMTError(
            f"{missing} of {len(index)} clips of {index.name} have no file; data.max_failure_share allows "
            f"{allowed:.0%}. Nothing was decoded. {typed('ingest')} --check lists them: find them, or raise "
            "data.max_failure_share"
        )


def _check_failures(cache: ClipCache, index: ClipIndex, allowed: float) -> None:
    where = f"Each is listed in {cache.folder / QUARANTINE_FILE}"
    retried = f"; {typed('ingest')} --retry tries them again" * bool(RETRIED & set(cache.quarantine["reason"]))
    if cache.failed > allowed * len(index):
        raise CRMTError(
            f"{cache.failed} of {len(index)} clips of {cache.name} could not be decoded ({by_reason(cache)}); "
            f"data.max_failure_share allows {allowed:.0%}. {where}. Mend them{retried}, or raise data.max_failure_share"
        )
    bad = set(cache.quarantine["clip_id"])
    good = index.clips[~index.clips["id"].isin(bad)]
    for split in sorted(set(index.clips["split"])):
        if not cache.counts[split]:
            raise BadInputError(f"no clip of {cache.name}'s {split} split could be decoded. {where}{retried}")
    for modality, missing in cache.missing.items():
        if missing["train"] == cache.counts["train"]:
            raise BadInputError(f"no train clip of {cache.name} has {modality}: leave it out of model.encoders")
    learnt = set(good.loc[good["split"] == "train", "label"])
    lost = [name for label, name in enumerate(cache.classes) if label not in learnt]
    if lost:
        raise BadInputError(
            f"{len(lost)} classes of {cache.name} have no train clip that could be decoded, {lost[0]!r} first. {where}"
        )
