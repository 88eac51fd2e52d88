"""The cluster files as they lie in the repository, and as Ray resolves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
CLOUDS = ("ray_cluster.yaml", "clusters/gcp.yaml")
"""Files of providers that rent machines."""
LAUNCHED = (*CLOUDS, "clusters/onprem.yaml")
"""Files for `ray up`."""
SCHEMAS = ROOT.parent / "shared" / "kuberay"


def raw(name: str) -> dict[str, Any]:
    """A YAML file of one document."""
    return yaml.safe_load((ROOT / name).read_text())


def resolved(name: str) -> dict[str, Any]:
    """What `ray up` makes of a file before it asks the provider; it raises where Ray would refuse."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(raw(name))
    validate_config(config)
    return config
