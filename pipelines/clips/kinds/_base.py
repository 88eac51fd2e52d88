"""What a kind of modality is: everything that ingest, batches and models must know of it, in one class."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from crmt.modality import Modality
from pipelines.clips.random_choices import RandomChoices
from pipelines.clips.stored import Each, Stored
from pipelines.config.modality import ModalityConfig
from pipelines.config.schema import AudioConfig, DataConfig, FlowConfig, Section, VideoConfig


@dataclass(frozen=True)
class ModalityMeta:
    """One modality of a cache: the shape and type of a clip as it is stored, and the statistics of the train split.

    `mean` and `std`: one a channel, or one of all, of values as models see them (of pictures in [0, 1]).
    """

    shape: tuple[int, ...]
    dtype: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Kind(ABC):
    """One modality of a configuration, of some kind.

    Args:
        name: the modality's name.
        column: the column of the list of clips that names its file.
        kind: the kind's name, as the configuration gives it.
        settings: an instance of `Settings`, validated.
        data: the whole section of the configuration.
    """

    name: str
    column: str
    kind: str
    settings: Any
    data: DataConfig

    Settings: ClassVar[type[Section]]
    """The kind's settings: a pydantic section."""
    standardised: ClassVar[bool] = False
    """Whether batches come standardised, so that budgets and radii are in those units; else the model standardises."""
    media: ClassVar[Literal["video", "audio", "flow"] | None] = None
    """What `decode_clip` decodes, in one pass over a file for all its modalities; None: `read` reads the file."""

    @classmethod
    def settings_of(cls, given: ModalityConfig, data: DataConfig) -> Section:
        """The settings of a modality, validated.

        Args:
            given: what the configuration says of the modality.
            data: the section around it, whose defaults some kinds begin from.
        """
        del data
        return cls.Settings.model_validate(given.settings)

    @classmethod
    def setting_names(cls) -> list[str]:
        """The settings that the kind takes."""
        return list(cls.Settings.model_fields)

    # ---- as it is stored

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """The shape of one clip as it is stored."""

    @property
    @abstractmethod
    def dtype(self) -> np.dtype:
        """The type of a clip's values as they are stored."""

    @property
    def jpeg(self) -> bool:
        """Whether it is kept as JPEGs (uint8 of shape (F, 3, H, W) or (F, 2, H, W)); else as its very bytes."""
        return False

    @property
    def jpeg_quality(self) -> int:
        """The quality of those JPEGs, 1 to 100."""
        return (self.pictures or self.data.video).jpeg_quality

    def decides_bytes(self) -> dict[str, Any]:
        """The settings that a stored byte depends on, for the name of the cache."""
        return self.settings.model_dump(mode="json")

    def read(self, file: str, seconds: float) -> NDArray[Any]:
        """A clip's array, of `shape` and `dtype`.

        Args:
            file: its path.
            seconds: what is left of data.decode_timeout.

        Raises:
            DecodeError: the file cannot be used.
        """
        raise NotImplementedError(f"kind {self.kind} reads no file of its own")

    def check_header(self, file: str) -> None:  # noqa: B027 - most kinds have nothing to look at
        """Look at a file before anything is decoded; cheap.

        Raises:
            DecodeError: it is not what the settings say.
        """

    # ---- its statistics

    @property
    def statistics_axis(self) -> int | None:
        """The axis of `shape` that has a mean and a deviation for each index; None: one of each for all values."""
        return None

    @property
    def unit(self) -> tuple[float, float]:
        """`(lowest, scale)`: a model sees a stored value s as (s - lowest) / scale."""
        return 0.0, 1.0

    def with_constants(self, meta: ModalityMeta) -> ModalityMeta:
        """The statistics, replaced by the constants that the configuration gives, if it gives any.

        Args:
            meta: with the statistics of the train split.
        """
        return meta

    # ---- as a model takes it

    @abstractmethod
    def modality(self, meta: ModalityMeta) -> Modality:
        """What a model must know of it.

        Args:
            meta: after `with_constants`.
        """

    def gather(self, stored: Stored, choices: RandomChoices | None, each: Each) -> NDArray[Any]:
        """What `transform` needs of a batch's clips, before it is moved to the device; all of it unless a kind says so.

        Args:
            stored: the clips; what is not read of them is not decoded.
            choices: the random choices of a training batch; None: the plain form of evaluation.
            each: shares the clips out to threads.
        """
        del choices, each
        return stored.whole()

    @abstractmethod
    def transform(self, stored: Tensor, constants: tuple[float, float], choices: RandomChoices | None) -> Tensor:
        """Stored clips to a model's inputs, on their device.

        Args:
            stored: what `gather` gave: (B, *shape), of `dtype`, unless the kind has a `gather` of its own.
            constants: mean and deviation of the batches' standardisation, for kinds that are `standardised`.
            choices: the random choices of a training batch; None: the plain form of evaluation.

        Returns:
            (B, *modality.shape), float32, in the modality's space.
        """

    # ---- what `decode_clip` and the random crops need to know

    @property
    def pictures(self) -> VideoConfig | None:
        """How frames are taken and cut, for kinds of pictures."""
        return None

    @property
    def sound(self) -> AudioConfig | None:
        """The front end, for kinds of sound."""
        return None

    @property
    def motion(self) -> FlowConfig | None:
        """How flow is computed, for kinds of flow."""
        return None
