"""The paper's radius, from τ̂. Not sound: τ̂ is a lower bound of τ, so the radius may be too large."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import NoneType

import torch
from torch import Tensor

from crmt.arguments import check_batches, check_kind, check_model, check_tensors
from crmt.attacks.balls import wide
from crmt.certificates.base import Basis, IntegrationConstants, ScoreCertificate
from crmt.certificates.radius import Radii, radii
from crmt.errors import BadInputError
from crmt.gradients import GradientConstants, check_grad_mode, check_ignored, input_gradients
from crmt.heads import Head, OrthogonalHead
from crmt.modality import Batch, Inputs, check_batch
from crmt.model import MultiModalModel, evaluating, in_parts
from crmt.progress import Progress, silent
from crmt.randomness import warn_if_random

NAME = "estimate"


@torch.no_grad()
def estimated_pair_constants(head: Head, constants: GradientConstants) -> Tensor:
    """η̂, `(M, K, K)`: |a_y| τ̂_y + |a_j| τ̂_j (OrthogonalHead), or that of the score difference (a = 1).

    Args:
        head: the model's.
        constants: what `gradient_constants` gave for the model.

    Raises:
        BadInputError: a head with a = 1 without the constants of pairs.
    """
    if not isinstance(head, OrthogonalHead):
        if constants.pair is None:
            raise BadInputError(f"the radius of a {type(head).__name__} needs gradient_constants(..., pairs=True)")
        return constants.pair
    single = head.integration.abs() * constants.tau.to(head.bias.device)
    return single[:, :, None] + single[:, None, :]


@torch.no_grad()
def estimated_radii(
    head: Head, scores: Tensor, labels: Tensor, constants: GradientConstants, *, runner_up_only: bool = False
) -> Radii:
    """Estimated radii of N inputs, in ℓ2 and in the space of each modality.

    On linear encoders they never exceed the exact distance to the decision boundary, and equal it for a ConcatHead.

    Args:
        head: the model's.
        scores: the inputs' uni-modal scores s, `(N, M, K)`.
        labels: y, `(N,)`, int64.
        constants: what `gradient_constants` gave for training clips.
        runner_up_only: as in `crmt.certificates.radius.radii`.

    Raises:
        BadInputError: labels out of range, or a head with a = 1 without the constants of pairs.
    """
    check_kind("head", head, Head, "the model's head, model.head")
    check_tensors(scores=scores, labels=labels)
    check_kind("constants", constants, GradientConstants, "what gradient_constants gave")
    shape = (len(head.modalities), head.classes)
    if scores.ndim != 3 or tuple(scores.shape[1:]) != shape or labels.shape != scores.shape[:1]:
        raise BadInputError(
            f"scores are {tuple(scores.shape)} and labels {tuple(labels.shape)}: give "
            f"(N, {shape[0]}, {shape[1]}) and (N,)"
        )
    scores = wide(scores)
    return radii(
        NAME,
        head.modalities,
        head.integration.to(scores) * scores,  # scores are often kept on the CPU
        head.bias.to(scores),
        labels,
        estimated_pair_constants(head, constants).to(scores),
        runner_up_only=runner_up_only,
    )


_JACOBIAN_ELEMENTS = 32 * 2**20
"""Numbers of the Jacobians, in float64, that are held at once: 256 MB."""
_ROWS = {"cpu": 64, "cuda": 256}
"""Inputs × classes in one backward pass: below, a pass costs its overhead; above, only memory."""


def _row_gradients(
    model: MultiModalModel, inputs: Inputs, progress: Progress, *, by_feature: bool = False
) -> Iterator[list[Tensor]]:
    """∇ s_k^(m) flattened, `(C, B, D_m)` of every modality, for C classes k after the other.

    One forward pass serves all classes, one backward pass several of them and all modalities, since s^(m) depends on
    x^(m) alone. Where it does not (a head that is not additive), this is ∇_{x^(m)} Σ_m s_k^(m), the fused logit's: what
    the radius of a head with a = 1 needs. Fewer passes would leave classes out, and their τ is bounded by no other's.

    Args:
        progress: called with the number of gradients.
        by_feature: the gradients of the features φ_c^(m) in place of the scores'; 0 beyond a modality's width.
    """
    check_grad_mode()
    leaves = {m: inputs[m].detach().requires_grad_() for m in model.modalities}
    with torch.enable_grad():
        output = model(leaves)
        if by_feature:
            widest = max(f.shape[1] for f in output.features.values())
            totals = sum(torch.nn.functional.pad(f.sum(0), (0, widest - f.shape[1])) for f in output.features.values())
        else:
            totals = output.scores.sum((0, 1))
    assert isinstance(totals, Tensor)
    rows, count = len(totals), len(next(iter(leaves.values())))
    at_once = max(1, min(rows, _ROWS.get(totals.device.type, 1) // max(count, 1)))
    done = 0
    while done < rows:
        chosen = range(done, min(done + at_once, rows))
        try:
            gradients = _some_gradients(model, inputs, totals, leaves, chosen)
        except RuntimeError:  # no memory, or an operation that has no gradient for several classes at once
            if at_once == 1:
                raise
            at_once = at_once // 2 if totals.is_cuda and at_once > 2 else 1
            continue
        done = chosen.stop
        progress(len(chosen) * count)
        yield [g.flatten(2) for g in gradients]


def _some_gradients(
    model: MultiModalModel, inputs: Inputs, totals: Tensor, leaves: Inputs, chosen: range
) -> list[Tensor]:
    if len(chosen) == 1 or not totals.requires_grad:
        with torch.enable_grad():
            one = totals[chosen.start]
        found = input_gradients(model, inputs, one, leaves, retain_graph=True)
        return [g[None].expand(len(chosen), *g.shape) for g in found.values()]
    each = torch.eye(len(totals), dtype=totals.dtype, device=totals.device)[chosen.start : chosen.stop]
    several = torch.autograd.grad(
        totals, list(leaves.values()), each, retain_graph=True, allow_unused=True, is_grads_batched=True
    )
    check_ignored(model, inputs, [m for m, g in zip(leaves, several, strict=True) if g is None])
    return [
        torch.zeros(len(chosen), *x.shape, dtype=x.dtype, device=x.device) if g is None else g
        for x, g in zip(leaves.values(), several, strict=True)
    ]


def score_gram(model: MultiModalModel, inputs: Inputs, progress: Progress = silent) -> Tensor:
    """⟨∇ s_k^(m), ∇ s_l^(m)⟩ for every input: `(B, M, K, K)`, float64; its diagonal is ‖∇ s_k^(m)‖².

    In float32 the differences of its entries lose what nearly equal gradients differ by. Where a linear head has fewer
    features than classes, it is W G Wᵀ with the features' Gram matrix G, which takes fewer gradients.

    Args:
        model: in evaluation mode.
        inputs: x, `(B, *shape)` of every modality.
        progress: called with the number of gradients.
    """
    weights = _fewer_features(model)
    grams = []
    for gradients in zip(*_row_gradients(model, inputs, progress, by_feature=bool(weights)), strict=True):
        jacobian = torch.cat(gradients).transpose(0, 1).double()
        grams.append(jacobian @ jacobian.transpose(1, 2))
    for i, w in enumerate(weights):
        inner = grams[i][:, : w.shape[1], : w.shape[1]]
        grams[i] = w @ inner @ w.T
    return torch.stack(grams, dim=1)


def _fewer_features(model: MultiModalModel) -> list[Tensor]:
    """W^(m) of every modality, `(K, d_m)`, float64, where all have fewer features than there are classes; or none."""
    head = model.head
    if not (in_parts(model) and head.additive):
        return []
    weights = [head.weight(m).detach().double() for m in model.modalities]
    return weights if all(w.shape[1] < head.classes for w in weights) else []


def score_norms(model: MultiModalModel, inputs: Inputs, progress: Progress = silent) -> Tensor:
    """‖∇ s_k^(m)‖₂ for every input, `(B, M, K)`, without ever holding more than a few classes' gradients.

    Args:
        model: in evaluation mode.
        inputs: x, `(B, *shape)` of every modality.
        progress: called with the number of gradients.
    """
    parts = [
        torch.stack([g.norm(dim=2) for g in gradients], dim=1) for gradients in _row_gradients(model, inputs, progress)
    ]
    return torch.cat(parts).permute(2, 1, 0)


def gradient_constants(
    model: MultiModalModel, batches: Iterable[Batch], *, pairs: bool | None = None, progress: Progress = silent
) -> GradientConstants:
    """τ̂ over the inputs of `batches`, in evaluation mode.

    Hundreds of training clips are enough: the maximum over them is conservative by about 2 ×,
    yet it stays an estimate, a LOWER bound of the true constant.

    Args:
        model: in any mode; it is measured in evaluation mode and left as it was.
        batches: labelled training clips, on the model's device.
        pairs: also keep the constants of score differences; default: for every head but an OrthogonalHead.
        progress: called with the number of inputs, as far as their classes' gradients are known.

    Raises:
        BadInputError: no input at all, an input at which a score has no finite gradient, a modality that the scores
            depend on without a gradient, or torch.inference_mode.
    """
    check_model(model)
    check_batches(batches)
    check_kind("pairs", pairs, (bool, NoneType), "True, False or None")
    keep_pairs = not isinstance(model.head, OrthogonalHead) if pairs is None else pairs
    total: GradientConstants | None = None
    width = sum(int(torch.tensor(m.shape).prod()) for m in model.modalities.values())
    chunk = max(1, _JACOBIAN_ELEMENTS // (width * model.head.classes))
    dtype = model.head.bias.dtype
    weights = _fewer_features(model) if keep_pairs else []
    rows = max((w.shape[1] for w in weights), default=model.head.classes)
    with evaluating(model):
        for batch in batches:
            check_batch(model.modalities, batch, model.head.classes)
            if total is None:
                warn_if_random(model, batch.inputs)
            for start in range(0, len(batch.labels), chunk if keep_pairs else max(1, len(batch.labels))):
                inputs = {m: x[start : start + chunk] for m, x in batch.inputs.items()} if keep_pairs else batch.inputs
                so_far = _InInputs(progress, rows)
                part = (
                    _with_pairs(score_gram(model, inputs, so_far), dtype)
                    if keep_pairs
                    else _plain(score_norms(model, inputs, so_far))
                )
                total = part if total is None else total.merged(part)
    if total is None:
        raise BadInputError("τ needs at least one training input")
    for i, name in enumerate(model.modalities):
        if not bool(total.tau[i].isfinite().all()):
            raise BadInputError(
                f"a score of {name!r} has no finite gradient at a training input, so that there is no τ: the encoder "
                "is not differentiable there (a square root or a norm at 0?) or its weights are not finite"
            )
    return total


class _InInputs:
    """Progress in inputs, from progress in gradients of which each input has `rows`."""

    def __init__(self, progress: Progress, rows: int) -> None:
        self.progress, self.rows = progress, rows
        self.gradients = self.said = 0

    def __call__(self, count: int) -> None:
        self.gradients += count
        known = self.gradients // self.rows
        self.progress(known - self.said)
        self.said = known


def _plain(norms: Tensor) -> GradientConstants:
    return GradientConstants(norms.amax(0), None, len(norms))


def _with_pairs(gram: Tensor, dtype: torch.dtype) -> GradientConstants:
    """‖∇ s_y − ∇ s_j‖² = G_yy + G_jj − 2 G_yj."""
    square = gram.diagonal(dim1=2, dim2=3)
    difference = square[..., :, None] + square[..., None, :] - 2 * gram
    tau, pair = square.amax(0).clamp_min(0).sqrt(), difference.clamp_min(0).amax(0).sqrt()
    return GradientConstants(tau.to(dtype), pair.to(dtype), len(gram))


@dataclass(frozen=True, kw_only=True)
class Estimate(ScoreCertificate):
    """The paper's radius, with τ̂ in place of τ."""

    name = NAME
    title = "estimated"
    word = "estimated radius"
    sound = False
    meaning = "estimated radius from training gradients: not sound, audited by attack"
    needs_tau = True

    def basis(self, model: MultiModalModel, tau: GradientConstants | None) -> Basis:  # noqa: ARG002
        if tau is None:
            raise BadInputError("the estimated radius needs gradients of training clips: give `training`")
        return Basis(tau, {"tau_samples": tau.samples})

    def radii(self, model: MultiModalModel, scores: Tensor, labels: Tensor, basis: Basis) -> Radii:
        return estimated_radii(model.head, scores, labels, basis.constants)

    def integration_constants(self, model: MultiModalModel, tau: Tensor) -> IntegrationConstants:  # noqa: ARG002
        return IntegrationConstants(tau, "sum")


CERTIFICATE = Estimate
