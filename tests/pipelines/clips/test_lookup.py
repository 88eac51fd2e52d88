"""A finished cache outlives its clips, and what does not match is named; without Ray."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from crmt.errors import BadInputError, CRMTError
from pipelines import sources
from pipelines.clips import ingest as clips_ingest
from pipelines.clips.cache import ClipCache, cache_key
from pipelines.clips.ingest import ingest, look_ahead
from pipelines.config.schema import DataConfig
from pipelines.sources.index import ClipIndex
from tests.pipelines import layouts

LIDAR = {"kind": "array", "column": "lidar", "shape": [6, 2], "space": "metres"}


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clips_ingest, "run_pieces", lambda pieces, work, *_: [work(p.task) for p in pieces])


@pytest.fixture
def data(tmp_path: Path) -> DataConfig:
    """Twelve clips of arrays, each of the same size."""
    folder = tmp_path / "set"
    folder.mkdir()
    rows = []
    for i in range(12):
        np.save(folder / f"{i}.npy", np.full((6, 2), i, np.float32))
        rows.append(
            (f"c{i}", f"{i}.npy", "ab"[i % 2], ["train", "train", "train", "validation", "test", "test"][i // 2])
        )
    pd.DataFrame(rows, columns=["path", "lidar", "label", "split"]).to_csv(folder / "manifest.csv", index=False)
    settings = {"dataset": "manifest", "root": folder, "cache": tmp_path / "cache", "modalities": {"lidar": LIDAR}}
    return DataConfig.model_validate(settings)


def opened(data: DataConfig, **more: Any) -> tuple[ClipCache, list[str]]:
    said: list[str] = []
    cache = ingest(sources.load(data), data, ("lidar",), progress=False, say=said.append, **more)
    return cache, said


def folder_of(data: DataConfig) -> Path:
    assert data.root is not None
    return data.root


def edit(data: DataConfig, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    file = folder_of(data) / "manifest.csv"
    change(pd.read_csv(file)).to_csv(file, index=False)


def test_a_finished_cache_opens_when_its_clips_are_deleted(data: DataConfig) -> None:
    first, said = opened(data)
    assert said == [] and first.counts == {"train": 6, "validation": 2, "test": 4}
    for i in range(12):
        (folder_of(data) / f"{i}.npy").unlink()
    again, said = opened(data)
    assert again.key == first.key and again.parts == first.parts
    assert said == [f"12 of 12 clips have no file any more; decoded in {first.folder}"]
    with pytest.raises(BadInputError, match=r"--retry .* 12 clips .* bring the files back"):
        opened(data, retry=True)


def test_files_that_were_moved_copied_or_touched_are_the_same_clips(data: DataConfig, tmp_path: Path) -> None:
    first, _ = opened(data)
    shutil.copytree(folder_of(data), tmp_path / "other")
    for file in (tmp_path / "other").iterdir():
        os.utime(file, ns=(5, 5))
    shutil.rmtree(folder_of(data))
    again, said = opened(data.model_copy(update={"root": tmp_path / "other"}))
    assert again.key == first.key and said == []


def test_absolute_paths_below_the_tables_folder_may_move_with_it(data: DataConfig, tmp_path: Path) -> None:
    edit(data, lambda t: t.assign(path=[str(folder_of(data) / p) for p in t["path"]]))
    first, _ = opened(data)
    assert sources.load(data).clips["id"].tolist() == sorted(f"c{i}" for i in range(12))
    moved = data.model_copy(update={"root": folder_of(data).rename(tmp_path / "moved")})
    edit(moved, lambda t: t.assign(path=[p.replace("/set/", "/moved/") for p in t["path"]]))
    again, said = opened(moved)
    assert again.key == first.key and said == []


def test_a_deleted_clip_does_not_hide_that_another_has_changed(data: DataConfig) -> None:
    first, _ = opened(data)
    (folder_of(data) / "0.npy").unlink()
    np.save(folder_of(data) / "1.npy", np.full((6, 2), 99, np.float32))  # of the same size
    loose = data.model_copy(update={"max_failure_share": 0.5})
    again, said = opened(loose)
    assert again.key != first.key and again.failed == 1
    assert said == [f"decoded anew: the nearest set, {Path(str(first.folder)).name}, differs in "
                    "1 of 12 clips of other content ('c1' for one)"]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.assign(label=t["label"].mask(t.index == 0, "b")), "1 of 12 clips of another label, split or"),
        (lambda t: t[t.index != 3], "1 of 11 clips gone"),
        (lambda t: t.assign(split=t["split"].mask(t.index == 11, "train")), "another label, split or group"),
    ],
)
def test_another_list_never_opens_what_was_decoded_of_the_old_one(
    data: DataConfig, change: Callable[[pd.DataFrame], pd.DataFrame], words: str
) -> None:
    opened(data)
    (folder_of(data) / "5.npy").unlink()
    edit(data, change)
    cache, said = opened(data.model_copy(update={"max_failure_share": 0.5}))
    assert cache.failed == 1 and len(said) == 1 and words in said[0]


def test_other_settings_are_named_and_not_opened(data: DataConfig) -> None:
    opened(data)
    for i in range(12):
        (folder_of(data) / f"{i}.npy").unlink()
    said: list[str] = []
    other = data.model_copy(update={"decode_timeout": 61.0})
    with pytest.raises(CRMTError, match="12 of 12 clips of manifest have no file"):
        ingest(sources.load(other), other, ("lidar",), progress=False, say=said.append)
    assert len(said) == 1 and said[0].endswith("differs in decode_timeout (60.0, now 61.0)")


def test_two_sets_that_fit_and_hold_different_clips_are_not_guessed_between(data: DataConfig) -> None:
    opened(data)
    np.save(folder_of(data) / "1.npy", np.full((6, 2), 99, np.float32))
    opened(data)
    (folder_of(data) / "2.npy").unlink()
    with_one_gone, _ = opened(data.model_copy(update={"max_failure_share": 0.5}))  # 1.npy tells which
    assert with_one_gone.failed == 0
    (folder_of(data) / "1.npy").unlink()
    with pytest.raises(CRMTError, match="two decoded sets fit that hold different ones"):
        opened(data)


def test_a_published_list_whose_clips_are_all_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = layouts.vggsound(tmp_path / "set", each=(20, 5))
    data = DataConfig(dataset="vggsound", root=root, cache=tmp_path / "cache", max_failure_share=1.0)
    index = look_ahead(data)
    assert index is not None
    for file in root.rglob("*.mp4"):
        file.unlink()
    with pytest.raises(BadInputError, match="none of the listed clips was found"):
        look_ahead(data)
    with pytest.raises(BadInputError, match="none of the listed clips was found"):
        sources.load(data)
    gone = sources.load_without_ray(data)
    assert gone is not None and gone.sha256 == index.sha256
    with pytest.raises(BadInputError, match="none of the listed clips was found"):
        ingest(gone, data, progress=False)
    named = replace(index, clips=index.clips.assign(fingerprint=index.clips["id"]))
    assert cache_key(named, data, ["video"]) == cache_key(_elsewhere(named), data, ["video"])


def _elsewhere(index: ClipIndex) -> ClipIndex:
    return replace(index, clips=index.clips.assign(path="/nowhere"))
