"""Machines made of namespaces: each with a network, processes, files under /tmp and a home of its own, as root."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

NETWORK = "10.231.77"
"""A private range that only the machines below have."""


class Node:
    """One machine; what is started on it ends with it, and no other process is seen from it."""

    def __init__(self, name: str, address: str, folder: Path) -> None:
        self.name, self.address = name, address
        self.home = folder / "home"
        self.home.mkdir(parents=True)
        (self.home / "crmt-env").symlink_to(sys.prefix)  # where the files' set-up puts the environment
        hold = "mount -t tmpfs tmpfs /tmp/ray && sleep infinity & wait"
        Path("/tmp/ray").mkdir(exist_ok=True)
        self._held = subprocess.Popen(
            ["ip", "netns", "exec", name, "unshare", "--pid", "--mount-proc", "--kill-child", "bash", "-c", hold]
        )
        self._first = self._wait_for_child()

    def _wait_for_child(self) -> str:
        children = Path(f"/proc/{self._held.pid}/task/{self._held.pid}/children")
        for _ in range(200):
            if found := children.read_text().split():
                return found[0]
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._held.wait(0.05)
        raise RuntimeError(f"{self.name} did not start")

    def run(self, command: str, timeout: float = 240, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a shell command there, with a bare environment."""
        kept = {"PATH": os.environ["PATH"], "HOME": str(self.home), "TERM": "dumb", "LANG": "C.UTF-8"}
        inside = ["nsenter", "--net", "--pid", "--mount", "--target", self._first, "bash", "-c", command]
        with tempfile.TemporaryFile("w+") as output:  # a daemon that it leaves behind would hold a pipe open
            done = subprocess.run(
                inside, env=kept | variables, cwd=self.home, stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT, timeout=timeout, text=True,
            )  # fmt: skip
            output.seek(0)
            done.stdout = output.read()
        return done

    def end(self) -> None:
        """End the machine and all that runs on it."""
        self._held.kill()
        self._held.wait()


@contextlib.contextmanager
def machines(count: int) -> Iterator[list[Node]]:
    """Machines that reach each other and nothing else; skips where they cannot be made."""
    if os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("unshare"):
        pytest.skip("network namespaces need root, and iproute2")
    folder, bridge = Path(tempfile.mkdtemp(prefix="crmt-", dir="/tmp")), f"crmt{os.getpid() % 100000}"
    names, made = [f"{bridge}-{i}" for i in range(count)], []
    try:
        _ip(f"link add {bridge} type bridge", "the kernel has no bridges")
        _ip(f"link set {bridge} up")
        for i, name in enumerate(names):
            _ip(f"netns add {name}")
            _ip(f"link add {bridge}v{i} type veth peer name eth0 netns {name}")
            _ip(f"link set {bridge}v{i} master {bridge} up")
            _ip(f"-n {name} link set lo up")
            _ip(f"-n {name} addr add {NETWORK}.{i + 1}/24 dev eth0")
            _ip(f"-n {name} link set eth0 up")
            _ip(f"-n {name} route add default dev eth0")  # by which Ray finds a node's address
            made.append(Node(name, f"{NETWORK}.{i + 1}", folder / str(i)))
        yield made
    finally:
        for node in made:
            node.end()
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)
        subprocess.run(["ip", "link", "del", bridge], capture_output=True)
        shutil.rmtree(folder, ignore_errors=True)


def _ip(arguments: str, unless: str = "network namespaces cannot be made here") -> None:
    done = subprocess.run(["ip", *arguments.split()], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"{unless}: {done.stderr.strip()}")
