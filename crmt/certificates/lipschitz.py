"""The sound certificate of encoders with a known ℓ2 Lipschitz constant: verifies the constant, and gives the radii."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt

import torch
from deel.torchlip import GroupSort2, InvertibleDownSampling, SpectralConv2d, SpectralLinear
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from crmt.certificates.base import Basis, IntegrationConstants, ScoreCertificate
from crmt.certificates.radius import Radii, radii
from crmt.encoders.lipschitz import LipschitzEncoder
from crmt.errors import BadInputError, CRMTError
from crmt.gradients import GradientConstants
from crmt.heads import ConcatHead, Head, OrthogonalHead
from crmt.modality import check_labels
from crmt.model import MultiModalModel, evaluating

NAME = "lipschitz"
TOLERANCE = 1e-3
"""A layer whose norm is above 1 + TOLERANCE is refused; below, its verified bound is multiplied in."""
OVERSAMPLING = 8
"""Frequencies of each axis at which a convolution's transfer matrix is evaluated, over the degree of its square."""
LARGEST_OFFSET = 1e2
"""The longest vector that a float32 layer may map 0 to: rounding grows with it, even where the head ignores it."""
STARTS, ITERATIONS = 4, 50
"""Random starts of the power iteration, and the most steps that it takes."""
ROUNDING = {torch.float64: 1e-13, torch.float32: 5e-5}
"""This times (1 + the scale of the scores) is taken from every margin: the certificate holds in exact arithmetic, and
the model runs in rounded. On avdigits float32 moves a logit by up to 2e-6, here and at the attacked input. Other types
are refused."""


def lipschitz_constants(model: MultiModalModel) -> Tensor:
    """L_m, `(M,)`, float64: upper bounds of the encoders' ℓ2 Lipschitz constants in the raw inputs.

    For `LipschitzEncoder` and for an nn.Sequential of layers of torch and deel-torchlip whose constants are known.
    The weights are verified as they are in evaluation mode; modules with hooks, which may do anything, are refused
    (`nn.utils.weight_norm` is one; parametrisations are not). Dense layers: the largest singular
    value. Convolutions: an upper bound over all frequencies (`conv_bound`), refused beforehand where power iteration
    on the feature map itself, a lower bound, is above 1 + TOLERANCE. The bounds of the layers are multiplied.

    Args:
        model: verified with the weights that it has now.

    Raises:
        BadInputError: an encoder has a layer whose constant is not known, or a hook, or arithmetic is set to less than
            float32.
        CRMTError: a layer's norm is above 1 + TOLERANCE, or in float32 its offset is above LARGEST_OFFSET.
    """
    with evaluating(model), torch.no_grad():
        return torch.stack([_encoder_constant(model, name) for name in model.modalities]).cpu()


def _encoder_constant(model: MultiModalModel, name: str) -> Tensor:
    encoder, modality = model.encoders[name], model.modalities[name]
    kind = parametrize.type_before_parametrizations(encoder)
    std: Tensor = getattr(model, f"_{name}_std")
    _check_arithmetic(std)
    _check_unhooked(encoder, name)
    if isinstance(encoder, LipschitzEncoder) and kind is LipschitzEncoder:
        scaling = (encoder.scale.double() / std.double()).abs().max()
        image = torch.zeros(1, *modality.shape[-3:], device=std.device, dtype=std.dtype)
        return scaling * _constant(encoder.trunk, image, f"{name}.trunk")[0]
    if kind is nn.Sequential or kind in _BOUNDS:
        zeros = torch.zeros(1, *modality.shape, device=std.device, dtype=std.dtype)
        return _constant(encoder, zeros, name)[0] / std.double().abs().min()
    raise BadInputError(
        f"{name!r} has a {kind.__name__}, which has no known Lipschitz constant: train with "
        f"model.encoders.{name}: lipschitz_conv to certify"
    )


def _check_unhooked(module: nn.Module, name: str) -> None:
    """Refuse what changes a module's outputs, or its weights, outside of its type's own `forward`."""
    for below, part in module.named_modules():
        if part._forward_hooks or part._forward_pre_hooks or "forward" in vars(part):
            raise BadInputError(
                f"{'.'.join(filter(None, (name, below)))} has a hook or a forward of its own, which may change what it "
                "computes after it was verified: remove it (of nn.utils.weight_norm: use nn.utils.parametrizations)"
            )


def _check_arithmetic(like: Tensor) -> None:
    """Refuse settings of torch under which a model of this type and device rounds more than ROUNDING says."""
    if torch.is_autocast_enabled(like.device.type):
        raise BadInputError("autocast rounds more than a certificate allows for: certify outside torch.autocast")
    if like.dtype != torch.float32:
        return
    if torch.get_float32_matmul_precision() != "highest":
        raise BadInputError(
            f"matrix products in {torch.get_float32_matmul_precision()!r} precision round more than a certificate "
            "allows for: call torch.set_float32_matmul_precision('highest')"
        )
    if like.is_cuda and torch.backends.cudnn.allow_tf32:
        raise BadInputError(
            "TF32 convolutions round more than a certificate allows for: set torch.backends.cudnn.allow_tf32 = False"
        )


def _constant(module: nn.Module, x: Tensor, where: str) -> tuple[Tensor, Tensor]:
    """An upper bound of the module's constant, and its output for `x`, which shows the next one its input's shape."""
    kind = parametrize.type_before_parametrizations(module)
    bound = x.new_ones((), dtype=torch.float64)
    if kind is nn.Sequential:
        for name, child in module._modules.items():  # named_children leaves out a layer's second use
            assert child is not None
            factor, x = _constant(child, x, f"{where}.{name}")
            bound = bound * factor
        return bound, x
    if kind not in _BOUNDS:
        raise BadInputError(
            f"{where} is a {kind.__name__}, whose Lipschitz constant is not known. Known: "
            f"{', '.join(k.__name__ for k in _BOUNDS)}"
        )
    finite = all(bool(p.isfinite().all()) for p in module.parameters())
    bound = _BOUNDS[kind](module, x) if finite else bound * float("nan")
    if not bool(bound <= 1 + TOLERANCE):  # NaN too
        raise CRMTError(
            f"{where} ({kind.__name__}) has norm {float(bound):.6g}, above 1: its weights were changed after training "
            "or do not belong to this encoder; load the checkpoint again or train again"
        )
    image = module(x)
    offset = float(image.norm())
    if image.dtype == torch.float32 and not offset <= LARGEST_OFFSET:
        raise CRMTError(
            f"{where} ({kind.__name__}) maps 0 to a vector of length {offset:.4g}: float32 rounds more than the "
            "certificate allows for; convert the model to float64"
        )
    return bound, image


def _one(module: nn.Module, x: Tensor) -> Tensor:  # noqa: ARG001
    return x.new_ones((), dtype=torch.float64)


def _group_sort(module: nn.Module, x: Tensor) -> Tensor:
    """deel-torchlip's GroupSort multiplies by its Lipschitz coefficient; its InvertibleDownSampling does not."""
    return x.new_tensor(float(module._coefficient_lip), dtype=torch.float64).abs()  # type: ignore[arg-type]


def _linear(module: nn.Linear, x: Tensor) -> Tensor:  # noqa: ARG001
    return torch.linalg.matrix_norm(module.weight.double(), ord=2) * (1 + 1e-12)


def _conv(module: nn.Conv2d, x: Tensor) -> Tensor:
    # deel-torchlip pads symmetrically by itself, and then says that the mode is zeros
    modes = {module.padding_mode, getattr(module, "old_padding_mode", "zeros")}
    if modes != {"zeros"} or module.groups != 1 or module.dilation != (1, 1):
        raise BadInputError("a Conv2d is verified with zeros as padding, one group and no dilation only")
    lower = power_iteration(module, x)
    return lower if bool(lower > 1 + TOLERANCE) else conv_bound(module.weight)


_BOUNDS: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.Linear: _linear,
    SpectralLinear: _linear,
    nn.Conv2d: _conv,
    SpectralConv2d: _conv,
    GroupSort2: _group_sort,
}
"""Layer type, exactly (a subclass may do anything), to an upper bound of its constant."""
_BOUNDS |= dict.fromkeys(
    (nn.ZeroPad2d, nn.Flatten, nn.ReLU, nn.Identity, nn.PixelUnshuffle, InvertibleDownSampling), _one
)


def conv_bound(kernel: Tensor) -> Tensor:
    """An upper bound of a convolution's norm on a map of any size, with zero or circular padding, strided or not.

    At most sup_θ ‖F(θ)‖ with the transfer matrix F(θ) = Σ_ab K_ab e^{i(aθ₁ + bθ₂)}. With c in the middle of the
    spectra of FᴴF, ‖F‖² ≤ c + sup ‖FᴴF − c I‖, and a trigonometric polynomial of degree d < N / 2 in each variable
    is at most 1 / (1 − 2d/N) times its largest value on an N × N grid (Pfister & Bresler, 2018). For an orthogonal
    convolution FᴴF is constant, so the bound is 1 up to rounding. Also at most √(k₁k₂) ‖K as a matrix‖.

    Args:
        kernel: K, `(C_out, C_in, k₁, k₂)`.
    """
    k = kernel.double()
    height, width = k.shape[-2:]
    degree = max(height, width) - 1
    size = max(OVERSAMPLING * degree, 1)
    transfer = torch.fft.fft2(k, s=(size, size)).permute(2, 3, 0, 1)[: size // 2 + 1].flatten(0, 1)
    gram = transfer @ transfer.mH if k.shape[0] <= k.shape[1] else transfer.mH @ transfer
    values = torch.linalg.eigvalsh(gram)  # the other half of the frequencies has the complex conjugates
    low, high = values.min(), values.max()
    factor = 1 / (1 - 2 * degree / size)
    grid = ((high + low) / 2 + factor * (high - low) / 2).sqrt()
    reshaped = sqrt(height * width) * torch.linalg.matrix_norm(k.flatten(1), ord=2)
    return torch.minimum(grid, reshaped) * (1 + 1e-12)


@torch.enable_grad()
def power_iteration(module: nn.Conv2d, x: Tensor) -> Tensor:
    """A lower bound of a convolution's norm on feature maps: the best of several starts, in float64.

    Args:
        module: the convolution.
        x: a feature map, `(1, C, H, W)`; only its shape and device count.
    """
    weight = module.weight.detach().double()
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(STARTS, *x.shape[1:], dtype=torch.float64, generator=generator).to(x.device)
    norm = x.new_zeros((), dtype=torch.float64)
    for _ in range(ITERATIONS):
        v = (v / v.flatten(1).norm(dim=1).clamp_min(1e-300)[:, None, None, None]).detach().requires_grad_()
        image = F.conv2d(v, weight, stride=module.stride, padding=module.padding)
        (v,) = torch.autograd.grad(image, v, image.detach())
        last, norm = norm, image.detach().flatten(1).norm(dim=1).max()
        if bool((norm - last).abs() <= 1e-6 * norm):
            break
    return norm


@torch.no_grad()
def lipschitz_radii(head: Head, scores: Tensor, labels: Tensor, constants: Tensor) -> Radii:
    """Certified radii of N inputs, in ℓ2 and in the raw space of each modality.

    η_{y,j}^(m) = L_m ‖a_y W_y − a_j W_j‖ with the head's actual rows: L_m sqrt(a_y² + a_j²) for an OrthogonalHead,
    L_m ‖W_y − W_j‖ for a ConcatHead.

    Args:
        head: the model's.
        scores: the inputs' uni-modal scores s, `(N, M, K)`, float32 or float64.
        labels: y, `(N,)`, int64.
        constants: L_m, `(M,)`, of `lipschitz_constants`.

    Raises:
        BadInputError: another head than those two (a subclass may do anything) or one with a hook, scores in another
            precision than float32 and float64, or labels out of range.
    """
    if not head.additive:
        raise BadInputError(
            f"{type(head).__name__} mixes the modalities before its scores, so that no constant of an encoder bounds "
            "them: use a method with a concat or orthogonal head to certify"
        )
    if type(head) not in (ConcatHead, OrthogonalHead):
        raise BadInputError(
            f"{type(head).__name__} is neither a ConcatHead nor an OrthogonalHead: its scores may be any"
        )
    _check_unhooked(head, "head")
    if scores.dtype not in ROUNDING:
        raise BadInputError(f"radii are certified for models in float32 or float64, not {scores.dtype}")
    check_labels(labels, scores.shape[2])  # before one_hot, which on a GPU ends the process
    contributions = head.integration.to(scores).double() * scores.double()
    bias = head.bias.to(scores).double()
    scale = contributions.abs().amax(2).sum(1) + bias.abs().max()
    slack = F.one_hot(labels, scores.shape[2]) * (ROUNDING[scores.dtype] * (1 + scale) / scores.shape[1])[:, None]
    return radii(
        NAME,
        head.modalities,
        contributions - slack[:, None, :],
        bias,
        labels,
        lipschitz_pair_constants(head, constants).to(scores.device),
    )


@torch.no_grad()
def lipschitz_pair_constants(head: Head, constants: Tensor) -> Tensor:
    """η, `(M, K, K)`, float64: L_m ‖a_y W_y − a_j W_j‖.

    Args:
        head: a ConcatHead or an OrthogonalHead.
        constants: L_m, `(M,)`, of `lipschitz_constants`.
    """
    distances = []
    for i, name in enumerate(head.modalities):
        rows = head.integration[i].double()[:, None] * head.weight(name).double()
        gram = rows @ rows.T
        square = gram.diagonal()
        total = square[:, None] + square[None, :]
        # float64 leaves 1e-16 of the sum in the difference of equal rows; 1e-13 keeps the bound above the truth
        distances.append((total - 2 * gram).clamp_min(0).add(1e-13 * total).sqrt().fill_diagonal_(0))
    return constants.to(distances[0])[:, None, None] * torch.stack(distances)


@dataclass(frozen=True, kw_only=True)
class Lipschitz(ScoreCertificate):
    """Radii from encoders whose Lipschitz constants are verified."""

    name = NAME
    title = "certified"
    word = "certified radius"
    sound = True
    meaning = "certified radius from 1-Lipschitz encoders: sound"
    lipschitz_encoders = True

    def check_head(self, head: type[Head], method: str) -> None:
        if not head.additive:
            raise BadInputError(
                f"certify.certificates: {self.name} cannot certify {method}, whose head mixes the modalities before "
                "its scores"
            )

    def check_encoder(self, modality: str, encoder: str, lipschitz: bool) -> None:
        if not lipschitz:
            raise BadInputError(
                f"certify.certificates: {self.name} needs encoders that are 1-Lipschitz (lipschitz_conv, or your own "
                f"that says lipschitz = True); model.encoders.{modality} is {encoder}"
            )

    def basis(self, model: MultiModalModel, tau: GradientConstants | None) -> Basis:  # noqa: ARG002
        proved = lipschitz_constants(model)
        return Basis(proved, {"lipschitz_constants": dict(zip(model.modalities, proved.tolist(), strict=True))})

    def radii(self, model: MultiModalModel, scores: Tensor, labels: Tensor, basis: Basis) -> Radii:
        return lipschitz_radii(model.head, scores, labels, basis.constants)

    def integration_constants(self, model: MultiModalModel, tau: Tensor) -> IntegrationConstants:
        return IntegrationConstants(lipschitz_constants(model).cpu()[:, None].expand_as(tau), "orthogonal")


CERTIFICATE = Lipschitz
