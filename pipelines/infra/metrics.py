"""What a job that runs tells Prometheus, through Ray: every node serves it, and clusters/grafana.json draws it.

Nothing is told, and nothing fails, where no Ray runs in the process.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from time import perf_counter
from typing import Any, TypeVar

_T = TypeVar("_T")
COUNTERS = {
    "crmt_clips_decoded": ("Clips decoded by an ingest.", ("dataset",)),
    "crmt_clips_quarantined": ("Clips that could not be decoded, by reason.", ("dataset", "reason")),
    "crmt_batches": ("Batches trained on.", ("run", "trial")),
    "crmt_clips_trained": ("Clips trained on, each as often as an epoch had it.", ("run", "trial")),
    "crmt_training_seconds": ("Seconds of training epochs.", ("run", "trial")),
    "crmt_waiting_seconds": (
        "Of them, seconds in which training waited for a batch. On a GPU that is more than the GPU itself waited: it "
        "works through earlier steps meanwhile.",
        ("run", "trial"),
    ),
    "crmt_gpu_seconds": ("Seconds of trials, times the GPUs that each held.", ("run", "trial")),
}
GAUGES = {
    "crmt_epoch": ("Last epoch that a trial ended.", ("run", "trial")),
    "crmt_clean_accuracy": ("Validation accuracy, 0 to 1.", ("run", "trial")),
    "crmt_robust_accuracy": ("Validation accuracy under attack, 0 to 1.", ("run", "trial")),
    "crmt_mean_radius": ("Mean radius on the test split, by certificate.", ("run", "trial", "certificate")),
    "crmt_trials": ("Trials of a sweep, by state.", ("run", "state")),
}
_made: dict[str, Any] = {}


def count(name: str, value: float, **tags: str) -> None:
    """Add to a counter.

    Args:
        name: one of `COUNTERS`.
        value: 0 or more.
        tags: all that it has.
    """
    if value and _ray_runs():
        _metric(name).inc(value, tags)


def show(name: str, value: float, **tags: str) -> None:
    """Set a gauge.

    Args:
        name: one of `GAUGES`.
        value: its value from now on.
        tags: all that it has.
    """
    if _ray_runs():
        _metric(name).set(value, tags)


def _metric(name: str) -> Any:
    if name not in _made:
        from ray.util import metrics

        description, tags = (COUNTERS | GAUGES)[name]
        kind = metrics.Counter if name in COUNTERS else metrics.Gauge
        _made[name] = kind(name, description, tags)
    return _made[name]


def _ray_runs() -> bool:
    import ray

    return bool(ray.is_initialized())


class Waiting:
    """How long a consumer waits for what an iterator gives, and how much it got."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.given = 0

    def timed(self, items: Iterable[_T]) -> Iterator[_T]:
        """The same items, counted from zero; the time until each is there is added up.

        Args:
            items: iterated once.
        """
        self.seconds, self.given = 0.0, 0
        iterator = iter(items)
        while True:
            began = perf_counter()
            try:
                item = next(iterator)
            except StopIteration:
                return
            finally:
                self.seconds += perf_counter() - began
            self.given += 1
            yield item
