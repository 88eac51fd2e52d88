"""Heads: features of every modality to uni-modal scores s `(B, M, K)` and their integration to logits `(B, K)`.

For every head h_k = Σ_m a_k^(m) s_k^(m) + b_k; only an OrthogonalHead has a other than 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from crmt.arguments import check_kind, check_whole
from crmt.errors import BadInputError
from crmt.orthonormal import OrthonormalLinear

INITIAL_INTEGRATION = 1.0
"""Integration weights before training. The reference code starts at 0.1, but trains a itself; a = exp(α) would leave
0.1 too slowly."""


class Head(nn.Module):
    """The base class of heads.

    Args:
        features: modality to its feature width d_m; its order is the order of M in every tensor.
        classes: K.

    Raises:
        BadInputError: no modality or no class.
    """

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
        """The integration weights a, `(M, K)`."""
        return torch.ones(len(self.modalities), self.classes, device=self.bias.device, dtype=self.bias.dtype)

    def weight(self, modality: str) -> Tensor:
        """The weight W^(m) of one modality, `(K, d_m)`."""
        return cast(Tensor, self.linears[modality].weight)

    def scores(self, features: Mapping[str, Tensor]) -> Tensor:
        """Uni-modal scores s, `(B, M, K)`.

        Args:
            features: modality to its features, `(B, d_m)`.
        """
        return torch.stack([self.linears[m](features[m]) for m in self.modalities], dim=1)

    def logits(self, scores: Tensor) -> Tensor:
        """Fused logits h, `(B, K)`.

        Args:
            scores: uni-modal scores s, `(B, M, K)`.
        """
        return (self.integration * scores).sum(1) + self.bias


class ConcatHead(Head):
    """The plain joint classifier on concatenated features, h = Σ_m W^(m) φ^(m) + b; its weights are unconstrained."""


class OrthogonalHead(Head):
    """CRMT's head: W̃^(m) with orthonormal rows, and positive integration weights a = exp(α).

    The rows are orthonormal at every step of training (`crmt.orthonormal`). The reference code's "orthogonal" layer
    only centres and normalises each row.

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
            self.linears[modality] = OrthonormalLinear(self.weight(modality))
        start = torch.full((len(features), classes), INITIAL_INTEGRATION)
        self.log_integration = nn.Parameter(start.log())

    @property
    def integration(self) -> Tensor:
        return self.log_integration.exp()

    @torch.no_grad()
    def set_integration(self, integration: Tensor) -> None:
        """Replace the integration weights.

        Args:
            integration: a, `(M, K)`, all above 0.

        Raises:
            BadInputError: another shape, or a weight that is not above 0.
        """
        if integration.shape != self.log_integration.shape or not bool((integration > 0).all()):
            raise BadInputError(f"integration weights must be positive, shape {tuple(self.log_integration.shape)}")
        self.log_integration.copy_(integration.log())


class OddOneOutHead(Head):
    """A mixture of experts, each of which ignores one modality (Yang et al., CVPR 2021, arXiv 2206.12714).

    An odd-one-out network looks at all features and says which modality, if any, was perturbed: g, `(B, M + 1)`. Expert
    i ≤ M sees all modalities but the i-th, expert M + 1 sees all: e_i = Σ_{m≠i} W_i^(m) φ^(m) + b_i. The logits are
    h = Σ_i g_i e_i. The score of modality m is the part of h that comes through it,
    s^(m) = Σ_{i≠m} g_i W_i^(m) φ^(m) + Σ_i g_i b_i / M, so that h = Σ_m s^(m) as in the other heads. Through g every
    score depends on all modalities. `bias` stays 0: the experts have biases of their own.
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
        """The odd-one-out network's logits, `(B, M + 1)`: "modality i was perturbed" for i = 1..M, last "none was".

        Args:
            features: modality to its features, `(B, d_m)`.
        """
        return cast(Tensor, self.detector(torch.cat([features[m] for m in self.modalities], dim=1)))

    def scores(self, features: Mapping[str, Tensor]) -> Tensor:
        gates = self.odd_one_out(features).softmax(1)
        offset = gates @ torch.stack(list(self.expert_biases)) / len(self.modalities)
        parts = []
        for i, m in enumerate(self.modalities):
            seeing = torch.cat([gates[:, :i], gates[:, i + 1 :]], dim=1)  # experts that see this modality
            each = self.linears[m](features[m]).unflatten(1, (seeing.shape[1], self.classes))
            parts.append((seeing[:, :, None] * each).sum(1) + offset)
        return torch.stack(parts, dim=1)


HEADS: dict[str, type[Head]] = {"concat": ConcatHead, "orthogonal": OrthogonalHead, "odd_one_out": OddOneOutHead}
