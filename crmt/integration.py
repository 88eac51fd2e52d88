"""Step 2: the integration weights a that maximise the mean radius, on scores computed once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from crmt.arguments import check_number, check_tensors, check_whole, said
from crmt.certificates.radius import pairwise_radii
from crmt.errors import BadInputError
from crmt.gradients import check_grad_mode
from crmt.modality import check_labels
from crmt.progress import Progress, silent

Objective = Literal["clipped", "min", "runner_up"]
Pair = Literal["sum", "orthogonal"]
_CHUNK = 2**22
"""Numbers of radii computed at once in the final pass over all scores; keeps its memory at a few hundred MB."""


@dataclass(frozen=True)
class Integration:
    """The result of step 2. Radii and accuracies are over ALL scores that were given."""

    weights: Tensor
    """a, `(M, K)`, all above 0."""
    mean_radius_before: float
    """Mean radius (0 where wrong) on the training scores, with the weights of step 1; infinite radii are left out."""
    mean_radius_after: float
    """Never below `mean_radius_before`, except with the objective `runner_up`."""
    accuracy_before: float
    """Accuracy on the training scores with the weights of step 1; 0 without scores."""
    accuracy_after: float
    steps: int
    """Steps of the optimiser; 0 where the weights of step 1 were kept."""
    samples: int
    """How many samples were optimised over."""


class _Scores(NamedTuple):
    """Cached scores of N samples, with all that their radii depend on but the weights a."""

    scores: Tensor
    labels: Tensor
    bias: Tensor
    tau: Tensor
    pair: Pair

    def per_class(self, a: Tensor) -> Tensor:
        """r_j(x), `(N, K)`: the radius against each class j. `pair` says how two classes' constants combine."""
        if self.pair == "orthogonal":
            square = a.square()
            constants = self.tau[:, :, None] * (square[:, :, None] + square[:, None, :]).sqrt()
        else:
            single = a * self.tau
            constants = single[:, :, None] + single[:, None, :]
        return pairwise_radii(a * self.scores, self.bias, self.labels, constants)

    def signed(self, a: Tensor, runner_up: bool = False) -> Tensor:
        """The signed radius, `(N,)`: negative where the prediction is wrong, where the radius itself is 0.

        Args:
            a: integration weights, `(M, K)`.
            runner_up: against the wrong class with the highest logit, instead of the nearest class.
        """
        per_class = self.per_class(a)
        if not runner_up:
            return per_class.amin(1)
        logits = (a * self.scores).sum(1) + self.bias
        runner = logits.detach().scatter(1, self.labels[:, None], float("-inf")).argmax(1, keepdim=True)
        return per_class.gather(1, runner).squeeze(1)

    def chosen(self, rows: Tensor | slice, device: torch.device) -> _Scores:
        """The scores of some samples, on the device of the optimisation, in double precision."""
        label_rows = rows.to(self.labels.device) if isinstance(rows, Tensor) else rows  # may lie on another device
        scores, labels = self.scores[rows].to(device, torch.float64), self.labels[label_rows].to(device)
        return self._replace(scores=scores, labels=labels)


def optimise_integration(
    scores: Tensor,
    labels: Tensor,
    bias: Tensor,
    tau: Tensor,
    start: Tensor,
    *,
    objective: Objective = "clipped",
    pair: Pair = "sum",
    samples: int | None = 2000,
    steps: int = 400,
    lr: float = 0.02,
    seed: int = 0,
    progress: Progress = silent,
) -> Integration:
    """Find the integration weights with the largest mean radius, by Adam on cached training scores.

    The weights are a = exp(α), and their mean is held fixed. There are three objectives:

    - `clipped`: mean_i min(r(x_i), r_max), with r the minimum over all classes and r_max the median of the positive r
      at the start.
    - `min`: the same without the clip.
    - `runner_up`: the paper's own, the radius against the wrong class with the highest logit. Carried out well it
      destroys accuracy, since another class may be nearer: it is no bound.

    In the objective r is SIGNED, negative where the prediction is wrong, so that wrong samples have a gradient; in the
    radii that are compared and returned it is 0 there. `clipped` and `min` return the best weights whose mean radius is
    not below that of `start`, and `start` where there are none; `runner_up` has no such safeguard.

    Args:
        scores: s, `(N, M, K)`, on any device.
        labels: y, `(N,)`, on any device.
        bias: b, `(K,)`.
        tau: τ, `(M, K)`, 0 or more.
        start: a of step 1, `(M, K)`, above 0; the optimisation runs on its device.
        objective: see above.
        pair: what bounds a_y s_y − a_j s_j. `sum`, a_y τ_y + a_j τ_j, always holds. `orthogonal`, τ sqrt(a_y² + a_j²),
            holds where the rows of W̃ are orthonormal and τ is the constant of the ENCODER.
        samples: optimise over this many, drawn by `seed`; None takes all. The radii that are compared and returned are
            over all samples in any case.
        steps: Adam's steps.
        lr: Adam's learning rate, for α.
        seed: fixes which samples are drawn.
        progress: called with 1 after each step.

    Raises:
        BadInputError: shapes that do not fit, labels out of range, NaN scores, no positive start, a negative or
            infinite τ, torch.inference_mode, or `orthogonal` with a τ that differs between the classes of a modality.
    """
    check_grad_mode()
    check_tensors(scores=scores, labels=labels, bias=bias, tau=tau, start=start)
    for name, value in {"steps": steps, "seed": seed, "samples": 1 if samples is None else samples}.items():
        check_whole(name, value)
    check_number("lr", lr)
    if not 0 < lr < float("inf"):
        raise BadInputError(f"lr must be a finite number above 0, not {lr}")
    _check(scores, labels, bias, tau, start, objective, pair)
    device = start.device
    bias, tau, first = (t.detach().to(device, torch.float64) for t in (bias, tau, start))
    everything = _Scores(scores.detach(), labels, bias, tau, pair)
    rows: Tensor | slice = slice(None)
    if samples is not None and samples < len(labels):
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
        rows = order[:samples].to(scores.device)
    some = everything.chosen(rows, device)
    weights = _optimise(some, first, objective, steps, lr, progress)
    before, accuracy_before = _measure(everything, first)
    after, accuracy_after = _measure(everything, weights)
    if objective != "runner_up" and not after >= before:  # better on the drawn samples only
        weights, after, accuracy_after = first, before, accuracy_before
    done = 0 if weights is first else steps
    return Integration(weights.to(start.dtype), before, after, accuracy_before, accuracy_after, done, len(some.labels))


@torch.enable_grad()
def _optimise(some: _Scores, start: Tensor, objective: Objective, steps: int, lr: float, progress: Progress) -> Tensor:
    """The best weights seen; `start` itself where no radius is positive and finite, or no step is asked for."""
    runner_up = objective == "runner_up"

    def at(a: Tensor) -> tuple[Tensor, float]:
        signed = some.signed(a, runner_up)
        nearest = some.signed(a) if runner_up else signed  # the radius, whatever the objective is
        return signed, _finite_mean(nearest.detach().clamp_min(0))

    signed, before = at(start)
    positive = signed[(signed > 0) & signed.isfinite()]
    if len(positive) == 0 or steps < 1:
        return start
    ceiling = positive.median() if objective == "clipped" else None
    mean = start.mean()
    log_a = start.log().requires_grad_()
    optimizer = torch.optim.Adam([log_a], lr=lr)
    best, best_value = start, float("-inf")
    for step in range(steps + 1):  # one more, to judge where the last step led
        progress(int(step > 0))
        a = log_a.exp()
        a = a * (mean / a.mean())  # fixes the scale, which changes no radius but through the bias
        signed, radius = at(a)
        finite = signed[signed.isfinite()]
        if len(finite) == 0:
            break
        value = (finite if ceiling is None else finite.clamp_max(ceiling)).mean()
        if not bool(value.isfinite()):
            break
        reached = float(value.detach())
        if reached > best_value and (runner_up or radius >= before):
            best, best_value = a.detach().clone(), reached
        optimizer.zero_grad()
        (-value).backward()
        optimizer.step()
    return best


@torch.no_grad()
def _measure(everything: _Scores, a: Tensor) -> tuple[float, float]:
    """Mean radius, without infinite ones, and accuracy over all samples, chunk by chunk."""
    total, finite, right = 0.0, 0, 0
    size = max(1, _CHUNK // a.numel())
    for start in range(0, len(everything.labels), size):
        part = everything.chosen(slice(start, start + size), a.device)
        radius = part.signed(a).clamp_min(0)
        known = radius[radius.isfinite()]
        total, finite = total + float(known.sum()), finite + len(known)
        logits = (a * part.scores).sum(1) + part.bias
        right += int((logits.argmax(1) == part.labels).sum())
    return total / max(finite, 1), right / max(len(everything.labels), 1)


def _finite_mean(values: Tensor) -> float:
    finite = values[values.isfinite()]
    return float(finite.mean()) if len(finite) else 0.0


def _check(scores: Tensor, labels: Tensor, bias: Tensor, tau: Tensor, start: Tensor, objective: str, pair: str) -> None:
    if objective not in get_args(Objective) or pair not in get_args(Pair):
        raise BadInputError(
            f"step 2 has no objective {said(objective)} with pair {said(pair)}. Valid: "
            f"{', '.join(get_args(Objective))}; {', '.join(get_args(Pair))}"
        )
    shape = tuple(start.shape)
    if scores.shape[1:] != shape or tau.shape != shape or bias.shape != shape[1:] or len(labels) != len(scores):
        raise BadInputError(
            f"step 2 got scores {tuple(scores.shape)}, labels {tuple(labels.shape)}, bias {tuple(bias.shape)} and τ "
            f"{tuple(tau.shape)}: they do not fit weights {shape}"
        )
    check_labels(labels, shape[1])
    if bool(scores.sum().isnan()) and bool(scores.isnan().any()):
        raise BadInputError("step 2 got NaN scores: the model or its inputs are not finite")
    if not bool((start > 0).all() and start.isfinite().all()):
        raise BadInputError("step 2 starts from integration weights that are all above 0")
    if not bool((tau >= 0).all() and tau.isfinite().all()):
        raise BadInputError("step 2 needs a finite τ of 0 or more for every modality and class")
    if pair == "orthogonal" and not bool((tau == tau[:, :1]).all()):
        raise BadInputError("the orthogonal pair bound needs one τ a modality, that of its encoder: use pair 'sum'")
