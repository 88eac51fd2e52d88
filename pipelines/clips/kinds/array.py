"""`array`: numbers that somebody extracted, a .npy or .npz file for each clip: lidar, skeletons, depth, text ...

    lidar: {kind: array, column: lidar, shape: [64, 3], space: metres, box: [0, 80]}

It is kept as float32, in the file's own units, which are those of budgets and radii; the model standardises it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from crmt.modality import Modality
from pipelines.clips.kinds._base import Kind, ModalityMeta
from pipelines.clips.random_choices import RandomChoices
from pipelines.config.schema import Count, Positive, Section
from pipelines.decoding.arrays import array_shape, read_array
from pipelines.decoding.errors import DecodeError

Numbers = float | Annotated[list[float], Field(min_length=1)]
Deviations = Positive | Annotated[list[Positive], Field(min_length=1)]


class ArraySettings(Section):
    """What the arrays of one modality are."""

    shape: Annotated[list[Count], Field(min_length=1)]
    """The shape of one clip's array."""
    space: str = "units of the file"
    """The unit of its values, for tables and plots."""
    box: tuple[float, float] | None = None
    """Range of valid values: attacks stay inside it, and a clip outside it is quarantined."""
    channel_axis: int | None = None
    """The axis of `shape` that has a mean and a deviation for each index; left out: one of each for all values."""
    standardise: Literal["train", "none"] | tuple[Numbers, Deviations] = "train"
    """Mean and deviation that the model standardises with: those of the train split, none, or these two (each a number,
    or one a channel)."""
    key: str | None = None
    """Name of the array in an .npz file that holds several."""

    @model_validator(mode="after")
    def _fits(self) -> ArraySettings:
        if self.box is not None and not self.box[0] < self.box[1]:
            raise ValueError(f"box {list(self.box)} must have the lower end first")
        if self.channel_axis is not None and not -len(self.shape) <= self.channel_axis < len(self.shape):
            raise ValueError(f"channel_axis {self.channel_axis} is no axis of shape {self.shape}")
        for given in self.standardise if isinstance(self.standardise, tuple) else ():
            if isinstance(given, list) and (self.channel_axis is None or len(given) != self.shape[self.channel_axis]):
                raise ValueError(f"standardise: {given} is not one number for each channel of channel_axis")
        return self


class Array(Kind):
    """An array of numbers, taken as it is in the file."""

    Settings = ArraySettings

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.settings.shape)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.float32)

    def decides_bytes(self) -> dict[str, Any]:
        kept = {"shape", "box", "channel_axis", "key"}  # channel_axis: the cache's card has statistics by it
        return self.settings.model_dump(mode="json", include=kept)

    def read(self, file: str, seconds: float) -> NDArray[np.float32]:
        del seconds  # no more is read of a file than an array of `shape`, so it cannot take long
        return read_array(Path(file), self.shape, self.settings.key, self.settings.box)

    def check_header(self, file: str) -> None:
        found = array_shape(Path(file), self.settings.key)
        if found != self.shape:
            raise DecodeError("wrong_shape", f"the array has shape {list(found)}, and `shape` is {list(self.shape)}")

    @property
    def statistics_axis(self) -> int | None:
        axis = self.settings.channel_axis
        return None if axis is None else axis % len(self.shape)

    def with_constants(self, meta: ModalityMeta) -> ModalityMeta:
        given = self.settings.standardise
        if given == "train":
            return meta
        mean, std = (0.0, 1.0) if given == "none" else given
        return replace(meta, mean=self._a_channel(mean), std=self._a_channel(std))

    def _a_channel(self, value: float | list[float]) -> tuple[float, ...]:
        count = 1 if self.statistics_axis is None else self.shape[self.statistics_axis]
        return tuple(value) if isinstance(value, list) else (value,) * count

    def modality(self, meta: ModalityMeta) -> Modality:
        axis = self.statistics_axis
        repeat = self.shape[0] if axis is None else 1  # a single number holds for every index of axis 0
        return Modality(
            name=self.name,
            shape=self.shape,
            channel_axis=axis or 0,
            mean=meta.mean * repeat,
            std=meta.std * repeat,
            box=self.settings.box,
            space=self.settings.space,
        )

    def transform(self, stored: Tensor, constants: tuple[float, float], choices: RandomChoices | None) -> Tensor:
        del constants, choices
        return stored.float()


KIND = Array
