"""Heads: features of every modality to uni-modal scores s `(B, M, K)` and their integration to logits `(B, K)`.

For every head h_k = Σ_m a_k^(m) s_k^(m) + b_k; only an OrthogonalHead has a other than 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal

from crmt.arguments import check_kind, check_whole
from crmt.errors import BadInputError

INITIAL_INTEGRATION = 1.0
"""The reference code has 0.1 for a weight that is trained directly; a = exp(α) from there is too slow to leave it."""


class Head(nn.Module):
    """Base of the heads. `features` names the modalities, in order, with their feature widths d_m."""

    additive: ClassVar[bool] = True
    """Whether each modality's scores depend on that modality alone."""

    def __init__(self, features: Mapping[str, int], classes: int) -> None:
        super().__init__()
        check_kind("features", features, Mapping, "a dictionary of modality to width, such as {'video': 512}")
        check_whole("classes", classes)
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
        return torch.ones(len(self.modalities), self.classes, device=self.bias.device, dtype=self.bias.dtype)

    def weight(self, modality: str) -> Tensor:
        """W^(m), `(K, d_m)`."""
        return cast(Tensor, self.linears[modality].weight)

    def scores(self, features: Mapping[str, Tensor]) -> Tensor:
        """Uni-modal scores s, `(B, M, K)`, from features `(B, d_m)` each."""
        return torch.stack([self.linears[m](features[m]) for m in self.modalities], dim=1)

    def logits(self, scores: Tensor) -> Tensor:
        """h, `(B, K)`, from s, `(B, M, K)`."""
        return (self.integration * scores).sum(1) + self.bias


class ConcatHead(Head):
    """The plain joint classifier on concatenated features: h = Σ_m W^(m) φ^(m) + b, without a constraint."""


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


class OddOneOutHead(Head):
    """A mixture of experts of which each ignores one modality (Yang et al., CVPR 2021, arXiv 2206.12714).

    An odd-one-out network looks at all features and says which modality, if any, has been perturbed: g `(B, M + 1)`.
    Expert i ≤ M sees all modalities but the i-th, expert M + 1 sees all: e_i = Σ_{m≠i} W_i^(m) φ^(m) + b_i, and
    h = Σ_i g_i e_i. Its share that comes through modality m is the score
    s^(m) = Σ_{i≠m} g_i W_i^(m) φ^(m) + Σ_i g_i b_i / M, so that h = Σ_m s^(m) as for the other heads; but through g
    every score depends on all modalities. `bias` stays 0: experts have their own.
    """

    additive = False

    def __init__(self, features: Mapping[str, int], classes: int) -> None:
        super().__init__(features, classes)
        self.bias.requires_grad_(False)
        experts = len(features)  # of each modality: all M + 1 but the one that ignores it
        self.linears = nn.ModuleDict({m: nn.Linear(d, experts * classes, bias=False) for m, d in features.items()})
        # a list of vectors: as one matrix they would get the weight decay of weights
        self.expert_biases = nn.ParameterList(torch.zeros(classes) for _ in range(experts + 1))
        hidden = max(features.values())
        self.detector = nn.Sequential(
            nn.Linear(sum(features.values()), hidden), nn.ReLU(), nn.Linear(hidden, len(features) + 1)
        )

    def weight(self, modality: str) -> Tensor:
        """Refused: the experts' weights are gated input by input.

        Raises:
            BadInputError: always.
        """
        raise BadInputError(
            f"an odd-one-out head has no single weight of {modality!r}: use a concat or orthogonal head for this"
        )

    def odd_one_out(self, features: Mapping[str, Tensor]) -> Tensor:
        """Logits of "modality i was perturbed" for i = 1..M and, last, of "none was": `(B, M + 1)`."""
        return cast(Tensor, self.detector(torch.cat([features[m] for m in self.modalities], dim=1)))

    def scores(self, features: Mapping[str, Tensor]) -> Tensor:
        gates = self.odd_one_out(features).softmax(1)
        offset = gates @ torch.stack(list(self.expert_biases)) / len(self.modalities)
        parts = []
        for i, m in enumerate(self.modalities):
            seeing = torch.cat([gates[:, :i], gates[:, i + 1 :]], dim=1)
            each = self.linears[m](features[m]).unflatten(1, (seeing.shape[1], self.classes))
            parts.append((seeing[:, :, None] * each).sum(1) + offset)
        return torch.stack(parts, dim=1)


HEADS: dict[str, type[Head]] = {"concat": ConcatHead, "orthogonal": OrthogonalHead, "odd_one_out": OddOneOutHead}
