"""The Kubernetes files against KubeRay's published schemas, and what a schema cannot say; the image that they run."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from packaging.specifiers import SpecifierSet

from tests.cluster.files import ROOT, SCHEMAS, raw
from tests.cluster.test_launched import PROJECT

FOLDER = "clusters/kubernetes"
FILES = {"raycluster.yaml": "rayclusters.json", "rayjob.yaml": "rayjobs.json"}
DOCKERFILE = (ROOT / "clusters/Dockerfile").read_text()


def schema_of(file: str) -> dict[str, Any]:
    """KubeRay's schema of a kind at v1, with unknown fields forbidden, as kubectl does.

    `x-kubernetes-int-or-string` needs nothing: those fields are `anyOf: [integer, string]` as well.
    """
    path = SCHEMAS / FILES[file]
    if not path.exists():
        pytest.skip(f"KubeRay's schemas are not there: {path}")
    schema = json.loads(path.read_text())["v1"]
    forbid_unknown(schema)
    schema["properties"]["metadata"].pop("additionalProperties", None)  # Kubernetes' own, which a CRD leaves out
    return schema


def forbid_unknown(schema: dict[str, Any]) -> None:
    """Close every object that lists its fields."""
    if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        schema.setdefault("additionalProperties", False)
    for value in list(schema.get("properties", {}).values()):
        forbid_unknown(value)
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            forbid_unknown(schema[key])


def refusals(file: str, config: dict[str, Any]) -> list[str]:
    """What the API server would say, a line for each."""
    jsonschema = pytest.importorskip("jsonschema")
    schema = schema_of(file)
    found = [f"{e.json_path}: {e.message}" for e in jsonschema.Draft7Validator(schema).iter_errors(config)]
    return found + list(twice(schema, config))


def twice(schema: dict[str, Any], value: Any, where: str = "$") -> Iterator[str]:
    """Items of a list that is a map by its keys (`x-kubernetes-list-map-keys`), and have the same ones."""
    if isinstance(value, dict):
        for key, below in value.items():
            yield from twice(schema.get("properties", {}).get(key, {}), below, f"{where}.{key}")
    if isinstance(value, list):
        keys = schema.get("x-kubernetes-list-map-keys", ())
        names = [tuple(str(item.get(key)) for key in keys) for item in value if keys]
        yield from (f"{where}: {name} twice" for name in {n for n in names if names.count(n) > 1})
        for i, below in enumerate(value):
            yield from twice(schema.get("items", {}), below, f"{where}[{i}]")


def cluster(file: str) -> dict[str, Any]:
    """The spec of the Ray cluster in a file."""
    spec = raw(f"{FOLDER}/{file}")["spec"]
    return spec.get("rayClusterSpec", spec)


@pytest.mark.parametrize("file", FILES)
def test_kuberay_takes_the_file(file: str) -> None:
    assert refusals(file, raw(f"{FOLDER}/{file}")) == []


@pytest.mark.parametrize("file", FILES)
def test_the_check_finds_what_is_wrong(file: str) -> None:
    """A misspelt field, a wrong type, a missing field, a bad quantity's type, a port named twice."""
    good = raw(f"{FOLDER}/{file}")

    def broken(change: Any) -> list[str]:
        config = copy.deepcopy(good)
        spec = config["spec"].get("rayClusterSpec", config["spec"])
        change(spec, spec["headGroupSpec"]["template"]["spec"]["containers"][0])
        return refusals(file, config)

    assert broken(lambda spec, _: spec.update(autoscalerOption={}))
    assert broken(lambda spec, _: spec["workerGroupSpecs"][0].update(maxReplicas="8"))
    assert broken(lambda spec, _: spec["headGroupSpec"].pop("template"))
    assert broken(lambda _, head: head["resources"]["limits"].update(cpu=[4]))
    assert broken(lambda _, head: head["ports"].append(dict(head["ports"][0])))


@pytest.mark.parametrize("file", FILES)
def test_the_cluster_asks_for_the_token_and_starts_from_no_worker(file: str) -> None:
    spec = cluster(file)
    assert spec["authOptions"]["mode"] == "token" and spec["authOptions"]["secretName"]
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in spec["workerGroupSpecs"]:
        assert group["replicas"] == group["minReplicas"] == 0 < group["maxReplicas"]
    assert not re.search(r"[0-9a-f]{64}|kind: Secret", (ROOT / FOLDER / file).read_text())


@pytest.mark.parametrize("file", FILES)
def test_the_version_of_ray_is_the_pinned_one_and_every_pod_has_the_same_image(file: str) -> None:
    spec = cluster(file)
    (pinned,) = re.findall(r"^ray\[.*\]==(\S+)$", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    assert spec["rayVersion"] == pinned
    pods = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    images = {c["image"] for pod in pods for c in pod["template"]["spec"]["containers"]}
    assert images == {f"REGISTRY/crmt-sweep:{PROJECT['version']}"}


def test_the_job_runs_on_the_cluster_of_the_other_file() -> None:
    assert cluster("rayjob.yaml") == cluster("raycluster.yaml")


def test_the_image_has_a_python_that_the_project_takes_and_all_that_it_needs() -> None:
    (version,) = re.findall(r"^FROM python:(\d+\.\d+\.\d+)-\S+$", DOCKERFILE, re.MULTILINE)
    assert SpecifierSet(PROJECT["requires-python"]).contains(version)
    copied = {name for line in re.findall(r"^COPY (.*) \S+$", DOCKERFILE, re.MULTILINE) for name in line.split()}
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == let_in == set(raw("ray_cluster.yaml")["file_mounts"].values()) - {"~/.ray/auth_token"}
    assert "USER ray" in DOCKERFILE
