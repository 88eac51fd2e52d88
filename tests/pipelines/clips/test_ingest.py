"""Clips to Parquet and back: what is stored, what is quarantined, resuming after a kill, and what names a cache."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image

from crmt.errors import BadInputError, CRMTError
from pipelines import ingest as ingest_module
from pipelines.clips import ingest as clips_ingest
from pipelines.clips.cache import cache_key, load_cache
from pipelines.clips.ingest import ingest
from pipelines.config.schema import DataConfig
from pipelines.decoding.clip import decode_clip
from pipelines.sources import manifest
from pipelines.sources.index import ClipIndex, Listing
from tests.pipelines.media import bad_files, make_media

CONFIG: dict[str, Any] = {
    "dataset": "manifest",
    "max_failure_share": 0.5,
    "video": {"frames": 2, "size": 32, "crop": 32},
    "audio": {"sample_rate": 8000, "seconds": 1.0, "n_fft": 512, "window": 400, "hop": 166, "mels": 16, "frames": 40},
}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> ClipIndex:
    """Nine good clips (6 train, 1 validation, 2 test) and the four bad ones, in train."""
    folder = tmp_path_factory.mktemp("clips")
    rows = []
    for i in range(9):
        path = make_media(folder / f"good{i}.mp4", width=40 + 8 * i, tone=300.0 + 90 * i, seconds=1)
        rows.append((path.name, str(path), i % 2, ["train", "validation", "test"][max(0, (i - 4) // 2)], str(i)))
    for reason, path in bad_files(folder).items():
        rows.append((path.name, str(path), 0, "train", reason))
    return ClipIndex("manifest", ("dog", "cat"), pd.DataFrame(rows, columns=["id", "path", "label", "split", "group"]))


def config(folder: Path, **changes: Any) -> DataConfig:
    return DataConfig.model_validate({**CONFIG, "cache": folder, **changes})


def rows_of(parts: Sequence[str]) -> list[dict[str, Any]]:
    return [row for part in parts for row in pq.read_table(part).to_pylist()]


def test_good_clips_are_stored_and_bad_ones_quarantined(ray_cluster: None, clips: ClipIndex, tmp_path: Path) -> None:
    data = config(tmp_path)
    cache = ingest(clips, data, progress=False)
    quarantine = cache.quarantine.set_index("clip_id")["reason"].to_dict()
    expected = {"truncated.mp4": "truncated", "silent.mp4": "no_audio", "empty.mp4": "empty", "text.mp4": "not_media"}
    assert quarantine == expected and cache.failed == 4 and cache.quarantine["detail"].ne("").all()
    listed = pd.read_csv(str(cache.folder / "quarantine.csv"))
    assert dict(zip(listed["clip_id"], listed["reason"], strict=True)) == expected

    rows = {row["id"]: row for row in rows_of(cache.parts)}
    good = clips.clips[~clips.clips["id"].isin(expected)]
    assert cache.counts == good["split"].value_counts().to_dict() and len(rows) == len(good) == 9
    for clip in good.itertuples():
        row = rows[clip.id]
        assert (row["label"], row["split"], row["group"]) == (clip.label, clip.split, clip.group)
        decoded = decode_clip(Path(str(clip.path)), data.video, data.audio, 30)
        frames = np.stack([np.asarray(Image.open(io.BytesIO(jpeg))) for jpeg in row["video"]])
        assert decoded.frames is not None and decoded.audio is not None
        assert frames.shape == (2, 32, 32, 3) and np.abs(frames.astype(int) - decoded.frames).mean() < 4
        assert np.array_equal(np.frombuffer(row["audio"], "<f2").reshape(1, 16, 40), decoded.audio)

    metadata = pq.read_schema(cache.parts[0]).metadata
    assert json.loads(metadata[b"video"]) == [2, 3, 32, 32] and json.loads(metadata[b"audio"]) == [1, 16, 40]
    assert cache.nbytes == 9 * (2 * 3 * 32 * 32 + 2 * 16 * 40)
    assert cache.clips_sha256 == clips.sha256 and cache.classes == ("dog", "cat")
    assert all(len({row["split"] for row in rows_of([part])}) == 1 for part in cache.parts)


def test_statistics_are_those_of_train(ray_cluster: None, clips: ClipIndex, tmp_path: Path) -> None:
    data = config(tmp_path)
    cache = ingest(clips, data, progress=False)
    bad = set(cache.quarantine["clip_id"])
    train = [r for r in clips.clips.itertuples() if r.split == "train" and r.id not in bad]
    decoded = [decode_clip(Path(str(r.path)), data.video, data.audio, 30) for r in train]
    video = np.stack([d.frames for d in decoded]).reshape(-1, 3) / 255
    audio = np.stack([d.audio for d in decoded]).astype(float)
    np.testing.assert_allclose(cache.modalities["video"].mean, video.mean(0), rtol=1e-9)
    np.testing.assert_allclose(cache.modalities["video"].std, video.std(0), rtol=1e-9)
    np.testing.assert_allclose(cache.modalities["audio"].mean, [audio.mean()], rtol=1e-9)
    np.testing.assert_allclose(cache.modalities["audio"].std, [audio.std()], rtol=1e-6)


def test_a_finished_cache_is_opened_and_a_half_written_one_goes_on(
    ray_cluster: None, clips: ClipIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clips_ingest, "_SHARD_CLIPS", 3)
    cache = ingest(clips, config(tmp_path), progress=False)
    folder = Path(str(cache.folder))
    files = [*map(Path, cache.parts), folder / "cache.json"]
    before, times = rows_of(cache.parts), {f: f.stat().st_mtime_ns for f in files}
    card = (folder / "cache.json").read_bytes()
    ingest(clips, config(tmp_path), progress=False)
    assert {f: f.stat().st_mtime_ns for f in files} == times

    # as after a kill: no card of the whole, one part without its card, one lost, a half-written leftover
    (folder / "cache.json").unlink()
    (folder / "part-00001.json").unlink()
    (folder / "part-00001.parquet").write_bytes(b"half")
    (folder / "part-00002.json").unlink()
    (folder / "part-00002.parquet").unlink()
    (folder / ".abc.tmp").write_bytes(b"half")
    with pytest.raises(CRMTError, match="no finished set"):
        load_cache(cache.folder)
    again = ingest(clips, config(tmp_path), progress=False)
    assert rows_of(again.parts) == before and (folder / "cache.json").read_bytes() == card
    for number in (0, 3):
        part = folder / f"part-{number:05d}.parquet"
        assert part.stat().st_mtime_ns == times[part]
    assert not list(folder.glob("*.tmp")) and not list(folder.glob(".*.tmp"))

    (folder / "part-00000.parquet").unlink()
    with pytest.raises(CRMTError, match="Delete the folder"):
        load_cache(cache.folder)


def test_too_many_failures_stop_with_the_counts(ray_cluster: None, clips: ClipIndex, tmp_path: Path) -> None:
    for _ in range(2):  # also when the cache is already there
        with pytest.raises(CRMTError) as caught:
            ingest(clips, config(tmp_path, max_failure_share=0.3), progress=False)
        message = str(caught.value)
        assert "4 of 13 clips" in message and "1 truncated" in message and "1 not_media" in message
        assert "quarantine.csv" in message and "30%" in message and "\n" not in message
    assert ingest(clips, config(tmp_path), progress=False).failed == 4


def test_too_many_clips_without_a_file_stop_before_anything_is_decoded(
    ray_cluster: None, clips: ClipIndex, tmp_path: Path
) -> None:
    index = replace(clips, listing=Listing(missing=frozenset({"good1.mp4"})))
    with pytest.raises(CRMTError, match=r"1 of 13 clips of manifest have no file; .* allows 5%\. Nothing was decoded"):
        ingest(index, config(tmp_path, max_failure_share=0.05), progress=False)
    assert not list(tmp_path.rglob("*"))


def test_clips_that_took_too_long_are_tried_again_with_more_time(
    ray_cluster: None, clips: ClipIndex, tmp_path: Path
) -> None:
    hurried = config(tmp_path, max_failure_share=1.0, decode_timeout=0.001)
    for _ in range(2):  # also when the cache is already there
        with pytest.raises(BadInputError, match="no clip of manifest's test split"):
            ingest(clips, hurried, progress=False)
    cache = ingest(clips, config(tmp_path), progress=False)
    assert cache.failed == 4 and "timeout" not in set(cache.quarantine["reason"])


def test_a_class_or_a_split_of_which_nothing_is_left(ray_cluster: None, clips: ClipIndex, tmp_path: Path) -> None:
    table = clips.clips
    loose = config(tmp_path, max_failure_share=1.0)
    gone = table.assign(path=table["path"].mask((table["label"] == 1) & (table["split"] == "train"), "/nowhere.mp4"))
    with pytest.raises(BadInputError, match="'cat'"):
        ingest(ClipIndex("manifest", clips.classes, gone), loose, progress=False)
    gone = table.assign(path=table["path"].mask(table["split"] == "test", "/nowhere.mp4"))
    with pytest.raises(BadInputError, match="test split"):
        ingest(ClipIndex("manifest", clips.classes, gone), loose, progress=False)


def test_one_modality_alone(ray_cluster: None, clips: ClipIndex, tmp_path: Path) -> None:
    cache = ingest(clips, config(tmp_path), ("video",), progress=False)
    assert "silent.mp4" not in set(cache.quarantine["clip_id"]) and set(cache.modalities) == {"video"}
    assert "audio" not in pq.read_schema(cache.parts[0]).names
    with pytest.raises(BadInputError, match="smell"):
        ingest(clips, config(tmp_path), ("video", "smell"), progress=False)


def test_the_key_follows_everything_that_decides_the_rows(clips: ClipIndex, tmp_path: Path) -> None:
    both = ("video", "audio")

    def key(**changes: Any) -> str:
        return cache_key(clips, config(tmp_path, **changes), both)

    video = {"frames": 3, "candidates": 3, "size": 40, "jpeg_quality": 90, "max_pixels": 1000}
    audio = {"sample_rate": 9000, "seconds": 2.0, "n_fft": 1024, "window": 300, "hop": 100, "mels": 20}
    audio |= {"fmin": 30.0, "fmax": 3000.0, "offset": 1e-3, "frames": 41}
    keys = [
        key(),
        cache_key(clips, config(tmp_path), ("video",)),
        cache_key(clips.limited(3, 0), config(tmp_path), both),
    ]
    keys += [key(video={**CONFIG["video"], name: value}) for name, value in video.items()]
    keys += [key(audio={**CONFIG["audio"], name: value}) for name, value in audio.items()]
    keys.append(key(decode_timeout=61.0))  # it decides who is quarantined
    assert len(set(keys)) == len(keys) == 3 + 5 + 10 + 1
    # nothing stored depends on these
    same = [key(), key(video={**CONFIG["video"], "crop": 28}), key(mode="stream"), key(max_failure_share=0.1)]
    assert len(set(same)) == 1


def test_the_key_follows_the_files(clips: ClipIndex, tmp_path: Path) -> None:
    path = shutil.copy(clips.clips["path"].iloc[1], tmp_path / "one.mp4")
    index = ClipIndex("manifest", clips.classes, clips.clips.assign(path=str(path)))
    both, data = ("video", "audio"), config(tmp_path)
    keys = [cache_key(index, data, both)]
    os.utime(path, ns=(1, 1))
    assert cache_key(index, data, both) == keys[0]  # a copy with another time is the same clip
    content = bytearray(Path(path).read_bytes())
    content[-1] ^= 1
    Path(path).write_bytes(content)  # of the same size
    keys.append(cache_key(index, data, both))
    with Path(path).open("ab") as file:
        file.write(b"more")
    os.utime(path, ns=(1, 1))
    keys.append(cache_key(index, data, both))
    Path(path).unlink()
    keys.append(cache_key(index, data, both))
    assert len(set(keys)) == 4
    # where the content has a fingerprint, the files say nothing
    named = ClipIndex("avdigits", index.classes, index.clips.assign(fingerprint="recipe"))
    before = cache_key(named, data, both)
    shutil.copy(clips.clips["path"].iloc[0], path)
    assert cache_key(named, data, both) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "avdigit"], "Did you mean 'avdigits'"),
        (["--dataset", "vggsound", "--config", "C"], "--data-root"),
    ],
)
def test_the_command_says_what_is_wrong_in_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "c.yaml").write_text("data: {dataset: vggsound}\n")
    arguments = [str(tmp_path / "c.yaml") if a == "C" else a for a in arguments]
    script = Path(ingest_module.__file__)
    done = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True)
    assert done.returncode == 2 and message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and "Traceback" not in done.stderr


def test_the_command_reads_the_lists_once_and_prints_what_came_out(
    ray_cluster: None,
    clips: ClipIndex,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    reads, load = [], manifest.load
    counted = replace(manifest.SOURCE, load=lambda data: reads.append(1) or load(data))
    monkeypatch.setattr(manifest, "SOURCE", counted)
    table = clips.clips.assign(label=[clips.classes[i] for i in clips.clips["label"]])
    table[["path", "label", "split"]].to_csv(tmp_path / "manifest.csv", index=False)
    sections = {"data": {**CONFIG, "cache": str(tmp_path)}}
    (tmp_path / "c.json").write_text(json.dumps(sections))  # JSON is YAML
    arguments = ["--dataset", "manifest", "--data-root", str(tmp_path), "--config", str(tmp_path / "c.json")]
    assert ingest_module.main(arguments) == 0 and len(reads) == 1
    printed = capsys.readouterr()
    assert "1 truncated" in printed.out and "9 clips decoded" in printed.out
    assert "13 of 13 clips" in printed.err
    assert ingest_module.main([*arguments, "--set", "data.max_failure_share=0.1"]) == 1
    assert "4 of 13 clips" in capsys.readouterr().err


def test_what_the_machine_failed_can_be_tried_again(ray_cluster: None, clips: ClipIndex, tmp_path: Path) -> None:
    """The key of the cache is that of the clips: that a file can be read now does not change it."""
    table = clips.clips[clips.clips["id"].str.startswith("good")].assign(fingerprint="recipe")
    gone = tmp_path / "gone.mp4"
    gone.mkdir()
    table.loc[table["id"] == "good0.mp4", "path"] = str(gone)
    index, data = ClipIndex("manifest", clips.classes, table), config(tmp_path / "cache", max_failure_share=0.0)
    for retry in (False, False, True):  # in vain
        with pytest.raises(CRMTError, match=r"1 unreadable.*ingest\.py --retry"):
            ingest(index, data, progress=False, retry=retry)
    gone.rmdir()
    shutil.copy(clips.clips.set_index("id")["path"]["good0.mp4"], gone)
    with pytest.raises(CRMTError, match="1 unreadable"):
        ingest(index, data, progress=False)
    cache = ingest(index, data, progress=False, retry=True)
    assert cache.failed == 0 and sum(cache.counts.values()) == 9
    assert {row["id"] for row in rows_of(cache.parts)} == set(table["id"])
    parts = {part: Path(part).stat().st_mtime_ns for part in cache.parts}
    again = ingest(index, data, progress=False, retry=True)
    assert {part: Path(part).stat().st_mtime_ns for part in again.parts} == parts  # nothing to try again


def test_a_modality_that_no_train_clip_has_is_refused(ray_cluster: None, tmp_path: Path) -> None:
    rows = []
    for i in range(4):
        path = make_media(tmp_path / f"{i}.mp4", tone=None if i < 2 else 500.0, seconds=1)
        rows.append((path.name, str(path), i % 2, "train" if i < 2 else "test", str(i)))
    index = ClipIndex("manifest", ("a", "b"), pd.DataFrame(rows, columns=["id", "path", "label", "split", "group"]))
    data = config(tmp_path / "cache", missing_modality="keep")
    with pytest.raises(BadInputError, match=r"no train clip .* has audio: leave it out of model\.encoders"):
        ingest(index, data, progress=False)
    assert ingest(index, data, ("video",), progress=False).counts["train"] == 2


def test_a_part_of_train_mixes_the_classes() -> None:
    """Ids that begin with the class, as UCF101's do: streamed batches are shuffled over a few parts only."""
    rows = [(f"{label:02d}/{i:03d}", "x", label, split, f"{split}{label}/{i}")
            for split in ("train", "test") for label in range(10) for i in range(100)]  # fmt: skip
    table = pd.DataFrame(rows, columns=["id", "path", "label", "split", "group"])
    table["id"] = table["split"] + table["id"]
    index = ClipIndex("manifest", tuple("abcdefghij"), table)
    shards = clips_ingest._shards(index)
    assert sorted(i for shard in shards for i in shard["id"]) == sorted(table["id"])
    for shard in shards:
        (split,) = set(shard["split"])
        assert shard["label"].nunique() >= 8 if split == "train" and len(shard) == 64 else split
    test = pd.concat([shard for shard in shards if shard["split"].iloc[0] == "test"])
    assert test["id"].tolist() == sorted(test["id"])  # evaluation keeps the order of the index
