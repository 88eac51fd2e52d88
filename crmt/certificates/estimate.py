"""The paper's radius, from τ̂. Not sound: τ̂ is a lower bound of τ, so the radius may be too large."""

from __future__ import annotations

import torch
from torch import Tensor

from crmt.certificates.radius import Radii, radii
from crmt.errors import BadInputError
from crmt.heads import Head, OrthogonalHead
from crmt.lipschitz import GradientConstants

CERTIFICATE = "estimate"


@torch.no_grad()
def pair_constants(head: Head, constants: GradientConstants) -> Tensor:
    """η̂, `(M, K, K)`: |a_y| τ̂_y + |a_j| τ̂_j (OrthogonalHead), or of the score difference (a = 1)."""
    if not isinstance(head, OrthogonalHead):
        if constants.pair is None:
            raise BadInputError(f"the radius of a {type(head).__name__} needs gradient_constants(..., pairs=True)")
        return constants.pair
    single = head.integration.abs() * constants.tau.to(head.bias.device)
    return single[:, :, None] + single[:, None, :]


@torch.no_grad()
def estimated_radii(
    head: Head, scores: Tensor, labels: Tensor, constants: GradientConstants, *, runner_up_only: bool = False
) -> Radii:
    """Estimated radii of inputs with uni-modal scores s `(N, M, K)` and labels `(N,)`.

    On linear encoders they never exceed the exact distance to the decision boundary, and equal it for a ConcatHead.

    Raises:
        BadInputError: labels out of range, or a head with a = 1 without the constants of pairs.
    """
    return radii(
        CERTIFICATE,
        head.modalities,
        head.integration.to(scores) * scores,  # scores are often kept on the CPU
        head.bias.to(scores),
        labels,
        pair_constants(head, constants).to(scores),
        runner_up_only=runner_up_only,
    )
