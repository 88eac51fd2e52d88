"""OGM-GE: on-the-fly gradient modulation with generalisation enhancement.

Peng, Wei, Deng, Wang, Hu, "Balanced Multimodal Learning via On-the-fly Gradient Modulation", CVPR 2022
(arXiv 2203.15332).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from crmt.distributed import mean_over_ranks
from crmt.errors import BadInputError
from crmt.methods._shared import common_seed, cross_entropy_loss
from crmt.methods.base import LossTerms, Method, Step
from crmt.model import MultiModalModel, Output
from crmt.settings import setting


@dataclass(frozen=True, kw_only=True)
class OGMGE(Method):
    """L = CE(h(x), y); then the gradients g of the encoder of modality m become k^(m) g + ξ, ξ ~ N(0, std(g)²).

    k = 1 − tanh(α ρ) where ρ > 1, otherwise 1; ρ^(m) is the ratio of modality m's confidence, Σ_i softmax(W^(m) φ^(m)
    + b/2)_{y_i}, to the other's.

    Interpretation: with M modalities b/M for b/2, and ρ is the ratio to the MEAN confidence of the others; with one k
    is 1 and only the noise is left. As in the released code only the kernels of convolutions are modulated, there
    of images (4-d gradients), here of one, two and three dimensions, transposed ones too; encoders without any, of
    linear layers or of convolutions made from other parameters (`lipschitz_conv`), would train as in JT. The noise
    of a layer has the deviation of the layer's gradient before it is scaled. Ours goes on until the end of
    training, where the code's scripts stop it after 50 of 100 epochs.
    """

    title = "OGM-GE"
    head = "concat"

    ogm_alpha: float = setting(0.3, at_least=0)
    """α: the larger, the more the leading modality is held back; the paper has 0.1 to 1."""

    def prepare(self, model: MultiModalModel) -> nn.Module:
        """Check that there is something to modulate.

        Raises:
            BadInputError: no encoder has a convolution with a kernel of its own.
        """
        if not kernels(model.encoders):
            raise BadInputError(
                "ogm_ge modulates the kernels of convolutions, and no encoder has one: use other encoders or train jt"
            )
        return super().prepare(model)

    def loss(self, step: Step) -> LossTerms:
        return cross_entropy_loss(step.forward(step.inputs), step.labels)

    @torch.no_grad()
    def after_backward(self, step: Step, terms: LossTerms) -> None:
        factors = self.coefficients(confidence(terms.output, step.model.head.bias, step.labels))
        # one seed for all workers: their gradients are the same, and must stay so
        device = step.labels.device
        generator = torch.Generator(device).manual_seed(common_seed(step, 2**31))
        # a kernel of two modalities at once is held back by the mean of their factors, once
        shared: dict[nn.Parameter, list[Tensor]] = {}
        for factor, name in zip(factors, step.model.modalities, strict=True):
            for parameter in kernels(step.model.encoders[name]):
                shared.setdefault(parameter, []).append(factor)
        for parameter, each in shared.items():
            if parameter.grad is not None:
                gradient, factor = parameter.grad, torch.stack(each).mean()
                noise = torch.randn(gradient.shape, generator=generator, dtype=gradient.dtype, device=device)
                parameter.grad = factor * gradient + gradient.std(correction=0) * noise

    def coefficients(self, confidences: Tensor) -> Tensor:
        """The factor k of each modality's gradients, `(M,)`.

        Args:
            confidences: mean probability of the right class by each modality, `(M,)`.
        """
        if len(confidences) == 1:
            return torch.ones_like(confidences)
        others = (confidences.sum() - confidences) / (len(confidences) - 1)
        ratio = confidences / others.clamp_min(torch.finfo(confidences.dtype).tiny)
        return torch.where(ratio > 1, 1 - torch.tanh(self.ogm_alpha * ratio), torch.ones_like(ratio))


def kernels(encoder: nn.Module) -> list[nn.Parameter]:
    """The kernels of an encoder's convolutions (1-d to 3-d, transposed ones too), and every other 4-d parameter; each
    once. A kernel under a parametrisation is what it is computed from, where that has its shape."""
    found: dict[nn.Parameter, None] = {}
    for module in encoder.modules():
        if isinstance(module, _ConvNd):
            found |= {p: None for p in module.parameters() if p.ndim == len(module.kernel_size) + 2}
        found |= {p: None for p in module.parameters(recurse=False) if p.ndim == 4}
    return list(found)


def confidence(output: Output, bias: Tensor, labels: Tensor) -> Tensor:
    """Mean probability of the right class by each modality alone, over the batches of all workers.

    Args:
        output: of the training forward pass.
        bias: the head's, `(K,)`; shared out equally.
        labels: y, `(B,)`.

    Returns: `(M,)`.
    """
    scores = output.scores.detach()
    probabilities = (scores + bias / scores.shape[1]).softmax(2)
    right = probabilities.gather(2, labels[:, None, None].expand(-1, scores.shape[1], 1))
    return mean_over_ranks(right.mean((0, 2)))


METHOD = OGMGE
