"""What 1-Lipschitz encoders share; certificates/lipschitz verifies the constant, whatever an encoder says of itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import Tensor, nn

from crmt.modality import Modality

Factory = TypeVar("Factory", bound=Callable[..., nn.Module])


def declares_lipschitz(factory: Factory) -> Factory:
    """Mark a function whose encoders are 1-Lipschitz; a class of encoders says it with `lipschitz = True`."""
    factory.lipschitz = True  # type: ignore[attr-defined]
    return factory


class LipschitzEncoder(nn.Module):
    """φ with ‖φ(x) − φ(x')‖₂ ≤ ‖x − x'‖₂ for inputs x, x' `(C, H, W)` or `(T, C, H, W)` in the modality's raw space.

    The model standardises with (x − mean) / std; the encoder undoes the division first. Frames share the trunk and
    their features are summed over √T, which keeps the constant: (Σ_t ‖δ_t‖)² / T ≤ Σ_t ‖δ_t‖².

    Args:
        trunk: an nn.Sequential, from `(B, C, H, W)` to `(B, features)`, of layers that lengthen nothing.
    """

    lipschitz = True
    scale: Tensor

    def __init__(self, modality: Modality, trunk: nn.Sequential) -> None:
        super().__init__()
        self.register_buffer("scale", modality.per_channel(modality.std), persistent=False)
        self.trunk = trunk

    def forward(self, x: Tensor) -> Tensor:
        """Standardised `(B, C, H, W)` or `(B, T, C, H, W)` to `(B, features)`."""
        raw = x * self.scale
        if raw.ndim == 4:
            return self.trunk(raw)
        frames = raw.shape[1]
        return self.trunk(raw.flatten(0, 1)).unflatten(0, (-1, frames)).sum(1) / frames**0.5
