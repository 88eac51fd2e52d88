"""An encoder whose ℓ2 Lipschitz constant is 1 in the RAW input, by construction; verified in certificates/lipschitz."""

from __future__ import annotations

from math import prod

from deel.torchlip import GroupSort2, InvertibleDownSampling
from torch import Tensor, nn

from crmt.encoders.orthogonal_layers import orthogonal_conv, orthogonal_linear
from crmt.modality import Modality

STRIDE = 8
"""Heights and widths are padded with zeros to multiples of it; padding lengthens no difference."""


class LipschitzEncoder(nn.Module):
    """φ with ‖φ(x) − φ(x')‖₂ ≤ ‖x − x'‖₂ for inputs x, x' `(C, H, W)` or `(T, C, H, W)` in the modality's raw space.

    The model standardises with (x − mean) / std; the encoder undoes the division first. Frames share the trunk and
    their features are summed over √T, which keeps the constant: (Σ_t ‖δ_t‖)² / T ≤ Σ_t ‖δ_t‖².
    Orthogonal layers, sorting and rearrangement shorten as little as they can, so that a margin is worth a long radius.
    """

    scale: Tensor

    def __init__(self, modality: Modality, features: int) -> None:
        super().__init__()
        channels, height, width = modality.shape[-3:]
        self.register_buffer("scale", modality.per_channel(modality.std), persistent=False)
        pad_h, pad_w = -height % STRIDE, -width % STRIDE
        cells = prod(((height + pad_h) // STRIDE, (width + pad_w) // STRIDE))
        narrow, wide, hidden = features // 4, features // 2, 2 * features
        self.trunk = nn.Sequential(
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

    def forward(self, x: Tensor) -> Tensor:
        """Standardised `(B, C, H, W)` or `(B, T, C, H, W)` to `(B, features)`."""
        raw = x * self.scale
        if raw.ndim == 4:
            return self.trunk(raw)
        frames = raw.shape[1]
        return self.trunk(raw.flatten(0, 1)).unflatten(0, (-1, frames)).sum(1) / frames**0.5
