"""Search algorithms, schedulers, loggers and data sets of others: refused in one line, or run as ours are."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, HyperBandScheduler, MedianStoppingRule
from ray.tune.search import BasicVariantGenerator, ConcurrencyLimiter

from crmt.errors import BadInputError
from pipelines import sources, sweep
from pipelines.config.run_config import RunConfig, parse
from pipelines.config.schema import DataConfig
from pipelines.runs.results import ResultsStore
from pipelines.sweeps.algorithms import algorithm_of
from pipelines.sweeps.loggers import loggers_of
from pipelines.sweeps.run import run_sweep
from pipelines.sweeps.schedulers import scheduler_of
from pipelines.sweeps.search import check_search, search_space
from tests.pipelines.small import Small, one_line

SEARCH = {"train.lr": {"uniform": [0.01, 0.1]}}
MINE = """
from ray import tune
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import SearchAlgorithm, Searcher

from pipelines.sources import Source, manifest


class Halving(Searcher):
    def __init__(self, start=0.08, metric=None, mode=None):
        super().__init__(metric, mode)
        self.rate = start

    def set_search_properties(self, metric, mode, config, **spec):
        return True

    def suggest(self, trial_id):
        self.rate /= 2
        return {"train.lr": self.rate}

    def on_trial_complete(self, trial_id, result=None, error=False):
        pass

    def save(self, path):
        pass

    def restore(self, path):
        pass


class Unlimited(SearchAlgorithm):
    pass


class Impatient(FIFOScheduler):
    def __init__(self, epochs):
        super().__init__()
        self.epochs = epochs

    def on_trial_result(self, controller, trial, result):
        return self.STOP if result["epoch"] >= self.epochs else self.CONTINUE


class Diary(tune.Callback):
    def __init__(self, file):
        self.file = file

    def on_trial_result(self, iteration, trials, trial, result, **info):
        with open(self.file, "a") as out:
            out.write(f"{trial.trial_id} {result['epoch']}\\n")


class Clips:
    takes = ("lists",)

    def load(self, data):
        return manifest.load(data)


class Nonsense:
    def load(self, data):
        return []


number = 3
declared = Source(manifest.load, makes_clips=True)
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of a user's own, in a folder outside the project."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "myparts.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "myparts", raising=False)
    return "myparts"


def config_of(search: dict[str, Any] | None = None, **section: Any) -> RunConfig:
    return parse({"train": {"epochs": 30}, "search": SEARCH if search is None else search, "sweep": section}, "a test")


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"algorithm": "optun"}, "sweep.algorithm: no search algorithm 'optun'"),
        ({"algorithm": "optun"}, "Did you mean 'optuna'"),
        ({"algorithm": "hyperopt"}, "HyperOpt must be installed"),
        ({"algorithm": "optuna", "algorithm_options": {"study": "x"}}, "optuna takes no 'study'. Did you mean 'study_"),
        ({"algorithm": "optuna", "algorithm_options": {"metric": "x"}}, "metric is set by the sweep"),
        ({"algorithm": "points", "algorithm_options": {"study_name": "x"}}, "takes no effect with points"),
        ({"algorithm": "nowhere:Search"}, "there is no module 'nowhere'"),
        ({"algorithm": "myparts:number"}, "gave int, not a Searcher"),
        ({"algorithm": "myparts:Halving", "algorithm_options": {"begin": 1}}, "takes no 'begin'"),
        ({"algorithm": "myparts:Halving", "start_with": [{"train.lr": 0.05}]}, "sweep.start_with takes no effect"),
        ({"algorithm": "myparts:Unlimited", "max_concurrent": 1}, "takes no max_concurrent"),
        ({"scheduler": "hyperbande"}, "Did you mean 'hyperband'"),
        ({"scheduler": "none", "scheduler_options": {"brackets": 2}}, "takes no effect with none"),
        ({"scheduler": "asha", "scheduler_options": {"bracket": 2}}, "Did you mean 'brackets'"),
        ({"scheduler": "asha", "scheduler_options": {"time_attr": "x"}}, "time_attr is set by the sweep"),
        ({"scheduler": "asha", "scheduler_options": {"brackets": -1}}, "asha cannot be made"),
        ({"scheduler": "pbt", "workers": 2}, "needs sweep.workers 1"),
        ({"scheduler": "myparts:Diary"}, "myparts:Diary cannot be made"),
        ({"scheduler": "myparts:number"}, "not a TrialScheduler"),
        ({"loggers": ["jsn"]}, "Did you mean 'json'"),
        ({"loggers": ["wandb"]}, "it needs the package wandb"),
        ({"loggers": [{"project": "mine"}]}, "{path: package.module:Name"),
        ({"loggers": [{"path": "csv", "colour": 1}]}, "csv takes no 'colour'"),
        ({"loggers": ["myparts:Clips"]}, "not a ray.tune.Callback"),
    ],
)
def test_what_cannot_be_had_is_refused_in_one_line(mine: str, section: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInputError) as caught:
        check_search(config_of(**section))
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("algorithm", ["optuna", "random", "variant", "myparts:Halving"])
def test_no_algorithm_runs_more_trials_at_once_than_it_may(mine: str, algorithm: str) -> None:
    config = config_of(algorithm="ray.tune.search:BasicVariantGenerator" if algorithm == "variant" else algorithm)
    check_search(config)
    found = algorithm_of(config, 3)
    assert isinstance(found, BasicVariantGenerator | ConcurrencyLimiter) and found.max_concurrent == 3


def test_schedulers_count_epochs_and_never_cut_the_last_validation(mine: str) -> None:
    def made(**section: Any) -> Any:
        config = config_of(**section)
        check_search(config)
        return scheduler_of(config, search_space(config))

    asha = made(scheduler="asha", scheduler_options={"brackets": 2})
    assert isinstance(asha, ASHAScheduler) and (asha._time_attr, asha._max_t) == ("epoch", 25)
    assert len(asha._brackets) == 2
    hyperband = made(scheduler="hyperband", scheduler_options={"max_t": 9})
    assert isinstance(hyperband, HyperBandScheduler) and hyperband._max_t_attr == 9 and not hyperband._stop_last_trials
    median = made(scheduler="median_stopping_rule", grace_epochs=7)
    assert isinstance(median, MedianStoppingRule) and median._grace_period == 7 and median._time_attr == "epoch"
    assert set(made(scheduler="pbt")._hyperparam_mutations) == {"train.lr"}
    assert made(scheduler="none") is None
    own = made(scheduler="myparts:Impatient", scheduler_options={"epochs": 1})
    assert isinstance(own, FIFOScheduler) and own.epochs == 1


def test_loggers_are_those_that_are_named(mine: str, tmp_path: Path) -> None:
    assert loggers_of(config_of()) == []
    names = ["json", {"path": "myparts:Diary", "file": str(tmp_path / "d")}]
    assert [type(x).__name__ for x in loggers_of(config_of(loggers=names))] == ["JsonLoggerCallback", "Diary"]


def test_a_data_set_of_the_users_own(mine: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [f"{i}.mp4,{'cat' if i % 2 else 'dog'},{'test' if i > 7 else 'train'}" for i in range(10)]
    (tmp_path / "manifest.csv").write_text("path,label,split\n" + "\n".join(rows) + "\n")
    root = {"root": tmp_path, "validation_share": 0.3}
    found = sources.load_without_ray(DataConfig(dataset="myparts:Clips", **root))
    assert found is not None and found.sha256 == sources.load(DataConfig(dataset="manifest", **root)).sha256
    sources.load(DataConfig(dataset="myparts:Clips", lists={"all": "x"}, **root))  # it says that it takes them
    assert sources.load_without_ray(DataConfig(dataset="myparts:declared", **root)) is None
    for dataset, message in (
        ("myparts:number", "it has no load"),
        ("myparts:Nonsense", "load gave list"),
        ("myparts:Clip", "Did you mean 'Clips'"),
        ("nowhere:Clips", "no module 'nowhere'"),
    ):
        with pytest.raises(BadInputError, match=message):
            sources.load(DataConfig(dataset=dataset, **root))
    with pytest.raises(BadInputError, match="only ucf101 has three splits"):
        sources.load(DataConfig(dataset="myparts:Clips", split=2, **root))
    assert sweep.main(["--dataset", "myparts:Clips", "--data-root", str(tmp_path)]) == 2
    assert "needs --config FILE" in one_line(capsys.readouterr().err)


LIGHT: dict[str, Any] = {
    "attack": {"names": ["fgm"], "balls": ["joint"], "epsilons": [1]},
    "certify": {"audit_samples": 0},
    "select": {"metric": "accuracy", "every": 1},
}


def test_a_sweep_of_parts_of_the_users_own(mine: str, small: Small, out: Path) -> None:
    diary = out.with_name("diary")
    section = {
        "algorithm": "myparts:Halving",
        "algorithm_options": {"start": 0.04},
        "scheduler": "myparts:Impatient",
        "scheduler_options": {"epochs": 2},
        "loggers": [{"path": "myparts:Diary", "file": str(diary)}],
        "trials": 2,
    }
    changes: dict[str, Any] = {**LIGHT, "data": {"dataset": "myparts:Clips"}, "train": {"epochs": 2, "method": "jt"}}
    config = small.config(**changes, search={"train.lr": {"uniform": [0.001, 0.1]}}, sweep=section)
    with pytest.raises(Exception, match="no trial finished"):  # all were stopped at their second epoch
        run_sweep(config, out, None)
    trials = ResultsStore(out / "results").read("trials")
    assert sorted(pd.json_normalize(trials.params.map(eval))["train.lr"]) == [0.01, 0.02]
    assert (trials.status == "stopped").all() and (trials.epochs == 2).all()
    lines = diary.read_text().splitlines()
    assert sorted(lines) == sorted(f"{t} {e}" for t in trials.trial_id for e in (1, 2))
    assert not list(out.glob("tune/*/result.json"))  # the loggers are those that are named, and no others


@pytest.mark.parametrize("algorithm", ["random", "grid"])
def test_trials_wait_for_each_other(small: Small, out: Path, algorithm: str) -> None:
    """The cluster has room for both; Tune itself ignores the limit with these."""
    diary = out.with_name("events")
    section = {"algorithm": algorithm, "trials": 2, "max_concurrent": 1, "cpus_per_worker": 0.5}
    loggers = {"loggers": [{"path": f"{__name__}:Events", "file": str(diary)}]}
    changes: dict[str, Any] = {**LIGHT, "train": {"epochs": 1, "method": "jt"}}
    config = small.config(**changes, search={"train.lr": {"choice": [0.01, 0.02]}}, sweep=section | loggers)
    assert run_sweep(config, out, None) == 0
    assert diary.read_text().split() == ["start", "end", "start", "end"]


class Events(tune.Callback):
    """Notes when trials start and end."""

    def __init__(self, file: str) -> None:
        self.file = file

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._note("start")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._note("end")

    def _note(self, what: str) -> None:
        with Path(self.file).open("a") as file:
            file.write(f"{what}\n")


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", ["hyperband", "pbt"])
def test_schedulers_that_pause_trials(small: Small, out: Path, scheduler: str) -> None:
    options = {"hyperband": {}, "pbt": {"perturbation_interval": 1, "quantile_fraction": 0.5}}[scheduler]
    section = {"algorithm": "random", "trials": 3, "scheduler": scheduler, "scheduler_options": options}
    changes: dict[str, Any] = {**LIGHT, "train": {"epochs": 4, "method": "jt"}}
    config = small.config(**changes, search={"train.lr": {"loguniform": [0.0001, 0.1]}}, sweep=section)
    assert run_sweep(config, out, None) == 0
    trials = ResultsStore(out / "results").read("trials")
    assert set(trials.status) <= {"finished", "stopped"} and (trials[trials.status == "finished"].epochs == 4).all()
