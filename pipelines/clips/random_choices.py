"""The random choices of a training batch, made before a frame is decoded or moved."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from pipelines.clips.placement import Placement
from pipelines.config.modality import PATH
from pipelines.config.schema import AugmentConfig, DataConfig, VideoConfig

ChoiceGroup = tuple[str, int, int, int, int]
"""Column, frames, candidates, size and crop: modalities that agree in all of these are cut alike."""


@dataclass(frozen=True)
class RandomChoices:
    """The random choices of one batch. In memory they are drawn for the GLOBAL batch, whatever the workers."""

    candidate: Tensor
    """`(B, T)`: which kept frame of each segment."""
    offset: Tensor
    """`(B, 2)`: top and left of the crop; below 0 in the padding."""
    flip: Tensor
    """`(B,)`: whether a clip's pictures are mirrored, all of them alike."""
    time_shift: Tensor
    """`(B,)`: spectrogram frames by which sound is shifted."""
    gain: Tensor
    """`(B,)`: added to standardised sound."""
    box: Tensor | None = None
    """`(B, 4)` with augment.scale: top, left, height and width of what is cut out and resized, in whole pixels."""
    others: dict[ChoiceGroup, RandomChoices] = field(default_factory=dict)
    """The choices for modalities that are cut otherwise, or whose files another column names, by group."""

    @staticmethod
    def draw(
        size: int, data: DataConfig, seed: Sequence[int], groups: Iterable[ChoiceGroup | None] = ()
    ) -> RandomChoices:
        """The choices for a batch.

        Args:
            size: clips in the batch.
            data: says how clips are cut and augmented.
            seed: the same numbers give the same choices.
            groups: the groups of all modalities, as `group_of` gives them.
        """
        base = _draw(size, data.video, data.augment, seed)
        others = {}
        for group in sorted({g for g in groups if g is not None}):
            _, frames, candidates, side, crop = group
            video = data.video.model_copy(
                update={"frames": frames, "candidates": candidates, "size": side, "crop": crop}
            )
            own = [*seed, zlib.crc32(repr(group).encode())]
            # one mirror for all pictures: a left and a right camera see one world
            others[group] = replace(_draw(size, video, data.augment, own), flip=base.flip)
        return replace(base, others=others)

    def of(self, group: ChoiceGroup | None) -> RandomChoices:
        """The choices for the modalities of a group.

        Args:
            group: as `group_of` gives it; None: that of data.video and data.audio in `path`.
        """
        return self if group is None else self.others[group]

    def mine(self, place: Placement) -> RandomChoices:
        """This rank's share of the choices.

        Args:
            place: which worker of how many.
        """

        def share(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[place.rank :: place.world_size]

        kept = {name: share(values) for name, values in vars(self).items() if name != "others"}
        return RandomChoices(**kept, others={group: choices.mine(place) for group, choices in self.others.items()})  # type: ignore[arg-type]


def group_of(column: str, video: VideoConfig | None, data: DataConfig) -> ChoiceGroup | None:
    """The group of a modality; None for that of the default modalities.

    Args:
        column: the column that names its file.
        video: how its pictures are cut; None: it has none.
        data: says what the default modalities are.
    """
    own = _group(column, video or data.video)
    return None if own == _group(PATH, data.video) else own


def _group(column: str, video: VideoConfig) -> ChoiceGroup:
    return (column, video.frames, video.candidates, video.size, video.crop)


def _draw(size: int, video: VideoConfig, augment: AugmentConfig, seed: Sequence[int]) -> RandomChoices:
    rng = np.random.default_rng(list(seed))
    room = video.size - video.crop + 2 * augment.pad
    return RandomChoices(
        torch.from_numpy(rng.integers(0, video.candidates, (size, video.frames))),
        torch.from_numpy(rng.integers(0, room + 1, (size, 2))) - augment.pad,
        torch.from_numpy(rng.random(size) < 0.5) & augment.flip,
        torch.from_numpy(rng.integers(-augment.time_shift, augment.time_shift + 1, size)),
        torch.from_numpy(rng.uniform(-augment.gain, augment.gain, size)).float(),
        _boxes(rng, augment, video.size, size),
    )


def _boxes(rng: np.random.Generator, augment: AugmentConfig, side: int, size: int) -> Tensor | None:
    """Random parts of a square, `(B, 4)`: the area uniform in augment.scale, the ratio log-uniform in augment.ratio,
    both rounded to whole pixels."""
    if augment.scale is None:
        return None
    area = rng.uniform(augment.scale[0], augment.scale[1], size) * side**2
    ratio = np.exp(rng.uniform(np.log(augment.ratio[0]), np.log(augment.ratio[1]), size))
    height, width = (np.rint(length).clip(1, side) for length in (np.sqrt(area / ratio), np.sqrt(area * ratio)))
    top, left = ((side - length + 1) * rng.random(size) for length in (height, width))
    return torch.from_numpy(np.stack([top, left, height, width], axis=1).astype(np.int64))
