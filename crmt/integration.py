"""Step 2: the integration weights a that maximise the mean radius, on scores computed once (method.md, section 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from crmt.certificates.radius import pairwise_radii

Objective = Literal["clipped", "min", "runner_up"]


@dataclass(frozen=True)
class Integration:
    """What step 2 found."""

    weights: Tensor
    """a, `(M, K)`, all above 0."""
    mean_radius_before: float
    """Mean estimated radius (0 where wrong) on the training scores, with the weights of step 1."""
    mean_radius_after: float
    """Never below `mean_radius_before`, but with the objective `runner_up`."""
    steps: int


def _class_radii(a: Tensor, scores: Tensor, labels: Tensor, bias: Tensor, tau: Tensor) -> Tensor:
    """r_j(x), `(N, K)`, of an OrthogonalHead with weights a."""
    single = a * tau
    return pairwise_radii(a * scores, bias, labels, single[:, :, None] + single[:, None, :])


def _signed_radius(a: Tensor, scores: Tensor, labels: Tensor, bias: Tensor, tau: Tensor, runner_up: bool) -> Tensor:
    """r before the 0 for wrong predictions, `(N,)`; negative where wrong."""
    per_class = _class_radii(a, scores, labels, bias, tau)
    if not runner_up:
        return per_class.amin(1)
    logits = (a * scores).sum(1) + bias
    runner = logits.detach().scatter(1, labels[:, None], float("-inf")).argmax(1, keepdim=True)
    return per_class.gather(1, runner).squeeze(1)


def optimise_integration(
    scores: Tensor,
    labels: Tensor,
    bias: Tensor,
    tau: Tensor,
    start: Tensor,
    *,
    objective: Objective = "clipped",
    steps: int = 400,
    lr: float = 0.02,
) -> Integration:
    """Maximise the mean radius over a = exp(α) with mean |a| held fixed, by Adam on cached training scores.

    `clipped` (the default): mean_i min(r(x_i), r_max) with r the minimum over all classes and r_max the starting
    median of positive r; `min`: without the clip. Both return the best weights seen among those whose mean radius on
    these scores is not below the starting one; the starting weights are always among them. `runner_up`: the paper's
    own objective, without that safeguard; carried out well it destroys accuracy, since the runner-up alone is no bound.

    Args:
        scores: s, `(N, M, K)`. labels: y, `(N,)`. bias: b, `(K,)`. tau: τ̂, `(M, K)`. start: a of step 1, `(M, K)`.
    """
    scores, bias, tau, start = (t.detach().double() for t in (scores, bias, tau, start))
    runner_up = objective == "runner_up"

    def at(a: Tensor) -> tuple[Tensor, float]:
        signed = _signed_radius(a, scores, labels, bias, tau, runner_up)
        honest = signed if not runner_up else _signed_radius(a, scores, labels, bias, tau, False)
        return signed, _finite_mean(honest.detach().clamp_min(0))

    signed, before = at(start)
    positive = signed[(signed > 0) & signed.isfinite()]
    if len(positive) == 0 or steps < 1:
        return Integration(start.float(), before, before, 0)
    ceiling = positive.median() if objective == "clipped" else None
    mean = start.mean()
    log_a = start.log().requires_grad_()
    optimizer = torch.optim.Adam([log_a], lr=lr)
    best, best_value, best_radius = start, float("-inf"), before
    for _ in range(steps + 1):
        a = log_a.exp()
        a = a * (mean / a.mean())
        signed, radius = at(a)
        finite = signed[signed.isfinite()]
        if len(finite) == 0:
            break
        value = (finite if ceiling is None else finite.clamp_max(ceiling)).mean()
        if not bool(value.isfinite()):
            break
        reached = float(value.detach())
        if reached > best_value and (runner_up or radius >= before):
            best, best_value, best_radius = a.detach().clone(), reached, radius
        optimizer.zero_grad()
        (-value).backward()
        optimizer.step()
    return Integration(best.float(), before, best_radius, steps)


def _finite_mean(values: Tensor) -> float:
    finite = values[values.isfinite()]
    return float(finite.mean()) if len(finite) else 0.0
