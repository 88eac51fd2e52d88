"""One small Ray and one small set of real clips for all tests of this folder that need them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy comes in: Ray's workers inherit it
# for the S3 server of test_storage.py, which takes any; and no waiting for a machine of Amazon's to answer
os.environ |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true"}

import pytest
import ray

from pipelines.infra.storage import Folder, folder_at
from tests.pipelines.s3 import S3, s3_server
from tests.pipelines.small import Decoded, Small, make_decoded, make_small


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """Ray with 2 CPUs in this process's own cluster, one for all folders of tests that have this fixture."""
    if ray.is_initialized():
        yield
        return
    os.environ["RAY_TRAIN_V2_ENABLED"] = "1"
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def small(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Small]:
    """63 real clips of 3 classes as a manifest, with a cache of their own."""
    root = tmp_path_factory.mktemp("cache")
    before = os.environ.get("CRMT_CACHE")
    os.environ["CRMT_CACHE"] = str(root)
    yield make_small(tmp_path_factory.mktemp("small") / "clips", root)
    if before is None:
        del os.environ["CRMT_CACHE"]
    else:
        os.environ["CRMT_CACHE"] = before


@pytest.fixture(scope="session")
def decoded(small: Small) -> Decoded:
    """Those clips as arrays."""
    return make_decoded(small)


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    """A server that speaks S3, with a bucket `clips`."""
    with s3_server() as server:
        yield server


@pytest.fixture
def run(s3: S3, request: pytest.FixtureRequest) -> Folder:
    """The folder of a run on that server."""
    return folder_at(s3.uri("clips/runs")) / request.node.name


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A folder for a run."""
    return tmp_path / "run"
