"""A trial's metrics for Prometheus: epochs, accuracies, radii, batches, waiting for them, and GPU seconds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from time import perf_counter

from crmt.modality import Batch
from pipelines.infra.metrics import Waiting, count, show

_SHOWN = {"val_accuracy": "crmt_clean_accuracy", "val_robust_accuracy": "crmt_robust_accuracy"}


class Telemetry:
    """What one worker of a trial tells. Gauges are told by rank 0 alone, counters by all: their sum is the trial's."""

    def __init__(self, run: str, trial_id: str, gpus: float, rank: int) -> None:
        """Begin to count.

        Args:
            run: the name of the run.
            trial_id: the trial's name.
            gpus: that this worker holds.
            rank: of this worker.
        """
        self._tags = {"run": run, "trial": trial_id}
        self._gpus, self._rank = gpus, rank
        self._waiting, self._clips = Waiting(), 0
        self._since = perf_counter()

    def batches(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """An epoch's batches; how long each is waited for is counted."""
        self._clips = 0
        for batch in self._waiting.timed(batches):
            self._clips += len(batch.labels)
            yield batch

    def epoch(self, number: int, metrics: Mapping[str, float]) -> float:
        """Tell of an epoch that has ended; returns the share of it in which training waited for batches.

        Args:
            number: the epoch's, from 1.
            metrics: of the epoch: `seconds`, and what validation gave where it was validated.
        """
        seconds, waited = float(metrics["seconds"]), self._waiting.seconds
        count("crmt_batches", self._waiting.given, **self._tags)
        count("crmt_clips_trained", self._clips, **self._tags)
        count("crmt_training_seconds", seconds, **self._tags)
        count("crmt_waiting_seconds", waited, **self._tags)
        self.worked()
        if self._rank == 0:
            show("crmt_epoch", number, **self._tags)
            for name, metric in _SHOWN.items():
                if name in metrics:
                    show(metric, metrics[name], **self._tags)
        return min(waited / max(seconds, 1e-9), 1.0)

    def radius(self, certificate: str, mean: float) -> None:
        """Tell a certificate's mean radius on the test split."""
        if self._rank == 0:
            show("crmt_mean_radius", mean, certificate=certificate, **self._tags)

    def worked(self) -> None:
        """Count the GPU seconds since the last call."""
        now = perf_counter()
        count("crmt_gpu_seconds", self._gpus * (now - self._since), **self._tags)
        self._since = now
