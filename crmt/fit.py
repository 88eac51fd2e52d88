"""The training loop, as a generator: it yields a result after every epoch and can resume from any such result."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from math import cos, isfinite, pi
from time import perf_counter
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from crmt.arguments import (
    check_batches,
    check_callable,
    check_factory,
    check_kind,
    check_model,
    check_number,
    check_whole,
    said,
)
from crmt.beside import beside
from crmt.distributed import mean_over_ranks, rank
from crmt.errors import BadInputError, CRMTError, CRMTWarning
from crmt.heads import HEADS, OrthogonalHead
from crmt.methods.base import Epoch, Forward, Method, Step
from crmt.modality import Batch, Inputs, check_batch
from crmt.model import MultiModalModel, check_initialised, evaluating
from crmt.orthonormal import earlier_rows_in
from crmt.precision import check_compiler, check_precision, computing
from crmt.randomness import generator_on
from crmt.settings import Precision

Optimizer = Literal["sgd", "adam"]
Schedule = Literal["cosine", "step"]


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """The optimiser and its schedule.

    The learning rate depends on the epoch alone, so a resumed training needs no state of the schedule.

    Raises:
        BadInputError: an unknown optimizer or schedule, or a value that is no number where one is wanted.
    """

    epochs: int
    lr: float
    optimizer: Optimizer = "sgd"
    momentum: float = 0.9
    """For sgd only."""
    weight_decay: float = 1e-4
    """Applied to weights, but not to orthogonal ones, biases, norms and integration weights."""
    schedule: Schedule = "cosine"
    step_every: int = 60
    """For the step schedule: the learning rate changes after every this many epochs."""
    step_factor: float = 0.1
    """For the step schedule: the factor by which it changes."""
    noise: Mapping[str, float] = field(default_factory=dict)
    """Modality to the standard deviation, in its space, of Gaussian noise that is added to training inputs."""
    precision: Precision = "fp32"
    """Of forward passes, losses and training attacks: `fp32`, or `bf16` for torch's autocast."""
    compile: bool = False
    """Compile the forward pass with torch.compile: slower for the first steps, faster afterwards."""
    seed: int = 0
    """Fixes the noise, and the random choices of a method; the numbers are drawn on the inputs' device, and a GPU draws
    others than a CPU."""

    def __post_init__(self) -> None:
        for name in ("epochs", "step_every", "seed"):
            check_whole(name, getattr(self, name))
        for name in ("lr", "momentum", "weight_decay", "step_factor"):
            check_number(name, getattr(self, name))
        check_kind("noise", self.noise, Mapping, "a dictionary of modality to deviation, such as {'video': 0.25}")
        for modality, deviation in self.noise.items():
            check_number(f"noise of {modality!r}", deviation)
        _check_name("optimizer", self.optimizer, get_args(Optimizer))
        _check_name("schedule", self.schedule, get_args(Schedule))
        _check_name("precision", self.precision, get_args(Precision))
        check_kind("compile", self.compile, bool, "True or False")

    def lr_at(self, epoch: int) -> float:
        """The learning rate of an epoch.

        Args:
            epoch: counted from 1.
        """
        if self.schedule == "cosine":
            return self.lr * 0.5 * (1 + cos(pi * (epoch - 1) / self.epochs))
        return self.lr * self.step_factor ** ((epoch - 1) // self.step_every)


def _check_name(kind: str, name: object, valid: tuple[str, ...]) -> None:
    if name not in valid:
        close = get_close_matches(str(name).lower(), valid, n=1, cutoff=0.4)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        shown = repr(name) if isinstance(name, str | type) else said(name)
        raise BadInputError(f"no {kind} {shown}. Valid: {', '.join(valid)}.{hint}")


@dataclass(frozen=True)
class EpochResult:
    """The result of one epoch."""

    epoch: int
    """Counted from 1."""
    metrics: dict[str, float]
    """loss, its parts, train_accuracy, lr and seconds; means over all workers."""
    state: Callable[[], dict[str, Any]]
    """Gives what `fit` resumes from. Call it before the generator goes on: it refers to the live weights."""


def _optimizer(model: MultiModalModel, companion: nn.Module, settings: FitSettings) -> torch.optim.Optimizer:
    """The optimiser over model and companion, with weight decay only on weights that it can shrink."""
    orthogonal = isinstance(model.head, OrthogonalHead)
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in [*model.named_parameters(), *companion.named_parameters(prefix="companion")]:
        if parameter.requires_grad:
            # shrinking the parameter behind an orthogonal matrix only rotates the matrix
            exempt = parameter.ndim < 2 or (orthogonal and name.startswith("head."))
            (plain if exempt else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    groups = [g for g in groups if g["params"]]
    if not groups:
        raise BadInputError(
            "nothing to train, all parameters are frozen: call requires_grad_(True) on what shall learn"
        )
    fused = all(p.is_cuda for p in (*decayed, *plain)) or None  # None: torch's own choice
    if settings.optimizer == "adam":
        return torch.optim.Adam(groups, lr=settings.lr, fused=fused)
    return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, fused=fused)


def _means(sums: dict[str, Tensor], steps: int) -> dict[str, float]:
    """Means over steps and workers, with one transfer from the device."""
    values = mean_over_ranks(torch.stack(list(sums.values()))) / steps
    return dict(zip(sums, values.tolist(), strict=True))


def _generator(seed: int, epoch: int, step: int) -> torch.Generator:
    """A generator for one step on this rank; a resumed run gets the same one without replaying earlier steps."""
    mixed_seed = 0
    for part in (seed, epoch, step, rank()):
        mixed_seed = (mixed_seed * 1_000_003 + part) % (2**63)  # the order counts: (1, 2) and (2, 1) differ
    return torch.Generator().manual_seed(mixed_seed)


def _noisy(inputs: Inputs, deviations: Mapping[str, float], generator: torch.Generator) -> Inputs:
    """Inputs plus Gaussian noise, drawn where they lie; a modality without a deviation stays as it is."""

    def noise(x: Tensor) -> Tensor:
        here = generator_on(x.device, generator)
        return torch.randn(x.shape, generator=here, dtype=x.dtype, device=x.device)

    return {m: x + deviations[m] * noise(x) if deviations.get(m) else x for m, x in inputs.items()}


def _check_head(model: MultiModalModel, method: Method) -> None:
    """Refuse a method on a head that is not its own: it would fail, or silently train another method."""
    if method.head not in HEADS:
        raise BadInputError(
            f"{method.title} needs a head {method.head!r}, which there is not: add it to crmt.heads.HEADS"
        )
    wanted = HEADS[method.head]
    if not isinstance(model.head, wanted):
        raise BadInputError(
            f"{method.title} needs the head {wanted.__name__}, the model has {type(model.head).__name__}: build it "
            f"with crmt.heads.{wanted.__name__} or MultiModalModel.around(..., head={method.head!r})"
        )


def _check_state(state: Mapping[str, Any]) -> None:
    wanted = "what an epoch's state() or load_state gave"
    check_kind("state", state, Mapping, wanted)
    missing = [key for key in ("model", "optimizer", "epoch") if key not in state]
    if missing:
        raise BadInputError(f"state has no {', '.join(missing)}: give {wanted}")


def _optimizer_state(
    state: Mapping[str, Any], model: MultiModalModel, optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """The optimiser's state of a training state. What it holds of parameters that an earlier version kept in another
    form, momentum of reflections, says nothing of it now: it is left out."""
    saved = state["optimizer"]
    how = {key: optimizer.param_groups[0][key] for key in ("fused", "foreach")}  # as on this device, not the saved one
    groups = [{**group, **how} for group in saved["param_groups"]]
    earlier = earlier_rows_in(state["model"])
    if not earlier:
        return {**saved, "param_groups": groups}
    warnings.warn(
        f"this training began in an earlier version: the optimiser's momentum of {', '.join(earlier)} begins anew",
        CRMTWarning,
        stacklevel=3,
    )
    places = {id(p): i for i, p in enumerate(p for group in optimizer.param_groups for p in group["params"])}
    parameters = dict(model.named_parameters())
    gone = {places.get(id(parameters[name])) for name in earlier}
    kept = {i: entries for i, entries in saved["state"].items() if i not in gone}
    return {**saved, "state": kept, "param_groups": groups}


def _kept_in_evaluation_mode(model: nn.Module) -> list[nn.Module]:
    """The modules that the caller froze and put in evaluation mode, with those below them that are in it too."""
    found = []
    for module in model.modules():
        learns = [p.requires_grad for p in module.parameters()]
        if learns and not any(learns) and not module.training:
            found += [part for part in module.modules() if not part.training]
    return found


def fit(
    model: MultiModalModel,
    method: Method,
    batches: Callable[[int], Iterable[Batch]],
    settings: FitSettings,
    *,
    state: Mapping[str, Any] | None = None,
    wrap: Callable[[nn.Module], nn.Module] = lambda module: module,
    held_out: Callable[[], Iterable[Batch]] = tuple,
) -> Iterator[EpochResult]:
    """Step 1: train `model` in place and yield one result after every epoch.

    The model trains in training mode. A module that you froze and put in evaluation mode beforehand
    (`encoder.requires_grad_(False).eval()`) stays in evaluation mode. Parameters that `method.prepare` freezes are not
    trained here, and are trainable again afterwards.

    Args:
        model: moved to its device by the caller.
        method: gives the loss; its head must be the model's.
        batches: gives an epoch's batches from its number (counted from 1), on the model's device or in the CPU's
            memory. Every rank must get the same number of batches. On a GPU they are made beside the steps
            (`crmt.beside`): what makes them may not depend on weights that the last step is still changing.
        settings: optimiser, schedule, noise and seed.
        state: what `state()` of an earlier result gave; training goes on after that epoch. One of an earlier version
            has the same weights, but momentum of orthogonal ones begins anew, with a `CRMTWarning`.
        wrap: wraps the model for data-parallel training, for example in DistributedDataParallel.
        held_out: gives labelled clips to methods that weigh losses by generalisation (Gradient Blending); never those
            of the test split.

    Raises:
        BadInputError: the model's head is not the method's, noise for a modality that the model does not have, nothing
            to train, a precision or compilation that this machine cannot give, or a batch that `check_batch` refuses.
        CRMTError: an epoch without a batch, or the loss is no longer finite.
    """
    check_model(model)
    check_kind("method", method, Method, "a training method, such as crmt.create('crmt_jt')")
    check_factory(batches, "epoch")
    check_callable("wrap", wrap, "a function from a module to a module")
    check_callable("held_out", held_out, "a function that gives batches")
    check_kind("settings", settings, FitSettings, "FitSettings(epochs=..., lr=...)")
    if state is not None:
        _check_state(state)
    unknown = set(settings.noise) - set(model.modalities)
    if unknown:
        raise BadInputError(f"noise for {', '.join(sorted(unknown))}; the model has {', '.join(model.modalities)}")
    _check_head(model, method)
    device = model.head.bias.device
    check_precision(settings.precision, device, model.head.bias.dtype)
    if settings.compile:
        check_compiler(device)
    check_initialised(model.state_dict())
    kept_off = _kept_in_evaluation_mode(model)
    learning = [p for p in model.parameters() if p.requires_grad]
    try:
        companion = method.prepare(model).to(device)
        optimizer = _optimizer(model, companion, settings)
        done = 0
        if state is not None:
            model.load_state_dict(state["model"])
            companion.load_state_dict(state.get("companion", {}))
            optimizer.load_state_dict(_optimizer_state(state, model, optimizer))
            done = int(state["epoch"])
        forward, attacked = cast(Forward, wrap(model)), cast(Forward, model)
        if settings.compile:
            forward, attacked = (cast(Forward, torch.compile(f, dynamic=False)) for f in (forward, attacked))
    finally:  # here, not after the last epoch: a caller may stop the generator early
        for parameter in learning:
            parameter.requires_grad_(True)

    def check(batch: Batch) -> None:
        check_batch(model.modalities, batch, model.head.classes)

    for epoch in range(done + 1, settings.epochs + 1):
        started = perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = settings.lr_at(epoch)
        model.train()
        companion.train()
        for module in kept_off:
            module.training = False
        sums: dict[str, Tensor] = {}
        steps = 0
        given = batches(epoch)
        check_batches(given)
        for batch in beside(given, device, check):
            generator = _generator(settings.seed, epoch, steps)
            step = Step(
                model=model,
                companion=companion,
                forward=forward,
                attacked=attacked,
                inputs=_noisy(batch.inputs, settings.noise, generator),
                labels=batch.labels,
                epoch=epoch,
                generator=generator,
            )
            for name, value in _step(method, step, optimizer, settings.precision).items():
                sums[name] = sums[name] + value.detach() if name in sums else value.detach()
            steps += 1
        if not steps:
            raise CRMTError("an epoch had no batch: lower train.batch_size or give more training clips")
        metrics = _means(sums, steps)
        if not isfinite(metrics["loss"]):
            raise CRMTError(f"the loss is {metrics['loss']} in epoch {epoch}: lower train.lr (now {settings.lr})")
        with evaluating(model), torch.no_grad():
            method.after_epoch(Epoch(model=model, companion=companion, epoch=epoch, held_out=held_out))
        metrics |= {"lr": settings.lr_at(epoch), "seconds": perf_counter() - started}

        def capture(epoch: int = epoch) -> dict[str, Any]:
            return {
                "model": model.state_dict(),
                "companion": companion.state_dict(),
                "optimizer": optimizer.state_dict(),
                "epoch": epoch,
            }

        yield EpochResult(epoch, metrics, capture)


def _step(method: Method, step: Step, optimizer: torch.optim.Optimizer, precision: Precision) -> dict[str, Tensor]:
    """One step of the optimiser; returns loss, its parts and accuracy."""
    with computing(precision, step.labels.device):
        terms = method.loss(step)
    mine, others = list(step.model.parameters()), list(step.companion.parameters())
    for parameter in (*mine, *others):  # not the optimiser's alone: those that it leaves out gather gradients, too
        parameter.grad = None
    terms.total.backward()
    for parameter in others:  # the model's are averaged by its wrapper
        if parameter.grad is not None:
            parameter.grad = mean_over_ranks(parameter.grad)
    method.after_backward(step, terms)
    optimizer.step()
    right = (terms.output.logits.argmax(1) == step.labels).float().mean()
    return {"loss": terms.total, **terms.parts, "train_accuracy": right}
