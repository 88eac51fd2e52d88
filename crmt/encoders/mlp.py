"""Two linear layers on the flattened input: for vectors and small tables, such as text features or skeletons."""

from __future__ import annotations

from math import prod

from torch import nn

from crmt.encoders._features import check_features
from crmt.modality import Modality


def mlp(modality: Modality, features: int, hidden: int | None = None) -> nn.Module:
    """A perceptron with one hidden layer.

    Args:
        modality: of any shape; it is flattened.
        features: width of the output, a multiple of 8.
        hidden: width of the hidden layer; None: twice `features`.
    """
    check_features(features)
    width = 2 * features if hidden is None else hidden
    return nn.Sequential(nn.Flatten(), nn.Linear(prod(modality.shape), width), nn.ReLU(), nn.Linear(width, features))


ENCODER = mlp
