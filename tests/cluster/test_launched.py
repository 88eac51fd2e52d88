"""The files for `ray up`: Ray takes them, every image is named, all starts name the token, 0 workers suffice."""

from __future__ import annotations

import re
import subprocess
import tomllib
from functools import partial
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from tests.cluster.files import CLOUDS, LAUNCHED, ROOT, raw, resolved

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PYTHON = re.compile(r"uv venv --python (\S+) ")
IMAGES = {
    "aws": r"ami-[0-9a-f]{17}|resolve:ssm:/aws/service/\S+/ami-id",
    "gcp": r"projects/[\w-]+/global/images/(family/)?[\w-]+",
}


def commands(config: dict[str, Any]) -> list[str]:
    """Every shell command of a file."""
    kinds = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    return [command for kind in kinds for command in config.get(f"{kind}_commands", [])]


def image_of(provider: str, node: dict[str, Any]) -> str:
    """The image of a node type, as its provider reads it."""
    if provider == "aws":
        return node.get("ImageId", "")
    (disk,) = (d for d in node["disks"] if d["boot"])
    return disk["initializeParams"].get("sourceImage", "")


@pytest.mark.parametrize("name", LAUNCHED)
def test_ray_takes_the_file(name: str) -> None:
    config = resolved(name)
    types = config["available_node_types"]
    most = {kind: t["max_workers"] for kind, t in types.items() if kind != config["head_node_type"]} or {
        kind: t["max_workers"] for kind, t in types.items()
    }
    assert config["max_workers"] == sum(most.values())
    assert all(t.get("min_workers", 0) <= t["max_workers"] for t in types.values())


@pytest.mark.parametrize("name", CLOUDS)
def test_every_image_is_named(name: str) -> None:
    config = raw(name)
    provider = config["provider"]["type"]
    for kind, node in config["available_node_types"].items():
        assert re.fullmatch(IMAGES[provider], image_of(provider, node["node_config"])), kind


@pytest.mark.parametrize("name", CLOUDS)
def test_rented_workers_are_spot_and_begin_at_none(name: str) -> None:
    config = raw(name)
    for kind, node in config["available_node_types"].items():
        if kind == config["head_node_type"]:
            continue
        assert node["min_workers"] == 0
        conf = node["node_config"]
        market = conf.get("InstanceMarketOptions", {}).get("MarketType") or conf["scheduling"]["provisioningModel"]
        assert market.lower() == "spot", kind
    assert config["provider"]["cache_stopped_nodes"] is False


@pytest.mark.parametrize("name", CLOUDS)
@pytest.mark.parametrize(
    ("demand", "wanted"),
    [
        ([{"GPU": 1, "CPU": 1}] * 3, {"gpu": 3}),
        ([{"GPU": 1, "CPU": 1}] * 64, {"gpu": 8}),
        ([{"GPU": 0.5, "CPU": 1}] * 4, {"gpu": 2}),
        ([{"CPU": 1}] * 60, {"cpu": 2}),
    ],
)
def test_the_autoscaler_starts_from_no_worker(name: str, demand: list[dict[str, float]], wanted: dict) -> None:
    """Ray's own scheduler of nodes, for the file's types, with nothing but the head there."""
    from ray.autoscaler._private.resource_demand_scheduler import _default_utilization_scorer, get_nodes_for

    config = resolved(name)
    head, types = config["head_node_type"], config["available_node_types"]
    scorer = partial(_default_utilization_scorer, node_availability_summary=None)
    assert types[head]["resources"] == {"CPU": 0}
    found, _ = get_nodes_for(types, {head: 1}, head, config["max_workers"], demand, lambda n, r, t: scorer(n, r, t))
    assert dict(found) == wanted


@pytest.mark.parametrize("name", LAUNCHED)
def test_no_node_starts_without_the_token(name: str) -> None:
    config = raw(name)
    for kind in ("head", "worker"):
        starts = [c for c in config[f"{kind}_start_ray_commands"] if "ray start" in c]
        assert starts and all(
            "RAY_AUTH_MODE=token ray start" in c.replace("RAY_enable_autoscaler_v2=0 ", "") for c in starts
        )
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]
    assert not re.search(r"[0-9a-f]{64}|AKIA|BEGIN [A-Z ]*PRIVATE", (ROOT / name).read_text())


@pytest.mark.parametrize("name", LAUNCHED)
def test_the_code_and_its_commit_are_sent_and_nothing_else(name: str) -> None:
    from pipelines.runs.code_version import CODE, STAMP

    mounts = {k: v for k, v in raw(name)["file_mounts"].items() if "auth_token" not in k}
    assert {*CODE, STAMP, "pyproject.toml", "README.md", "LICENSE"} == set(mounts.values())
    assert all(remote == f"~/crmt-sweep/{local}" for remote, local in mounts.items())
    assert all((ROOT / local).exists() for local in mounts.values() if local != STAMP)


@pytest.mark.parametrize("name", LAUNCHED)
def test_the_python_is_one_that_the_project_takes(name: str) -> None:
    (version,) = {m for command in commands(raw(name)) for m in PYTHON.findall(command)}
    assert SpecifierSet(PROJECT["requires-python"]).contains(f"{version}.9")


@pytest.mark.parametrize(("name", "extra"), [("ray_cluster.yaml", "aws"), ("clusters/gcp.yaml", "gcp")])
def test_the_set_up_installs_the_pins_and_the_providers_extra(name: str, extra: str) -> None:
    (install,) = (c for c in commands(raw(name)) if "-r requirements.txt" in c)
    assert install.startswith("cd ~/crmt-sweep && ")  # the last line of the requirements is `-e .`
    assert f"-e '.[{extra}]'" in install
    pinned = [Requirement(line) for line in PROJECT["optional-dependencies"][extra]]
    assert pinned and all(str(r.specifier).startswith("==") for r in pinned)


@pytest.mark.parametrize("name", LAUNCHED)
def test_every_command_is_shell(name: str) -> None:
    for command in commands(raw(name)):
        done = subprocess.run(["bash", "-n"], input=command, text=True, capture_output=True)
        assert done.returncode == 0, f"{command}: {done.stderr}"


@pytest.mark.parametrize("name", LAUNCHED)
def test_the_head_names_the_config_that_ray_puts_there(name: str) -> None:
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in raw(name)["head_start_ray_commands"][-1]
    assert "$RAY_HEAD_IP:6379" in raw(name)["worker_start_ray_commands"][-1]


@pytest.mark.parametrize("name", LAUNCHED)
def test_the_head_of_the_file_says_how_to_start_and_stop(name: str) -> None:
    said = [line[1:].strip() for line in (ROOT / name).read_text().split("cluster_name:")[0].splitlines()]
    assert f"python -m pipelines.runs.code_version && ray up -y {name}" in said
    assert f"ray down -y {name}" in said and any(line.startswith("Costs") or "rented" in line for line in said)
    (submit,) = (line for line in said if line.startswith("ray exec"))
    assert "ray job submit --no-wait" in submit and "python ~/crmt-sweep/pipelines/sweep.py --dataset" in submit
    if name == "ray_cluster.yaml":
        five = [x for x in said if x.startswith(("python -m", "ray exec", "ray dashboard", "python -c", "ray down"))]
        assert len(five) == 5 and "\n".join(five) in (ROOT / "README.md").read_text()
