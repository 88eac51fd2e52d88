"""Balls around an input: joint, uni-modal and product, in ℓ2 or ℓ∞; their projections and steepest directions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import hypot
from typing import Literal

import torch
from torch import Tensor

from crmt.arguments import check_kind, check_names, check_number, said
from crmt.errors import BadInputError
from crmt.modality import Inputs, Modality

Epsilon = float | Tensor
"""One ε for all inputs, or `(B,)`: one each."""
LARGEST = 1e15
"""The largest budget: squares of larger ones overflow in float32."""


@dataclass(frozen=True)
class Group:
    """Modalities that share one budget."""

    modalities: tuple[str, ...]
    epsilon: Epsilon


@dataclass(frozen=True)
class Ball:
    """What an attack may do. Modalities in no group stay untouched."""

    groups: tuple[Group, ...]
    norm: Literal["l2", "linf"] = "l2"

    def __post_init__(self) -> None:
        names = [m for g in self.groups for m in check_names("modalities", g.modalities)]
        if not names or len(set(names)) != len(names):
            raise BadInputError(f"a ball needs every attacked modality once, not {names}")
        if self.norm not in ("l2", "linf"):
            raise BadInputError(f"no norm {said(self.norm)}. Valid: l2, linf")
        for g in self.groups:
            _check_budget(g.epsilon)

    @staticmethod
    def joint(modalities: Iterable[str], epsilon: Epsilon, norm: Literal["l2", "linf"] = "l2") -> Ball:
        """Σ_m ‖δ^(m)‖² ≤ ε² (ℓ2), max_m ‖δ^(m)‖∞ ≤ ε (ℓ∞); with one modality, its uni-modal ball.

        Args:
            modalities: the names of those that are attacked; the others stay as they are.
            epsilon: ε, 0 or more, in the space of the inputs: one for all, or `(B,)`, one for each.
            norm: `l2` or `linf`.

        Raises:
            BadInputError: no name, a name twice, an unknown norm, or a budget below 0 or above `LARGEST`.
        """
        return Ball((Group(check_names("modalities", modalities), epsilon),), norm)

    @staticmethod
    def product(epsilons: Mapping[str, Epsilon], norm: Literal["l2", "linf"] = "l2") -> Ball:
        """‖δ^(m)‖ ≤ ε_m for each m, all at once.

        Args:
            epsilons: modality to its budget, as in `joint`.
            norm: `l2` or `linf`.

        Raises:
            BadInputError: as `joint`.
        """
        check_kind("epsilons", epsilons, Mapping, "a dictionary of modality to budget, such as {'video': 0.5}")
        return Ball(tuple(Group((m,), e) for m, e in epsilons.items()), norm)

    @staticmethod
    def each(modalities: Iterable[str], epsilon: Epsilon, norm: Literal["l2", "linf"] = "l2") -> dict[str, Ball]:
        """Every modality's own ball, by name, as `attack.balls: [each]` of a configuration: M attacks, in each of which
        one modality is moved and the others stay as they are. All of them at once, each within its own budget, are one
        `Ball.product`.

        Args:
            modalities, epsilon, norm: as in `joint`.

        Returns: modality to its ball, in the order given.

        Raises:
            BadInputError: as `joint`.
        """
        return {m: Ball.joint([m], epsilon, norm) for m in check_names("modalities", modalities)}

    @property
    def attacked(self) -> tuple[str, ...]:
        """The names of the modalities that it moves, group by group."""
        return tuple(m for g in self.groups for m in g.modalities)

    def select(self, rows: Tensor) -> Ball:
        """The ball of some inputs of the batch.

        Args:
            rows: their indices, `(R,)`.
        """
        return self._with(_rows(g.epsilon, rows) for g in self.groups)

    def scaled(self, factors: Tensor) -> Ball:
        """The ball with every input's budgets multiplied.

        Args:
            factors: one for each input, `(B,)`.
        """
        return self._with(factors * torch.as_tensor(g.epsilon).to(factors) for g in self.groups)

    def _with(self, budgets: Iterable[Epsilon]) -> Ball:
        return Ball(tuple(Group(g.modalities, e) for g, e in zip(self.groups, budgets, strict=True)), self.norm)

    def contains(self, other: Ball) -> bool:
        """Whether every δ in the other ball is in this one. Both have one budget for all inputs, and the same norm."""
        if any(float(g.epsilon) > 0 and not set(g.modalities) <= set(self.attacked) for g in other.groups):
            return False
        for g in self.groups:
            parts = [float(o.epsilon) for o in other.groups if set(o.modalities) & set(g.modalities)]
            longest = hypot(*parts) if self.norm == "l2" else max(parts, default=0.0)
            if longest > float(g.epsilon):
                return False
        return True

    def gauge(self, deltas: Inputs) -> Tensor:
        """The factor t by which the budgets must be multiplied to just hold δ, `(B,)`: max over groups of ‖δ‖ / ε.

        Args:
            deltas: δ, `(B, *shape)` of every attacked modality.
        """
        factors = []
        for g, length in zip(self.groups, self.lengths(deltas), strict=True):
            epsilon = _budget(g.epsilon, length)
            factor = length / epsilon.masked_fill(epsilon == 0, 1)
            factors.append(torch.where((epsilon == 0) & (length > 0), torch.full_like(factor, float("inf")), factor))
        return torch.stack(factors).amax(0)

    def gain(self, gradients: Inputs) -> Tensor:
        """The most that a linear function gains in the ball, `(B,)`: Σ over groups of ε ‖g‖_dual.

        Args:
            gradients: the function's gradient g, `(B, *shape)` of every attacked modality.
        """
        gains = []
        for g in self.groups:
            parts = [gradients[m] for m in g.modalities]
            sums = torch.stack([p.flatten(1).abs().sum(1) for p in parts]).sum(0)
            dual = _joint_norm(parts) if self.norm == "l2" else sums
            gains.append(_budget(g.epsilon, parts[0]) * dual)
        return torch.stack(gains).sum(0)

    def lengths(self, deltas: Inputs) -> list[Tensor]:
        """‖δ‖ in each group, `(B,)`.

        Args:
            deltas: δ, `(B, *shape)` of every attacked modality.
        """
        return [self._length([deltas[m] for m in g.modalities]) for g in self.groups]

    def _length(self, parts: list[Tensor]) -> Tensor:
        if self.norm == "l2":
            return _joint_norm(parts)
        return torch.stack([p.flatten(1).abs().amax(1) for p in parts]).amax(0)

    def project(self, deltas: Inputs, around: Mapping[str, Tensor], modalities: Mapping[str, Modality]) -> Inputs:
        """The nearest δ inside the ball, then clamped so that x + δ is in the box; a clamp never lengthens δ.

        Args:
            deltas: δ, `(B, *shape)` of every attacked modality, in the space of the inputs.
            around: x, of the same shapes.
            modalities: the model's; their boxes bound x + δ.

        Returns: δ, `(B, *shape)` of every attacked modality.
        """
        result: Inputs = {}
        for g in self.groups:
            epsilon = _budget(g.epsilon, deltas[g.modalities[0]])
            if self.norm == "linf":
                result |= {
                    m: deltas[m].clamp(-columns(epsilon, deltas[m]), columns(epsilon, deltas[m])) for m in g.modalities
                }
                continue
            length = _joint_norm([deltas[m] for m in g.modalities])
            shrink = torch.where(length > epsilon, epsilon / length.clamp_min(1e-38), torch.ones_like(length))
            result |= {m: deltas[m] * columns(shrink, deltas[m]) for m in g.modalities}
        return clamped(result, around, modalities)

    def steepest(self, gradients: Inputs) -> Inputs:
        """The direction of steepest ascent with length 1 in each group.

        Lengths are summed up in float64, where squares do not fade: only an exactly zero gradient gives a zero step,
        one of 1e-30 is whole.

        Args:
            gradients: `(B, *shape)` of every attacked modality.
        """
        result: Inputs = {}
        for g in self.groups:
            if self.norm == "linf":
                result |= {m: gradients[m].sign() for m in g.modalities}
                continue
            parts = [
                torch.linalg.vector_norm(gradients[m].flatten(1), dim=1, dtype=torch.float64) for m in g.modalities
            ]
            length = torch.stack(parts).norm(dim=0)
            length = torch.where(length > 0, length, torch.ones_like(length)).to(gradients[g.modalities[0]].dtype)
            result |= {m: gradients[m] / columns(length, gradients[m]) for m in g.modalities}
        return result

    def stepped(self, deltas: Inputs, gradients: Inputs, size: float | Tensor) -> Inputs:
        """δ after one step along the steepest direction.

        Args:
            deltas: δ, `(B, *shape)` of every attacked modality.
            gradients: of the same shapes.
            size: the length of the step in units of ε: one for all, or `(B,)`.
        """
        direction, epsilons = self.steepest(gradients), self.epsilons(deltas)
        sizes = {m: columns(size, d) if isinstance(size, Tensor) else size for m, d in deltas.items()}
        return {m: d + sizes[m] * epsilons[m] * direction[m] for m, d in deltas.items()}

    def epsilons(self, like: Inputs) -> Inputs:
        """ε of each attacked modality, shaped to multiply a batch of it."""
        return {m: columns(_budget(g.epsilon, like[m]), like[m]) for g in self.groups for m in g.modalities}

    def random(self, like: Inputs, generator: torch.Generator | None) -> Inputs:
        """A δ drawn uniformly from the ball (before any box), in float32 or better.

        Args:
            like: gives shapes, types and devices, `(B, *shape)` of every attacked modality.
            generator: gives the random numbers; None: torch's own, on the CPU.
        """
        like = {m: wide(like[m]) for m in self.attacked}
        result: Inputs = {}
        for g in self.groups:
            first = like[g.modalities[0]]
            epsilon = _budget(g.epsilon, first)
            noise = {m: _noise(like[m], self.norm, generator) for m in g.modalities}
            if self.norm == "linf":
                result |= {m: v * columns(epsilon, v) for m, v in noise.items()}
                continue
            size = sum(v[0].numel() for v in noise.values())
            uniform = torch.rand(len(first), generator=generator, device=_drawn_on(generator, first)).to(epsilon)
            scale = epsilon * uniform.pow(1 / size) / _joint_norm(list(noise.values())).clamp_min(1e-38)
            result |= {m: v * columns(scale, v) for m, v in noise.items()}
        return result


def wide(values: Tensor) -> Tensor:
    """The values, in float32 where their type is smaller: budgets, lengths and margins need more than three digits."""
    return values.float() if values.is_floating_point() and values.dtype.itemsize < 4 else values


def moved(x: Tensor, delta: Tensor) -> Tensor:
    """x + δ in the type of x. Below float32 it is rounded towards x, since the nearest number may be outside the ball:
    numbers of bfloat16 near 1 are 0.004 to 0.008 apart."""
    if x.dtype.itemsize >= 4:
        return x + delta
    start = x.float()
    there = (start + delta).to(x.dtype)
    beyond = (there.float() - start).abs() > delta.abs()
    return torch.where(beyond, _nearer(there, x), there)


def _nearer(values: Tensor, x: Tensor) -> Tensor:
    """The next number towards x, of 16-bit floats (CUDA has no torch.nextafter for all of them).

    Those of one sign lie in the order of their bits; next to 0 are the smallest, 1 and, with the sign's bit, -32767.
    """
    bits = values.view(torch.int16)
    next_bits = torch.where((values > 0) == (values > x), bits - 1, bits + 1)
    from_zero = torch.where(x > 0, 1, -32767).to(torch.int16)
    return torch.where(values == 0, from_zero, next_bits).view(values.dtype)


def clamped(deltas: Inputs, around: Mapping[str, Tensor], modalities: Mapping[str, Modality]) -> Inputs:
    """δ clamped so that x + δ is in the box, or no further out than x is, which rounding may leave just outside.

    Args:
        deltas: δ, `(B, *shape)` of every attacked modality.
        around: x, of the same shapes.
        modalities: the model's; a modality without a box is not clamped.
    """
    result = dict(deltas)
    for m, delta in deltas.items():
        box, x = modalities[m].box, wide(around[m])
        if box is not None:
            low, high = box
            result[m] = torch.maximum(torch.minimum(x + delta, x.clamp_min(high)), x.clamp_max(low)) - x
    return result


def chosen(these: Tensor, first: Inputs, second: Inputs) -> Inputs:
    """Input by input, one of two.

    Args:
        these: which inputs are taken from `first`, `(B,)`, bool.
        first: `(B, *shape)` of every modality.
        second: where the others come from; the same shapes.
    """
    return {m: torch.where(columns(these, v), v, second[m]) for m, v in first.items()}


def _check_budget(epsilon: Epsilon) -> None:
    if not isinstance(epsilon, Tensor):
        check_number("a budget", epsilon)
    values = epsilon.detach() if isinstance(epsilon, Tensor) else torch.tensor(float(epsilon), dtype=torch.float64)
    if not values.numel():
        return
    low, high = (float(v) for v in torch.aminmax(values))
    if not low >= 0:
        raise BadInputError(f"a budget must be 0 or more, not {low}")
    if high > LARGEST:
        raise BadInputError(f"a budget must be at most {LARGEST:g}, not {high}: 1e6 reaches as far in practice")


def _rows(epsilon: Epsilon, rows: Tensor) -> Epsilon:
    if not isinstance(epsilon, Tensor) or epsilon.shape in ((), (1,)):
        return epsilon
    return epsilon[rows.to(epsilon.device)]


def device_of(generator: torch.Generator | None) -> torch.device:
    """The device on which a generator draws; the CPU where there is none.

    Raises:
        BadInputError: `generator` is something else.
    """
    if generator is None:
        return torch.device("cpu")
    check_kind("generator", generator, torch.Generator, "a torch.Generator, such as torch.Generator().manual_seed(0)")
    return generator.device


def _drawn_on(generator: torch.Generator | None, like: Tensor) -> torch.device:
    """Where numbers for a tensor are drawn: where the generator draws; without one, where the tensor lies."""
    return like.device if generator is None else device_of(generator)


def _noise(like: Tensor, norm: str, generator: torch.Generator | None) -> Tensor:
    drawn = torch.empty(like.shape, device=_drawn_on(generator, like), dtype=like.dtype)
    drawn = drawn.normal_(generator=generator) if norm == "l2" else drawn.uniform_(-1, 1, generator=generator)
    return drawn.to(like.device)


def _budget(epsilon: Epsilon, like: Tensor) -> Tensor:
    """ε as `(B,)`."""
    if isinstance(epsilon, Tensor) and epsilon.shape not in ((1,), (len(like),)):
        raise BadInputError(
            f"budgets of shape {tuple(epsilon.shape)} do not fit {len(like)} inputs: give one ε, or one each"
        )
    if isinstance(epsilon, Tensor):
        return epsilon.to(like).expand(len(like))
    return like.new_full((len(like),), epsilon)  # a copy of a number from the CPU would wait for the device


def columns(values: Tensor, batch: Tensor) -> Tensor:
    """One value for each input, shaped to broadcast over a batch.

    Args:
        values: `(B,)`.
        batch: `(B, *shape)`.

    Returns: `(B, 1, ..., 1)`.
    """
    return values.reshape(-1, *([1] * (batch.ndim - 1)))


def _joint_norm(parts: list[Tensor]) -> Tensor:
    """sqrt(Σ ‖part‖²) per sample, `(B,)`."""
    return torch.stack([p.flatten(1).norm(dim=1) for p in parts]).norm(dim=0)
