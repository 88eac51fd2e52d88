"""The small set of real clips, as in tests/pipelines."""

from tests.pipelines.conftest import out, ray_cluster, small

__all__ = ["out", "ray_cluster", "small"]
