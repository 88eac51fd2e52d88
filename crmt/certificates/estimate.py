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
from crmt.gradients import GradientConstants, check_grad_mode, input_gradients
from crmt.heads import Head, OrthogonalHead
from crmt.modality import Batch, check_batch
from crmt.model import MultiModalModel, evaluating
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


def _class_gradients(model: MultiModalModel, inputs: dict[str, Tensor]) -> Iterator[list[Tensor]]:
    """For each class k in turn, ∇ s_k^(m) flattened, `(B, D_m)`, of every modality.

    One backward pass a class serves all modalities, since s^(m) depends on x^(m) alone. Where it does not (a head that
    is not additive), this is ∇_{x^(m)} Σ_m s_k^(m), the fused logit's: what the radius of a head with a = 1 needs.
    """
    check_grad_mode()
    leaves = {m: inputs[m].detach().requires_grad_() for m in model.modalities}
    with torch.enable_grad():
        scores = model(leaves).scores
    classes = scores.shape[2]
    for k in range(classes):
        with torch.enable_grad():
            total = scores[:, :, k].sum()
        gradients = input_gradients(model, inputs, total, leaves, retain_graph=k + 1 < classes)
        yield [g.flatten(1) for g in gradients.values()]


def score_gram(model: MultiModalModel, inputs: dict[str, Tensor]) -> Tensor:
    """⟨∇ s_k^(m), ∇ s_l^(m)⟩ for every input: `(B, M, K, K)`, float64; its diagonal is ‖∇ s_k^(m)‖².

    In float32 the differences of its entries lose what nearly equal gradients differ by.

    Args:
        model: in evaluation mode.
        inputs: x, `(B, *shape)` of every modality.
    """
    grams = []
    for gradients in zip(*_class_gradients(model, inputs), strict=True):
        jacobian = torch.stack(gradients, dim=1).double()
        grams.append(jacobian @ jacobian.transpose(1, 2))
    return torch.stack(grams, dim=1)


def score_norms(model: MultiModalModel, inputs: dict[str, Tensor]) -> Tensor:
    """‖∇ s_k^(m)‖₂ for every input, `(B, M, K)`, without ever holding more than one class's gradients.

    Args:
        model: in evaluation mode.
        inputs: x, `(B, *shape)` of every modality.
    """
    norms = [torch.stack([g.norm(dim=1) for g in gradients], dim=1) for gradients in _class_gradients(model, inputs)]
    return torch.stack(norms, dim=2)


def gradient_constants(
    model: MultiModalModel, batches: Iterable[Batch], *, pairs: bool | None = None
) -> GradientConstants:
    """τ̂ over the inputs of `batches`, in evaluation mode.

    Hundreds of training clips are enough: the maximum over them is conservative by about 2 ×,
    yet it stays an estimate, a LOWER bound of the true constant.

    Args:
        model: in any mode; it is measured in evaluation mode and left as it was.
        batches: labelled training clips, on the model's device.
        pairs: also keep the constants of score differences; default: for every head but an OrthogonalHead.

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
    with evaluating(model):
        for batch in batches:
            check_batch(model.modalities, batch, model.head.classes)
            if total is None:
                warn_if_random(model, batch.inputs)
            for start in range(0, len(batch.labels), chunk if keep_pairs else max(1, len(batch.labels))):
                inputs = {m: x[start : start + chunk] for m, x in batch.inputs.items()} if keep_pairs else batch.inputs
                part = (
                    _with_pairs(score_gram(model, inputs), dtype) if keep_pairs else _plain(score_norms(model, inputs))
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
