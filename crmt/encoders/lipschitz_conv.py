"""A convolutional encoder whose ℓ2 Lipschitz constant is 1 in the raw input, by construction."""

from __future__ import annotations

from math import prod

from deel.torchlip import GroupSort2, InvertibleDownSampling
from torch import nn

from crmt.encoders._features import check_features
from crmt.encoders.lipschitz import LipschitzEncoder, declares_lipschitz
from crmt.encoders.orthogonal_layers import orthogonal_conv, orthogonal_linear
from crmt.modality import Modality

STRIDE = 8
"""Heights and widths are padded with zeros to multiples of it; padding lengthens no difference."""


@declares_lipschitz
def lipschitz_conv(modality: Modality, features: int) -> LipschitzEncoder:
    """Orthogonal layers, sorting and rearrangement, which shorten as little as they can, so that a margin is worth a
    long radius.

    Args:
        modality: of shape `(C, H, W)`, or `(T, C, H, W)`, whose frames share the trunk.
        features: width of the output, a multiple of 8.
    """
    check_features(features)
    channels, height, width = modality.shape[-3:]
    pad_h, pad_w = -height % STRIDE, -width % STRIDE
    cells = prod(((height + pad_h) // STRIDE, (width + pad_w) // STRIDE))
    narrow, wide, hidden = features // 4, features // 2, 2 * features
    trunk = nn.Sequential(
        nn.ZeroPad2d((0, pad_w, 0, pad_h)),
        InvertibleDownSampling(4),
        orthogonal_conv(16 * channels, narrow),
        GroupSort2(),
        orthogonal_conv(narrow, narrow),
        GroupSort2(),
        InvertibleDownSampling(2),
        orthogonal_conv(4 * narrow, wide, kernel_size=1),
        GroupSort2(),
        orthogonal_conv(wide, wide),
        GroupSort2(),
        nn.Flatten(),
        orthogonal_linear(wide * cells, hidden),
        GroupSort2(),
        orthogonal_linear(hidden, features),
    )
    return LipschitzEncoder(modality, trunk)


ENCODER = lipschitz_conv
