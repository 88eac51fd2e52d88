"""The section `data` of the configuration: every field with its default, its range and what it means. No torch here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from pipelines.config.modality import DEFAULT, Modalities, ModalityConfig
from pipelines.infra.storage import holds_secret


def _as_text(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


UnitInterval = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
TrackNumber = Annotated[int, Field(ge=0)] | None
ListRole = Literal["all", "train", "validation", "test", "classes"]


class Section(BaseModel):
    """A section of the configuration. Unknown fields are refused."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class VideoConfig(Section):
    """How frames are taken from a clip, and how they are kept."""

    frames: Count = 3
    """T: frames of one input, one from each of T equal segments."""
    candidates: Count = 1
    """Frames kept of each segment, an odd number; training picks one at random, evaluation takes the middle one."""
    size: Count = 256
    """Side of the stored square frame in pixels: the short side is resized to it, then the centre is cut."""
    crop: Count = 224
    """Side of the model's input in pixels: a random crop in training, the centre in evaluation."""
    jpeg_quality: Annotated[int, Field(ge=1, le=100)] = 95
    """Quality of the JPEGs that frames are stored as, 1 to 100."""
    max_pixels: Count = 4096 * 2304
    """A clip whose frame has more pixels is quarantined as `too_large`."""
    max_frames: Count = 216_000
    """A clip of more frames is quarantined as `too_long`."""
    max_seconds: Positive = 3600.0
    """A clip that says it is longer is quarantined as `too_long`."""
    track: TrackNumber = None
    """The number of the video stream to take, from 0, cover art not counted; left out: the first that is marked
    default, or the first."""

    @model_validator(mode="after")
    def _crop_fits(self) -> VideoConfig:
        if self.crop > self.size:
            raise ValueError(f"crop ({self.crop}) must not exceed size ({self.size})")
        return self

    @field_validator("candidates")
    @classmethod
    def _has_a_middle(cls, candidates: int) -> int:
        if candidates % 2 == 0:
            raise ValueError(f"{candidates} has no middle one for evaluation: give an odd number")
        return candidates


class FlowConfig(Section):
    """Optical flow, the modality `flow`: from each kept frame to the next one of the clip, at data.video.size."""

    bound: Positive = 15.0
    """Pixels of a stored frame that are mapped to the ends of [0, 1]; faster motion is cut there."""


class AudioConfig(Section):
    """How sound becomes a spectrogram."""

    front_end: Literal["logmel", "fbank", "vggsound"] = "logmel"
    """logmel: ln(mel power + offset), by librosa. fbank: Kaldi's filter bank, windows of 25 ms every 10 ms. vggsound:
    the log spectrogram of VGGSound's authors, 257 × 1004."""
    sample_rate: Count = 16000
    """Samples a second that sound is resampled to, in Hz."""
    seconds: Positive = 10.0
    """Seconds of sound that are read; less is padded: with silence (logmel), zeros (fbank) or itself (vggsound)."""
    n_fft: Count = 1024
    """Points of the Fourier transform (logmel only, as are window, hop, fmin, fmax and offset)."""
    window: Count = 400
    """Length of the analysis window, in samples."""
    hop: Count = 160
    """Samples from one spectrogram frame to the next."""
    mels: Count = 128
    """Bands of the spectrogram (logmel and fbank)."""
    fmin: NonNegative = 20.0
    """Lower end of the lowest band, in Hz."""
    fmax: Positive | None = None
    """Upper end of the highest band, in Hz; left out: half the sample rate."""
    offset: Positive = 1e-6
    """Added to the mel power before the logarithm."""
    frames: Count = 1024
    """Spectrogram frames of one input (logmel, fbank); padded or cut at the end."""
    track: TrackNumber = None
    """The number of the audio stream to take, from 0; left out: the first that is marked default, or the first."""
    level: Annotated[float, Field(ge=-60, le=0)] | None = None
    """dBFS that each clip is brought to before the spectrogram: the RMS of its parts that are not silent. Left out: as
    loud as it was recorded. Silence stays silence."""
    standardise: Literal["train", "published"] | tuple[float, Positive] = "train"
    """Mean and deviation that batches are standardised with: of the train split, CRMT's for fbank, or these two."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of one input: (1, bands, frames)."""
        return (1, *VGGSOUND_SHAPE) if self.front_end == "vggsound" else (1, self.mels, self.frames)

    @model_validator(mode="after")
    def _window_fits(self) -> AudioConfig:
        if self.window > self.n_fft:
            raise ValueError(f"window ({self.window}) must not exceed n_fft ({self.n_fft})")
        if self.fmax is not None and not self.fmin < self.fmax <= self.sample_rate / 2:
            raise ValueError(f"fmax ({self.fmax}) must lie between fmin and half the sample rate")
        return self

    @model_validator(mode="after")
    def _front_end_takes_them(self) -> AudioConfig:
        own = {"logmel": _LOGMEL_ONLY | _BANDS, "fbank": _BANDS, "vggsound": set()}[self.front_end]
        fields = type(self).model_fields
        idle = sorted(n for n in (_LOGMEL_ONLY | _BANDS) - own if getattr(self, n) != fields[n].default)
        if idle:
            raise ValueError(f"{', '.join(idle)} take no effect with front_end {self.front_end}: leave them out")
        if self.standardise == "published" and self.front_end != "fbank":
            raise ValueError("standardise: published constants exist for front_end fbank only")
        return self


VGGSOUND_SHAPE = (257, 1004)
_BANDS = {"mels", "frames"}
_LOGMEL_ONLY = {"n_fft", "window", "hop", "fmin", "fmax", "offset"}


class AugmentConfig(Section):
    """Training-time augmentation, seeded by (seed, epoch, step); in streams by the worker's rank, too."""

    pad: Annotated[int, Field(ge=0)] = 0
    """Pixels of edge padding before the random crop."""
    scale: tuple[Positive, Positive] | None = None
    """Random resized crop: smallest and largest share of the stored square's area that is cut out, in whole pixels, and
    resized to data.video.crop (bilinear), instead of a crop of that very size."""
    ratio: tuple[Positive, Positive] = (0.75, 4 / 3)
    """scale: smallest and largest width over height of what is cut out."""
    flip: bool = True
    """Mirror half of the clips left to right."""
    time_shift: Annotated[int, Field(ge=0)] = 0
    """The most spectrogram frames by which audio is shifted, either way; the edge frame is repeated."""
    gain: NonNegative = 0.0
    """Audio: a constant drawn from U(-gain, gain) is added to the standardised log-mel."""

    @model_validator(mode="after")
    def _crops_fit(self) -> AugmentConfig:
        if self.scale is not None and not self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale {list(self.scale)} must be two shares, the smaller one first")
        if not self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio {list(self.ratio)} must have the smaller one first")
        if self.scale is not None and self.pad:
            raise ValueError("pad takes no effect with scale: leave one of them out")
        return self


class DataConfig(Section):
    """Which clips, how they are decoded, and how they reach a trial."""

    dataset: str = "avdigits"
    """The name of a data set in pipelines/sources/, or `package.module:Name` of your own code."""
    root: Path | None = None
    """Where the clips (or, for `manifest`, the CSV) lie. avdigits needs none."""
    lists: dict[ListRole, Path] = {}
    """role: list file, absolute or relative to root, where it has another name than those that are looked for."""
    split: Annotated[int, Field(ge=1, le=3)] = 1
    """ucf101 only: which of its three published splits."""
    on_overlap: Literal["error", "drop_train"] = "error"
    """Source videos in two splits: refuse the list, or keep their clips in test (else validation) only, and count the
    others."""
    cache: Annotated[str, BeforeValidator(_as_text)] | None = None
    """Where decoded clips are kept: a folder (default $CRMT_CACHE or ~/.cache/crmt-sweep), or the URI of one on any
    filesystem of pyarrow (s3://bucket/folder ...), with credentials in the environment of every node."""
    limit: Count | None = None
    """Use only this many clips of each split, chosen by seed: for a first look at a big set."""
    validation_share: Annotated[float, Field(gt=0, lt=0.9)] = 0.15
    """Share of train's groups (source videos) carved out for validation, unless the list has such a split."""
    max_failure_share: UnitInterval = 0.05
    """More failed clips than this share stop the run before training, with the counts."""
    decode_timeout: Positive = 60.0
    """Seconds that one clip may take."""
    missing_modality: Literal["drop", "keep"] = "drop"
    """A clip without sound, picture or another modality: drop quarantines it; keep stands the train mean in for it."""
    mode: Literal["auto", "memory", "stream"] = "auto"
    """memory: all trials read the decoded set in Ray's object store; stream: from Parquet; auto: by size."""
    memory_share: UnitInterval = 0.5
    """auto: share of the object store that the decoded set may take."""
    seed: int = 0
    """Fixes which groups become validation, and which clips `limit` and the number of measured clips choose."""
    video: VideoConfig = VideoConfig()
    audio: AudioConfig = AudioConfig()
    flow: FlowConfig = FlowConfig()
    modalities: Modalities = {}
    """name: {kind, column, and settings of the kind, which begin from those of data.video, data.audio and data.flow}.
    Left out: video, audio and flow, all of them in the file that `path` names."""
    augment: AugmentConfig = AugmentConfig()

    @property
    def declared(self) -> dict[str, ModalityConfig]:
        """The modalities that clips have, by name, in order."""
        return self.modalities or {name: ModalityConfig(kind=name) for name in DEFAULT}

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the list of clips that name their files, sorted."""
        return tuple(sorted({m.column for m in self.declared.values()}))

    @model_validator(mode="after")  # not a check of the field: its error would show all that was given
    def _cache_tells_no_secret(self) -> DataConfig:
        if self.cache is not None and holds_secret(self.cache):
            raise ValueError(
                "cache holds a password or a key, which every card of a run would show: put credentials into the "
                "environment of every node, and leave them out of the URI"
            )
        return self
