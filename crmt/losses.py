"""The margin regulariser of CRMT, its form for mixed inputs, and the margin that attacks minimise."""

from __future__ import annotations

from math import log

import torch
from torch import Tensor
from torch.nn import functional as F

from crmt.arguments import check_tensors
from crmt.errors import BadInputError

FLOOR = 1e-5
"""Added inside the logarithm, as in the reference code. Without it the loss can fall for ever by scaling features up,
and robustness falls."""


def margin_regulariser(scores: Tensor, labels: Tensor, floor: float = FLOOR) -> Tensor:
    """mean_i log(floor + Σ_m Σ_{k≠y_i} exp(s_k^(m) − s_{y_i}^(m))), finite for scores of any size.

    Args:
        scores: uni-modal scores s, `(B, M, K)`. Fused logits h, given as one modality `(B, 1, K)`, give the fused form.
        labels: y, `(B,)`, in range. `fit` checks them batch by batch; a check here would wait for the GPU once more.
        floor: added inside the logarithm, above 0.

    Raises:
        BadInputError: scores or labels of another kind or shape.

    Returns: a scalar. Source: paper, section 3.3, the first step of the training procedure.
    """
    check_tensors(scores=scores, labels=labels)
    if scores.ndim != 3 or labels.shape != scores.shape[:1] or labels.dtype != torch.int64:
        raise BadInputError(
            f"scores are {tuple(scores.shape)} and labels {tuple(labels.shape)} of {labels.dtype}: give (B, M, K) "
            "scores and one int64 class number an input"
        )
    return mixed_margin_regulariser(scores, labels, labels, 1.0, floor)


def mixed_margin_regulariser(scores: Tensor, first: Tensor, second: Tensor, mix: float, floor: float = FLOOR) -> Tensor:
    """mean_i log(floor + Σ_m Σ_{k∉{y_a,y_b}} exp(s_k^(m) − λ s_{y_a}^(m) − (1−λ) s_{y_b}^(m))), always finite.

    Where y_a = y_b it is `margin_regulariser`. The reference code subtracts raw scores where exponentials belong.

    Args:
        scores: uni-modal scores of mixed inputs, `(B, M, K)`.
        first: y_a, `(B,)`.
        second: y_b, `(B,)`.
        mix: λ, the weight of `first`.
        floor: added inside the logarithm, above 0.

    Returns: a scalar.
    """
    a, b = (labels[:, None, None].expand(-1, scores.shape[1], 1) for labels in (first, second))
    own = mix * scores.gather(2, a) + (1 - mix) * scores.gather(2, b)
    # exp(−inf) = 0 leaves the two right classes out of the sum
    differences = (scores - own).scatter(2, a, float("-inf")).scatter(2, b, float("-inf"))
    total = torch.logsumexp(differences.flatten(1), dim=1)
    return torch.logaddexp(total, torch.full_like(total, log(floor))).mean()


def mixed_cross_entropy(logits: Tensor, first: Tensor, second: Tensor, mix: float) -> Tensor:
    """λ CE(h, y_a) + (1−λ) CE(h, y_b).

    Args:
        logits: h of mixed inputs, `(B, K)`.
        first: y_a, `(B,)`.
        second: y_b, `(B,)`.
        mix: λ, the weight of `first`.

    Returns: a scalar.
    """
    return mix * F.cross_entropy(logits, first) + (1 - mix) * F.cross_entropy(logits, second)


def logit_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """h_y − max_{k≠y} h_k, positive where the prediction is right.

    Args:
        logits: h, `(B, K)`.
        labels: y, `(B,)`, in range; as in `margin_regulariser`, nothing checks them.

    Returns: `(B,)`; +inf where there is only one class.
    """
    right = logits.gather(1, labels[:, None]).squeeze(1)
    if logits.shape[1] == 1:
        return torch.full_like(right, float("inf"))
    others = logits.scatter(1, labels[:, None], float("-inf"))
    return right - others.max(1).values
