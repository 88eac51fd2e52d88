"""Orthogonal layers: linear maps and convolutions that lengthen nothing, by construction, at every step of training.

Their weights are plain functions of free parameters, through the Cayley transform: no power iteration, no buffers, so
that training, evaluation, a copy and a loaded checkpoint all have the same weights.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from crmt.precision import without_autocast


def cayley(free: Tensor) -> Tensor:
    """`(..., n, k)` to a matrix of that shape with orthonormal columns (n ≥ k) or rows (n < k); smooth everywhere.

    With the upper square U and the rest V of `free`, and A = U − Uᵀ + VᵀV, the columns of
    [(I − A)(I + A)⁻¹ ; −2 V (I + A)⁻¹] are orthonormal (Trockman & Kolter, ICLR 2021); the upper one is
    2 (I + A)⁻¹ − I. I + A always has an inverse, which is why nobody waits for the device to say so.
    """
    rows, columns = free.shape[-2:]
    if rows < columns:
        return cayley(free.mT).mT
    with without_autocast(free.device):
        upper, lower = free[..., :columns, :], free[..., columns:, :]
        identity = torch.eye(columns, dtype=free.dtype, device=free.device)
        twice = 2 * torch.linalg.inv_ex(identity + (upper - upper.mT + lower.mT @ lower)).inverse
        return torch.cat([twice - identity, -lower @ twice], dim=-2)


def _free(*shape: int) -> Tensor:
    """A start for `cayley` that is neither near the identity nor so long that its gradient vanishes."""
    return torch.randn(shape) * (2 / (shape[-1] + shape[-2])) ** 0.5


class _Cayley(nn.Module):
    def forward(self, free: Tensor) -> Tensor:
        return cayley(free)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return _free(*weight.shape).to(weight)


class _OrthogonalKernel(nn.Module):
    """A 3 × 3 kernel as a product of orthogonal ones: 1 × 1, then 1 × 2, 2 × 1, 1 × 2, 2 × 1 (Li et al., NeurIPS 2019).

    A 1 × 2 factor is [P, I − P] with an orthogonal projector P, here of half rank: P + e^{iθ} (I − P) is unitary at
    every frequency θ. With zeros around a finite map the operator is a block of an orthogonal one: at most 1.
    """

    def forward(self, first: Tensor, turns: Tensor) -> Tensor:
        with without_autocast(first.device):
            kernel = cayley(first)[:, :, None, None]
            bases = cayley(turns)
            projectors = bases @ bases.mT
            rest = torch.eye(projectors.shape[-1], dtype=turns.dtype, device=turns.device) - projectors
            for i, factor in enumerate(torch.stack([projectors, rest], dim=-1)):
                kernel = _composed(factor[:, :, None, :] if i % 2 == 0 else factor[:, :, :, None], kernel)
            return kernel

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        channels_out, channels_in = weight.shape[:2]
        turns = _free(4, channels_out, channels_out // 2)
        return _free(channels_out, channels_in).to(weight), turns.to(weight)


def _composed(outer: Tensor, inner: Tensor) -> Tensor:
    """The kernel of the convolution with `inner`, then `outer`: `(o, c, h, w)` and `(c, i, h', w')`."""
    padding = (outer.shape[2] - 1, outer.shape[3] - 1)
    return F.conv2d(inner.transpose(0, 1), outer.flip(2, 3), padding=padding).transpose(0, 1)


def orthogonal_linear(features_in: int, features_out: int) -> nn.Linear:
    """A linear layer whose matrix has orthonormal rows or columns, whichever are fewer."""
    layer = nn.Linear(features_in, features_out)
    nn.init.zeros_(layer.bias)
    parametrize.register_parametrization(layer, "weight", _Cayley())
    return layer


def orthogonal_conv(channels_in: int, channels_out: int, kernel_size: int = 3) -> nn.Conv2d:
    """A 1 × 1 or 3 × 3 convolution with stride 1 and zero padding, orthogonal except at the border."""
    layer = nn.Conv2d(channels_in, channels_out, kernel_size, padding=kernel_size // 2)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    parametrize.register_parametrization(layer, "weight", _OrthogonalKernel() if kernel_size == 3 else _Pointwise())
    return layer


class _Pointwise(_Cayley):
    """`cayley` for the kernel of a 1 × 1 convolution."""

    def forward(self, free: Tensor) -> Tensor:
        return cayley(free)[:, :, None, None]

    def right_inverse(self, weight: Tensor) -> Tensor:
        return _free(*weight.shape[:2]).to(weight)
