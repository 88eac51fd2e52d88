"""Ingest killed with SIGKILL at five random moments and resumed leaves what an undisturbed run leaves, to the byte.

A moment is a number of finished parts, decoding that has begun again, and a random delay of up to a part's time: so
kills fall into clips, into the writing of parts and between them, from the run's start to its end.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from pipelines import ingest as ingest_module
from tests.pipelines.media import bad_files, class_clip

CLIPS = {"train": 320, "validation": 64, "test": 128}
BAD = 8
KILLS = 5
SETTINGS = {
    "dataset": "manifest",
    "video": {"frames": 3, "candidates": 3, "size": 96, "crop": 88},
    "audio": {"front_end": "fbank", "seconds": 1.0, "frames": 100},
}
PATIENCE = 900.0
"""Seconds until anything that is waited for is given up."""


def session(leader: int) -> list[int]:
    """The living processes of a command: it was started as the leader of a session of its own."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended
            zombie = entry.joinpath("stat").read_text().rpartition(")")[2].split()[0] == "Z"
            if os.getsid(int(entry.name)) == leader and not zombie:
                found.append(int(entry.name))
    return found


def end_session(leader: int) -> None:
    """SIGKILL for all of them, and for those that they start meanwhile."""
    end = time.monotonic() + PATIENCE
    while members := session(leader):
        for pid in members:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert time.monotonic() < end, members
        time.sleep(0.02)


Start = Callable[[Path], "subprocess.Popen[bytes]"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of 512 clips, copies of six files of three classes, eight of them broken."""
    made, folder = tmp_path_factory.mktemp("made"), tmp_path_factory.mktemp("killed")
    sources = [class_clip(made / f"{label}{suffix}", label) for label in range(3) for suffix in (".mp4", ".avi")]
    broken = itertools.cycle(bad_files(made / "bad").values())
    rows: list[tuple[str, str, str]] = []
    for split, count in CLIPS.items():
        for number in range(count):
            bad = len(rows) % (sum(CLIPS.values()) // BAD) == 7
            source = next(broken) if bad else sources[number % len(sources)]
            name = f"{split}-{number:04d}{source.suffix}"
            shutil.copyfile(source, folder / name)
            rows.append((name, f"class {number % len(sources) // 2}", split))
    pd.DataFrame(rows, columns=["path", "label", "split"]).to_csv(folder / "manifest.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def start(data: Path) -> Iterator[Start]:
    """Starts the command with a cache, as a session of its own with a Ray of its own; leaves no process behind."""
    started: list[subprocess.Popen[bytes]] = []
    script = Path(ingest_module.__file__)
    ray_folder = tempfile.mkdtemp(prefix="r-")  # a short path: Ray's sockets lie in it

    def start(cache: Path) -> subprocess.Popen[bytes]:
        cache.mkdir(parents=True, exist_ok=True)
        config = cache / "config.json"  # JSON is YAML
        config.write_text(json.dumps({"data": {**SETTINGS, "cache": str(cache)}}))
        command = [sys.executable, str(script), "--dataset", "manifest", "--data-root", str(data)]
        own = {"RAY_ADDRESS": "local", "RAY_TMPDIR": ray_folder, "PYTHONPATH": str(script.parent.parent)}
        with (cache / "log").open("ab") as log:
            process = subprocess.Popen(
                [*command, "--config", str(config)],
                stdout=log,
                stderr=log,
                env={**os.environ, **own},
                start_new_session=True,
            )
        started.append(process)
        return process

    yield start
    for process in started:
        end_session(process.pid)
        process.wait()
    shutil.rmtree(ray_folder, ignore_errors=True)


def finish(process: subprocess.Popen[bytes], cache: Path) -> Path:
    """Wait for the end of the command; the folder of the decoded set."""
    assert process.wait(PATIENCE) == 0, (cache / "log").read_text()
    (folder,) = (cache / "clips").iterdir()
    return folder


@pytest.fixture(scope="module")
def calm(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an undisturbed run leaves."""
    cache = tmp_path_factory.mktemp("calm")
    return finish(start(cache), cache)


def parts(cache: Path) -> list[Path]:
    return sorted(cache.glob("clips/*/part-*.parquet"))


def decoding(leader: int) -> bool:
    """Whether a worker of the command has begun on a clip: it has a child that decodes frames, in another session."""
    members = set(session(leader))
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int(entry.joinpath("stat").read_text().rpartition(")")[2].split()[1])
            if parent in members and b"pipelines.decoding.frame_child" in entry.joinpath("cmdline").read_bytes():
                return True
    return False


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[bytes], cache: Path) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, f"it ended before it could be killed: {(cache / 'log').read_text()}"
        assert time.monotonic() < end, "the command did not get so far"
        time.sleep(0.02)


def kill_at(process: subprocess.Popen[bytes], cache: Path, enough: int, delay: float, last: int, whole: bool) -> None:
    """SIGKILL for the driver, or for all of its session, `delay` after `enough` parts are there and it decodes.

    Not later than when `last` parts are there: a run that has ended cannot be killed.
    """
    wait_until(lambda: len(parts(cache)) >= enough and decoding(process.pid), process, cache)
    end = time.monotonic() + delay
    wait_until(lambda: time.monotonic() >= end or len(parts(cache)) >= last, process, cache)
    process.kill()
    if whole:
        end_session(process.pid)
    assert process.wait(PATIENCE) == -signal.SIGKILL
    assert not list(cache.glob("clips/*/cache.json"))


def columns(folder: Path) -> list[dict[str, list[object]]]:
    """Every part's columns as they are stored, in order."""
    return [pq.read_table(part).to_pydict() for part in sorted(folder.glob("part-*.parquet"))]


@pytest.mark.slow
@pytest.mark.parametrize("whole", [True, False], ids=["with its Ray", "the driver alone"])
def test_a_killed_ingest_ends_like_an_undisturbed_one(start: Start, calm: Path, tmp_path: Path, whole: bool) -> None:
    """Where the driver alone is killed, its Ray may still be at work when the next run begins."""
    rng = random.Random(int(whole))
    written = sorted(part.stat().st_mtime for part in calm.glob("part-*.parquet"))
    total, seconds = len(written), (written[-1] - written[0]) / len(written)
    assert total > KILLS
    moments = sorted(rng.sample(range(total - 1), KILLS - 1))
    for enough in (0, *moments):
        kill_at(start(tmp_path), tmp_path, enough, rng.uniform(0, 2 * seconds), total - 1, whole)
    before = {part: part.stat().st_mtime_ns for part in parts(tmp_path)}
    folder = finish(start(tmp_path), tmp_path)

    kept = [part for part, modified in before.items() if part.stat().st_mtime_ns == modified]
    assert len(before) >= moments[-1] and len(kept) >= len(before) - (os.cpu_count() or 1)  # the others had no card yet
    assert columns(folder) == columns(calm)
    for name in ("cache.json", "quarantine.csv"):
        assert (folder / name).read_bytes() == (calm / name).read_bytes()
    assert {p.name for p in folder.iterdir()} == {p.name for p in calm.iterdir()}  # nothing half-written is left

    quarantine = pd.read_csv(folder / "quarantine.csv")
    listed = quarantine["clip_id"].tolist()
    assert set(quarantine["reason"]) == {"truncated", "no_audio", "empty", "not_media"}
    ids = [i for part in columns(folder) for i in part["id"]]
    assert len(listed) == BAD and len({*ids, *listed}) == len(ids) + BAD == sum(CLIPS.values())
