"""Pieces of work as Ray Data tasks, one CPU each, with progress counted in clips: making clips, decoding them."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from crmt.errors import CRMTError


@dataclass(frozen=True)
class Piece:
    """One task: what `work` gets (must be JSON), and how many clips it is worth in the progress."""

    task: dict[str, Any]
    clips: int


def run_pieces(
    pieces: Sequence[Piece], work: Callable[[dict[str, Any]], dict[str, Any]], label: str, progress: bool
) -> list[dict[str, Any]]:
    """Run `work` on every piece, in parallel over the cluster, and return its results in the pieces' order.

    Results must be JSON. Needs a running Ray.

    Raises:
        CRMTError: `work` raised one, or an OSError such as a full disk; the first ends all.
    """
    results: dict[int, dict[str, Any]] = {}
    if not pieces:
        return []
    import ray.data

    items = [{"piece": i, "task": json.dumps(piece.task)} for i, piece in enumerate(pieces)]
    with _quiet_ray_data(), _progress(label, sum(p.clips for p in pieces), progress) as advance:
        tasks = ray.data.from_items(items, override_num_blocks=len(items))
        done = tasks.map(functools.partial(_call, work=work), num_cpus=1)
        for row in done.iter_rows():
            position = int(row["piece"])
            results[position] = json.loads(row["result"])
            if row["error"]:
                raise CRMTError(f"{label}: {row['error']}")
            advance(pieces[position].clips)
    return [results[i] for i in range(len(pieces))]


@contextlib.contextmanager
def only_one(folder: Path, made: str | None = None) -> Iterator[None]:
    """Hold the lock of a folder that is being made; a second run of the same set waits here, and says so.

    Args:
        made: what is being made, where that is not `folder` itself, which then holds the lock alone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        Console(stderr=True).print(
            f"another run is at work on {made or folder}; waiting for it", highlight=False, soft_wrap=True
        )
        lock.acquire()
    try:
        for leftover in folder.rglob(".*.tmp"):  # of a run that was killed
            leftover.unlink(missing_ok=True)
        yield
    finally:
        lock.release()


def _call(row: dict[str, Any], work: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    """Failures that the user can mend travel as text, not as Ray's pages of traceback; bugs stay exceptions."""
    try:
        return {"piece": row["piece"], "result": json.dumps(work(json.loads(row["task"]))), "error": ""}
    except (OSError, CRMTError) as error:
        return {"piece": row["piece"], "result": "{}", "error": str(error)}


@contextlib.contextmanager
def _quiet_ray_data() -> Iterator[None]:
    """Ray Data's own bars and start-up lines stand aside for ours."""
    import ray.data

    context = ray.data.DataContext.get_current()
    logger = logging.getLogger("ray.data")
    bars, level = context.enable_progress_bars, logger.level
    context.enable_progress_bars = False
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        context.enable_progress_bars = bars
        logger.setLevel(level)


@contextlib.contextmanager
def _progress(label: str, total: int, shown: bool) -> Iterator[Callable[[int], None]]:
    """A function that counts clips: as a bar on a terminal, as a line every tenth elsewhere, or not at all."""
    console = Console(stderr=True)
    if not shown:
        yield lambda _: None
    elif console.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
        )
        with Progress(*columns, TimeRemainingColumn(), console=console) as bar:
            task = bar.add_task(label, total=total, rate="")
            started = time.monotonic()

            def advance(clips: int) -> None:
                bar.advance(task, clips)
                rate = bar.tasks[0].completed / max(time.monotonic() - started, 1e-9)
                bar.update(task, rate=f"{rate:.0f} clips/s")

            yield advance
    else:
        yield _line_printer(console, label, total)


def _line_printer(console: Console, label: str, total: int) -> Callable[[int], None]:
    started, done, tenth = time.monotonic(), 0, 0

    def advance(clips: int) -> None:
        nonlocal done, tenth
        done += clips
        if done * 10 // total > tenth or done == total:
            tenth = done * 10 // total
            rate = done / max(time.monotonic() - started, 1e-9)
            left = (total - done) / rate
            console.print(f"{label}: {done} of {total} clips, {rate:.0f} clips/s, {left:.0f} s left", highlight=False)

    return advance
