"""A cluster with an autoscaler on one machine: Ray's own, whose nodes are further processes here."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml
from ray._raylet import GcsClient

HEAD = "f" * 51 + "00000"
"""The id that Ray gives to the head of such a cluster."""
ALIVE = 0


@dataclass(frozen=True)
class FakeCluster:
    """A cluster that runs."""

    address: str
    file: Path
    """What its autoscaler was started with."""

    @property
    def environment(self) -> dict[str, str]:
        """For a command that joins it."""
        joined = {"RAY_ADDRESS": self.address, "CRMT_AUTOSCALING_CONFIG": str(self.file), "RAY_AUTH_MODE": "disabled"}
        return os.environ | joined

    def nodes(self) -> int:
        """How many nodes are alive, the head among them."""
        infos = GcsClient(address=self.address).get_all_node_info(timeout=10)
        return sum(info.state == ALIVE for info in infos.values())

    def wait(self, nodes: int, seconds: float = 180) -> None:
        """Until that many nodes are alive."""
        end = time.monotonic() + seconds
        while (alive := self.nodes()) != nodes:
            assert time.monotonic() < end, f"{alive} nodes are alive, not {nodes}"
            time.sleep(0.5)


@contextlib.contextmanager
def fake_cluster(most: int, cpus: int = 1) -> Iterator[FakeCluster]:
    """A head that computes nothing, and an autoscaler that adds up to `most` workers and removes idle ones after 12 s.

    Args:
        most: the largest number of workers.
        cpus: of each.
    """
    folder = Path(tempfile.mkdtemp(dir="/tmp", prefix="fake"))  # short: Ray's sockets have long names
    address = f"127.0.0.1:{free_port()}"
    file = folder / "cluster.yaml"
    file.write_text(yaml.safe_dump(_cluster(address, most, cpus)))
    command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--port", address.partition(":")[2]]
    command += ["--temp-dir", str(folder / "ray"), "--autoscaling-config", str(file), "--num-cpus", "0"]
    command += ["--include-dashboard", "false", "--disable-usage-stats", "--block"]
    settings = {"RAY_FAKE_CLUSTER": "1", "RAY_enable_autoscaler_v2": "0", "RAY_AUTH_MODE": "disabled"}
    with (folder / "head.log").open("w") as log:
        head = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=os.environ | settings, start_new_session=True
        )
    try:
        cluster = FakeCluster(address, file)
        _wait_for_port(address, head, folder / "head.log")
        cluster.wait(1)
        yield cluster
    finally:
        head.send_signal(signal.SIGTERM)  # `--block` ends what it started
        with contextlib.suppress(subprocess.TimeoutExpired):
            head.wait(60)
        _kill_below(folder)
        shutil.rmtree(folder, ignore_errors=True)


def _cluster(address: str, most: int, cpus: int) -> dict[str, object]:
    empty = ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands")
    empty += ("head_start_ray_commands", "worker_start_ray_commands", "rsync_exclude", "rsync_filter")
    return {
        "cluster_name": "fake",
        "max_workers": most,
        "upscaling_speed": most,
        "idle_timeout_minutes": 0.2,
        "provider": {
            "type": "fake_multinode",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "gcs_address": address,
            "head_node_id": HEAD,
        },
        "auth": {"ssh_user": "root"},
        "head_node_type": "head",
        "available_node_types": {
            "head": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "cpu": {"resources": {"CPU": cpus}, "node_config": {}, "min_workers": 0, "max_workers": most},
        },
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        **{name: [] for name in empty},
    }


def free_port() -> int:
    """A port on which nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _wait_for_port(address: str, head: subprocess.Popen[bytes], log: Path) -> None:
    host, _, port = address.partition(":")
    end = time.monotonic() + 120
    while True:
        assert head.poll() is None and time.monotonic() < end, log.read_text()[-2000:]
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=1):
            return
        time.sleep(0.2)


def _kill_below(folder: Path) -> None:
    """End what still runs of a cluster whose head was killed: its processes name its folder."""
    for found in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if str(folder).encode() in found.read_bytes():
                os.kill(int(found.parent.name), signal.SIGKILL)
