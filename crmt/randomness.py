"""Random numbers on the device that needs them; and models whose outputs for the same inputs change by chance."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from weakref import WeakSet

import torch
from torch import Tensor, nn

from crmt.errors import CRMTWarning

_INPUTS = 8
"""How many inputs' scores are compared."""
_DIFFERENCE = 1e-4
"""The change between two passes that is let pass, as a share of the largest score: AutoAttack's, above GPU rounding."""
_looked_at: WeakSet[nn.Module] = WeakSet()


def generator_on(device: torch.device, generator: torch.Generator) -> torch.Generator:
    """A generator on a device: the given one if it draws there, otherwise a new one, seeded by a number that it draws.

    Equal seeds give equal numbers on devices of one kind; a GPU draws others than a CPU. Nothing waits for the device.

    Args:
        device: where numbers are needed.
        generator: on the CPU, or on that device.
    """
    if generator.device.type == device.type:
        return generator
    drawn = torch.randint(2**62, (), generator=generator, device=generator.device)
    return torch.Generator(device).manual_seed(int(drawn))


@torch.no_grad()
def warn_if_random(model: nn.Module, inputs: Mapping[str, Tensor]) -> None:
    """Warn of a model whose scores of the same inputs differ between two passes (AutoAttack's `check_randomized`).

    Costs two passes of a few inputs, once for each model.

    Args:
        model: a `MultiModalModel` in evaluation mode. inputs: `(B, *shape)` of every modality.
    """
    if model in _looked_at:
        return
    _looked_at.add(model)
    some = {m: x[:_INPUTS] for m, x in inputs.items()}
    first, second = (model(some).scores for _ in range(2))
    finite = first.isfinite() & second.isfinite()
    if not bool(finite.any()):
        return
    # small types round more
    share = max(_DIFFERENCE, 8 * torch.finfo(first.dtype).eps)
    first, second = first[finite].float(), second[finite].float()
    if float((first - second).abs().max()) > share * float(first.abs().max()):
        warnings.warn(
            "the model is random in evaluation: two passes of the same inputs give different scores (a dropout that "
            "stays on, torch.rand in forward?). Accuracies, radii and what attacks find hold for one draw alone; a "
            "smoothed classifier is what can be certified",
            CRMTWarning,
            stacklevel=3,
        )
