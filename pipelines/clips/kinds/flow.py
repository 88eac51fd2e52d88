"""`flow`: optical flow from each kept frame to the next, (T, 2, crop, crop) in [0, 1]; 0.5 is no motion.

Settings begin from those of the `video` that is declared for the same column, else from data.video, and from data.flow.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipelines.clips.kinds._pictures import Pictures
from pipelines.config.modality import ModalityConfig
from pipelines.config.schema import DataConfig, FlowConfig, VideoConfig

STEPS = 254
"""A byte b of flow is (b - 1) / 254: 128, no motion, is 0.5."""


class FlowSettings(VideoConfig, FlowConfig):
    """The frames, and how flow between them is computed."""


class Flow(Pictures):
    """Motion to the right and down. It is cut as the video of its column is; mirrored, it goes the other way."""

    Settings = FlowSettings
    media = "flow"
    channels = 2
    space = "flow in [0, 1]"

    @classmethod
    def settings_of(cls, given: ModalityConfig, data: DataConfig) -> FlowSettings:
        videos = (m for m in data.declared.values() if m.kind == "video" and m.column == given.column)
        video: dict[str, Any] = next((m.settings for m in videos), {})
        start = {**data.video.model_dump(), **video, **data.flow.model_dump()}
        return FlowSettings.model_validate({**start, **given.settings})

    @property
    def pictures(self) -> VideoConfig:
        return VideoConfig(**self.settings.model_dump(include=set(VideoConfig.model_fields)))

    @property
    def motion(self) -> FlowConfig:
        return FlowConfig(**self.settings.model_dump(include=set(FlowConfig.model_fields)))

    @property
    def unit(self) -> tuple[float, float]:
        return 1.0, float(STEPS)

    def to_unit(self, stored: Tensor) -> Tensor:
        return stored.sub_(1).div_(STEPS).clamp_(0, 1)

    def mirrored(self, values: Tensor, flip: Tensor) -> Tensor:
        across = values[:, :, 0]
        values[:, :, 0] = torch.where(flip[:, None, None, None], 1 - across, across)
        return values


KIND = Flow
