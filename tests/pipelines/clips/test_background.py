"""Batches made by threads: the same items, what fails comes through, and no thread is left behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator

import pytest

from pipelines.clips.background import in_background, sharing


def counting(count: int, made: list[int], closed: list[bool]) -> Generator[int]:
    try:
        for number in range(count):
            made.append(number)
            yield number
    finally:
        closed.append(True)


def until(true: Callable[[], bool]) -> bool:
    """Whether it came true; a minute is given to a busy machine."""
    end = time.monotonic() + 60
    while not true() and time.monotonic() < end:
        time.sleep(0.01)
    return true()


@pytest.mark.parametrize("ahead", [1, 3])
def test_items_come_in_order_and_no_more_than_agreed_are_made_ahead(ahead: int) -> None:
    made: list[int] = []
    items = in_background(counting(20, made, []), ahead)
    assert not made  # nothing is begun before the first is asked for
    taken = [next(items)]
    most = len(taken) + ahead + 1  # one more is in the making, or finished and waits for room
    assert until(lambda: len(made) == most)
    time.sleep(0.05)
    assert len(made) == most
    assert [*taken, *items] == list(range(20)) == made


def test_closing_early_ends_the_thread_and_the_maker() -> None:
    before = threading.active_count()
    for ending in ("close", "forget"):
        closed: list[bool] = []
        items = in_background(counting(20, [], closed))
        assert [next(items), next(items)] == [0, 1]
        if ending == "close":
            items.close()
        else:
            del items
        assert closed == [True] and threading.active_count() == before


def test_what_the_maker_raises_is_raised_after_what_it_made() -> None:
    def failing() -> Generator[int]:
        yield 1
        raise KeyError("the second")

    before, taken = threading.active_count(), []
    with pytest.raises(KeyError, match="the second"):
        for item in in_background(failing()):
            taken.append(item)
    assert taken == [1] and threading.active_count() == before


@pytest.mark.parametrize("threads", [1, 3])
def test_shared_work_is_done_once_each_and_its_failure_is_seen(threads: int) -> None:
    before, done = threading.active_count(), [0] * 50

    def work(number: int) -> None:
        done[number] += 1

    def failing(number: int) -> None:
        raise ValueError(f"clip {number}")

    with sharing(threads) as each:
        each(work, 50)
        with pytest.raises(ValueError, match="clip 0"):
            each(failing, 50)
    assert done == [1] * 50 and threading.active_count() == before
