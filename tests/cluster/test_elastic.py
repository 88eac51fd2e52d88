"""A trial on several nodes lives through the loss of one: it goes on with fewer workers, and grows back."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
from ray.cluster_utils import Cluster

from crmt.errors import BadInputError
from pipelines import train
from pipelines.config.consistency import check_consistency
from pipelines.runs.results import ResultsStore
from pipelines.sweeps.preflight import plan_sweep
from tests.pipelines.small import Small

EPOCHS = 90


def test_every_number_of_workers_must_share_a_batch(small: Small) -> None:
    check_consistency(small.config(sweep={"workers": [1, 4]}))  # 12 clips in a batch
    with pytest.raises(BadInputError, match=r"train.batch_size \(12\) must be a multiple of sweep.workers \(5\)"):
        check_consistency(small.config(sweep={"workers": [4, 5]}))
    for wrong in (0, [2, 1], [1], [0, 2], [1, 2, 3]):
        with pytest.raises(BadInputError, match="give a number of workers, 1 or more, or"):
            small.config(sweep={"workers": wrong})


def test_a_trial_that_may_shrink_is_planned_as_it_may_be(small: Small) -> None:
    search = {"train.lr": {"uniform": [0.01, 0.1]}}
    plan = plan_sweep(small.config(search=search, sweep={"workers": [1, 4], "trials": 9}))
    assert plan.concurrent == 1 and plan.needs.text.startswith("1 to 4 workers of 1 CPU")
    assert plan_sweep(small.config(search=search, sweep={"workers": [3, 4]})).concurrent == 0


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head that computes nothing and two nodes of one CPU, apart from the tests' own Ray."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    yield cluster
    cluster.shutdown()


def wait_for(process: subprocess.Popen[str], condition: Callable[[], bool], seconds: float = 240) -> None:
    """Until the condition holds; a process that ends before is a failure."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0][-3000:]
        assert time.monotonic() < end, "the run did not get so far"
        time.sleep(0.2)


@pytest.mark.slow
def test_a_lost_node_makes_a_trial_smaller_and_a_new_one_larger(small: Small, out: Path, cluster: Cluster) -> None:
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    config = small.file(
        out.with_suffix(".json"),
        train={"epochs": EPOCHS},
        sweep={"workers": [1, 2], "max_failures": 3},
    )
    command = [sys.executable, str(Path(train.__file__)), "--dataset", "manifest", "--config", str(config)]
    running = subprocess.Popen(
        [*command, "--out", str(out)],
        env=os.environ | {"RAY_ADDRESS": cluster.address},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )

    def workers() -> pd.Series:
        """Epoch to the workers that trained it."""
        stored = ResultsStore(out / "results").read("epochs")
        return stored[stored.name == "workers"].set_index("epoch").value.astype(int)

    try:
        wait_for(running, lambda: len(workers()) >= 4)
        assert set(workers()) == {2}
        killed, before = time.monotonic(), len(workers())
        cluster.remove_node(nodes[1], allow_graceful=False)
        wait_for(running, lambda: 1 in set(workers()))
        lost = time.monotonic() - killed
        print(f"a node was killed after epoch {before}; the next epoch was stored {lost:.0f} s later, by one worker")
        cluster.add_node(num_cpus=1)
        wait_for(running, lambda: workers().iloc[-1] == 2)
        assert running.wait(400) == 0
    finally:
        running.kill()
    found = workers()
    assert list(found.index) == list(range(1, EPOCHS + 1)) and found.iloc[0] == found.iloc[-1] == 2
    trials = ResultsStore(out / "results").read("trials")
    assert list(trials.status) == ["finished"]
