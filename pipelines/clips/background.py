"""Threads that make batches while a model computes: one that is ahead of it, others that share out a batch's clips."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from queue import SimpleQueue
from typing import TypeVar

from pipelines.clips.stored import Each, in_turn

Item = TypeVar("Item")


@contextmanager
def sharing(threads: int) -> Iterator[Each]:
    """An `Each` by this many threads; decoders and copies of arrays let them run side by side.

    Args:
        threads: how many; one does the work in the caller's own.
    """
    if threads == 1:
        yield in_turn
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="input") as pool:

        def each(work: Callable[[int], None], count: int) -> None:
            for _ in pool.map(work, range(count)):  # to see what one of them raised
                pass

        yield each


def in_background(items: Generator[Item], ahead: int = 1) -> Generator[Item]:
    """The same items, made in a thread: one is in the making and `ahead` wait while the caller is busy.

    What the items' maker raises is raised here. The thread has ended when this generator has, also by `close`.

    Args:
        items: a generator that nobody else uses.
        ahead: how many finished items may wait.
    """
    room, stop = threading.Semaphore(ahead), threading.Event()
    ready: SimpleQueue[tuple[Item] | BaseException | None] = SimpleQueue()

    def make() -> None:
        try:
            with closing(items):
                for item in items:
                    room.acquire()
                    if stop.is_set():
                        return
                    ready.put((item,))
            ready.put(None)
        except BaseException as error:  # noqa: BLE001 - the caller's to handle, whatever it is
            ready.put(error)

    thread = threading.Thread(target=make, name="batches", daemon=True)
    thread.start()
    try:
        while (made := ready.get()) is not None:
            if isinstance(made, BaseException):
                raise made
            room.release()
            yield made[0]
    finally:
        stop.set()
        room.release()
        thread.join()
