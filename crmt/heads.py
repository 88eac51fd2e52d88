"""Heads: features of every modality to uni-modal scores s `(B, M, K)` and their integration to logits `(B, K)`.

For both heads h_k = Σ_m a_k^(m) s_k^(m) + b_k; a ConcatHead has a = 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal

from crmt.errors import BadInputError

INITIAL_INTEGRATION = 0.1


class Head(nn.Module):
    """Base of the heads. `features` names the modalities, in order, with their feature widths d_m."""

    def __init__(self, features: Mapping[str, int], classes: int) -> None:
        super().__init__()
        if not features:
            raise BadInputError("a head needs at least one modality")
        if classes < 1:
            raise BadInputError(f"a head needs at least one class, not {classes}")
        self.modalities = tuple(features)
        self.classes = classes
        self.bias = nn.Parameter(torch.zeros(classes))
        self.linears = nn.ModuleDict({m: nn.Linear(d, classes, bias=False) for m, d in features.items()})

    @property
    def integration(self) -> Tensor:
        """a, `(M, K)`."""
        raise NotImplementedError

    def weight(self, modality: str) -> Tensor:
        """W^(m), `(K, d_m)`."""
        return self.linears[modality].weight  # type: ignore[return-value]

    def scores(self, features: Mapping[str, Tensor]) -> Tensor:
        """Uni-modal scores s, `(B, M, K)`, from features `(B, d_m)` each."""
        return torch.stack([self.linears[m](features[m]) for m in self.modalities], dim=1)

    def logits(self, scores: Tensor) -> Tensor:
        """h, `(B, K)`, from s, `(B, M, K)`."""
        return (self.integration * scores).sum(1) + self.bias


class ConcatHead(Head):
    """The plain joint classifier on concatenated features: h = Σ_m W^(m) φ^(m) + b, without a constraint."""

    @property
    def integration(self) -> Tensor:
        return torch.ones(len(self.modalities), self.classes, device=self.bias.device, dtype=self.bias.dtype)


class _UnitDiagonal(nn.Module):
    """Restores the ±1 that torch's Householder map casts to int; after any weight decay it would read 0: rows of 0."""

    def forward(self, raw: Tensor) -> Tensor:
        return raw.diagonal_scatter(raw.diagonal().sign())

    def right_inverse(self, raw: Tensor) -> Tensor:
        return raw


class OrthogonalHead(Head):
    """CRMT's head: W̃^(m) with orthonormal rows, and positive integration weights a = exp(α).

    The rows stay orthonormal at every step of training through torch's Householder parametrisation; the
    reference code's "orthogonal" layer only centres and normalises each row.

    Raises:
        BadInputError: more classes than features, where orthonormal rows do not exist.
    """

    def __init__(self, features: Mapping[str, int], classes: int) -> None:
        super().__init__(features, classes)
        for modality, width in features.items():
            if classes > width:
                raise BadInputError(
                    f"{classes} orthonormal rows need at least {classes} features of {modality!r}, not {width}: "
                    "raise model.features or use a method with a concat head"
                )
            chains = cast(nn.ModuleDict, orthogonal(self.linears[modality]).parametrizations)
            cast(nn.ModuleList, chains["weight"]).insert(0, _UnitDiagonal())
        start = torch.full((len(features), classes), INITIAL_INTEGRATION)
        self.log_integration = nn.Parameter(start.log())

    @property
    def integration(self) -> Tensor:
        return self.log_integration.exp()

    @torch.no_grad()
    def set_integration(self, integration: Tensor) -> None:
        """Replace a, `(M, K)`, all above 0."""
        if integration.shape != self.log_integration.shape or not bool((integration > 0).all()):
            raise BadInputError(f"integration weights must be positive, shape {tuple(self.log_integration.shape)}")
        self.log_integration.copy_(integration.log())


HEADS: dict[str, type[Head]] = {"concat": ConcatHead, "orthogonal": OrthogonalHead}
