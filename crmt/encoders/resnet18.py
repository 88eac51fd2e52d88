"""ResNet-18 without its classifier (He et al., 2016)."""

from __future__ import annotations

from torch import nn

from crmt.encoders._features import check_features
from crmt.encoders.resnet import BatchNorm, ConvEncoder, ResidualBlock
from crmt.modality import Modality


def resnet18(modality: Modality, features: int) -> ConvEncoder:
    """ResNet-18; 512 features give its usual widths.

    Args:
        modality: of shape `(C, H, W)`, or `(T, C, H, W)`, whose frames share the trunk.
        features: width of the output, a multiple of 8.
    """
    check_features(features)
    channels = modality.shape[modality.channel_axis]
    w1, w2, w3, w4 = features // 8, features // 4, features // 2, features
    return ConvEncoder(
        nn.Sequential(
            nn.Conv2d(channels, w1, 7, 2, padding=3, bias=False),
            BatchNorm(w1),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, padding=1),
            ResidualBlock(w1, w1, 1),
            ResidualBlock(w1, w1, 1),
            ResidualBlock(w1, w2, 2),
            ResidualBlock(w2, w2, 1),
            ResidualBlock(w2, w3, 2),
            ResidualBlock(w3, w3, 1),
            ResidualBlock(w3, w4, 2),
            ResidualBlock(w4, w4, 1),
        )
    )


ENCODER = resnet18
