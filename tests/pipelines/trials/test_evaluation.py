"""A saved model is measured as a trial measures its own, by one rank or several; without Ray."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from ray import cloudpickle

from crmt.checkpoint import load_model
from crmt.modality import Modality
from pipelines.clips.batches import ClipTable, MemoryClips, Placement, Transform
from pipelines.config.run_config import RunConfig, parse
from pipelines.runs.results import ResultsStore
from pipelines.runs.run_folder import TrialInput
from pipelines.sweeps.single import load_saved
from pipelines.trials.evaluation import SavedModel, evaluate_saved
from pipelines.trials.sessions import LocalSession
from pipelines.trials.trial import run_trial
from tests.pipelines.small import TINY, merged
from tests.pipelines.trials.test_measure import Ranks

TRIAL, CLASSES, SIDE = "t0", ("a", "b", "c"), 16
VIDEO: dict[str, Any] = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "box": (0.0, 1.0), "space": "pixels in [0, 1]"}
AUDIO: dict[str, Any] = {"mean": (0.0,), "std": (1.0,), "box": None, "space": "standardised log-mel"}
MODALITIES = (
    Modality(name="video", shape=(2, 3, SIDE, SIDE), channel_axis=1, **VIDEO),
    Modality(name="audio", shape=(1, 16, 16), channel_axis=0, **AUDIO),
)
COUNTS = {"train": 24, "validation": 6, "test": 11}


def config_of(**changes: Any) -> RunConfig:
    data = {"video": {"size": SIDE, "crop": SIDE}, "augment": {"pad": 0, "time_shift": 0, "gain": 0.0}}
    return parse(merged(merged(TINY, {"data": data}), changes), "a test")


def table() -> ClipTable:
    """Clips whose brightness and loudness tell the class."""
    rng, n = np.random.default_rng(0), sum(COUNTS.values())
    labels = np.arange(n) % len(CLASSES)
    splits = np.array([split for split, count in COUNTS.items() for _ in range(count)])
    video = rng.integers(0, 100, (n, 2, 3, SIDE, SIDE)) + 70 * labels[:, None, None, None, None]
    audio = rng.normal(0, 1, (n, 1, 16, 16)) + labels[:, None, None, None]
    arrays = {"video": video.astype(np.uint8), "audio": audio.astype(np.float16)}
    return ClipTable(np.array([f"{i:03d}" for i in range(n)]), labels, splits, arrays)


def clips_of(config: RunConfig, place: Placement | None = None) -> MemoryClips:
    return MemoryClips(table(), Transform(config.data), place or Placement())


def trained(run: Path, config: RunConfig) -> dict[str, Any]:
    return run_trial(config, TrialInput(run, MODALITIES, CLASSES, {}), clips_of(config), LocalSession(TRIAL, run))


@dataclass
class ThreadSession(LocalSession):
    """One of several ranks, each in a thread."""

    ranks: Ranks | None = field(default=None, kw_only=True)

    def gather(self, value: Any) -> list[Any]:
        assert self.ranks is not None
        return self.ranks.of(self.place.rank)(value)

    def collect(self, value: Any) -> list[Any]:
        gathered = self.gather(value)
        return gathered if self.place.rank == 0 else []

    def shared(self, value: Any) -> Any:
        return self.gather(value)[0]

    def progress(self, phase: str, fraction: float) -> None:
        if self.place.rank == 0:  # as of workers: the file is one
            super().progress(phase, fraction)

    def report(self, metrics: Mapping[str, Any], state: Mapping[str, Any] | None) -> None:
        if self.place.rank == 0:
            super().report(metrics, state)


def evaluated(run: Path, config: RunConfig, saved: SavedModel, world_size: int) -> list[dict[str, Any]]:
    """The reports of all ranks."""
    ranks, reports = Ranks(world_size), {}

    def work(rank: int) -> None:
        place = Placement(rank, world_size)
        session = ThreadSession(TRIAL, run, place, ranks=ranks)
        given = TrialInput(run, MODALITIES, CLASSES, {})
        reports[rank] = evaluate_saved(config, given, clips_of(config, place), session, saved=saved)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [reports[rank] for rank in range(world_size)]


def final(run: Path, table: str) -> pd.DataFrame:
    found = ResultsStore(run / "results").read(table)
    found = found[found.final & (found.split == "test")] if "split" in found else found[found.final]
    keys = [k for k in ("certificate", "attack", "ball", "epsilon", "clip_id", "name", "modality") if k in found]
    return found.sort_values(keys, ignore_index=True)


@pytest.mark.parametrize("method", ["crmt_jt", "jt"])
def test_a_saved_model_has_the_rows_of_its_trial(tmp_path: Path, method: str) -> None:
    smoothing = {"sigmas": {"video": 0.2, "audio": 0.2}, "n0": 4, "n": 10, "samples": 7}
    certify = {"audit_restarts": 1, "certificates": ["estimate", "smoothing"], "smoothing": smoothing}
    config = config_of(train={"method": method}, certify=certify)
    trial = tmp_path / "trial"
    report = trained(trial, config)
    saved = load_saved(trial / "models" / TRIAL)
    for world_size in (1, 2):
        run = tmp_path / f"by-{world_size}"
        reports = evaluated(run, config, saved, world_size)
        assert len(reports) == world_size and all(r == reports[0] for r in reports)
        assert reports[0]["finished"] and reports[0]["weights_sha256"] == report["weights_sha256"]
        for name in ("metrics", "curves", "radii"):
            pd.testing.assert_frame_equal(final(run, name), final(trial, name), check_dtype=False, rtol=0, atol=1e-6)
        assert len(final(run, "radii")) == 3 * (COUNTS["test"] + 7)


def test_a_saved_model_that_travelled_is_the_same(tmp_path: Path) -> None:
    """One with 1-Lipschitz encoders, whose parametrised layers cannot be pickled as they are."""
    encoders = {"video": "lipschitz_conv", "audio": "lipschitz_conv"}
    config = config_of(model={"encoders": encoders}, certify={"certificates": ["lipschitz"], "audit_samples": 0})
    trained(tmp_path, config)
    saved = cloudpickle.loads(cloudpickle.dumps(load_saved(tmp_path / "models" / TRIAL)))
    batch = next(clips_of(config).ordered("test"))
    before = load_model(tmp_path / "models" / TRIAL)[0](batch.inputs).logits
    assert (saved.build()(batch.inputs).logits == before).all()
