"""What kinds of pictures share: the same random frames, crops and flips, on the training device."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from crmt.modality import Modality
from pipelines.clips.kinds._base import Kind, ModalityMeta
from pipelines.clips.random_choices import RandomChoices
from pipelines.config.schema import VideoConfig


class Pictures(Kind):
    """Frames of `channels` channels, kept as JPEGs, in [0, 1] to the model."""

    channels: int
    space: str

    @property
    @abstractmethod
    def pictures(self) -> VideoConfig:
        """How frames are taken and cut."""

    @property
    def shape(self) -> tuple[int, ...]:
        video = self.pictures
        return (video.frames * video.candidates, self.channels, video.size, video.size)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.uint8)

    @property
    def jpeg(self) -> bool:
        return True

    @property
    def statistics_axis(self) -> int | None:
        return 1

    @property
    def unit(self) -> tuple[float, float]:
        return 0.0, 255.0

    def decides_bytes(self) -> dict[str, Any]:
        return self.settings.model_dump(exclude={"crop"})  # batches are cropped, stored frames are not

    def modality(self, meta: ModalityMeta) -> Modality:
        shape = (self.pictures.frames, self.channels, self.pictures.crop, self.pictures.crop)
        return Modality(
            name=self.name,
            shape=shape,
            channel_axis=1,
            mean=meta.mean,
            std=meta.std,
            box=(0.0, 1.0),
            space=self.space,
        )

    def to_unit(self, stored: Tensor) -> Tensor:
        """Stored values as floats to [0, 1].

        Args:
            stored: bytes in a float type, of any shape.
        """
        return stored / 255

    def mirrored(self, values: Tensor, flip: Tensor) -> Tensor:
        """What else changes where a clip is mirrored, such as the sign of motion.

        Args:
            values: `(B, T, C, crop, crop)` in [0, 1], mirrored already.
            flip: which clips, `(B,)`, bool.
        """
        del flip
        return values

    def transform(self, stored: Tensor, constants: tuple[float, float], choices: RandomChoices | None) -> Tensor:
        """`(B, T, C, crop, crop)` in [0, 1]."""
        del constants
        video = self.pictures
        count, _, _, side, _ = stored.shape
        middle = torch.full((count, video.frames), video.candidates // 2) if choices is None else choices.candidate
        frames = torch.arange(video.frames) * video.candidates + middle
        if choices is not None and choices.box is not None:
            rows = torch.arange(count, device=stored.device)[:, None]
            # resizing needs floats, so the mirror works on its result; a plain crop, below, picks bytes by index,
            # mirrored in the same pass, and only the picked ones become floats
            values = self.to_unit(_resized(stored[rows, frames.to(stored.device)].float(), choices.box, video.crop))
            flip = choices.flip.to(stored.device)
            values = torch.where(flip[:, None, None, None, None], values.flip(-1), values)
        else:
            offset = torch.full((count, 2), (side - video.crop) // 2) if choices is None else choices.offset
            flip = torch.zeros(count, dtype=torch.bool) if choices is None else choices.flip
            values = self.to_unit(_cut(stored, frames, offset, flip, video.crop).float())
        return self.mirrored(values, flip.to(stored.device))


def _cut(stored: Tensor, frames: Tensor, offset: Tensor, flip: Tensor, crop: int) -> Tensor:
    """The chosen frames `(B, T)`, cut at `offset` (the edge is repeated beyond it) and mirrored where `flip`."""
    count, _, channels, side, _ = stored.shape
    rows = (torch.arange(crop) + offset[:, :1]).clamp(0, side - 1)
    columns = (torch.arange(crop) + offset[:, 1:]).clamp(0, side - 1)
    columns = torch.where(flip[:, None], columns.flip(1), columns)
    device = stored.device
    return stored[
        torch.arange(count, device=device)[:, None, None, None, None],
        frames.to(device)[:, :, None, None, None],
        torch.arange(channels, device=device)[None, None, :, None, None],
        rows.to(device)[:, None, None, :, None],
        columns.to(device)[:, None, None, None, :],
    ]


def _resized(frames: Tensor, box: Tensor, crop: int) -> Tensor:
    """The part `box` (top, left, height, width) of every frame of a clip, resized to `crop` by linear interpolation."""
    side, steps = frames.shape[-1], (torch.arange(crop) + 0.5) / crop
    rows, columns = box[:, :1] + steps * box[:, 2:3], box[:, 1:2] + steps * box[:, 3:]
    grid = torch.stack([columns[:, None, :].expand(-1, crop, -1), rows[:, :, None].expand(-1, -1, crop)], dim=-1)
    grid = (grid * 2 / side - 1).to(frames)
    cut = F.grid_sample(frames.flatten(1, 2), grid, mode="bilinear", padding_mode="border", align_corners=False)
    return cut.unflatten(1, frames.shape[1:3])
