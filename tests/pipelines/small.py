"""A small set of real clips and a tiny configuration: what the tests of the sweep run on."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from pipelines.clips.batches import ClipTable, Transform, read_table
from pipelines.clips.cache import ClipCache
from pipelines.clips.ingest import ingest
from pipelines.config.run_config import RunConfig, parse
from pipelines.sources import avdigits, manifest
from pipelines.sources.index import ClipIndex

CLASSES, PER_SPLIT = 3, {"train": 36, "validation": 12, "test": 15}
IMAGES = 240
NAMES = ("video", "audio")

TINY: dict[str, Any] = {
    "data": {
        "dataset": "manifest",
        "mode": "memory",
        "video": {"frames": 2, "size": 32, "crop": 32},
        "audio": {
            "sample_rate": 8000,
            "seconds": 1.0,
            "n_fft": 512,
            "window": 400,
            "hop": 166,
            "mels": 16,
            "fmin": 300,
            "fmax": 3400,
            "offset": 1e-2,
            "frames": 48,
        },
        "augment": {"pad": 2, "flip": False, "time_shift": 2, "gain": 0.1},
    },
    "model": {"encoders": {"video": "small_resnet", "audio": "small_resnet"}, "features": 16},
    "train": {"epochs": 2, "batch_size": 12, "lr": 0.05, "tau_samples": 12, "step2": {"steps": 20}},
    "select": {"steps": 2, "every": 1, "samples": 6},
    "attack": {"epsilons": [0.5, 1, 4], "steps": 3, "samples": 9},
    "certify": {"audit_samples": 6, "audit_steps": 2, "audit_attack": "pgd"},
    "sweep": {"trials": 2, "scheduler": "none", "grace_epochs": 1},
}
"""Trains and measures in about a second."""


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with `changes` laid over it; `search` and `encoders` are replaced whole."""
    result = dict(base)
    for key, value in changes.items():
        inner = isinstance(value, dict) and key not in ("search", "encoders")
        result[key] = merged(result.get(key, {}), value) if inner else value
    return result


@dataclass(frozen=True)
class Small:
    """The clips of `TINY`: a manifest folder on disk, and the cache that is made of it."""

    folder: Path
    cache_root: Path

    def raw(self, **changes: Any) -> dict[str, Any]:
        """`TINY` on these clips, with changes."""
        data = {"root": str(self.folder), "cache": str(self.cache_root)}
        return merged(merged(TINY, {"data": data}), changes)

    def config(self, **changes: Any) -> RunConfig:
        return parse(self.raw(**changes), "a test")

    def file(self, path: Path, **changes: Any) -> Path:
        """The same as a file for --config."""
        path.write_text(json.dumps(self.raw(**changes)))  # JSON is YAML
        return path

    def index(self) -> ClipIndex:
        return manifest.load(self.config().data)

    def decoded(self) -> ClipCache:
        """Needs a running Ray."""
        return ingest(self.index(), self.config().data, NAMES, progress=False)


@dataclass(frozen=True)
class Decoded:
    """The clips as arrays, and how they become a model's inputs."""

    cache: ClipCache
    table: ClipTable

    def transform(self, config: RunConfig) -> Transform:
        return Transform.of(self.cache, config.data)


def make_small(folder: Path, cache_root: Path) -> Small:
    """Digits 0 to 2 of avdigits, as a manifest of real MP4s. Needs a running Ray."""
    index = avdigits.generate(cache_root, images=IMAGES, progress=False)
    clips = index.clips[index.clips.label < CLASSES]
    splits = [split for split, count in PER_SPLIT.items() for _ in range(count)]
    assert len(clips) >= len(splits)
    clips = clips.iloc[: len(splits)].assign(split=splits)
    write_manifest(folder, clips)
    return Small(folder, cache_root)


def write_manifest(folder: Path, clips: pd.DataFrame, more: Sequence[tuple[str, str, str]] = ()) -> None:
    """manifest.csv of clips (id, label, split, path), each path a link in `folder`, and of other rows."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for clip in clips.itertuples():
        link = folder / f"{clip.id}.mp4"
        link.symlink_to(str(clip.path))
        rows.append((link.name, f"digit {clip.label}", clip.split))
    pd.DataFrame([*rows, *more], columns=["path", "label", "split"]).to_csv(folder / "manifest.csv", index=False)


def make_decoded(small: Small) -> Decoded:
    cache = small.decoded()
    return Decoded(cache, read_table(cache, NAMES))


def one_line(text: str) -> str:
    """The single line of an error, without a traceback; clips may have been counted before it."""
    lines = [line for line in text.strip().splitlines() if not line.startswith("Decoding")]
    assert len(lines) == 1 and "Traceback" not in text, text
    return lines[0]


Main = Callable[[list[str]], int]
