"""Ratios of two implementations, measured side by side in one run: what every row of the benchmarks is made of.

A row is a function from a `Bench` to one or more `Row`s. It times with `paired` and says what it compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import torch


@dataclass(frozen=True)
class Row:
    """One measured ratio beside its target."""

    number: int
    """Of the row in the table of targets; several rows may share one."""
    what: str
    baseline: str
    ratio: float
    """How many times as fast as the baseline; where `at_least` is False, a cost that should stay small."""
    target: float
    at_least: bool = True
    """Whether the ratio should reach the target, or else stay at or below it."""
    note: str = ""
    """Seconds, sizes, or why the target is out of reach."""

    @property
    def met(self) -> bool:
        """Whether the target is met."""
        return self.ratio >= self.target if self.at_least else self.ratio <= self.target

    def to_json(self) -> dict[str, Any]:
        """As JSON holds it, with the verdict."""
        return {**asdict(self), "met": self.met}


@dataclass(frozen=True)
class Bench:
    """Where and how large rows measure."""

    device: torch.device
    full: bool
    """The paper's sizes, for a card; otherwise sizes that a CPU gets through in seconds."""
    rounds: int = 5
    """Pairs of runs behind a ratio."""


RowFunction = Callable[[Bench], Iterable[Row]]


class Paired(NamedTuple):
    """What `paired` measured."""

    ratio: float
    """The median over rounds of their seconds / our seconds: above 1, ours is faster."""
    ours: float
    """Median seconds."""
    theirs: float
    """Median seconds."""

    def __str__(self) -> str:
        return f"{_seconds(self.ours)} against {_seconds(self.theirs)}"


def paired(ours: Callable[[], object], theirs: Callable[[], object], rounds: int = 5, warm_up: int = 1) -> Paired:
    """Time two functions in turn, so that whatever slows the machine slows both.

    Every round runs both, in alternating order; the device is waited for before each reading of the clock.

    Args:
        ours: one run of ours.
        theirs: one run of the baseline, of the same amount of work.
        rounds: how often both are timed, at least 1.
        warm_up: runs of each that are not timed: compilation, the allocator, autotuning.
    """
    for _ in range(warm_up):
        ours()
        theirs()
    times: list[tuple[float, float]] = []
    for turn in range(rounds):
        if turn % 2:
            second = seconds(theirs)
            times.append((seconds(ours), second))
        else:
            first = seconds(ours)
            times.append((first, seconds(theirs)))
    mine, other = zip(*times, strict=True)
    return Paired(median(b / a for a, b in times), median(mine), median(other))


def seconds(run: Callable[[], object]) -> float:
    """How long one run takes, the device's work with it."""
    _wait()
    started = perf_counter()
    run()
    _wait()
    return perf_counter() - started


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _seconds(value: float) -> str:
    return f"{value:.3g} s" if value >= 1 else f"{1e3 * value:.3g} ms"


def table(rows: Sequence[Row]) -> str:
    """The rows as a table in Markdown."""
    lines = ["| # | what | baseline | ratio | target | verdict | note |", "| --- | --- | --- | --- | --- | --- | --- |"]
    for row in rows:
        sign = "≥" if row.at_least else "≤"
        verdict = "met" if row.met else "missed"
        lines.append(
            f"| {row.number} | {row.what} | {row.baseline} | {row.ratio:.2f} | {sign} {row.target:g} | {verdict} | "
            f"{row.note} |"
        )
    return "\n".join(lines)
