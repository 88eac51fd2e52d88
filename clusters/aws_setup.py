"""Once an AWS account: the bucket and the two roles that ray_cluster.yaml names. A second call changes nothing more.

python clusters/aws_setup.py BUCKET [--region us-west-2]

Needs `pip install -e '.[aws]'` and credentials that may make buckets and roles. Costs nothing by itself. What it makes:
the bucket (private, as all new ones are); the instance profile crmt-sweep-head (starts and ends workers, reads AWS's
public image parameters, uses the bucket); crmt-sweep-worker (uses the bucket, and nothing else); and the account's role
for spot instances. Take it away: `aws iam delete-...` of these names, and the bucket when its runs are fetched.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError

HEAD, WORKER = "crmt-sweep-head", "crmt-sweep-worker"
_THERE = {"BucketAlreadyOwnedByYou", "EntityAlreadyExists"}
_SPOT = "spot.amazonaws.com"


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code: 0, or 1 where AWS refuses."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("bucket", help="its name, which nobody else on AWS may have")
    parser.add_argument("--region", default="us-west-2", help="that of ray_cluster.yaml; default %(default)s")
    options = parser.parse_args(argv)
    try:
        make_bucket(options.bucket, options.region)
        make_profiles(options.bucket)
    except (BotoCoreError, ClientError) as error:
        print(f"AWS refused: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    print(f"s3://{options.bucket} in {options.region}, and the instance profiles {HEAD} and {WORKER}, are there")
    return 0


def make_bucket(bucket: str, region: str) -> None:
    """The bucket, in `region`."""
    place: dict[str, Any] = {"CreateBucketConfiguration": {"LocationConstraint": region}}
    s3 = boto3.client("s3", region_name=region)
    # us-east-1 is where buckets lie that name no place, and may not be named
    _once(lambda: s3.create_bucket(Bucket=bucket, **({} if region == "us-east-1" else place)))


def make_profiles(bucket: str) -> None:
    """The roles of head and workers, each in an instance profile of its name, and the account's role for spot."""
    iam = boto3.client("iam")
    _once(lambda: iam.create_service_linked_role(AWSServiceName=_SPOT))
    worker = _make_profile(iam, WORKER, storage(bucket))
    _make_profile(iam, HEAD, storage(bucket) + launching(worker))


def storage(bucket: str) -> list[dict[str, Any]]:
    """What it takes to read and write one bucket."""
    objects = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"]
    return [
        _allow(["s3:ListBucket", "s3:GetBucketLocation"], f"arn:aws:s3:::{bucket}"),
        _allow(objects, f"arn:aws:s3:::{bucket}/*"),
    ]


def launching(worker_role: str) -> list[dict[str, Any]]:
    """What it takes to start workers with the role `worker_role` (its ARN), and to end what Ray has started."""
    ours = {"StringLike": {"ec2:ResourceTag/ray-cluster-name": "*"}}
    images = "arn:aws:ssm:*::parameter/aws/service/deeplearning/*"
    return [
        _allow(["ec2:Describe*", "ec2:RunInstances", "ec2:CreateTags"], "*"),
        _allow(["ec2:TerminateInstances", "ec2:StopInstances"], "*") | {"Condition": ours},
        _allow(["ssm:GetParameters"], images),
        _allow(["iam:PassRole"], worker_role),
    ]


def _allow(actions: list[str], resource: str) -> dict[str, Any]:
    return {"Effect": "Allow", "Action": actions, "Resource": resource}


def _make_profile(iam: Any, name: str, statements: list[dict[str, Any]]) -> str:
    """Make or bring up to date the role and the instance profile `name`; the role's ARN."""
    trust = {"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}
    _once(lambda: iam.create_role(RoleName=name, AssumeRolePolicyDocument=_policy([trust])))
    iam.put_role_policy(RoleName=name, PolicyName=name, PolicyDocument=_policy(statements))
    _once(lambda: iam.create_instance_profile(InstanceProfileName=name))
    if not iam.get_instance_profile(InstanceProfileName=name)["InstanceProfile"]["Roles"]:
        iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)
    return str(iam.get_role(RoleName=name)["Role"]["Arn"])


def _policy(statements: list[dict[str, Any]]) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": statements})


def _once(make: Callable[[], Any]) -> None:
    """Make what may be there already."""
    try:
        make()
    except ClientError as error:
        spot_is_there = error.response["Error"]["Code"] == "InvalidInput" and "has been taken" in str(error)
        if error.response["Error"]["Code"] not in _THERE and not spot_is_there:
            raise


if __name__ == "__main__":
    sys.exit(main())
