"""Balls around an input: joint, uni-modal and product, in ℓ2 or ℓ∞; their projections and steepest directions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from crmt.errors import BadInputError
from crmt.modality import Inputs, Modality

Budget = float | Tensor
"""One ε for all inputs, or `(B,)`: one each."""


@dataclass(frozen=True)
class Group:
    """Modalities that share one budget."""

    modalities: tuple[str, ...]
    epsilon: Budget


@dataclass(frozen=True)
class Ball:
    """What an attack may do. Modalities in no group stay untouched."""

    groups: tuple[Group, ...]
    norm: Literal["l2", "linf"] = "l2"

    def __post_init__(self) -> None:
        names = [m for g in self.groups for m in g.modalities]
        if not names or len(set(names)) != len(names):
            raise BadInputError(f"a ball needs every attacked modality once, not {names}")
        if self.norm not in ("l2", "linf"):
            raise BadInputError(f"no norm {self.norm!r}. Valid: l2, linf")
        for g in self.groups:
            low = float(g.epsilon.min()) if isinstance(g.epsilon, Tensor) and g.epsilon.numel() else 0.0
            low = low if isinstance(g.epsilon, Tensor) else float(g.epsilon)
            if not low >= 0:
                raise BadInputError(f"a budget must be 0 or more, not {low}")

    @staticmethod
    def joint(modalities: Iterable[str], epsilon: Budget, norm: Literal["l2", "linf"] = "l2") -> Ball:
        """Σ_m ‖δ^(m)‖² ≤ ε² (ℓ2), max_m ‖δ^(m)‖∞ ≤ ε (ℓ∞); with one modality, its uni-modal ball."""
        return Ball((Group(tuple(modalities), epsilon),), norm)

    @staticmethod
    def product(epsilons: Mapping[str, Budget], norm: Literal["l2", "linf"] = "l2") -> Ball:
        """‖δ^(m)‖ ≤ ε_m for each m."""
        return Ball(tuple(Group((m,), e) for m, e in epsilons.items()), norm)

    @property
    def attacked(self) -> tuple[str, ...]:
        return tuple(m for g in self.groups for m in g.modalities)

    def select(self, rows: Tensor) -> Ball:
        """The ball of a subset of the batch, by index."""
        chosen = (
            Group(g.modalities, g.epsilon[rows] if isinstance(g.epsilon, Tensor) else g.epsilon) for g in self.groups
        )
        return Ball(tuple(chosen), self.norm)

    def project(self, deltas: Inputs, around: Mapping[str, Tensor], modalities: Mapping[str, Modality]) -> Inputs:
        """The nearest δ inside the ball, then clamped so that x + δ is in the box; a clamp never lengthens δ.

        Args:
            deltas: `(B, *shape)` of every attacked modality. around: x. modalities: for their boxes.
        """
        result: Inputs = {}
        for g in self.groups:
            epsilon = _budget(g.epsilon, deltas[g.modalities[0]])
            if self.norm == "linf":
                result |= {
                    m: deltas[m].clamp(-_like(epsilon, deltas[m]), _like(epsilon, deltas[m])) for m in g.modalities
                }
                continue
            length = _joint_norm([deltas[m] for m in g.modalities])
            shrink = torch.where(length > epsilon, epsilon / length.clamp_min(1e-38), torch.ones_like(length))
            result |= {m: deltas[m] * _like(shrink, deltas[m]) for m in g.modalities}
        for m, delta in result.items():
            box = modalities[m].box
            if box is not None:
                result[m] = (around[m] + delta).clamp(*box) - around[m]
        return result

    def steepest(self, gradients: Inputs) -> Inputs:
        """The direction of steepest ascent with length 1 in each group.

        Gradients are divided by max |g| first: only an exactly zero gradient gives a zero step, one of 1e-30 is whole.
        """
        result: Inputs = {}
        for g in self.groups:
            if self.norm == "linf":
                result |= {m: gradients[m].sign() for m in g.modalities}
                continue
            largest = torch.stack([gradients[m].flatten(1).abs().amax(1) for m in g.modalities]).amax(0)
            safe = torch.where(largest > 0, largest, torch.ones_like(largest))
            scaled = {m: gradients[m] / _like(safe, gradients[m]) for m in g.modalities}
            length = _joint_norm(list(scaled.values()))
            length = torch.where(length > 0, length, torch.ones_like(length))
            result |= {m: v / _like(length, v) for m, v in scaled.items()}
        return result

    def epsilons(self, like: Inputs) -> Inputs:
        """ε of each attacked modality, shaped to multiply a batch of it."""
        return {m: _like(_budget(g.epsilon, like[m]), like[m]) for g in self.groups for m in g.modalities}

    def random(self, like: Inputs, generator: torch.Generator | None) -> Inputs:
        """A δ drawn uniformly from the ball (before any box)."""
        result: Inputs = {}
        for g in self.groups:
            first = like[g.modalities[0]]
            epsilon = _budget(g.epsilon, first)
            noise = {m: _noise(like[m], self.norm, generator) for m in g.modalities}
            if self.norm == "linf":
                result |= {m: v * _like(epsilon, v) for m, v in noise.items()}
                continue
            size = sum(v[0].numel() for v in noise.values())
            uniform = torch.rand(len(first), generator=generator, device=_device(generator)).to(first)
            scale = epsilon * uniform.pow(1 / size) / _joint_norm(list(noise.values())).clamp_min(1e-38)
            result |= {m: v * _like(scale, v) for m, v in noise.items()}
        return result


def _device(generator: torch.Generator | None) -> torch.device:
    return generator.device if generator is not None else torch.device("cpu")


def _noise(like: Tensor, norm: str, generator: torch.Generator | None) -> Tensor:
    drawn = torch.empty(like.shape, device=_device(generator), dtype=like.dtype)
    drawn = drawn.normal_(generator=generator) if norm == "l2" else drawn.uniform_(-1, 1, generator=generator)
    return drawn.to(like.device)


def _budget(epsilon: Budget, like: Tensor) -> Tensor:
    """ε as `(B,)`."""
    if isinstance(epsilon, Tensor) and epsilon.shape not in ((1,), (len(like),)):
        raise BadInputError(
            f"budgets of shape {tuple(epsilon.shape)} do not fit {len(like)} inputs: give one ε, or one each"
        )
    return torch.as_tensor(epsilon, dtype=like.dtype, device=like.device).expand(len(like))


def _like(values: Tensor, batch: Tensor) -> Tensor:
    """`(B,)` shaped to broadcast over `batch`."""
    return values.reshape(-1, *([1] * (batch.ndim - 1)))


def _joint_norm(parts: list[Tensor]) -> Tensor:
    """sqrt(Σ ‖part‖²) per sample, `(B,)`."""
    return torch.stack([p.flatten(1).norm(dim=1) for p in parts]).norm(dim=0)
