"""Which nodes a Ray cluster has, and which its autoscaler may add."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from crmt.errors import BadInputError

FILE = "CRMT_AUTOSCALING_CONFIG"
"""Names the file that the cluster's autoscaler was started with, where it is not the one that `ray up` writes."""
_WRITTEN_BY_RAY_UP = "~/ray_bootstrap_config.yaml"
_HEAD = "node:__internal_head__"

Resources = Mapping[str, float]
"""Resource to how much of it a node has: CPU, GPU, memory ..."""


@dataclass(frozen=True)
class NodeType:
    """Nodes that the autoscaler may add."""

    name: str
    resources: Resources
    most: int
    """How many there may be at once."""

    def __str__(self) -> str:
        return f"{self.most} × {self.name} ({resources_text(self.resources)})"


@dataclass(frozen=True)
class Cluster:
    """The nodes of a cluster, and those that it may get."""

    nodes: tuple[Resources, ...]
    """Those that are alive."""
    head: Resources
    """The one of them that is never taken away."""
    types: tuple[NodeType, ...] = ()
    """What the autoscaler may add; nothing where there is none."""
    most: int = 0
    """How many nodes the autoscaler may have at once, of all types together."""

    @property
    def grows(self) -> bool:
        """Whether it has an autoscaler whose nodes are known."""
        return bool(self.types)

    def has_gpus(self) -> bool:
        """Whether a node that is there, or may come, has a GPU."""
        return any(node.get("GPU", 0) >= 1 for node in (*self.nodes, *(t.resources for t in self.types)))

    def room(self, on: Callable[[Resources], int]) -> int:
        """How many workers it holds when it has grown as far as it may; now, where it does not grow.

        Args:
            on: how many workers a node holds.
        """
        now = sum(map(on, self.nodes))
        return max(now, on(self.head) + sum(on(t.resources) * count for t, count in self._grown(on)))

    def asked(self, on: Callable[[Resources], int], workers: int) -> dict[str, int]:
        """Node type to how many nodes will be asked for, so that `workers` run at once: those with most room first.

        Args:
            on: how many workers a node holds.
            workers: of all trials together.
        """
        missing, asked = workers - sum(map(on, self.nodes)), {}
        for kind, count in self._grown(on):
            if missing > 0 and on(kind.resources):
                asked[kind.name] = min(count, -(-missing // on(kind.resources)))
                missing -= asked[kind.name] * on(kind.resources)
        return asked

    def _grown(self, on: Callable[[Resources], int]) -> list[tuple[NodeType, int]]:
        left, grown = self.most, []
        for kind in sorted(self.types, key=lambda t: -on(t.resources)):
            grown.append((kind, min(kind.most, left)))
            left -= grown[-1][1]
        return grown

    def __str__(self) -> str:
        now = ", ".join(resources_text(node) for node in self.nodes)
        return now + (f"; may grow to {' and '.join(map(str, self.types))}" if self.grows else "")


def resources_text(resources: Resources) -> str:
    """`2 CPUs and 1 GPU`."""
    return f"{counted(resources.get('CPU', 0), 'CPU')} and {counted(resources.get('GPU', 0), 'GPU')}"


def counted(number: float, thing: str) -> str:
    """`1 GPU`, `2 GPUs`."""
    return f"{number:g} {thing}{'' if number == 1 else 's'}"


def cluster_now() -> Cluster:
    """The cluster that this process is connected to. Needs a running Ray.

    Raises:
        BadInputError: the autoscaler's file cannot be read.
    """
    import ray

    nodes = tuple(node["Resources"] for node in ray.nodes() if node["Alive"])
    head: Resources = next((node for node in nodes if _HEAD in node), {})
    named, written = os.environ.get(FILE), Path(_WRITTEN_BY_RAY_UP).expanduser()
    if not named and not written.is_file():
        return Cluster(nodes, head)
    return Cluster(nodes, head, *read_node_types(Path(named) if named else written))


def read_node_types(file: Path) -> tuple[tuple[NodeType, ...], int]:
    """The types of workers of a cluster file of Ray's, and how many workers there may be in all.

    A type that does not say its CPUs is left out: `ray up` fills them in, in the copy that it sends to the head.

    Raises:
        BadInputError: no such file, or none of Ray's cluster files.
    """
    try:
        cluster: Any = yaml.safe_load(file.read_text())
        types = cluster["available_node_types"]
        found = [
            NodeType(name, kind["resources"], int(kind.get("max_workers", cluster.get("max_workers", 0))))
            for name, kind in types.items()
            if name != cluster["head_node_type"] and kind.get("resources", {}).get("CPU")
        ]
        return tuple(kind for kind in found if kind.most), int(cluster.get("max_workers", 0))
    except OSError as error:
        raise BadInputError(f"{FILE}: {file} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError):
        raise BadInputError(f"{FILE}: {file} is no cluster file as `ray up` takes it") from None
