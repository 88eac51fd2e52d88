"""The sections of the configuration: every field with its default, its range and what it means."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, get_type_hints

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    create_model,
    field_validator,
    model_validator,
)

from crmt.attacks.registry import DOOR as ATTACKS
from crmt.certificates import DOOR as CERTIFICATES
from crmt.certificates import certificate_class, certificate_names
from crmt.certificates import create as create_certificate
from crmt.certificates.estimate import Estimate
from crmt.doors import Door, split_arguments
from crmt.errors import BadInputError
from crmt.methods import create, method_class, method_names
from pipelines.config.modality import DEFAULT, Modalities, ModalityConfig
from pipelines.infra.storage import holds_secret


def _each_once(values: list[Any]) -> list[Any]:
    twice = [v for i, v in enumerate(values) if v in values[:i]]
    if twice:
        raise ValueError(f"{twice[0]} is listed twice")
    return values


def _as_text(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _known_to(door: Door) -> AfterValidator:
    """Refuses a name that is none of ours. What a path names is looked for by the preflight."""

    def check(given: Any) -> Any:
        door.check(split_arguments(given)[0])
        return given

    return AfterValidator(check)


AttackName = Annotated[str, _known_to(ATTACKS)]
Certificate = Annotated[str | dict[str, Any], _known_to(CERTIFICATES)]
"""A name, `package.module:Name`, or {path: package.module:Name, ...settings}."""
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
TrackNumber = Annotated[int, Field(ge=0)] | None
ListRole = Literal["all", "train", "validation", "test", "classes"]


class Section(BaseModel):
    """A section of the configuration. Unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


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
    max_pixels: Count = 4096 * 2304
    """A clip whose frame has more pixels is quarantined as `too_large`."""
    max_frames: Count = 216_000
    """A clip of more frames is quarantined as `too_long`."""
    max_seconds: Positive = 3600.0
    """A clip that says it is longer is quarantined as `too_long`."""
    track: TrackNumber = None
    """Which picture of a clip with several, from 0 and without cover art; left out: the first that is marked default,
    or the first."""

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
    seconds: Positive = 10.0
    """Length that is read; shorter sound is padded: with silence (logmel), zeros (fbank), itself (vggsound)."""
    n_fft: Count = 1024
    """logmel only, as are window, hop, fmin, fmax and offset."""
    window: Count = 400
    hop: Count = 160
    mels: Count = 128
    """logmel and fbank."""
    fmin: NonNegative = 20.0
    fmax: Positive | None = None
    offset: Positive = 1e-6
    """Added to the mel power before the logarithm."""
    frames: Count = 1024
    """Spectrogram frames of one input (logmel, fbank); padded or cut at the end."""
    track: TrackNumber = None
    """Which sound of a clip with several, from 0; left out: the first that is marked default, or the first."""
    standardise: Literal["train", "published"] | tuple[float, Positive] = "train"
    """Mean and deviation that batches are standardised with: of the train split, CRMT's for fbank, or these two."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one input: (1, bands, frames)."""
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
    """Random resized crop: smallest and largest share of the stored square's area that is cut out and resized to
    data.video.crop (bilinear), instead of a crop of that very size."""
    ratio: tuple[Positive, Positive] = (0.75, 4 / 3)
    """scale: smallest and largest width over height of what is cut out."""
    flip: bool = True
    """Mirror half of the clips left to right."""
    time_shift: Annotated[int, Field(ge=0)] = 0
    """Audio is shifted by up to so many spectrogram frames either way; the edge frame is repeated."""
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
    """Use only so many clips of each split, chosen by seed: for a first look at a big set."""
    validation_share: Annotated[float, Field(gt=0, lt=0.9)] = 0.15
    """Share of train's groups (source videos) carved out for validation, unless the list has such a split."""
    max_failure_share: Share = 0.05
    """More failed clips than this share stop the run before training, with the counts."""
    decode_timeout: Positive = 60.0
    """Seconds that one clip may take."""
    missing_modality: Literal["drop", "keep"] = "drop"
    """A clip without sound, picture or another modality: drop quarantines it; keep stands the train mean in for it."""
    mode: Literal["auto", "memory", "stream"] = "auto"
    """memory: all trials read the decoded set in Ray's object store; stream: from Parquet; auto: by size."""
    memory_share: Share = 0.5
    """auto: share of the object store that the decoded set may take."""
    seed: int = 0
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

    @model_validator(mode="after")  # of the section, not of the field: a field's error shows what was given
    def _cache_tells_no_secret(self) -> DataConfig:
        if self.cache is not None and holds_secret(self.cache):
            raise ValueError(
                "cache holds a password or a key, which every card of a run would show: put credentials into the "
                "environment of every node, and leave them out of the URI"
            )
        return self


class ModelConfig(Section):
    """Encoders by modality, and the width of their features."""

    encoders: dict[str, str | dict[str, Any]] = {"video": "resnet18", "audio": "resnet18"}
    """modality: an encoder's name (`small_resnet`, `resnet18`, `lipschitz_conv`, `timm:NAME`), or `package.module:Name`
    of your own code; with arguments `{path: mynet:VideoNet, depth: 3}`. A modality left out is not used."""
    features: Count = 512
    """Width of every encoder's features; for ours a multiple of 8."""

    @field_validator("encoders")
    @classmethod
    def _encoders_are_named(cls, encoders: dict[str, Any]) -> dict[str, Any]:
        for given in encoders.values():
            try:
                split_arguments(given)
            except BadInputError as error:
                raise ValueError(str(error)) from None
        return encoders


class Step2Config(Section):
    """Step 2: integration weights for the largest mean radius, on cached scores."""

    objective: Literal["clipped", "min", "runner_up"] = "clipped"
    steps: Count = 400
    lr: Positive = 0.02
    tolerance: Share = 0.01
    """A step 2 that lowers validation accuracy by more than this is reported as harmful (it is kept all the same)."""


_METHODS = {name: method_class(name) for name in method_names()}


def _method_fields() -> dict[str, Any]:
    """Field name to its type, optional; a new file in crmt/methods/ adds its own."""
    found: dict[str, Any] = {}
    for kind in _METHODS.values():
        hints = get_type_hints(kind)
        found |= {parameter: hints[parameter] | None for parameter in kind.parameters()}
    return found


METHOD_FIELDS = _method_fields()


class _MethodFields(Section):
    """The hyperparameters of all training methods; one left out (null) has its method's own default."""

    @model_validator(mode="after")
    def _methods_take_them(self) -> Self:
        given = {name: getattr(self, name) for name in METHOD_FIELDS if getattr(self, name) is not None}
        for method, kind in _METHODS.items():
            try:
                if own := given.keys() & set(kind.parameters()):
                    create(method, **{name: given[name] for name in own})
            except BadInputError as error:
                raise ValueError(str(error)) from None
        return self


_OPTIONAL: dict[str, Any] = {name: (kind, None) for name, kind in METHOD_FIELDS.items()}
_WithMethodFields: Any = create_model("_WithMethodFields", __base__=_MethodFields, **_OPTIONAL)


class TrainConfig(_WithMethodFields):
    """Method and optimisation; and, as fields of their own, the hyperparameters of every method (`train.rho` ...)."""

    method: str = "crmt_jt"
    epochs: Count = 140
    batch_size: Count = 64
    """Global: over all workers of a trial."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    lr: Positive = 1e-3
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """sgd only."""
    weight_decay: NonNegative = 1e-4
    noise: dict[str, NonNegative] = Field(default_factory=dict)
    """modality: deviation, in its space, of Gaussian noise added to training inputs; what smoothing needs."""
    schedule: Literal["cosine", "step"] = "cosine"
    step_every: Count = 60
    """step: epochs between decays."""
    step_factor: Positive = 0.1
    tau_samples: Count = 512
    """Training clips whose gradients estimate τ."""
    step2: Step2Config = Step2Config()
    seed: int = 0


class SelectConfig(Section):
    """What hyperparameters are chosen by, always on the validation split."""

    metric: Literal["robust_accuracy", "accuracy"] = "robust_accuracy"
    """robust_accuracy: under PGD in the joint l2 ball."""
    epsilon: Positive = 0.5
    steps: Count = 5
    every: Count = 5
    """Epochs between validations; the last epoch is always validated."""
    samples: Count = 128
    """Validation clips that are attacked (the first so many of a seeded order)."""


class AttackConfig(Section):
    """The attacks of the final evaluation, on the test split."""

    norm: Literal["l2", "linf"] = "l2"
    names: Annotated[list[AttackName], Field(min_length=1), AfterValidator(_each_once)] = ["fgm", "pgd"]
    """Of crmt/attacks/, or `package.module:Name` of your own code. `auto` runs all of ours but noise, cheapest first,
    on what still stands."""
    epsilons: Annotated[list[Positive], Field(min_length=1)] = [0.1, 0.4, 0.7, 1, 1.5, 2, 2.5, 3, 3.5, 4]
    balls: list[str] = ["joint", "each"]
    """`joint`: one budget over all modalities; `each`: every modality alone; or a modality's name."""
    product: dict[str, Annotated[list[Positive], Field(min_length=1)]] = {}
    """modality: budgets; every combination of them is attacked, each modality within its own budget."""
    loss: Literal["margin", "cross_entropy"] = "margin"
    """Of FGM and PGD."""
    steps: Count = 20
    """Of PGD and the minimal-norm attack; APGD takes twice as many in every run."""
    restarts: Count = 1
    """Of PGD, APGD and the minimal-norm attack: the first from the clip, the others from random points of the ball."""
    targets: Annotated[int, Field(ge=0)] = 3
    """Classes that apgd_dlr aims at, each in its own run, after an untargeted one."""
    queries: Count = 500
    """Of the black-box attack Square, a clip and budget."""
    samples: Count | None = None
    """Test clips that are attacked; all when left out."""


class _CertificateFields(Section):
    """The settings of one certificate, which says itself what it admits."""

    certificate: ClassVar[str]

    @model_validator(mode="after")
    def _certificate_takes_them(self) -> Self:
        create_certificate(self.certificate, **self.model_dump())
        return self


def _certificate_section(name: str) -> type[Section]:
    """The fields of a certificate of ours, with its defaults."""
    kind = certificate_class(name)
    hints = get_type_hints(kind)
    own: dict[str, Any] = {
        f.name: (hints[f.name], Field(default_factory=f.default_factory) if callable(f.default_factory) else f.default)
        for f in fields(kind)
    }
    section: type[Section] = create_model(f"_settings_of_{name}", __base__=_CertificateFields, **own)
    section.certificate = name  # type: ignore[attr-defined]
    return section


CERTIFICATE_SECTIONS = {
    name: _certificate_section(name) for name in certificate_names() if certificate_class(name).parameters()
}
"""Certificates of ours that have settings."""
globals().update({section.__name__: section for section in CERTIFICATE_SECTIONS.values()})  # pickle looks here
_SECTIONS: dict[str, Any] = {name: (section, section()) for name, section in CERTIFICATE_SECTIONS.items()}
_WithCertificateSections: Any = create_model("_WithCertificateSections", __base__=Section, **_SECTIONS)


def _only_the_estimate() -> list[str | dict[str, Any]]:
    return [Estimate.name]


class CertifyConfig(_WithCertificateSections):
    """Radii on the test split, and the attack that audits them; and the settings of each certificate that has any, as
    `certify.<name>.<field>`."""

    certificates: Annotated[list[Certificate], AfterValidator(_each_once)] = Field(
        default_factory=_only_the_estimate, min_length=1
    )
    """Of crmt/certificates/, or `package.module:Name` of your own code (with settings: {path: ..., setting: ...})."""
    audit_attack: AttackName = "auto"
    audit_steps: Count = 20
    audit_restarts: Count = 2
    """Runs a clip: one from the clip itself, the others from random points inside its radius."""
    audit_samples: Annotated[int, Field(ge=0)] = 128
    """Test clips audited; 0 leaves the audit out, and the result says so."""


class SweepConfig(Section):
    """How many trials, how they are chosen, and what each may take."""

    trials: Count = 16
    algorithm: str = "optuna"
    """optuna, random, grid or points (those of `start_with`, and no others); one of Ray's own (hyperopt, bayesopt ...);
    or `package.module:Name`, a Searcher or SearchAlgorithm of Ray, or what makes one."""
    algorithm_options: dict[str, Any] = {}
    """Its arguments; metric, mode, space, start points, seed and concurrency are set by the sweep."""
    start_with: list[dict[str, Any]] = []
    """Points (dotted path: value) that are tried first."""
    scheduler: str = "asha"
    """asha or none; one of Ray's own (hyperband, median_stopping_rule, pbt ...); or `package.module:Name`, a
    TrialScheduler of Ray, or what makes one. Time is counted in epochs."""
    scheduler_options: dict[str, Any] = {}
    """Its arguments."""
    loggers: list[str | dict[str, Any]] | None = None
    """json, csv, tensorboardx, mlflow, wandb, comet, aim, or `package.module:Name` of a Tune callback; with arguments
    as {path: wandb, project: mine}. Left out: those that Tune has of itself (json, csv, tensorboardx)."""
    grace_epochs: Count = 10
    reduction_factor: Annotated[int, Field(ge=2)] = 3
    workers: Count = 1
    """Workers of one trial; more than one go through TorchTrainer."""
    cpus_per_worker: Positive = 1.0
    gpus_per_worker: NonNegative | None = None
    """Left out: 1 where the cluster has GPUs, else 0."""
    max_concurrent: Count | None = None
    """Trials side by side; default: as many as the cluster holds."""
    max_failures: Annotated[int, Field(ge=0)] = 1
    """How often one trial is started again after a crash."""
    seed: int = 0


_CLASHES = METHOD_FIELDS.keys() & TrainConfig.__annotations__.keys()
assert not _CLASHES, f"a method's hyperparameter has the name of another field of `train`: {_CLASHES}"
