"""Which worker of how many this is, and the device that it computes on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Placement:
    """Which worker of a trial this is, and its device."""

    rank: int = 0
    world_size: int = 1
    """How many workers the trial has."""
    device: torch.device = CPU

    def mine(self, rows: np.ndarray) -> np.ndarray:
        """This rank's share of some rows; together the shares of all ranks are the whole.

        Args:
            rows: those of the whole batch or split.
        """
        return rows[self.rank :: self.world_size]
