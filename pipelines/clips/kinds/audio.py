"""`audio`: the sound of a clip, or of a file of its own, as a spectrogram (1, bands, frames), standardised.

Settings begin from data.audio; those of another front end than that one's begin from its defaults.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crmt.modality import Modality
from pipelines.clips.kinds._base import Kind, ModalityMeta
from pipelines.clips.random_choices import RandomChoices
from pipelines.config.modality import ModalityConfig
from pipelines.config.schema import AudioConfig, DataConfig
from pipelines.decoding.sound import PUBLISHED_FBANK

SPACE, VGGSOUND_SPACE = "standardised log-mel", "standardised log spectrogram"


class Audio(Kind):
    """One channel of bands by time. Batches are standardised already: that is the space of its budgets."""

    Settings = AudioConfig
    media = "audio"
    standardised = True

    @classmethod
    def settings_of(cls, given: ModalityConfig, data: DataConfig) -> AudioConfig:
        front_end = given.settings.get("front_end", data.audio.front_end)
        start: dict[str, Any] = data.audio.model_dump() if front_end == data.audio.front_end else {}
        return AudioConfig.model_validate({**start, **given.settings})

    @property
    def sound(self) -> AudioConfig:
        return self.settings

    @property
    def shape(self) -> tuple[int, ...]:
        return self.sound.shape

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.float16)

    def decides_bytes(self) -> dict[str, Any]:
        as_recorded = {"level"} if self.sound.level is None else set()
        # batches are standardised, stored sound is not
        return self.sound.model_dump(exclude={"standardise", *as_recorded})

    def with_constants(self, meta: ModalityMeta) -> ModalityMeta:
        given = self.sound.standardise
        if given == "train":
            return meta
        mean, std = PUBLISHED_FBANK if given == "published" else given
        return replace(meta, mean=(mean,), std=(std,))

    def modality(self, meta: ModalityMeta) -> Modality:
        space = VGGSOUND_SPACE if self.sound.front_end == "vggsound" else SPACE
        return Modality(
            name=self.name, shape=meta.shape, channel_axis=0, mean=(0.0,), std=(1.0,), box=None, space=space
        )

    def transform(self, stored: Tensor, constants: tuple[float, float], choices: RandomChoices | None) -> Tensor:
        standard = stored.to(torch.float32, copy=True).sub_(constants[0]).div_(constants[1])
        if choices is None:
            return standard
        if choices.time_shift.any():
            frames = standard.shape[-1]
            # column t shows what column t + shift held; past an end, the column at that end is repeated
            columns = (torch.arange(frames)[None] + choices.time_shift[:, None]).clamp(0, frames - 1).to(stored.device)
            standard = standard.gather(3, columns[:, None, None, :].expand_as(standard))
        if choices.gain.any():
            standard += choices.gain.to(stored.device)[:, None, None, None]
        return standard


KIND = Audio
