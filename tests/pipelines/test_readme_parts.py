"""The README's own encoder and its own modality, as it shows them, trained from files on disk."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from crmt.checkpoint import load_model
from pipelines import train
from pipelines.runs.results import ResultsStore
from tests.pipelines.media import ffmpeg
from tests.pipelines.small import Small

README = (Path(__file__).parents[2] / "README.md").read_text()
LIGHT: dict[str, Any] = {
    "train": {"epochs": 1, "method": "jt"},
    "attack": {"names": ["pgd"], "samples": 6},
    "certify": {"audit_samples": 0},
}


def block(language: str, word: str) -> str:
    """The README's block in that language with that word in it."""
    return next(b for b in re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL) if word in b)


def test_the_readmes_encoder_trains(small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "mynet", raising=False)
    (tmp_path / "mynet.py").write_text(block("python", "class VideoNet"))
    model = yaml.safe_load(block("yaml", "mynet:VideoNet"))["model"]
    config = small.file(tmp_path / "mine.yaml", **LIGHT, model={**model, "features": 16})
    assert train.main(["--config", str(config), "--out", str(tmp_path / "run")]) == 0
    loaded, spec, _ = load_model(tmp_path / "run" / "models" / "train", trust_code=True)
    assert spec.encoders["video"] == {"path": "mynet:VideoNet", "depth": 3}
    assert type(loaded.encoders["video"]).__name__ == "VideoNet"


def test_the_readmes_modality_trains(small: Small, tmp_path: Path) -> None:
    declared = yaml.safe_load(block("yaml", "kind: array"))
    header = block("csv", "path,wav,lidar").splitlines()[0]
    clips = pd.read_csv(small.folder / "manifest.csv")
    ffmpeg("-f", "lavfi", "-i", "sine=frequency=700:sample_rate=8000:duration=1", f"file:{tmp_path}/tone.wav")
    for i, clip in enumerate(clips.itertuples()):
        np.save(tmp_path / f"{i}.npy", np.random.default_rng(i).uniform(0, 40, (1, 8, 8)) + int(str(clip.label)[-1]))
    clips["path"] = [str(small.folder / path) for path in clips.path]
    clips["wav"], clips["lidar"] = "tone.wav", [f"{i}.npy" for i in range(len(clips))]
    clips[header.split(",")].to_csv(tmp_path / "manifest.csv", index=False)
    data = {**declared["data"], "root": str(tmp_path)}
    config = small.file(tmp_path / "mine.yaml", **LIGHT, data=data, model=declared["model"])
    assert train.main(["--config", str(config), "--out", str(tmp_path / "run")]) == 0
    store = ResultsStore(tmp_path / "run" / "results")
    assert {"joint", "video", "audio", "lidar"} == set(store.read("radii").ball)
    assert {"joint", "video", "audio", "lidar"} == set(store.read("curves").ball)
    card = json.loads((tmp_path / "run" / "run.json").read_text())
    assert card["spaces"]["lidar"] == "metres"
