"""The validated configuration of a run: what tune_configs/*.yaml and `--set` may say, and in which range."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from crmt.errors import BadInputError

CONFIG_DIR = Path(__file__).resolve().parent.parent / "tune_configs"
SHORTHANDS = ("choice", "grid", "uniform", "loguniform", "int")
_SEARCHED = ("train.", "model.")  # not how trials are compared: a search would make its own task easy

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A section of the configuration. Unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class VideoConfig(Section):
    """How frames are taken from a clip, and how they are kept."""

    frames: Count = 3
    """T: frames of one input, one from each of T equal segments."""
    candidates: Count = 1
    """Frames kept of each segment; training picks one at random, evaluation takes the middle one."""
    size: Count = 256
    """Side of the stored square frame in pixels: the short side is resized to it, then the centre is cut."""
    crop: Count = 224
    """Side of the model's input in pixels: a random crop in training, the centre in evaluation."""
    jpeg_quality: Annotated[int, Field(ge=1, le=100)] = 95
    max_pixels: Count = 4096 * 2304
    """A clip whose frame has more pixels is quarantined as `too_large`."""

    @model_validator(mode="after")
    def _crop_fits(self) -> VideoConfig:
        if self.crop > self.size:
            raise ValueError(f"crop ({self.crop}) must not exceed size ({self.size})")
        return self


class AudioConfig(Section):
    """The log-mel front-end: ln(mel power + offset), by librosa."""

    sample_rate: Count = 16000
    seconds: Positive = 10.0
    """Length that is read; shorter sound is padded with silence."""
    n_fft: Count = 1024
    window: Count = 400
    hop: Count = 160
    mels: Count = 128
    fmin: NonNegative = 20.0
    fmax: Positive | None = None
    offset: Positive = 1e-6
    """Added to the mel power before the logarithm."""
    frames: Count = 1024
    """Spectrogram frames of one input; padded with silence or cut at the end."""

    @model_validator(mode="after")
    def _window_fits(self) -> AudioConfig:
        if self.window > self.n_fft:
            raise ValueError(f"window ({self.window}) must not exceed n_fft ({self.n_fft})")
        if self.fmax is not None and not self.fmin < self.fmax <= self.sample_rate / 2:
            raise ValueError(f"fmax ({self.fmax}) must lie between fmin and half the sample rate")
        return self


class AugmentConfig(Section):
    """Training-time augmentation, seeded by (seed, epoch, step); in streams by the worker's rank, too."""

    pad: Annotated[int, Field(ge=0)] = 0
    """Pixels of edge padding before the random crop."""
    flip: bool = True
    """Mirror half of the clips left to right."""
    time_shift: Annotated[int, Field(ge=0)] = 0
    """Audio is shifted by up to so many spectrogram frames either way; the edge frame is repeated."""
    gain: NonNegative = 0.0
    """Audio: a constant drawn from U(-gain, gain) is added to the standardised log-mel."""


class DataConfig(Section):
    """Which clips, how they are decoded, and how they reach a trial."""

    dataset: str = "avdigits"
    root: Path | None = None
    """Where the clips (or, for `manifest`, the CSV) lie. avdigits needs none."""
    cache: Path | None = None
    """Where decoded clips are kept; default $CRMT_CACHE or ~/.cache/crmt-sweep."""
    limit: Count | None = None
    """Use only so many clips of each split, chosen by seed: for a first look at a big set."""
    validation_share: Annotated[float, Field(gt=0, lt=0.9)] = 0.15
    """Share of train's groups (source videos) carved out for validation, unless the list has such a split."""
    max_failure_share: Share = 0.05
    """More failed clips than this share stop the run before training, with the counts."""
    decode_timeout: Positive = 60.0
    """Seconds that one clip may take."""
    mode: Literal["auto", "memory", "stream"] = "auto"
    """memory: all trials read the decoded set in Ray's object store; stream: from Parquet; auto: by size."""
    memory_share: Share = 0.5
    """auto: share of the object store that the decoded set may take."""
    seed: int = 0
    video: VideoConfig = VideoConfig()
    audio: AudioConfig = AudioConfig()
    augment: AugmentConfig = AugmentConfig()


class ModelConfig(Section):
    """Encoders by modality, and the width of their features."""

    encoders: dict[str, str] = {"video": "resnet18", "audio": "resnet18"}
    """modality: encoder name (`small_resnet`, `resnet18`). A modality left out is not used."""
    features: Count = 512


class Step2Config(Section):
    """Step 2: integration weights for the largest mean radius, on cached scores."""

    objective: Literal["clipped", "min", "runner_up"] = "clipped"
    steps: Count = 400
    lr: Positive = 0.02


class TrainConfig(Section):
    """Method and optimisation."""

    method: str = "crmt_jt"
    rho: NonNegative = 2.0
    """Weight of the margin regulariser; no effect for methods without one."""
    epochs: Count = 140
    batch_size: Count = 64
    """Global: over all workers of a trial."""
    lr: Positive = 1e-3
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: NonNegative = 1e-4
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
    names: list[Literal["fgm", "pgd"]] = ["fgm", "pgd"]
    epsilons: Annotated[list[Positive], Field(min_length=1)] = [0.1, 0.4, 0.7, 1, 1.5, 2, 2.5, 3, 3.5, 4]
    balls: list[str] = ["joint", "each"]
    """`joint`: one budget over all modalities; `each`: every modality alone; or a modality's name."""
    loss: Literal["margin", "cross_entropy"] = "margin"
    steps: Count = 20
    restarts: Count = 1
    samples: Count | None = None
    """Test clips that are attacked; all when left out."""


class CertifyConfig(Section):
    """Radii on the test split, and the attack that audits them."""

    certificates: list[Literal["estimate"]] = ["estimate"]
    audit_steps: Count = 20
    audit_restarts: Count = 2
    """PGD runs a clip: one from the clip itself, the others from random points inside its radius."""
    audit_samples: Annotated[int, Field(ge=0)] = 128
    """Test clips audited; 0 leaves the audit out, and the result says so."""


class SweepConfig(Section):
    """How many trials, how they are chosen, and what each may take."""

    trials: Count = 16
    algorithm: Literal["optuna", "random", "grid"] = "optuna"
    start_with: list[dict[str, Any]] = []
    """Points (dotted path: value) that are tried first."""
    scheduler: Literal["asha", "none"] = "asha"
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


class RunConfig(Section):
    """Everything that decides a run's numbers."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    select: SelectConfig = SelectConfig()
    attack: AttackConfig = AttackConfig()
    certify: CertifyConfig = CertifyConfig()
    sweep: SweepConfig = SweepConfig()
    search: dict[str, dict[str, Any]] = {}
    """dotted path: {choice | grid | uniform | loguniform | int: [...]}."""

    @model_validator(mode="after")
    def _search_is_valid(self) -> RunConfig:
        for path, space in self.search.items():
            check_space(self, path, space)
        for i, point in enumerate(self.sweep.start_with):
            for path, value in point.items():
                if path not in self.search:
                    raise ValueError(f"sweep.start_with[{i}]: {path!r} is not in `search`")
                if not _inside(self.search[path], value):
                    space = self.search[path]
                    raise ValueError(f"sweep.start_with[{i}]: {path} {value!r} lies outside its search entry {space}")
        return self

    def without_search(self) -> RunConfig:
        """The same configuration of one trial: nothing searched."""
        return self.fixing(self.search)

    def fixing(self, paths: Iterable[str]) -> RunConfig:
        """The same configuration with some fields no longer searched."""
        fixed = set(paths)
        left = {p: space for p, space in self.search.items() if p not in fixed}
        points = [{p: v for p, v in point.items() if p not in fixed} for point in self.sweep.start_with]
        sweep = self.sweep.model_copy(update={"start_with": [p for p in points if p]})
        return self.model_copy(update={"search": left, "sweep": sweep})

    def start_points(self) -> list[dict[str, Any]]:
        """`sweep.start_with`, no point twice, each completed: by a field's own value, or if that is outside its search
        entry, by the entry's first."""

        def own(path: str, space: dict[str, Any]) -> Any:
            value = value_at(self, path)
            return value if _inside(space, value) else next(iter(space.values()))[0]

        rest = {path: own(path, space) for path, space in self.search.items()}
        whole = [rest | point for point in self.sweep.start_with]
        return [point for i, point in enumerate(whole) if point not in whole[:i]]


def field_paths(section: type[BaseModel] = RunConfig, prefix: str = "") -> dict[str, Any]:
    """Every dotted path of the schema with its annotation."""
    paths: dict[str, Any] = {}
    for name, field in section.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, Section):
            paths.update(field_paths(annotation, f"{prefix}{name}."))
        else:
            paths[prefix + name] = annotation
    return paths


def nearest(name: str, valid: list[str]) -> str:
    """` Did you mean ...?` for a name that is not in `valid`."""
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.4)
    tail = [v for v in valid if v.rpartition(".")[2] == name.rpartition(".")[2]]
    best = tail[:1] or close
    return f" Did you mean {best[0]!r}?" if best else f" Valid: {', '.join(valid)}."


def _is_known(path: str, paths: dict[str, Any]) -> bool:
    parent = path.rpartition(".")[0]
    return path in paths or (parent in paths and dict in (paths[parent], *_origins(paths[parent])))


def _origins(annotation: Any) -> tuple[Any, ...]:
    return (
        getattr(annotation, "__origin__", None),
        *(getattr(a, "__origin__", None) for a in get_args(annotation)),
    )


def check_space(config: RunConfig, path: str, space: dict[str, Any]) -> None:
    """Refuse a search entry with an unknown path, an unknown kind or values that the field does not admit."""
    paths = field_paths()
    if not _is_known(path, paths) or not path.startswith(_SEARCHED):
        searchable = [p for p in paths if p.startswith(_SEARCHED)]
        raise ValueError(f"search: {path!r} is not a field that can be searched.{nearest(path, searchable)}")
    if len(space) != 1 or next(iter(space)) not in SHORTHANDS:
        raise ValueError(f"search.{path}: give exactly one of {', '.join(SHORTHANDS)}, not {space}")
    kind, values = next(iter(space.items()))
    if not isinstance(values, list) or not values:
        raise ValueError(f"search.{path}.{kind}: give a list of values, not {values!r}")
    if kind in ("uniform", "loguniform", "int"):
        if len(values) != 2 or not all(isinstance(v, int | float) for v in values) or values[0] >= values[1]:
            raise ValueError(f"search.{path}.{kind}: give [low, high] with low < high, not {values}")
        if kind == "loguniform" and values[0] <= 0:
            raise ValueError(f"search.{path}.loguniform: low must be above 0, not {values[0]}")
    if kind in ("uniform", "loguniform"):  # a value between them: whole numbers alone are `int`
        values = [*values, values[0] + 0.618 * (values[1] - values[0])]
    plain = config.without_search()
    for value in values:
        with_values(plain, {path: value})


def _inside(space: dict[str, Any], value: Any) -> bool:
    """Whether a search entry can give `value`."""
    kind, values = next(iter(space.items()))
    if kind in ("choice", "grid"):
        return value in values
    return isinstance(value, int | float) and values[0] <= value <= values[1]


def with_values(config: RunConfig, values: dict[str, Any]) -> RunConfig:
    """A copy of `config` with fields set by dotted path, validated again.

    Raises:
        BadInputError: a path or a value that the schema does not admit.
    """
    raw = config.model_dump(mode="json")
    paths = field_paths()
    for path, value in values.items():
        if not _is_known(path, paths):
            raise BadInputError(f"unknown configuration field {path!r}.{nearest(path, list(paths))}")
        node = raw
        *parents, leaf = path.split(".")
        for part in parents:
            node = node[part]
        node[leaf] = value
    return parse(raw, "the configuration")


def value_at(config: RunConfig, path: str) -> Any:
    """The value of a field by its dotted path."""
    node: Any = config.model_dump(mode="json")
    for part in path.split("."):
        node = node[part]
    return node


def parse(raw: Any, source: str) -> RunConfig:
    """Validate a plain mapping; the error names the field and the nearest valid name."""
    if not isinstance(raw, dict):
        raise BadInputError(f"{source}: expected sections such as `train:`, found {type(raw).__name__}")
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        raise BadInputError(f"{source}: {_one_line(error)}") from None


def _one_line(error: ValidationError) -> str:
    first = error.errors()[0]
    path = ".".join(str(p) for p in first["loc"])
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        return f"unknown field {path!r}.{nearest(path, list(field_paths()))}{more}"
    message = first["msg"].removeprefix("Value error, ")
    shown = f", not {first['input']!r}" if path and not isinstance(first["input"], dict) else ""
    return f"{path}: {message}{shown}{more}" if path else f"{message}{more}"


def load_config(path: Path, overrides: list[str] | None = None) -> RunConfig:
    """Read a YAML configuration and apply `--set path=value` overrides (values are YAML).

    A field that is set is no longer searched.

    Raises:
        BadInputError: missing or malformed file, unknown field, value out of range.
    """
    try:
        raw = yaml.safe_load(path.read_text()) or {}
    except FileNotFoundError:
        valid = sorted(p.stem for p in CONFIG_DIR.glob("*.yaml"))
        raise BadInputError(f"no configuration {path}. Data sets with one: {', '.join(valid)}") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise BadInputError(f"{path} cannot be read: {reason}") from None
    except yaml.YAMLError as error:
        raise BadInputError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    config, values = parse(raw, str(path)), parse_overrides(overrides or [])
    return with_values(config.fixing(values), values)


def parse_overrides(overrides: list[str]) -> dict[str, Any]:
    """`["train.lr=0.1"]` to `{"train.lr": 0.1}`."""
    values: dict[str, Any] = {}
    for item in overrides:
        path, separator, text = item.partition("=")
        if not separator:
            raise BadInputError(f"--set {item!r}: write it as path=value, for example --set train.lr=0.05")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise BadInputError(f"--set {item!r}: the value is not valid YAML") from None
        if isinstance(value, str):  # YAML 1.1 reads 1e-3 as text
            with contextlib.suppress(ValueError):
                value = float(value)
        values[path.strip()] = value
    return values
