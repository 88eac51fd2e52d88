"""A stem and three residual blocks, for inputs of about 32 × 32."""

from __future__ import annotations

from torch import nn

from crmt.encoders._features import check_features
from crmt.encoders.resnet import BatchNorm, ConvEncoder, ResidualBlock
from crmt.modality import Modality


def small_resnet(modality: Modality, features: int) -> ConvEncoder:
    """A residual network of stride 8; 0.1 M parameters at 64 features.

    Args:
        modality: of shape `(C, H, W)`, or `(T, C, H, W)`, whose frames share the trunk.
        features: width of the output, a multiple of 8.
    """
    check_features(features)
    channels = modality.shape[modality.channel_axis]
    w1, w2, w3 = features // 4, features // 2, features
    return ConvEncoder(
        nn.Sequential(
            nn.Conv2d(channels, w1, 3, 2, padding=1, bias=False),
            BatchNorm(w1),
            nn.ReLU(),
            ResidualBlock(w1, w2, 2),
            ResidualBlock(w2, w3, 2),
        )
    )


ENCODER = small_resnet
