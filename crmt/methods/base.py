"""What a training method is: a head, a loss for step 1, and whether step 2 follows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import ClassVar, NamedTuple

from torch import Tensor

from crmt.model import Output

Forward = Callable[[Mapping[str, Tensor]], Output]


class LossTerms(NamedTuple):
    """The loss to minimise, its parts for the learning curves, and the output that it came from."""

    total: Tensor
    parts: dict[str, Tensor]
    output: Output


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """A training method. Its dataclass fields are its hyperparameters (`train.<field>` in a configuration)."""

    title: ClassVar[str]
    """As in the paper's tables."""
    head: ClassVar[str]
    """`concat` or `orthogonal`."""
    step2: ClassVar[bool] = False
    """Whether the integration weights are optimised for the radius after step 1."""

    @classmethod
    def parameters(cls) -> tuple[str, ...]:
        """The names of its hyperparameters."""
        return tuple(f.name for f in fields(cls))

    @abstractmethod
    def loss(self, forward: Forward, inputs: Mapping[str, Tensor], labels: Tensor) -> LossTerms:
        """The loss of one training batch: inputs `(B, *shape)` in each modality's space, labels `(B,)`."""
