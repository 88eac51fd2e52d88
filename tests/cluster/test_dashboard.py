"""Grafana's dashboard asks for metrics that there are; where Prometheus is installed, it answers every question."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from pipelines import sweep
from pipelines.infra.metrics import COUNTERS, GAUGES
from tests.cluster.fake import free_port
from tests.pipelines.small import Small

BOARD = json.loads((Path(__file__).parents[2] / "clusters" / "grafana.json").read_text())
QUERIES = [target["expr"] for panel in BOARD["panels"] for target in panel["targets"]]


def test_every_metric_of_ours_is_drawn_and_no_other() -> None:
    served = {f"ray_{name}_total": set(tags) for name, (_, tags) in COUNTERS.items()}
    served |= {f"ray_{name}": set(tags) for name, (_, tags) in GAUGES.items()}
    asked = {name for query in QUERIES for name in re.findall(r"ray_\w+", query)}
    assert asked == set(served)
    for query in QUERIES:
        by = re.findall(r"by \(([^)]*)\)", query)
        for name in re.findall(r"ray_\w+", query):
            assert all(set(re.split(r", *", tags)) <= served[name] for tags in by), query
    ids = [panel["id"] for panel in BOARD["panels"]]
    assert ids == sorted(set(ids))


@pytest.fixture
def prometheus(small: Small, tmp_path: Path) -> Iterator[str]:
    """The address of a Prometheus that reads the metrics of this machine's Ray."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is not installed: `apt-get install prometheus`")
    ports = [f"127.0.0.1:{node['MetricsExportPort']}" for node in ray.nodes() if node["Alive"]]
    file, address = tmp_path / "prometheus.yml", f"127.0.0.1:{free_port()}"
    jobs = [{"job_name": "ray", "static_configs": [{"targets": ports}]}]
    file.write_text(yaml.safe_dump({"global": {"scrape_interval": "1s"}, "scrape_configs": jobs}))
    command = [program, f"--config.file={file}", f"--storage.tsdb.path={tmp_path / 'data'}"]
    running = subprocess.Popen([*command, f"--web.listen-address={address}"], stderr=subprocess.DEVNULL)
    yield address
    running.terminate()
    running.wait(30)


def ask(address: str, query: str) -> list[dict[str, Any]]:
    """The series that answer a query."""
    asked = urllib.parse.urlencode({"query": query.replace("$run", ".*").replace("[1m]", "[5m]")})
    with urllib.request.urlopen(f"http://{address}/api/v1/query?{asked}", timeout=10) as answer:
        found: list[dict[str, Any]] = json.loads(answer.read())["data"]["result"]
    return found


@pytest.mark.slow
def test_prometheus_answers_while_a_sweep_runs(small: Small, out: Path, prometheus: str) -> None:
    config = small.file(
        out.with_suffix(".json"),
        data={"cache": str(out.with_name("cache"))},
        train={"epochs": 30},
        search={"train.lr": {"uniform": [0.01, 0.05]}},
    )
    command = [sys.executable, str(Path(sweep.__file__)), "--dataset", "manifest", "--config", str(config)]
    running = subprocess.Popen(
        [*command, "--out", str(out), "--address", ray.get_runtime_context().gcs_address],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    free = ("gpu", "quarantined")  # no GPU here, and no clip is broken
    wanted = [query for query in QUERIES if not any(word in query for word in free)]
    seen_running = False
    try:
        end, left = time.monotonic() + 400, list(wanted)
        while left:
            assert time.monotonic() < end, left
            time.sleep(1)
            try:
                left = [query for query in left if not ask(prometheus, query)]
                running_now = ask(prometheus, 'ray_crmt_trials{state="running"}')
            except urllib.error.URLError:
                continue  # not up yet
            seen_running |= any(float(series["value"][1]) > 0 for series in running_now)
    finally:
        assert running.wait(300) == 0
    assert seen_running
