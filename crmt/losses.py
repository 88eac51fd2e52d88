"""The margin regulariser of CRMT (method.md, section 2) and the margin that attacks minimise."""

from __future__ import annotations

from math import log

import torch
from torch import Tensor

FLOOR = 1e-5
"""Inside the logarithm, as in the reference code. Without it features only scale up and robustness falls."""


def margin_regulariser(scores: Tensor, labels: Tensor, floor: float = FLOOR) -> Tensor:
    """mean_i log(floor + Σ_m Σ_{k≠y_i} exp(s_k^(m) − s_{y_i}^(m))), finite for scores of any size.

    Args:
        scores: uni-modal scores s, `(B, M, K)`.
        labels: y, `(B,)`.

    Returns: a scalar. Source: paper, section 3.3, the first step of the training procedure.
    """
    _, modalities, _ = scores.shape
    index = labels[:, None, None].expand(-1, modalities, 1)
    differences = (scores - scores.gather(2, index)).scatter(2, index, float("-inf"))
    total = torch.logsumexp(differences.flatten(1), dim=1)
    return torch.logaddexp(total, total.new_tensor(log(floor))).mean()


def logit_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """h_y − max_{k≠y} h_k, `(B,)`: positive where the prediction is right. One class gives +inf."""
    right = logits.gather(1, labels[:, None]).squeeze(1)
    if logits.shape[1] == 1:
        return torch.full_like(right, float("inf"))
    others = logits.scatter(1, labels[:, None], float("-inf"))
    return right - others.max(1).values
