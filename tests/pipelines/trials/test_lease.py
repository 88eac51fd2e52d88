"""What asks for GPUs computes in a Ray task that holds them, and what does not, in this process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pipelines.config.run_config import parse
from pipelines.trials.launch import run_here
from tests.pipelines.small import TINY

LEASED = """
import os, ray, torch
from pathlib import Path
from types import SimpleNamespace
from crmt.errors import CRMTError
from pipelines.config.run_config import parse
from pipelines.trials import launch
from tests.pipelines.small import TINY

class Source:
    def open(self, place):
        return place

def work(config, given, clips, session):
    held = ray.get_runtime_context().get_assigned_resources()
    return {"pid": os.getpid(), "device": str(session.place.device), **held}

def failing(config, given, clips, session):
    raise CRMTError("the loss is not finite")

def full(config, given, clips, session):
    raise OSError(28, "No space left on device")

def on_cpu(*given):  # this machine has no GPU, Ray only believes so
    torch.cuda.current_device = lambda: 0
    return alone(*given)

alone, launch._alone = launch._alone, on_cpu
ray.init(num_cpus=1, num_gpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
config = parse({**TINY, "sweep": {"gpus_per_worker": 1}}, "a test")
given = (config, SimpleNamespace(run=Path(".")), Source(), "train")
report = launch.run_here(*given, work)
print(report["pid"] != os.getpid(), report["device"], report["CPU"], report["GPU"])
for bad in (failing, full):
    try:
        launch.run_here(*given, bad)
    except (CRMTError, OSError) as error:
        print(type(error).__name__, str(error))
"""


def test_gpus_are_held_while_they_are_used(tmp_path: Path) -> None:
    """On a Ray of its own that is told of a GPU."""
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    root = str(Path(__file__).resolve().parents[3])
    environment["PYTHONPATH"] = root
    done = subprocess.run(
        [sys.executable, "-c", LEASED], capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "True cuda:0 1.0 1.0",
        "CRMTError the loss is not finite",
        "OSError [Errno 28] No space left on device",
    ]


def test_without_gpus_it_is_this_process(tmp_path: Path) -> None:
    source: Any = SimpleNamespace(open=lambda place: place.device)
    given: Any = SimpleNamespace(run=tmp_path)
    config = parse({**TINY, "sweep": {"gpus_per_worker": 0}}, "a test")
    report = run_here(config, given, source, "train", lambda _, __, clips, ___: {"pid": os.getpid(), "on": clips.type})
    assert report == {"pid": os.getpid(), "on": "cpu"}
