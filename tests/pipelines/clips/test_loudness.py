"""How far apart splits and classes lie in loudness, and one level for all; without Ray."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipelines import ingest as command
from pipelines import sources
from pipelines.clips import ingest as clips_ingest
from pipelines.clips.cache import ClipCache, cache_key
from pipelines.clips.ingest import ingest
from pipelines.clips.loudness import apart, far_apart, mean_loudness
from pipelines.config.schema import DataConfig
from pipelines.sources.index import ClipIndex
from tests.pipelines.decoding.waves import write_wave

AUDIO = {"sample_rate": 8000, "seconds": 1.0, "n_fft": 512, "window": 400, "hop": 166, "mels": 16, "frames": 40}
MEANS = {"audio": {"splits": {"train": -20.0, "test": -26.5}, "classes": {"a": -21.0, "b": -22.0}}}


def index_of(folder: Path, gains: dict[str, float]) -> ClipIndex:
    """Two clips of noise for each of two classes in each split, each split with its gain; one clip is silent."""
    rng, rows = np.random.default_rng(0), []
    folder.mkdir(exist_ok=True)
    for split, gain in gains.items():
        for i in range(4):
            name = f"{split}{i}.wav"
            silent = (split, i) == ("train", 0)
            wave = np.zeros(8000) if silent else rng.normal(0, 0.1, 8000) * 10 ** (gain / 20)
            write_wave(folder / name, wave, 8000)
            rows.append((name, str(folder / name), i % 2, split, name))
    return ClipIndex("m", ("a", "b"), pd.DataFrame(rows, columns=["id", "path", "label", "split", "group"]))


def decoded(index: ClipIndex, folder: Path, monkeypatch: pytest.MonkeyPatch, **audio: Any) -> ClipCache:
    monkeypatch.setattr(clips_ingest, "run_pieces", lambda pieces, work, *_: [work(p.task) for p in pieces])
    data = DataConfig.model_validate({"cache": folder, "audio": {**AUDIO, **audio}})
    return ingest(index, data, ("audio",), progress=False)


def test_splits_that_were_recorded_at_other_levels_are_said_and_can_be_brought_to_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = index_of(tmp_path / "set", {"train": 0, "validation": 0, "test": -18})
    cache = decoded(index, tmp_path / "cache", monkeypatch)
    splits = cache.loudness["audio"]["splits"]
    assert splits["train"] == pytest.approx(-20, abs=0.3) and splits["test"] == pytest.approx(-38, abs=0.3)
    (line,) = far_apart(cache.loudness)
    assert (
        line.startswith("audio: in loudness the splits lie 18.")
        and "data.audio.level=-23" in line
        and "classes" not in line
    )
    level = decoded(index, tmp_path / "cache", monkeypatch, level=-23)
    assert level.key != cache.key and far_apart(level.loudness) == []
    assert set(level.loudness["audio"]["splits"].values()) == {-23.0}


def test_a_level_is_part_of_the_key_and_none_is_as_it_was(tmp_path: Path) -> None:
    index = index_of(tmp_path / "set", {"train": 0, "test": 0})
    keys = [cache_key(index, DataConfig.model_validate({"audio": {**AUDIO, **more}}), ["audio"])
            for more in ({}, {"level": None}, {"level": -23.0}, {"level": -20.0})]  # fmt: skip
    assert keys[0] == keys[1] and len(set(keys)) == 3


def test_words() -> None:
    assert far_apart(MEANS)[0].count("apart") == 1 and "train -20.0, test -26.5 dBFS" in far_apart(MEANS)[0]
    assert far_apart({"audio": {"splits": {"train": -20.0, "test": -25.9}, "classes": {}}}) == []
    assert apart({"train": -3.0}) == apart({}) == ""
    cards = [{"split": "train", "loudness": {"audio": {"0": [2, -40.0], "1": [1, -30.0]}}},
             {"split": "test", "loudness": {"audio": {"1": [1, -50.0]}}},
             {"split": "test", "loudness": {}}]  # fmt: skip
    found = {"splits": {"train": round(-70 / 3, 2), "test": -50.0}, "classes": {"a": -20.0, "b": -40.0}}
    assert mean_loudness(cards, ("a", "b")) == {"audio": found}


def test_check_says_it_once_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    index = index_of(tmp_path / "set", {"train": 0, "validation": 0, "test": -18})
    table = index.clips.assign(path=index.clips["id"], label=[index.classes[i] for i in index.clips["label"]])
    table[["path", "label", "split"]].to_csv(tmp_path / "set" / "manifest.csv", index=False)
    data = {"dataset": "manifest", "root": str(tmp_path / "set"), "cache": str(tmp_path / "cache"), "audio": AUDIO}
    (tmp_path / "c.json").write_text(json.dumps({"data": data, "model": {"encoders": {"audio": "small_resnet"}}}))
    arguments = ["--dataset", "manifest", "--data-root", data["root"], "--config", str(tmp_path / "c.json"), "--check"]
    assert command.main(arguments) == 0
    assert "loudness: said here once the clips are decoded" in capsys.readouterr().out
    monkeypatch.setattr(clips_ingest, "run_pieces", lambda pieces, work, *_: [work(p.task) for p in pieces])
    config = DataConfig.model_validate(data)
    ingest(sources.load(config), config, ("audio",), progress=False)
    assert command.main(arguments) == 0
    assert "loudness of audio: splits 18." in capsys.readouterr().out
