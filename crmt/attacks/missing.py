"""What no ball bounds: modalities that are missing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from crmt.arguments import check_names
from crmt.attacks.balls import Ball
from crmt.attacks.search import AttackResult, Search
from crmt.model import MultiModalModel, evaluating


def missing(
    model: MultiModalModel, inputs: Mapping[str, Tensor], labels: Tensor, modalities: Iterable[str]
) -> AttackResult:
    """Inputs with some modalities replaced by their means, as if they were missing. No ball bounds the change.

    The result is that of the replaced inputs, whether the prediction gets worse or better.

    Args:
        model: attacked in evaluation mode, and left as it was.
        inputs: x, `(B, *shape)` of every modality, in its space and inside its box.
        labels: y, `(B,)`, int64.
        modalities: names of those that are replaced.

    Raises:
        BadInputError: as `pgd`.
    """
    gone = check_names("modalities", modalities)
    with evaluating(model), torch.no_grad():
        search = Search(model, inputs, labels, Ball.joint(gone, 0.0))
        replaced = search.clean | {m: model.modalities[m].missing(search.clean[m]) for m in gone}
        margin = search.evaluate({m: replaced[m] - search.clean[m] for m in gone})
    return AttackResult(replaced, margin)
