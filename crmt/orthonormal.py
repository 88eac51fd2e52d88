"""A linear layer whose rows stay orthonormal at every step of training: the Q factor of a free matrix, by Cholesky."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_SHIFT = 1e-14
"""Share of each row's squared length that is added to the Gram matrix: even dependent rows can then be factorised."""
_START = 0.5
"""Length of a free row at the start. A step of the optimiser turns the rows by 1 / length² of it: with ½ as far as it
did in earlier versions, whose Householder reflections turned them four times as far as a row of length 1 is."""
_EARLIER = ("parametrizations.weight.original", "parametrizations.weight.1.base")
"""What earlier versions kept: the parameters of torch's orthogonal matrix, and the matrix before it."""


def orthonormal_rows(free: Tensor) -> Tensor:
    """W = L⁻¹ A with A Aᵀ = L Lᵀ: the rows of A made orthonormal one after the other, as Gram and Schmidt do.

    It is computed in float64, whatever the type of `free`, out of reach of autocast and TF32: the Gram matrix squares
    A's condition number κ. To first order L⁻¹ is then corrected by what W Wᵀ still lacks, so that rows of float32 are
    orthonormal to its rounding as long as κ < 10⁵. Linearly dependent rows give finite ones that are not orthonormal.
    Nothing waits for the device.

    Args:
        free: A, `(K, d)`, K ≤ d; its rows may have any lengths but 0.

    Returns: W, `(K, d)`, of the type of `free`. Can be differentiated twice.
    """
    rows, _ = cast(tuple[Tensor, Tensor], _OrthonormalRows.apply(free.double()))
    return rows.to(free.dtype)


def _half_lower(matrix: Tensor) -> Tensor:
    """The lower triangle with half of the diagonal."""
    return matrix.tril() - 0.5 * matrix.diagonal().diag_embed()


class _OrthonormalRows(torch.autograd.Function):
    """W and L. One formula for the gradient costs a third of what autograd makes of the single steps; L is returned
    for the second derivative alone."""

    @staticmethod
    def forward(ctx: Any, a: Tensor) -> tuple[Tensor, Tensor]:
        gram = a @ a.mT
        lower = torch.linalg.cholesky_ex(gram + _SHIFT * gram.diagonal().diag_embed()).L
        rows = torch.linalg.solve_triangular(lower, a, upper=False)
        lacking = rows @ rows.mT - torch.eye(len(rows), dtype=a.dtype, device=a.device)
        rows = rows - _half_lower(lacking) @ rows
        ctx.save_for_backward(rows, lower)
        ctx.set_materialize_grads(False)
        return rows, lower

    @staticmethod
    def backward(ctx: Any, by_rows: Tensor | None, by_lower: Tensor | None) -> Tensor | None:
        """dW = L⁻¹ dA − Φ(Y) W and dL = L Φ(Y) with Y = L⁻¹ dA Wᵀ + W dAᵀ L⁻ᵀ, transposed; Φ is `_half_lower`."""
        rows, lower = ctx.saved_tensors
        by_triangle = torch.zeros_like(lower)
        if by_rows is not None:
            by_triangle = by_triangle - by_rows @ rows.mT
        if by_lower is not None:
            by_triangle = by_triangle + lower.mT @ by_lower
        half = _half_lower(by_triangle)
        inner = (half + half.mT) @ rows
        return torch.linalg.solve_triangular(lower.mT, inner if by_rows is None else inner + by_rows, upper=True)


class OrthonormalLinear(nn.Module):
    """x ↦ W x with orthonormal rows, W = `orthonormal_rows(free)`.

    Weight decay on `free` only changes the lengths of its rows, which W does not see.

    Args:
        weight: `(K, d)`, K ≤ d; its rows, made orthonormal, are W at the start.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.free = nn.Parameter(_START * orthonormal_rows(weight.detach()))
        self._held: Tensor | None = None

    @property
    def weight(self) -> Tensor:
        """W, `(K, d)`."""
        return orthonormal_rows(self.free) if self._held is None else self._held

    @contextmanager
    def held(self) -> Iterator[None]:
        """Until the block ends W is what it is now: computed once, without gradients by `free`."""
        before = self._held
        self._held = self.weight.detach()
        try:
            yield
        finally:
            self._held = before

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_held": None}  # a copy made inside of `held` is not held itself

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        raw, base = (prefix + name for name in _EARLIER)
        if raw in state_dict and base in state_dict:
            weight = _of_earlier(state_dict.pop(raw), state_dict.pop(base))
            state_dict[f"{prefix}free"] = _START * weight
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def earlier_rows_in(state_dict: dict[str, Tensor]) -> list[str]:
    """The names, in this version, of orthonormal rows that a state dictionary holds as earlier versions kept them."""
    return [n.removesuffix(_EARLIER[0]) + "free" for n in state_dict if n.endswith(_EARLIER[0])]


def _of_earlier(raw: Tensor, base: Tensor) -> Tensor:
    """W of earlier versions: torch.nn.utils.parametrizations.orthogonal, behind the signs of the diagonal."""
    if raw.shape[0] == raw.shape[1]:
        lower = raw.double().tril()
        return (base.double() @ torch.matrix_exp(lower - lower.mT)).to(raw.dtype)
    x = raw.double().mT
    vectors = x.tril(-1)
    reflections = torch.linalg.householder_product(vectors, 2 / (1 + vectors.square().sum(0)))
    return (base.double() @ (reflections * x.diagonal().sign())).mT.to(raw.dtype)
