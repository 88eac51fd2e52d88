"""The sections of a trial and of the search over trials: every field with its default, its range and what it means.

No torch here: what methods and certificates take is read from their files' text (`crmt.settings`).
"""

from __future__ import annotations

from dataclasses import replace
from math import isfinite
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import AfterValidator, Field, create_model

from crmt.doors import ATTACKS, CERTIFICATES, ENCODERS, METHODS, Door, split_arguments
from crmt.errors import BadInputError
from crmt.settings import Precision, Range, Setting, declared
from pipelines.config.schema import Count, NonNegative, Positive, Section, UnitInterval


def _each_once(values: list[Any]) -> list[Any]:
    twice = [v for i, v in enumerate(values) if v in values[:i]]
    if twice:
        raise ValueError(f"{twice[0]} is listed twice")
    return values


def _known_to(door: Door) -> AfterValidator:
    """Refuses a name that is none of ours. What a path names is looked for by the preflight."""

    def check(given: Any) -> Any:
        try:
            door.check(split_arguments(given)[0])
        except BadInputError as error:
            raise ValueError(str(error)) from None
        return given

    return AfterValidator(check)


Encoder = Annotated[str | dict[str, Any], _known_to(ENCODERS)]
AttackName = Annotated[str, _known_to(ATTACKS)]
Certificate = Annotated[str | dict[str, Any], _known_to(CERTIFICATES)]
"""A name, `package.module:Name`, or {path: package.module:Name, ...settings}."""


class ModelConfig(Section):
    """Encoders by modality, and the width of their features."""

    encoders: dict[str, Encoder] = {"video": "resnet18", "audio": "resnet18"}
    """modality: an encoder's name (`small_resnet`, `resnet18`, `lipschitz_conv`, `timm:NAME`), or `package.module:Name`
    of your own code; with arguments `{path: mynet:VideoNet, depth: 3}`. A modality left out is not used."""
    features: Count = 512
    """Width of every encoder's features; for ours a multiple of 8."""


class Step2Config(Section):
    """Step 2: integration weights for the largest mean radius, on cached scores."""

    objective: Literal["clipped", "min", "runner_up"] = "clipped"
    """clipped: the mean radius, each cut at the median of the start; min: uncut; runner_up: the paper's own, to the
    second best class alone, which may cost accuracy."""
    steps: Count = 400
    """Steps of Adam."""
    lr: Positive = 0.02
    """Adam's learning rate, for the logarithm of the weights."""
    tolerance: UnitInterval = 0.01
    """A step 2 that lowers validation accuracy by more than this is reported as harmful (it is kept all the same)."""


def _field_type(setting: Setting) -> Any:
    """The type of a field with the range of its numbers, or of those in a mapping."""
    if setting.limits == Range():
        return setting.kind
    at_least, above, below = (limit if isfinite(limit) else None for limit in setting.limits)
    limits = Field(ge=at_least, gt=above, lt=below)
    if get_origin(setting.kind) is not dict:
        return Annotated[setting.kind, limits]
    key, value = get_args(setting.kind)
    return dict[key, Annotated[value, limits]]  # type: ignore[valid-type]


METHOD_DECLARATIONS = {name: declared(METHODS, name, ("Method",)) for name in METHODS.names()}
"""What each training method of ours declares: its hyperparameters, title, head and whether step 2 follows."""


def _method_fields() -> dict[str, Any]:
    """Hyperparameter to its type, optional; where several methods have it, in the range of all."""
    found: dict[str, Setting] = {}
    for declaration in METHOD_DECLARATIONS.values():
        for name, setting in declaration.settings.items():
            limits = found.get(name, setting).limits.within(setting.limits)
            found[name] = replace(setting, limits=limits)
    return {name: _field_type(setting) | None for name, setting in found.items()}


METHOD_FIELDS = _method_fields()
"""A new file in crmt/methods/ adds its own."""
_OPTIONAL: dict[str, Any] = {name: (kind, None) for name, kind in METHOD_FIELDS.items()}
_WithMethodFields: Any = create_model("_WithMethodFields", __base__=Section, **_OPTIONAL)


class TrainConfig(_WithMethodFields):
    """Method and optimisation; and, as fields of their own, the hyperparameters of every method (`train.rho` ...)."""

    method: str = "crmt_jt"
    """The name of a method in crmt/methods/, or `package.module:Name` of your own code."""
    options: dict[str, Any] = {}
    """Hyperparameters of a method of your own that none of ours has; searched as `train.options.<name>`."""
    epochs: Count = 140
    """Passes over the train split."""
    batch_size: Count = 64
    """Clips in a batch, over all workers of a trial."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """sgd (with momentum) or adam."""
    lr: Positive = 1e-3
    """Learning rate of the first epoch."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Share of the last update that goes on (sgd only)."""
    weight_decay: NonNegative = 1e-4
    """Factor of the weights that the optimiser adds to their gradient."""
    noise: dict[str, NonNegative] = Field(default_factory=dict)
    """modality: deviation, in its space, of Gaussian noise added to training inputs; what smoothing needs."""
    schedule: Literal["cosine", "step"] = "cosine"
    """How the learning rate falls: cosine, along half a wave over all epochs; step, by `step_factor`."""
    step_every: Count = 60
    """step: epochs between decays."""
    step_factor: Positive = 0.1
    """step: what each decay multiplies the learning rate by."""
    precision: Precision = "fp32"
    """Of training and attacks: fp32 (convolutions on a GPU in TF32), or bf16 (torch's autocast). Scores, losses, radii,
    and the check that ends every attack are float32 in both."""
    compile: bool = False
    """Compile the network with torch.compile: a minute more for the first epoch, faster ones afterwards."""
    tau_samples: Count = 512
    """Training clips whose gradients estimate τ."""
    step2: Step2Config = Step2Config()
    seed: int = 0
    """Fixes the first weights, the order of clips, augmentation, and the draws of attacks and certificates."""


class SelectConfig(Section):
    """What hyperparameters are chosen by, always on the validation split."""

    metric: Literal["robust_accuracy", "accuracy"] = "robust_accuracy"
    """robust_accuracy: under PGD in the joint l2 ball."""
    epsilon: Positive = 0.5
    """Budget of that PGD: a joint ℓ2 distance in the modalities' spaces."""
    steps: Count = 5
    """Steps of that PGD."""
    every: Count = 5
    """Epochs between validations; the last epoch is always validated."""
    samples: Count = 128
    """Number of validation clips that are attacked: the first of a seeded order."""


class AttackConfig(Section):
    """The attacks of the final evaluation, on the test split."""

    norm: Literal["l2", "linf"] = "l2"
    """What budgets measure: the ℓ2 or the ℓ∞ distance."""
    names: Annotated[list[AttackName], Field(min_length=1), AfterValidator(_each_once)] = ["fgm", "pgd"]
    """Names of attacks in crmt/attacks/, or `package.module:Name` of your own code. `auto` runs all of ours but noise,
    cheapest first, each on the clips that no attack before it broke."""
    epsilons: Annotated[list[Positive], Field(min_length=1)] = [0.1, 0.4, 0.7, 1, 1.5, 2, 2.5, 3, 3.5, 4]
    """Budgets of the curves, in `norm`, in the modalities' spaces."""
    balls: list[str] = ["joint", "each"]
    """`joint`: one budget over all modalities; `each`: every modality alone; or a modality's name."""
    product: dict[str, Annotated[list[Positive], Field(min_length=1)]] = {}
    """modality: budgets; every combination of them is attacked, each modality within its own budget."""
    loss: Literal["margin", "cross_entropy"] = "margin"
    """The loss that FGM and PGD raise."""
    steps: Count = 20
    """Steps of PGD and of the minimal-norm attack; APGD takes twice as many in every run."""
    restarts: Count = 1
    """Runs of PGD, APGD and the minimal-norm attack: the first from the clip, the others from random points of the
    ball."""
    targets: Annotated[int, Field(ge=0)] = 3
    """Classes that apgd_dlr aims at, each in its own run, after an untargeted one."""
    queries: Count = 500
    """Forward passes of the black-box attack Square, for each clip and budget."""
    samples: Count | None = None
    """Test clips that are attacked; all when left out."""


def _certificate_section(name: str) -> type[Section] | None:
    """The fields of a certificate of ours, with its defaults; None where it has none."""
    settings = declared(CERTIFICATES, name, ("ScoreCertificate", "ClipCertificate")).settings
    own: dict[str, Any] = {
        field: (_field_type(one), Field(one.default, description=one.meaning)) for field, one in settings.items()
    }
    return create_model(f"_settings_of_{name}", __base__=Section, **own) if own else None


CERTIFICATE_SECTIONS = {name: own for name in CERTIFICATES.names() if (own := _certificate_section(name)) is not None}
"""Certificates of ours that have settings."""
globals().update({section.__name__: section for section in CERTIFICATE_SECTIONS.values()})  # pickle looks here
_SECTIONS: dict[str, Any] = {name: (section, section()) for name, section in CERTIFICATE_SECTIONS.items()}
_WithCertificateSections: Any = create_model("_WithCertificateSections", __base__=Section, **_SECTIONS)


class CertifyConfig(_WithCertificateSections):
    """Radii on the test split, and the attack that audits them; and the settings of each certificate that has any, as
    `certify.<name>.<field>`."""

    certificates: Annotated[list[Certificate], Field(min_length=1), AfterValidator(_each_once)] = ["estimate"]
    """Names of certificates in crmt/certificates/, or `package.module:Name` of your own code (with settings:
    {path: ..., setting: ...})."""
    audit_attack: AttackName = "auto"
    """The attack that tries to break predictions just inside their radius."""
    audit_steps: Count = 20
    """Steps of each of its runs."""
    audit_restarts: Count = 2
    """Runs for each clip: one from the clip itself, the others from random points inside its radius."""
    audit_samples: Annotated[int, Field(ge=0)] = 128
    """Test clips audited; 0 leaves the audit out, and the result says so."""


def _workers(given: int | list[int]) -> int | list[int]:
    counts = [given, given] if isinstance(given, int) else given
    if len(counts) != 2 or not 1 <= counts[0] <= counts[1]:
        raise ValueError("give a number of workers, 1 or more, or [fewest, most]")
    return given


class SweepConfig(Section):
    """How many trials, how they are chosen, and what each may take."""

    trials: Count = 16
    """How many trials the search makes."""
    algorithm: str = "optuna"
    """optuna, random, grid or points (those of `start_with`, and no others); one of Ray's own (hyperopt, bayesopt ...);
    or `package.module:Name`, a Searcher or SearchAlgorithm of Ray, or what makes one."""
    algorithm_options: dict[str, Any] = {}
    """Arguments of the algorithm; metric, mode, space, start points, seed and concurrency are set by the sweep."""
    start_with: list[dict[str, Any]] = []
    """Points (dotted path: value) that are tried first."""
    scheduler: str = "asha"
    """asha or none; one of Ray's own (hyperband, median_stopping_rule, pbt ...); or `package.module:Name`, a
    TrialScheduler of Ray, or what makes one. Time is counted in epochs."""
    scheduler_options: dict[str, Any] = {}
    """Arguments of the scheduler."""
    loggers: list[str | dict[str, Any]] | None = None
    """json, csv, tensorboardx, mlflow, wandb, comet, aim, or `package.module:Name` of a Tune callback; with arguments
    as {path: wandb, project: mine}. Left out: those that Tune has of itself (json, csv, tensorboardx)."""
    grace_epochs: Count = 10
    """asha: epochs that every trial gets before it may be stopped."""
    reduction_factor: Annotated[int, Field(ge=2)] = 3
    """asha: of trials that come to a halt, one in this many goes on."""
    workers: Annotated[int | list[int], AfterValidator(_workers)] = 1
    """Workers of one trial; more than one go through TorchTrainer. [fewest, most]: as many as there is room for; a lost
    node makes them fewer, a new one more, and the trial goes on from its last validation."""
    cpus_per_worker: Positive = 1.0
    """CPUs that a worker's model computes with."""
    gpus_per_worker: NonNegative | None = None
    """Left out: 1 where the cluster has GPUs, else 0."""
    input_cpus: NonNegative | None = None
    """CPUs of a worker, beside cpus_per_worker, that read, decode and cut its batches while the model computes: about a
    thread each. Left out: what a node with GPUs has for each of its workers, at most 16; without GPUs 0, where one
    thread shares the model's CPUs. Streaming takes at least 0.5."""
    max_concurrent: Count | None = None
    """How many trials run at once; default: as many as the cluster holds."""
    max_failures: Annotated[int, Field(ge=0)] = 1
    """How often one trial is started again after a crash. Nodes that a cloud takes back with notice do not count."""
    seed: int = 0
    """Of the search algorithm: fixes which points it tries."""

    @property
    def fewest_workers(self) -> int:
        """The smallest number of workers that a trial may have."""
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def most_workers(self) -> int:
        """The largest number of workers that a trial may have."""
        return self.workers if isinstance(self.workers, int) else self.workers[1]


_CLASHES = METHOD_FIELDS.keys() & TrainConfig.__annotations__.keys()
assert not _CLASHES, f"a method's hyperparameter has the name of another field of `train`: {_CLASHES}"
