"""The radius formula (paper, Theorems 3.1 and 3.3), shared by every certificate that rests on Lipschitz constants."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from crmt.attacks.balls import wide
from crmt.errors import CRMTWarning
from crmt.modality import check_labels


@dataclass(frozen=True)
class Radii:
    """Radii of N inputs, in ℓ2 and in the space of each modality; never to be shown without `certificate`."""

    certificate: str
    """The name of the certificate; its class says whether it is sound."""
    modalities: tuple[str, ...]
    joint: Tensor
    """r(x), `(N,)`; 0 where the prediction is wrong."""
    unimodal: Tensor
    """r^(m)(x), `(N, M)`: that modality attacked alone."""
    indicator: Tensor
    """η^(m) at the class that attains r(x), `(N, M)`: the vulnerability indicator."""
    smoothed: bool = False
    """Whether these radii are of a smoothed classifier: then attacks on the model itself say nothing about them."""


def pairwise_radii(contributions: Tensor, bias: Tensor, labels: Tensor, constants: Tensor) -> Tensor:
    """r_j(x) for every class j, `(N, K)`: signed, and +inf at j = y.

    r_j = [ Σ_m (c_y − c_j)^(m) + b_y − b_j ] / sqrt( Σ_m (η_{y,j}^(m))² )

    Args:
        contributions: c = a · s, `(N, M, K)`.
        bias: b, `(K,)`.
        labels: y, `(N,)`.
        constants: η, `(M, K, K)`: a Lipschitz constant of (a_y s_y − a_j s_j)^(m) in x^(m).
    """
    logits = contributions.sum(1) + bias
    numerator = logits.gather(1, labels[:, None]) - logits
    square = constants[:, labels].square().sum(0)
    # the root of 0 has an infinite gradient, which would turn step 2's into NaN
    denominator = torch.where(square == 0, torch.zeros_like(square), square.masked_fill(square == 0, 1).sqrt())
    return _quotient(numerator, denominator).scatter(1, labels[:, None], float("inf"))


def _quotient(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Division in which a denominator of 0 means that nothing moves the numerator: ±inf, and 0 / 0 is 0. NaN stays."""
    tiny = torch.finfo(numerator.dtype).tiny
    unmoved = torch.where(numerator == 0, torch.zeros_like(numerator), numerator.sign() * float("inf"))
    return torch.where(denominator <= tiny, unmoved, numerator / denominator.clamp_min(tiny))


def radii(
    certificate: str,
    modalities: tuple[str, ...],
    contributions: Tensor,
    bias: Tensor,
    labels: Tensor,
    constants: Tensor,
    *,
    runner_up_only: bool = False,
) -> Radii:
    """Joint and uni-modal radii and indicators of N inputs.

    The minimum is over all j ≠ y: denominators differ by class, so the runner-up need not attain it.

    Args:
        certificate: the name that the radii carry.
        modalities: the names of the M modalities, in the order of the tensors.
        contributions: as in `pairwise_radii`, like `bias`, `labels` and `constants`.
        bias: b, `(K,)`.
        labels: y, `(N,)`, int64.
        constants: η, `(M, K, K)`.
        runner_up_only: take the paper's runner-up instead of the minimum, for comparison; it can overstate the radius.

    Raises:
        BadInputError: labels out of range.
    """
    check_labels(labels, contributions.shape[2])
    # three digits are too few for a radius: below float32 it would come out too large as often as too small
    contributions, bias, constants = wide(contributions), wide(bias), wide(constants)
    logits = contributions.sum(1) + bias
    gap = logits.gather(1, labels[:, None]) - logits
    # (N, K) masks: the label itself, and the classes whose boundary counts
    own = torch.nn.functional.one_hot(labels, logits.shape[1]).bool()
    wrong = ~(gap.masked_fill(own, float("inf")) > 0).all(1)  # NaN is wrong too
    allowed = ~own
    if runner_up_only:
        runner = gap.masked_fill(own, float("inf")).argmin(1, keepdim=True)
        allowed = torch.zeros_like(own).scatter(1, runner, True) & ~own
    per_class = pairwise_radii(contributions, bias, labels, constants).masked_fill(~allowed, float("inf"))
    joint, attaining = per_class.min(1)
    eta = constants[:, labels].permute(1, 0, 2)  # (N, M, K)
    single = _quotient(gap[:, None, :].expand_as(eta), eta).masked_fill(~allowed[:, None, :], float("inf")).amin(2)
    _warn_of_infinite(modalities, constants, joint.masked_fill(wrong, 0.0))
    indicator = eta.gather(2, attaining[:, None, None].expand(-1, eta.shape[1], 1)).squeeze(2)
    return Radii(
        certificate,
        modalities,
        joint.masked_fill(wrong, 0.0),
        single.masked_fill(wrong[:, None], 0.0),
        indicator,
    )


def _warn_of_infinite(modalities: tuple[str, ...], constants: Tensor, joint: Tensor) -> None:
    """Warn that an infinite radius is hardly ever robustness: most often a gradient does not reach the input."""
    if constants.shape[1] < 2:  # a single class is never left
        return
    other = ~torch.eye(constants.shape[1], dtype=torch.bool, device=constants.device)
    still = [m for m, eta in zip(modalities, constants, strict=True) if not bool((eta[other] > 0).any())]
    endless = int(joint.isinf().sum())
    said = [f"the constants of {', '.join(still)} are 0, so that nothing done to it would count"] if still else []
    said += [f"{endless} of {len(joint)} joint radii are infinite"] if endless else []
    if said:
        warnings.warn(
            f"{' and '.join(said)}: does the model use its inputs (a collapsed or saturated encoder, frozen features)? "
            "Look at the audit before believing it",
            CRMTWarning,
            stacklevel=3,
        )
