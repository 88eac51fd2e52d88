"""A sweep makes a cluster grow: planned against what may come, and never refused for what is not up yet."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pandas as pd
import pytest
import yaml

from crmt.errors import BadInputError
from pipelines import sweep
from pipelines.infra.nodes import Cluster, NodeType, cluster_now, read_node_types
from pipelines.runs.results import ResultsStore
from pipelines.sweeps import preflight
from pipelines.sweeps.preflight import plan_sweep, with_resources
from pipelines.trials.launch import DRIVER_BYTES
from tests.cluster.fake import FakeCluster, fake_cluster
from tests.pipelines.small import Small

HEAD = {"node:__internal_head__": 1.0, "memory": 1e9}
GPU, CPU = NodeType("gpu", {"CPU": 16, "GPU": 2}, 4), NodeType("cpu", {"CPU": 8}, 10)


def room(node: dict[str, float]) -> int:
    """Workers of one CPU and one GPU."""
    return int(min(node.get("CPU", 0), node.get("GPU", 0)))


def test_the_room_of_a_cluster_is_what_it_may_grow_to() -> None:
    fixed = Cluster(({"CPU": 4, "GPU": 1}, {"CPU": 4, "GPU": 1}), HEAD)
    assert fixed.room(room) == 2 and not fixed.grows and fixed.asked(room, 9) == {}
    empty = Cluster((HEAD,), HEAD, (CPU, GPU), 12)
    assert empty.room(room) == 8 and empty.asked(room, 3) == {"gpu": 2} and empty.asked(room, 99) == {"gpu": 4}
    assert empty.room(lambda node: int(node.get("CPU", 0))) == 4 * 16 + 8 * 8  # no more than 12 nodes in all
    begun = Cluster((HEAD, GPU.resources), HEAD, (CPU, GPU), 12)
    assert begun.room(room) == 8 and begun.asked(room, 3) == {"gpu": 1} and begun.asked(room, 2) == {}
    assert "may grow to 10 × cpu (8 CPUs and 0 GPUs) and 4 × gpu (16 CPUs and 2 GPUs)" in str(empty)
    assert empty.has_gpus() and not Cluster((HEAD,), HEAD, (CPU,), 3).has_gpus()


FILE = {
    "max_workers": 8,
    "head_node_type": "head",
    "available_node_types": {
        "head": {"resources": {"CPU": 8}},
        "gpu": {"resources": {"CPU": 16, "GPU": 1}, "max_workers": 6},
        "cpu": {"resources": {"CPU": 8}},
        "none": {"resources": {"CPU": 8}, "max_workers": 0},
        "unknown": {"resources": {}, "max_workers": 3},
    },
}


def test_the_types_of_nodes_are_those_of_rays_file(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(yaml.safe_dump(FILE, sort_keys=False))
    types, most = read_node_types(file)
    assert types == (NodeType("gpu", {"CPU": 16, "GPU": 1}, 6), NodeType("cpu", {"CPU": 8}, 8)) and most == 8
    for text in ("[", "a: 1", "[]", "available_node_types: 3"):
        file.write_text(text)
        with pytest.raises(BadInputError, match="is no cluster file"):
            read_node_types(file)
    with pytest.raises(BadInputError, match="cannot be read: No such file"):
        read_node_types(tmp_path / "none.yaml")


def test_a_plan_counts_nodes_that_may_come(small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On this machine's fixed cluster, then with the file of one that grows."""
    section = {"trials": 9, "cpus_per_worker": 16}
    config = small.config(search={"train.lr": {"uniform": [0.01, 0.1]}}, sweep=section)
    plan = plan_sweep(config)
    assert plan.concurrent == 0 and not plan.cluster.grows
    with pytest.raises(BadInputError, match="one trial needs 1 worker of 16 CPUs"):
        plan.check()
    file = tmp_path / "cluster.yaml"
    file.write_text(yaml.safe_dump(FILE, sort_keys=False))
    monkeypatch.setenv("CRMT_AUTOSCALING_CONFIG", str(file))
    grown = plan_sweep(config)
    assert grown.concurrent == 6 and grown.cluster.asked(grown.needs.workers_on, 6) == {"gpu": 6}
    grown.check()
    sweep_section = with_resources(small.config(sweep={"cpus_per_worker": 2})).sweep
    assert sweep_section.gpus_per_worker == 1 and sweep_section.input_cpus == 14
    assert cluster_now().head


def test_trials_that_wait_for_workers_do_not_pile_up_on_the_head(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    search = {"train.lr": {"uniform": [0.01, 0.1]}}
    nodes = tuple({"CPU": 8.0} for _ in range(64))
    head = {"node:__internal_head__": 1.0, "memory": 20 * DRIVER_BYTES + 1.0}
    monkeypatch.setattr(preflight, "cluster_now", lambda: Cluster((head, *nodes), head))
    assert plan_sweep(small.config(search=search, sweep={"workers": 2, "trials": 99})).concurrent == 20
    assert plan_sweep(small.config(search=search, sweep={"trials": 99})).concurrent == 99  # they are workers themselves


def test_a_busy_cluster_is_said_to_be_busy(small: Small) -> None:
    import ray

    config = small.config(search={"train.lr": {"uniform": [0.01, 0.1]}}, sweep={"trials": 9})
    assert plan_sweep(config).busy == ""

    @ray.remote(num_cpus=2)
    class Other:
        def ready(self) -> bool:
            return True

    other = Other.remote()
    assert ray.get(other.ready.remote())
    try:
        plan = plan_sweep(config)
        assert plan.concurrent == 2  # it waits, and is not refused
        assert plan.busy.startswith("others hold 2 CPUs and 0 GPUs of 2 CPUs")
    finally:
        ray.kill(other)


@pytest.fixture
def cluster() -> FakeCluster:
    with fake_cluster(most=3) as running:
        yield running


@pytest.mark.slow
def test_a_sweep_grows_an_empty_cluster_to_three_nodes(small: Small, out: Path, cluster: FakeCluster) -> None:
    """6 Optuna trials, of which 3 run side by side; nothing is up when it starts, and nothing is when it has ended."""
    config = small.file(
        out.with_suffix(".json"),
        data={"cache": str(out.with_name("cache"))},  # clips are decoded by nodes that have to come first
        train={"epochs": 8},
        search={"train.lr": {"uniform": [0.001, 0.05]}},
        sweep={"trials": 6, "algorithm": "optuna"},
    )
    command = [sys.executable, str(Path(sweep.__file__)), "--dataset", "manifest", "--config", str(config)]
    most, ended = [cluster.nodes()], threading.Event()
    assert most == [1]
    watch = threading.Thread(target=lambda: [most.append(cluster.nodes()) for _ in iter(lambda: ended.wait(1), True)])
    watch.start()
    try:
        done = subprocess.run(
            [*command, "--out", str(out)], env=cluster.environment, capture_output=True, text=True, timeout=900
        )
    finally:
        ended.set()
        watch.join()
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "may grow to 3 × cpu" in done.stdout and "it will ask for │ 3 × cpu" in done.stdout
    assert max(most) >= 4  # a node that is taken away is counted until Ray has noticed
    trials = ResultsStore(out / "results").read("trials")
    assert len(trials) == 6 and (trials.status == "finished").all()
    assert side_by_side(trials) == 3
    cluster.wait(1)


def side_by_side(trials: pd.DataFrame) -> int:
    """The largest number of trials that ran at one moment."""
    began = pd.to_datetime(trials.started)
    ends = began + pd.to_timedelta(trials.seconds, unit="s")
    return max(int(((began <= moment) & (moment < ends)).sum()) for moment in began)
