"""A run that was moved or copied goes on where its folder lies now, whatever Tune has pickled of it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from pyarrow.fs import LocalFileSystem
from ray import cloudpickle, tune
from ray.tune.experiment import Experiment
from ray.tune.search import BasicVariantGenerator, SearchAlgorithm
from ray.tune.search.optuna import OptunaSearch
from ray.tune.search.search_generator import SearchGenerator

from pipelines.config.run_config import parse
from pipelines.runs.results import ResultsStore
from pipelines.sweeps.recorder import Recorder
from pipelines.sweeps.tuner import TUNE, _relocate
from tests.pipelines.small import TINY


def trial_in(run: Path, trial_id: str) -> SimpleNamespace:
    """As Tune shows a trial to its callbacks."""
    storage = SimpleNamespace(storage_filesystem=LocalFileSystem())
    path = str(run / "tune" / trial_id)
    return SimpleNamespace(trial_id=trial_id, config={"train.lr": 0.1}, path=path, storage=storage)


def statuses(run: Path) -> dict[str, str]:
    trials = ResultsStore(run / "results").read("trials")
    return dict(zip(trials.trial_id, trials.status, strict=True))


def test_rows_follow_a_run_that_was_moved_or_copied(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    recorder = Recorder(parse(TINY, "a test"), {"clips_sha256": "0" * 64})
    first = trial_in(here, "a")
    recorder.on_trial_start(0, [first], first)
    kept = cloudpickle.dumps(recorder)
    assert str(here).encode() not in kept
    restored = cloudpickle.loads(kept)
    moved = trial_in(there, "a")
    restored.on_trial_start(0, [moved], moved)
    restored.on_trial_result(1, [moved], moved, {"epoch": 2, "finished": True, "time_total_s": 1.0})
    assert statuses(there) == {"a": "finished"} and statuses(here) == {"a": "running"}


@pytest.mark.parametrize("algorithm", ["random", "optuna"])
def test_new_trials_follow_it_too(tmp_path: Path, algorithm: str) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    space = {"train.lr": tune.uniform(0, 1)}

    def search() -> SearchAlgorithm:
        if algorithm == "random":
            return BasicVariantGenerator()
        searcher = OptunaSearch()
        searcher.set_search_properties("selected", "max", space)
        return SearchGenerator(searcher)

    tune.register_trainable("moved", lambda config: None)
    begun = search()
    config = space if algorithm == "random" else {}
    begun.add_configurations([Experiment(TUNE, "moved", config=config, num_samples=3, storage_path=str(here))])
    first = begun.next_trial()
    assert first is not None and first.storage.storage_fs_path == str(here)
    begun.save_to_dir(str(here / TUNE), "2026-01-02")
    here.rename(there)
    _relocate(there)
    restored = search()
    restored.restore_from_dir(str(there / TUNE))
    second = restored.next_trial()
    assert second is not None and second.storage.storage_fs_path == str(there)
    assert not here.exists()
