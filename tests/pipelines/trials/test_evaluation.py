"""A saved model is measured as a trial measures its own, by one rank or several; without Ray but for the clips."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pipelines.clips.batches import MemoryClips, Placement
from pipelines.config.run_config import RunConfig
from pipelines.runs.results import ResultsStore
from pipelines.sweeps.single import load_saved
from pipelines.trials.evaluation import SavedModel, evaluate_saved
from pipelines.trials.sessions import LocalSession
from tests.pipelines.small import Decoded, Small
from tests.pipelines.trials.test_measure import Ranks
from tests.pipelines.trials.test_trial import TRIAL, clips_of, given, go


@dataclass
class ThreadSession(LocalSession):
    """One of several ranks, each in a thread."""

    ranks: Ranks | None = field(default=None, kw_only=True)

    def gather(self, value: Any) -> list[Any]:
        assert self.ranks is not None
        return self.ranks.of(self.place.rank)(value)


def evaluated(run: Path, decoded: Decoded, config: RunConfig, saved: SavedModel, world_size: int) -> list[Any]:
    """The reports of all ranks."""
    ranks, reports = Ranks(world_size), {}

    def work(rank: int) -> None:
        place = Placement(rank, world_size)
        clips = MemoryClips(decoded.table, decoded.transform(config), place)
        session = ThreadSession(TRIAL, run, place, ranks=ranks)
        reports[rank] = evaluate_saved(config, given(run, decoded, config), clips, session, saved=saved)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [reports[rank] for rank in range(world_size)]


def final(run: Path, table: str) -> pd.DataFrame:
    found = ResultsStore(run / "results").read(table)
    found = found[found.final & (found.get("split", "test") == "test")]
    keys = [k for k in ("certificate", "attack", "ball", "epsilon", "clip_id", "name", "modality") if k in found]
    return found.sort_values(keys, ignore_index=True)


@pytest.mark.parametrize("method", ["crmt_jt", "jt"])
def test_a_saved_model_has_the_rows_of_its_trial(small: Small, decoded: Decoded, tmp_path: Path, method: str) -> None:
    config = small.config(train={"method": method}, certify={"audit_restarts": 1})
    trial = tmp_path / "trial"
    report = go(trial, decoded, config)
    saved = load_saved(trial / "models" / TRIAL)
    for world_size in (1, 2):
        run = tmp_path / f"by-{world_size}"
        reports = evaluated(run, decoded, config, saved, world_size)
        assert len(reports) == world_size and all(r == reports[0] for r in reports)
        assert reports[0]["finished"] and reports[0]["weights_sha256"] == report["weights_sha256"]
        for table in ("metrics", "curves", "radii"):
            pd.testing.assert_frame_equal(final(run, table), final(trial, table), rtol=0, atol=1e-6)


def test_a_saved_model_that_travelled_is_the_same(small: Small, decoded: Decoded, tmp_path: Path) -> None:
    """One with 1-Lipschitz encoders, whose parametrised layers cannot be pickled as they are."""
    encoders = {"video": "lipschitz_conv", "audio": "lipschitz_conv"}
    config = small.config(model={"encoders": encoders}, certify={"certificates": ["lipschitz"], "audit_samples": 0})
    go(tmp_path, decoded, config)
    from ray import cloudpickle

    saved = cloudpickle.loads(cloudpickle.dumps(load_saved(tmp_path / "models" / TRIAL)))
    batch = next(clips_of(decoded, config).ordered("test"))
    from crmt.checkpoint import load_model

    before = load_model(tmp_path / "models" / TRIAL)[0](batch.inputs).logits
    assert (saved.build()(batch.inputs).logits == before).all()
