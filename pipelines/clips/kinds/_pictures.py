"""What kinds of pictures share: the same random frames, crops and flips. Only frames that were drawn are read."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from crmt.modality import Modality
from pipelines.clips.kinds._base import Kind, ModalityMeta
from pipelines.clips.random_choices import RandomChoices
from pipelines.clips.stored import Each, Stored
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
        """Stored values to [0, 1].

        Args:
            stored: bytes in a float type, of any shape; may be written to.
        """
        return stored.div_(255)

    def mirrored(self, values: Tensor, flip: Tensor) -> Tensor:
        """What else changes where a clip is mirrored, such as the sign of motion.

        Args:
            values: `(B, T, C, crop, crop)` in [0, 1], mirrored already.
            flip: which clips, `(B,)`, bool.
        """
        del flip
        return values

    def gather(self, stored: Stored, choices: RandomChoices | None, each: Each) -> NDArray[np.uint8]:
        """The chosen frames, `(B, T, C, crop, crop)`, cut and mirrored; whole, `(B, T, C, size, size)`, where they are
        still to be resized."""
        video, count = self.pictures, len(stored)
        cut = choices is None or choices.box is None
        side = video.crop if cut else video.size
        if choices is None:
            candidates = np.full((count, video.frames), video.candidates // 2)
            offsets = np.full((count, 2), (video.size - video.crop) // 2)
            flips = np.zeros(count, bool)
        else:
            candidates, offsets, flips = choices.candidate.numpy(), choices.offset.numpy(), choices.flip.numpy()
        numbers = np.arange(video.frames) * video.candidates + candidates
        frames = np.empty((count, video.frames, self.channels, side, side), np.uint8)

        def fill(clip: int) -> None:
            for frame, number in zip(frames[clip], numbers[clip], strict=True):
                picture = stored.picture(clip, int(number))
                frame[...] = _cut(picture, offsets[clip].tolist(), side, bool(flips[clip])) if cut else picture

        each(fill, count)
        return frames

    def transform(self, stored: Tensor, constants: tuple[float, float], choices: RandomChoices | None) -> Tensor:
        """`(B, T, C, crop, crop)` in [0, 1]."""
        del constants
        if choices is None:
            return self.to_unit(stored.float())
        if choices.box is None:
            values = self.to_unit(stored.float())
        else:
            resize = _resized_here if stored.device.type == "cpu" else _resized_there
            values = self.to_unit(resize(stored, choices.box, choices.flip, self.pictures.crop))
        return self.mirrored(values, choices.flip.to(stored.device))


def _cut(picture: NDArray[np.uint8], offset: list[int], crop: int, mirror: bool) -> NDArray[np.uint8]:
    """A square of a picture `(C, H, H)`; the edge is repeated beyond it."""
    (top, left), last = offset, picture.shape[-1] - 1
    if min(top, left) >= 0 and max(top, left) + crop - 1 <= last:
        part = picture[:, top : top + crop, left : left + crop]
    else:
        rows, columns = (np.arange(crop) + start for start in (top, left))
        part = picture[:, rows.clip(0, last)[:, None], columns.clip(0, last)]
    return part[..., ::-1] if mirror else part


def _resized_here(frames: Tensor, box: Tensor, flip: Tensor, crop: int) -> Tensor:
    """The part `box` (top, left, height, width) of every frame of a clip, cut out, mirrored where `flip`, and resized
    to `crop` by linear interpolation; by OpenCV, at a tenth of what `grid_sample` costs a CPU."""
    import cv2

    cv2.setNumThreads(1)  # a batch is made beside the model's own threads
    stored = frames.numpy()
    resized = np.empty((*stored.shape[:3], crop, crop), np.float32)
    for clip, (top, left, height, width) in enumerate(box.tolist()):
        part = stored[clip, :, :, top : top + height, left : left + width]
        part = (part[..., ::-1] if flip[clip] else part).astype(np.float32, order="C")
        for source, target in zip(part.reshape(-1, height, width), resized[clip].reshape(-1, crop, crop), strict=True):
            cv2.resize(source, (crop, crop), dst=target, interpolation=cv2.INTER_LINEAR)
    return torch.from_numpy(resized)


def _resized_there(frames: Tensor, box: Tensor, flip: Tensor, crop: int) -> Tensor:
    """The same on a device where a batch at once is fastest."""
    side, steps = frames.shape[-1], (torch.arange(crop) + 0.5) / crop
    # where pixels' centres lie; beyond those of what was cut out, its edge is repeated
    rows, columns = (
        torch.minimum(torch.maximum(start + steps * length, start + 0.5), start + length - 0.5)
        for start, length in ((box[:, :1], box[:, 2:3]), (box[:, 1:2], box[:, 3:]))
    )
    columns = torch.where(flip[:, None], columns.flip(1), columns)
    grid = torch.stack([columns[:, None, :].expand(-1, crop, -1), rows[:, :, None].expand(-1, -1, crop)], dim=-1)
    grid = (grid * 2 / side - 1).to(frames.device)
    images = frames.flatten(1, 2).float()
    cut = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return cut.unflatten(1, frames.shape[1:3])
