"""What a job tells Prometheus: counted and shown only where Ray runs, and waiting for batches is measured."""

from __future__ import annotations

import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from pipelines import sweep
from pipelines.infra import metrics
from pipelines.infra.metrics import COUNTERS, GAUGES, Waiting, count, show
from tests.pipelines.small import Small


class Recorded:
    """In the place of Ray's metrics."""

    def __init__(self, name: str, description: str, tags: tuple[str, ...]) -> None:
        self.name, self.tags, self.told = name, tags, []

    def inc(self, value: float, tags: dict[str, str]) -> None:
        self.told.append((value, tags))
        assert value > 0 and set(tags) == set(self.tags), self.name

    set = inc


def test_what_is_counted_has_all_its_tags(monkeypatch: pytest.MonkeyPatch) -> None:
    made = {name: Recorded(name, *about) for name, about in (COUNTERS | GAUGES).items()}
    monkeypatch.setattr(metrics, "_made", made)
    monkeypatch.setattr(metrics, "_ray_runs", lambda: True)
    count("crmt_batches", 3, run="r", trial="t")
    count("crmt_batches", 0, run="r", trial="t")  # nothing to tell
    show("crmt_trials", 2, run="r", state="running")
    assert made["crmt_batches"].told == [(3, {"run": "r", "trial": "t"})]
    assert made["crmt_trials"].told == [(2, {"run": "r", "state": "running"})]


def test_nothing_is_told_without_ray() -> None:
    code = (
        "from pipelines.infra.metrics import count, show, _made\n"
        "count('crmt_batches', 1, run='r', trial='t'); show('crmt_epoch', 1, run='r', trial='t')\n"
        "assert not _made"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])


def test_waiting_is_the_time_until_an_item_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 10))  # ten seconds from one look at the clock to the next
    monkeypatch.setattr(metrics, "perf_counter", lambda: next(clock))
    waiting = Waiting()
    assert list(waiting.timed("abc")) == ["a", "b", "c"]
    assert waiting.given == 3 and waiting.seconds == 40  # and for the end
    assert list(waiting.timed("")) == [] and waiting.given == 0 and waiting.seconds == 10

    def broken() -> Iterator[int]:
        yield 1
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        list(waiting.timed(broken()))
    assert waiting.given == 1


def test_a_trials_metrics_are_served_by_its_node(small: Small, tmp_path: Path) -> None:
    """As Prometheus reads them, once a sweep has run on this machine's cluster."""
    out = tmp_path / "told"  # no other test's run has this name
    config = small.file(out.with_suffix(".json"), search={"train.lr": {"choice": [0.05]}}, sweep={"trials": 1})
    assert sweep.main(["--dataset", "manifest", "--config", str(config), "--out", str(out)]) == 0
    wanted = [*(f"ray_{name}_total" for name in ("crmt_batches", "crmt_clips_trained", "crmt_training_seconds"))]
    wanted += [f"ray_{name}" for name in ("crmt_epoch", "crmt_clean_accuracy", "crmt_mean_radius", "crmt_trials")]
    end = time.monotonic() + 90  # Ray's workers hand their metrics over every few seconds
    while missing := [name for name in wanted if f"{name}{{" not in (served := _served())]:
        assert time.monotonic() < end, f"{missing} are not served"
        time.sleep(1)
    line = next(x for x in served.splitlines() if x.startswith("ray_crmt_batches_total{") and f'run="{out.name}"' in x)
    assert float(line.split()[-1]) == 2 * 3  # epochs of 36 clips in batches of 12


def _served() -> str:
    pages = []
    for node in ray.nodes():
        if node["Alive"]:
            with urllib.request.urlopen(f"http://127.0.0.1:{node['MetricsExportPort']}/metrics", timeout=10) as page:
                pages.append(page.read().decode())
    return "\n".join(pages)
