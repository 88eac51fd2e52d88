"""Sums and means over the workers of a data-parallel run. With one process they return their argument."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def rank() -> int:
    """This worker's number, from 0; 0 without a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """The number of workers; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sum_over_ranks(value: Tensor) -> Tensor:
    """The sum, the same on every rank; carries no gradient."""
    if world_size() == 1:
        return value.detach()
    total = value.detach().clone()
    dist.all_reduce(total)
    return total


def mean_over_ranks(value: Tensor) -> Tensor:
    """The mean, the same on every rank; carries no gradient."""
    return sum_over_ranks(value) / world_size()
