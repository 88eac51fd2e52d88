"""Encoders by name: what a configuration may say, and what is built for it."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from crmt.encoders.lipschitz import LipschitzEncoder
from crmt.encoders.resnet import ConvEncoder, resnet18, small_resnet
from crmt.errors import BadInputError
from crmt.modality import Modality


def _shared_trunk(trunk: Callable[[int, int], nn.Module]) -> Callable[[Modality, int], nn.Module]:
    return lambda modality, features: ConvEncoder(trunk(modality.shape[modality.channel_axis], features))


ENCODERS: dict[str, Callable[[Modality, int], nn.Module]] = {
    "small_resnet": _shared_trunk(small_resnet),
    "resnet18": _shared_trunk(resnet18),
    "lipschitz_conv": LipschitzEncoder,
}
LIPSCHITZ_ENCODERS = ("lipschitz_conv",)
"""Those that are 1-Lipschitz in the raw input by construction: what the certificate `lipschitz` needs."""


def build_encoder(name: str, modality: Modality, features: int) -> nn.Module:
    """The encoder `name` for a modality of shape `(C, H, W)` or `(T, C, H, W)`.

    Raises:
        BadInputError: unknown name, or `features` not a multiple of 8.
    """
    if name not in ENCODERS:
        raise BadInputError(f"no encoder {name!r} for {modality.name!r}. Valid: {', '.join(ENCODERS)}")
    if features < 8 or features % 8:
        raise BadInputError(f"features must be a multiple of 8, not {features}")
    return ENCODERS[name](modality, features)
