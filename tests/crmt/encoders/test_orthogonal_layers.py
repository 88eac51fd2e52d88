"""The layers of 1-Lipschitz encoders: orthogonal for every parameter; and the bound of any convolution."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from crmt.certificates.lipschitz import conv_bound
from crmt.encoders.orthogonal_layers import cayley, orthogonal_conv


@given(rows=st.integers(1, 9), columns=st.integers(1, 9), scale=st.floats(1e-3, 1e3), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_cayley_is_orthogonal_for_every_parameter(rows: int, columns: int, scale: float, seed: int) -> None:
    free = scale * torch.randn(3, rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    q = cayley(free)
    gram = q @ q.mT if rows <= columns else q.mT @ q
    torch.testing.assert_close(gram, torch.eye(min(rows, columns)).double().expand_as(gram), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("channels_in", "channels_out"), [(4, 8), (8, 8), (12, 4)])
def test_a_circular_orthogonal_convolution_is_an_orthogonal_matrix(channels_in: int, channels_out: int) -> None:
    layer = orthogonal_conv(channels_in, channels_out).double()
    identity = torch.eye(channels_in * 36, dtype=torch.float64).reshape(-1, channels_in, 6, 6)
    around = F.pad(identity, (1, 1, 1, 1), mode="circular")
    matrix = F.conv2d(around, layer.weight).flatten(1)
    values = torch.linalg.svdvals(matrix)
    torch.testing.assert_close(values, torch.ones_like(values), atol=1e-9, rtol=0)


@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 4), st.sampled_from([1, 2, 3, 5])),
    size=st.integers(5, 8),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_the_bound_of_any_convolution_holds_and_is_near(shape: tuple[int, int, int], size: int, seed: int) -> None:
    c_out, c_in, k = shape
    kernel = torch.randn(c_out, c_in, k, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    identity = torch.eye(c_in * size * size, dtype=torch.float64).reshape(-1, c_in, size, size)
    zeros = torch.linalg.matrix_norm(F.conv2d(identity, kernel, padding=k // 2).flatten(1), ord=2)
    fine = torch.linalg.svdvals(torch.fft.fft2(kernel, s=(64, 64)).permute(2, 3, 0, 1)).max()
    bound = conv_bound(kernel)
    assert bound >= max(zeros, fine) * (1 - 1e-12)
    assert bound <= fine * 1.16  # the square root of 4 / 3
