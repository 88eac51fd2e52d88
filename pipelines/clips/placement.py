"""Which worker of how many this is, the device that it computes on, and the CPUs that make its batches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Placement:
    """Which worker of a trial this is, and what it has."""

    rank: int = 0
    world_size: int = 1
    """How many workers the trial has."""
    device: torch.device = CPU
    input_cpus: float = 0.0
    """CPUs for its batches, beside those of the model; below one: a thread shares the model's."""

    @property
    def threads(self) -> int:
        """The threads that decode and cut the clips of a batch."""
        return max(1, round(self.input_cpus))

    def mine(self, rows: np.ndarray) -> np.ndarray:
        """This rank's share of some rows; together the shares of all ranks are the whole.

        Args:
            rows: those of the whole batch or split.
        """
        return rows[self.rank :: self.world_size]
