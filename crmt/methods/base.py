"""The base class of training methods: a head, a loss for step 1, hooks around it, and whether step 2 follows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from crmt.modality import Batch
from crmt.model import MultiModalModel, Output
from crmt.settings import check_ranges

Forward = Callable[[Mapping[str, Tensor]], Output]
"""A forward pass: modality to its inputs, to the model's output."""


class LossTerms(NamedTuple):
    """The loss to minimise, its parts for the learning curves, and the output that it came from."""

    total: Tensor
    parts: dict[str, Tensor]
    output: Output


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of training, as a method sees it."""

    model: MultiModalModel
    """In training mode. Use it for anything but the training forward pass, for example for an attack."""
    companion: nn.Module
    """What `prepare` returned. Its parameters are trained with the model's; none of it is in the saved model."""
    forward: Forward
    """The training forward pass. With several workers, only its gradients are averaged over them."""
    attacked: Forward
    """`model` as a function, compiled where training is: for passes other than the training forward pass."""
    inputs: Mapping[str, Tensor]
    """Modality to its inputs, `(B, *shape)`, in the modality's space."""
    labels: Tensor
    """Class numbers, `(B,)`."""
    epoch: int
    """Counted from 1."""
    generator: torch.Generator
    """A generator on the CPU, fixed by (seed, epoch, step, rank), so that a resumed run draws the same numbers.
    For large tensors `crmt.randomness.generator_on(device, generator)` is one where they lie."""


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """A finished epoch, as a method sees it."""

    model: MultiModalModel
    companion: nn.Module
    epoch: int
    """Counted from 1."""
    held_out: Callable[[], Iterable[Batch]]
    """Gives labelled clips that are not trained on; none where the caller gave none."""


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """A training method. Its dataclass fields are its hyperparameters (`train.<field>` in a configuration)."""

    title: ClassVar[str]
    """The method's name in tables and figures."""
    head: ClassVar[str]
    """A name in `crmt.heads.HEADS`."""
    step2: ClassVar[bool] = False
    """Whether the integration weights are optimised for the radius after step 1."""

    def __post_init__(self) -> None:
        check_ranges(self, "train")

    @classmethod
    def parameters(cls) -> tuple[str, ...]:
        """The names of its hyperparameters."""
        return tuple(f.name for f in fields(cls))

    def prepare(self, model: MultiModalModel) -> nn.Module:  # noqa: ARG002
        """Called once before training, also when it is resumed; may change and freeze parts of the model.

        Args:
            model: the model that will be trained.

        Returns: a module whose parameters are trained with the model's and whose state is resumed with theirs.
        """
        return nn.Module()

    @abstractmethod
    def loss(self, step: Step) -> LossTerms:
        """The loss of one training batch.

        Args:
            step: inputs, labels and the forward pass to use.
        """

    def after_backward(self, step: Step, terms: LossTerms) -> None:  # noqa: B027
        """Called between the backward pass and the optimiser's step; may change gradients.

        Args:
            step: the same as for `loss`.
            terms: what `loss` returned.
        """

    def after_epoch(self, epoch: Epoch) -> None:  # noqa: B027
        """Called after every epoch, in evaluation mode and without gradients; may change the companion.

        Args:
            epoch: the finished epoch.
        """
