"""τ̂: the Lipschitz constants of uni-modal scores, estimated from gradients on training inputs (method.md, 3)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from crmt.errors import BadInputError
from crmt.fit import Batch
from crmt.heads import ConcatHead
from crmt.model import MultiModalModel, evaluating

_JACOBIAN_ELEMENTS = 64 * 2**20


@dataclass(frozen=True)
class GradientConstants:
    """Largest gradient norms seen over `samples` training inputs; they compose over disjoint sets by `merged`."""

    tau: Tensor
    """τ̂_k^(m) = max_i ‖∇ s_k^(m)(x_i^(m))‖₂, `(M, K)`."""
    pair: Tensor | None
    """max_i ‖∇ (s_y^(m) − s_j^(m))(x_i^(m))‖₂, `(M, K, K)`; what a ConcatHead's radius needs."""
    samples: int

    def merged(self, other: GradientConstants) -> GradientConstants:
        """Of the union of both sets."""
        pair = None
        if self.pair is not None and other.pair is not None:
            pair = torch.maximum(self.pair, other.pair)
        return GradientConstants(torch.maximum(self.tau, other.tau), pair, self.samples + other.samples)


def score_gram(model: MultiModalModel, inputs: dict[str, Tensor]) -> Tensor:
    """⟨∇ s_k^(m), ∇ s_l^(m)⟩ for every input: `(B, M, K, K)`; its diagonal is ‖∇ s_k^(m)‖².

    One backward pass a class serves all modalities, since s^(m) depends on x^(m) alone.
    """
    leaves = {m: inputs[m].detach().requires_grad_() for m in model.modalities}
    with torch.enable_grad():
        scores = model(leaves).scores
        batch, modalities, classes = scores.shape
        if not scores.requires_grad:  # encoders that ignore their inputs
            return scores.new_zeros(batch, modalities, classes, classes)
        per_class = [
            torch.autograd.grad(
                scores[:, :, k].sum(), list(leaves.values()), retain_graph=k + 1 < classes, materialize_grads=True
            )
            for k in range(classes)
        ]
    grams = []
    for gradients in zip(*per_class, strict=True):
        jacobian = torch.stack([g.flatten(1) for g in gradients], dim=1)
        grams.append(jacobian @ jacobian.transpose(1, 2))
    return torch.stack(grams, dim=1)


def gradient_constants(
    model: MultiModalModel, batches: Iterable[Batch], *, pairs: bool | None = None
) -> GradientConstants:
    """τ̂ over the inputs of `batches`, in evaluation mode.

    Hundreds of training clips are enough (findings.md): the maximum over them is conservative by about 2 ×,
    yet it stays an estimate, a LOWER bound of the true constant.

    Args:
        pairs: also keep the constants of score differences; default: where the head is a ConcatHead.

    Raises:
        BadInputError: no input at all.
    """
    keep_pairs = isinstance(model.head, ConcatHead) if pairs is None else pairs
    total: GradientConstants | None = None
    width = sum(int(torch.tensor(m.shape).prod()) for m in model.modalities.values())
    chunk = max(1, _JACOBIAN_ELEMENTS // (width * model.head.classes))
    with evaluating(model):
        for batch in batches:
            for start in range(0, len(batch.labels), chunk):
                gram = score_gram(model, {m: x[start : start + chunk] for m, x in batch.inputs.items()})
                square = gram.diagonal(dim1=2, dim2=3)
                pair = None
                if keep_pairs:
                    difference = square[..., :, None] + square[..., None, :] - 2 * gram
                    pair = difference.clamp_min(0).amax(0).sqrt()
                part = GradientConstants(square.amax(0).clamp_min(0).sqrt(), pair, len(gram))
                total = part if total is None else total.merged(part)
    if total is None:
        raise BadInputError("τ needs at least one training input")
    return total
