"""ray_cluster.yaml against Ray's real AWS provider and botocore's model of EC2, on moto's AWS in this process."""

from __future__ import annotations

import json
import urllib.parse
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.files import resolved

boto3 = pytest.importorskip("boto3")
moto = pytest.importorskip("moto")


@pytest.fixture
def aws(monkeypatch, tmp_path: Path):
    """An empty account, and a home for the key that Ray makes."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-west-2")
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with moto.mock_aws():
        yield


def policy(role: str) -> list[dict[str, Any]]:
    """What a role may do."""
    found = boto3.client("iam").get_role_policy(RoleName=role, PolicyName=role)["PolicyDocument"]
    return (json.loads(urllib.parse.unquote(found)) if isinstance(found, str) else found)["Statement"]


def actions(role: str) -> set[str]:
    """The names of what a role may do."""
    return {action for statement in policy(role) for action in statement["Action"]}


@pytest.mark.parametrize("region", ["us-west-2", "us-east-1"])
def test_the_set_up_makes_bucket_and_roles_and_can_be_called_again(aws, capsys, region: str) -> None:
    from clusters import aws_setup

    for _ in range(2):
        assert aws_setup.main(["crmt-test-bucket", "--region", region]) == 0
    place = boto3.client("s3").get_bucket_location(Bucket="crmt-test-bucket")["LocationConstraint"]
    assert (place or "us-east-1") == region
    iam = boto3.client("iam")
    for name in (aws_setup.HEAD, aws_setup.WORKER):
        (role,) = iam.get_instance_profile(InstanceProfileName=name)["InstanceProfile"]["Roles"]
        assert role["RoleName"] == name
    assert all(action.startswith("s3:") for action in actions(aws_setup.WORKER))
    assert {"ec2:RunInstances", "ssm:GetParameters", "iam:PassRole"} <= actions(aws_setup.HEAD)
    for role in (aws_setup.HEAD, aws_setup.WORKER):
        resources = [s["Resource"] for s in policy(role) if s["Action"][0].startswith("s3:")]
        assert all(r.startswith("arn:aws:s3:::crmt-test-bucket") for r in resources)
    (passed,) = (s["Resource"] for s in policy(aws_setup.HEAD) if "iam:PassRole" in s["Action"])
    assert passed == iam.get_role(RoleName=aws_setup.WORKER)["Role"]["Arn"]


def test_what_aws_refuses_is_one_line(aws, capsys) -> None:
    from clusters import aws_setup

    assert aws_setup.main(["Not A Bucket"]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_ray_starts_every_type_of_node(aws) -> None:
    """A typo in node_config, which Ray's own check lets pass, is refused by botocore; a missing profile by moto."""
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    from clusters import aws_setup

    aws_setup.main(["crmt-test-bucket"])
    wanted = resolved("ray_cluster.yaml")
    config = bootstrap_aws(wanted)
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    for kind, node in config["available_node_types"].items():
        (made,) = provider.create_node(node["node_config"], {"ray-node-type": kind}, 1).values()
        asked = wanted["available_node_types"][kind]["node_config"]
        assert made.image_id == asked["ImageId"] and made.instance_type == asked["InstanceType"]
        profile = aws_setup.HEAD if kind == config["head_node_type"] else aws_setup.WORKER
        assert made.iam_instance_profile["Arn"].endswith(f"/{profile}")
        assert made.instance_lifecycle == (None if kind == config["head_node_type"] else "spot")
