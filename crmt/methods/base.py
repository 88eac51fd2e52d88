"""What a training method is: a head, a loss for step 1, hooks around it, and whether step 2 follows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from crmt.modality import Batch
from crmt.model import MultiModalModel, Output

Forward = Callable[[Mapping[str, Tensor]], Output]


class LossTerms(NamedTuple):
    """The loss to minimise, its parts for the learning curves, and the output that it came from."""

    total: Tensor
    parts: dict[str, Tensor]
    output: Output


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of training, as a method sees it."""

    model: MultiModalModel
    """In training mode; for what is not the training forward pass, such as an attack."""
    companion: nn.Module
    """What `prepare` returned: parameters trained with the model, and buffers; none of it is in the final model."""
    forward: Forward
    """The training forward pass; with several workers the only one whose gradients are averaged over them."""
    inputs: Mapping[str, Tensor]
    """`(B, *shape)` in each modality's space."""
    labels: Tensor
    """`(B,)`."""
    epoch: int
    """1-based."""
    generator: torch.Generator
    """On the CPU; fixed by (seed, epoch, step, rank), so that a resumed run draws the same."""


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """A finished epoch, as a method sees it."""

    model: MultiModalModel
    companion: nn.Module
    epoch: int
    """1-based."""
    held_out: Callable[[], Iterable[Batch]]
    """Labelled clips that are not trained on; empty where the caller gave none."""


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """A training method. Its dataclass fields are its hyperparameters (`train.<field>` in a configuration)."""

    title: ClassVar[str]
    """As in the paper's tables."""
    head: ClassVar[str]
    """A name in `crmt.heads.HEADS`."""
    step2: ClassVar[bool] = False
    """Whether the integration weights are optimised for the radius after step 1."""

    @classmethod
    def parameters(cls) -> tuple[str, ...]:
        """The names of its hyperparameters."""
        return tuple(f.name for f in fields(cls))

    def prepare(self, model: MultiModalModel) -> nn.Module:  # noqa: ARG002
        """Called once before the first step, and before a state is resumed: may set up the model.

        Returns: a companion whose parameters are trained with the model's and whose state is saved with them.
        """
        return nn.Module()

    @abstractmethod
    def loss(self, step: Step) -> LossTerms:
        """The loss of one training batch."""

    def after_backward(self, step: Step, terms: LossTerms) -> None:  # noqa: B027
        """Called between the backward pass and the optimiser's step: may change gradients."""

    def after_epoch(self, epoch: Epoch) -> None:  # noqa: B027
        """Called after every epoch, in evaluation mode and without gradients: may change the companion."""
