"""Stored arrays to what a model takes: random frames, crops, flips and shifts in training, the middle in evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pipelines.clips.cache import ClipCache
from pipelines.clips.placement import Placement
from pipelines.clips.rows import DTYPES, FLOW_STEPS, present_column
from pipelines.config.schema import AugmentConfig, DataConfig


@dataclass(frozen=True)
class Transform:
    """Stored arrays ▸ what a model takes."""

    data: DataConfig
    audio_mean: float
    audio_std: float
    means: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """By modality, what stands in for one that a clip lacks: its mean in the batches' space, 0 where not given."""

    @staticmethod
    def of(cache: ClipCache, data: DataConfig) -> Transform:
        audio = cache.modalities.get("audio")
        means = {name: meta.mean for name, meta in cache.modalities.items() if name != "audio"}
        return Transform(data, audio.mean[0] if audio else 0.0, audio.std[0] if audio else 1.0, means)

    def __call__(self, arrays: dict[str, np.ndarray], draws: Draws | None, device: torch.device) -> dict[str, Tensor]:
        """Inputs on `device`; `draws` None is the plain form: middle candidate, centre crop."""
        inputs: dict[str, Tensor] = {}
        for name in (m for m in DTYPES if m in arrays):
            stored = torch.from_numpy(np.require(arrays[name], requirements=("C", "W"))).to(device)
            values = self._audio(stored, draws) if name == "audio" else self._picture(name, stored, draws)
            present = arrays.get(present_column(name))
            if present is not None and not present.all():
                mean = torch.tensor(self.means.get(name, (0.0,)), device=device)
                if name != "audio":
                    mean = mean[:, None, None]  # by channel of every frame
                values[torch.from_numpy(~present).to(device)] = mean
            inputs[name] = values
        return inputs

    def _audio(self, stored: Tensor, draws: Draws | None) -> Tensor:
        standard = (stored.float() - self.audio_mean) / self.audio_std
        if draws is None:
            return standard
        frames = standard.shape[-1]
        columns = (torch.arange(frames)[None] + draws.time_shift[:, None]).clamp(0, frames - 1).to(stored.device)
        shifted = standard.gather(3, columns[:, None, None, :].expand_as(standard))
        return shifted + draws.gain.to(stored.device)[:, None, None, None]

    def _picture(self, name: str, stored: Tensor, draws: Draws | None) -> Tensor:
        """`(B, T, C, crop, crop)` in [0, 1]. Flow is cut as the video is; mirrored, it goes the other way."""
        video = self.data.video
        count, _, _, side, _ = stored.shape
        middle = torch.full((count, video.frames), video.candidates // 2) if draws is None else draws.candidate
        frames = torch.arange(video.frames) * video.candidates + middle
        if draws is not None and draws.box is not None:
            rows = torch.arange(count, device=stored.device)[:, None]
            values = _unit(name, _resized(stored[rows, frames.to(stored.device)].float(), draws.box, video.crop))
            flip = draws.flip.to(stored.device)
            values = torch.where(flip[:, None, None, None, None], values.flip(-1), values)
        else:
            offset = torch.full((count, 2), (side - video.crop) // 2) if draws is None else draws.offset
            flip = torch.zeros(count, dtype=torch.bool) if draws is None else draws.flip
            values = _unit(name, _cut(stored, frames, offset, flip, video.crop).float())
        if name == "flow":
            mirrored = values[:, :, 0]
            values[:, :, 0] = torch.where(flip.to(stored.device)[:, None, None, None], 1 - mirrored, mirrored)
        return values


def _unit(name: str, stored: Tensor) -> Tensor:
    """Bytes to [0, 1]."""
    return ((stored - 1) / FLOW_STEPS).clamp(0, 1) if name == "flow" else stored / 255


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


@dataclass(frozen=True)
class Draws:
    """The random choices of one batch. In memory they are drawn for the GLOBAL batch, whatever the workers."""

    candidate: Tensor
    """`(B, T)`: which kept frame of each segment."""
    offset: Tensor
    """`(B, 2)`: top and left of the crop; below 0 in the padding."""
    flip: Tensor
    time_shift: Tensor
    gain: Tensor
    box: Tensor | None = None
    """`(B, 4)` with augment.scale: top, left, height and width of what is cut out and resized."""

    @staticmethod
    def draw(size: int, data: DataConfig, seed: Sequence[int]) -> Draws:
        rng, augment = np.random.default_rng(list(seed)), data.augment
        room = data.video.size - data.video.crop + 2 * augment.pad
        return Draws(
            torch.from_numpy(rng.integers(0, data.video.candidates, (size, data.video.frames))),
            torch.from_numpy(rng.integers(0, room + 1, (size, 2))) - augment.pad,
            torch.from_numpy(rng.random(size) < 0.5) & augment.flip,
            torch.from_numpy(rng.integers(-augment.time_shift, augment.time_shift + 1, size)),
            torch.from_numpy(rng.uniform(-augment.gain, augment.gain, size)).float(),
            _boxes(rng, augment, data.video.size, size),
        )

    def mine(self, place: Placement) -> Draws:
        shares: dict[str, Any] = {
            k: v if v is None else v[place.rank :: place.world_size] for k, v in vars(self).items()
        }
        return Draws(**shares)


def _boxes(rng: np.random.Generator, augment: AugmentConfig, side: int, size: int) -> Tensor | None:
    """Parts of a square: the area even in augment.scale, the ratio in the logarithm of augment.ratio."""
    if augment.scale is None:
        return None
    area = rng.uniform(augment.scale[0], augment.scale[1], size) * side**2
    ratio = np.exp(rng.uniform(np.log(augment.ratio[0]), np.log(augment.ratio[1]), size))
    height, width = np.minimum(np.sqrt(area / ratio), side), np.minimum(np.sqrt(area * ratio), side)
    top, left = (side - height) * rng.random(size), (side - width) * rng.random(size)
    return torch.from_numpy(np.stack([top, left, height, width], axis=1)).float()
