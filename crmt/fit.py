"""The training loop as a generator: it yields after every epoch and resumes from the state it handed out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import cos, isfinite, pi
from time import perf_counter
from typing import Any, Literal, NamedTuple, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from crmt.errors import CRMTError
from crmt.heads import OrthogonalHead
from crmt.methods.base import Forward, Method
from crmt.model import MultiModalModel


class Batch(NamedTuple):
    """Clips as a model takes them."""

    inputs: dict[str, Tensor]
    """`(B, *shape)` each, in the modality's space."""
    labels: Tensor
    """`(B,)`, int64."""
    ids: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """SGD with momentum; the learning rate is a function of the epoch alone, so that resuming needs no more."""

    epochs: int
    lr: float
    momentum: float = 0.9
    weight_decay: float = 1e-4
    """On all weights but the orthogonal ones, biases, norms and integration weights."""
    schedule: Literal["cosine", "step"] = "cosine"
    step_every: int = 60
    step_factor: float = 0.1

    def lr_at(self, epoch: int) -> float:
        """The learning rate of an epoch, 1-based."""
        if self.schedule == "cosine":
            return self.lr * 0.5 * (1 + cos(pi * (epoch - 1) / self.epochs))
        return self.lr * self.step_factor ** ((epoch - 1) // self.step_every)


@dataclass(frozen=True)
class EpochResult:
    """What one epoch gave. `state()` is good until the generator goes on."""

    epoch: int
    """1-based."""
    metrics: dict[str, float]
    """loss, its parts, train_accuracy, lr, seconds; means over all workers."""
    state: Callable[[], dict[str, Any]]


def _optimizer(model: MultiModalModel, settings: FitSettings) -> torch.optim.SGD:
    """Weight decay only where it means something: shrinking an orthogonal matrix's parameter only rotates it."""
    orthogonal = isinstance(model.head, OrthogonalHead)
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        free = parameter.ndim < 2 or (orthogonal and name.startswith("head."))
        (plain if free else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return torch.optim.SGD([g for g in groups if g["params"]], lr=settings.lr, momentum=settings.momentum)


def _mean_over_ranks(sums: dict[str, Tensor]) -> dict[str, float]:
    values = torch.stack(list(sums.values()))
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(values)
        values = values / dist.get_world_size()
    return dict(zip(sums, values.tolist(), strict=True))


def fit(
    model: MultiModalModel,
    method: Method,
    batches: Callable[[int], Iterable[Batch]],
    settings: FitSettings,
    *,
    state: Mapping[str, Any] | None = None,
    wrap: Callable[[nn.Module], nn.Module] = lambda module: module,
) -> Iterator[EpochResult]:
    """Step 1. Train `model` in place; yield one result an epoch.

    Args:
        batches: epoch (1-based) to that epoch's batches, on the model's device; equal in number on every rank.
        state: what an earlier result's `state()` gave; training goes on after that epoch.
        wrap: for data-parallel training, for example DistributedDataParallel.

    Raises:
        CRMTError: the loss is no longer finite.
    """
    optimizer = _optimizer(model, settings)
    done = 0
    if state is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        done = int(state["epoch"])
    forward = cast(Forward, wrap(model))
    for epoch in range(done + 1, settings.epochs + 1):
        started = perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = settings.lr_at(epoch)
        model.train()
        sums: dict[str, Tensor] = {}
        steps = 0
        for batch in batches(epoch):
            terms = method.loss(forward, batch.inputs, batch.labels)
            optimizer.zero_grad(set_to_none=True)
            terms.total.backward()
            optimizer.step()
            steps += 1
            right = (terms.output.logits.argmax(1) == batch.labels).float().mean()
            for name, value in {"loss": terms.total, **terms.parts, "train_accuracy": right}.items():
                sums[name] = sums.get(name, torch.zeros((), device=value.device)) + value.detach()
        if not steps:
            raise CRMTError("an epoch had no batch: lower train.batch_size or give more training clips")
        metrics = _mean_over_ranks({name: value / steps for name, value in sums.items()})
        if not isfinite(metrics["loss"]):
            raise CRMTError(f"the loss is {metrics['loss']} in epoch {epoch}: lower train.lr (now {settings.lr})")
        metrics |= {"lr": settings.lr_at(epoch), "seconds": perf_counter() - started}

        def capture(epoch: int = epoch) -> dict[str, Any]:
            return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}

        yield EpochResult(epoch, metrics, capture)
