"""Encoders before anything is decoded: each is built and takes one batch, as a trial will give it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from crmt.certificates import Certificate
from crmt.certificates.lipschitz import lipschitz_constants
from crmt.doors import one_line, split_arguments
from crmt.encoders import Given, build_encoder, declared_lipschitz, is_foreign
from crmt.errors import BadInputError, CRMTError
from crmt.heads import HEADS
from crmt.modality import Modality
from crmt.model import MultiModalModel
from crmt.precision import computing
from crmt.settings import Precision
from pipelines.clips.batches import expected_modalities
from pipelines.config.schema import DataConfig

INPUTS = 2
"""The smallest batch that batch normalisation trains on."""


def check_encoder(
    data: DataConfig,
    modality: str,
    given: Given,
    features: int,
    *,
    verify: bool,
    seed: int,
    precision: Precision = "fp32",
) -> int:
    """Build an encoder and run one batch of random inputs through it, forwards and backwards; returns its bytes.

    Args:
        data: says which shape the modality will have.
        given: a value of `model.encoders.<modality>`.
        verify: whether an encoder of the user's own must be 1-Lipschitz, as the certificate `lipschitz` verifies it.
        seed: fixes weights and inputs.
        precision: of training.

    Raises:
        BadInputError: one line that names the field, and what of this the encoder does not do.
    """
    with _naming(modality), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        (shape,) = expected_modalities(data, [modality])
        encoder, name = build_encoder(given, shape, features), split_arguments(given)[0]
        for training in (True, False) if is_foreign(given) else (False,):
            _check_batch(name, encoder.train(training), shape, features)
        if precision != "fp32":
            _check_batch(name, encoder.train(), shape, features, precision)
        if verify and is_foreign(given):
            _check_constant(encoder, shape, features)
        return sum(t.numel() * t.element_size() for t in encoder.state_dict().values())


def check_certified(certificate: Certificate, modality: str, given: Given) -> None:
    """Refuse an encoder that a certificate does not vouch for, by what the encoder says of itself.

    Raises:
        BadInputError: there is no such encoder, or it does not say that it is 1-Lipschitz where that is needed.
    """
    with _naming(modality):
        name, _ = split_arguments(given)
        declared = declared_lipschitz(name)
    certificate.check_encoder(modality, name, declared)


@contextmanager
def _naming(modality: str) -> Iterator[None]:
    """Errors name the field of the configuration."""
    try:
        yield
    except CRMTError as error:
        raise BadInputError(f"model.encoders.{modality}: {error}") from None


def _check_batch(
    name: str, encoder: nn.Module, modality: Modality, features: int, precision: Precision = "fp32"
) -> None:
    mean, std = modality.per_channel(modality.mean), modality.per_channel(modality.std)
    raw = torch.rand(INPUTS, *modality.shape) if modality.box else torch.randn(INPUTS, *modality.shape)
    x = ((raw - mean) / std).requires_grad_()
    how = "in training" if encoder.training else "in evaluation"
    how += "" if precision == "fp32" else f" in train.precision {precision}"
    try:
        with computing(precision, x.device):
            found = encoder(x.clone())  # a first layer may work in place
    except Exception as error:
        raise BadInputError(f"{name} fails {how} on a batch of shape {tuple(x.shape)}: {one_line(error)}") from error
    if not isinstance(found, Tensor):
        raise BadInputError(f"{name} gives a {type(found).__name__}: it must give one tensor of features")
    if found.shape != (INPUTS, features):
        raise BadInputError(
            f"{name} gives {tuple(found.shape)} for a batch of shape {tuple(x.shape)}: it must give (batch, features), "
            f"{(INPUTS, features)} here; the second argument that it is called with is the width"
        )
    if found.dtype != x.dtype and precision == "fp32":
        raise BadInputError(f"{name} gives {found.dtype} features of {x.dtype} inputs: give both in one type")
    if not bool(found.isfinite().all()):
        raise BadInputError(f"{name} gives NaN or infinity {how} on random inputs")
    _check_gradient(name, found, x)


def _check_gradient(name: str, found: Tensor, x: Tensor) -> None:
    """Refuse an encoder that passes no gradient to its input: attacks and the estimate of τ follow it."""
    no_gradient = f"{name}: no gradient reaches its input, which attacks and radii need: leave out no_grad and detach"
    if not found.requires_grad:
        raise BadInputError(no_gradient)
    try:
        (gradient,) = torch.autograd.grad((found * torch.randn_like(found)).sum(), x, allow_unused=True)
    except Exception as error:
        raise BadInputError(f"{name}: its gradient fails: {one_line(error)}") from error
    if gradient is None or not bool(gradient.any()):
        raise BadInputError(no_gradient)
    if not bool(gradient.isfinite().all()):
        raise BadInputError(f"{name}: its gradient by the input is NaN or infinite on random inputs")


def _check_constant(encoder: nn.Module, modality: Modality, features: int) -> None:
    """What it says of itself is verified here, so that no trial trains for a certificate that it cannot have."""
    head = HEADS["concat"]({modality.name: features}, 2)
    lipschitz_constants(MultiModalModel([modality], {modality.name: encoder}, head))
