"""`video`: frames of a clip, or pictures in a folder, (T, 3, crop, crop) in [0, 1]. Settings begin from data.video."""

from __future__ import annotations

from pipelines.clips.kinds._pictures import Pictures
from pipelines.config.modality import ModalityConfig
from pipelines.config.schema import DataConfig, VideoConfig


class Video(Pictures):
    """RGB frames."""

    Settings = VideoConfig
    media = "video"
    channels = 3
    space = "pixels in [0, 1]"

    @classmethod
    def settings_of(cls, given: ModalityConfig, data: DataConfig) -> VideoConfig:
        return VideoConfig.model_validate({**data.video.model_dump(), **given.settings})

    @property
    def pictures(self) -> VideoConfig:
        return self.settings


KIND = Video
