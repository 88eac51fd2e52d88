"""Random translation of training inputs: what a fixed camera and a fixed start of recording do not show."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from crmt.errors import BadInputError


def translate(batch: Tensor, reach: tuple[int, int], generator: torch.Generator) -> Tensor:
    """`(B, ..., H, W)`, every input moved by its own whole number of rows and columns up to `reach`, edges repeated.

    The channels and frames of one input move alike. For a log-mel `(B, 1, mels, frames)` rows are pitch: a reach of
    `(0, columns)` moves it in time only.

    Raises:
        BadInputError: a negative reach, or one that is not shorter than the input.
    """
    indices = []
    for limit, size in zip(reach, batch.shape[-2:], strict=True):
        if not 0 <= limit < size:
            raise BadInputError(f"a translation reaches 0 to {size - 1} of {size} rows or columns, not {limit}")
        offset = torch.randint(-limit, limit + 1, (len(batch), 1), generator=generator)
        indices.append((torch.arange(size) + offset).clamp(0, size - 1).to(batch.device))
    rows, columns = (i.reshape(len(batch), *[1] * (batch.ndim - 3), -1) for i in indices)
    moved = batch.gather(-2, rows[..., None].expand_as(batch))
    return moved.gather(-1, columns[..., None, :].expand_as(batch))


def translate_all(
    inputs: Mapping[str, Tensor], reach: Mapping[str, tuple[int, int]], generator: torch.Generator
) -> dict[str, Tensor]:
    """`translate` of the modalities that `reach` names; the others stay as they are."""
    return {m: translate(x, reach[m], generator) if m in reach else x for m, x in inputs.items()}
