"""Gradients by the inputs. A gradient that is 0 is told from one that the model withholds, which is an error."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from crmt.errors import BadInputError
from crmt.modality import Inputs
from crmt.model import MultiModalModel

_PROBE_SEED = 0


@dataclass(frozen=True)
class GradientConstants:
    """Largest gradient norms seen over `samples` training inputs; they compose over disjoint sets by `merged`."""

    tau: Tensor
    """τ̂_k^(m) = max_i ‖∇ s_k^(m)(x_i^(m))‖₂, `(M, K)`."""
    pair: Tensor | None
    """max_i ‖∇ (s_y^(m) − s_j^(m))(x_i^(m))‖₂, `(M, K, K)`; what the radius of a head with a = 1 needs."""
    samples: int

    def merged(self, other: GradientConstants) -> GradientConstants:
        """The constants of both sets of clips together."""
        pair = None
        if self.pair is not None and other.pair is not None:
            pair = torch.maximum(self.pair, other.pair)
        return GradientConstants(torch.maximum(self.tau, other.tau), pair, self.samples + other.samples)


def check_grad_mode() -> None:
    """Refuse torch.inference_mode, under which every gradient would look like 0.

    Raises:
        BadInputError: it is on.
    """
    if torch.is_inference_mode_enabled():
        raise BadInputError(
            "gradients are needed here, and torch.inference_mode() forbids them: use torch.no_grad() instead"
        )


def input_gradients(
    model: MultiModalModel,
    inputs: Mapping[str, Tensor],
    total: Tensor,
    leaves: Inputs,
    *,
    retain_graph: bool = False,
) -> Inputs:
    """∂ total / ∂ leaf for each leaf; 0 where the model's scores ignore the modality.

    Args:
        model: computed `total`.
        inputs: every modality's input at which `total` was computed, `(B, *shape)`.
        total: a scalar.
        leaves: modality to a tensor with a gradient from which the modality's input was made; not all need be there.
        retain_graph: keep the graph for another backward pass.

    Returns: modality to its gradient, in the shape of its leaf.

    Raises:
        BadInputError: as `check_ignored`.
    """
    found: tuple[Tensor | None, ...] = (None,) * len(leaves)
    if total.requires_grad:
        found = torch.autograd.grad(total, list(leaves.values()), retain_graph=retain_graph, allow_unused=True)
    check_ignored(model, inputs, [m for m, g in zip(leaves, found, strict=True) if g is None])
    return {m: torch.zeros_like(x) if g is None else g for (m, x), g in zip(leaves.items(), found, strict=True)}


@torch.no_grad()
def check_ignored(model: MultiModalModel, inputs: Mapping[str, Tensor], names: Iterable[str]) -> None:
    """Refuse modalities without a gradient on which the scores depend all the same.

    Their radii would come out infinite, and no gradient attack would move them.

    Args:
        model: the model.
        inputs: every modality's input, `(B, *shape)`.
        names: the modalities without a gradient.

    Raises:
        BadInputError: the first such modality.
    """
    plain: Tensor | None = None
    for name in names:
        plain = model(inputs).scores if plain is None else plain
        x = inputs[name].detach()
        generator = torch.Generator().manual_seed(_PROBE_SEED)
        noise = torch.randn(x.shape, generator=generator).to(x)
        # large beside the input, so that a model that depends on it cannot but answer otherwise
        moved = x + noise * (1 + x.abs().amax()) if x.numel() else x
        if not torch.allclose(model({**inputs, name: moved}).scores, plain, equal_nan=True):
            raise BadInputError(
                f"the scores depend on {name!r}, but there is no gradient by it: its encoder computes under "
                "torch.no_grad() or detaches. Freeze parameters by requires_grad_(False) instead; where it cannot be "
                "differentiated, the attack is `square`, and neither τ nor a gradient attack says anything"
            )
