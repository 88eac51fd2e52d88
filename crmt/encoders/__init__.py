"""Encoders φ, one file each, found by name: one modality's standardised input to features `(B, features)`.

A new file is a new encoder, and so is a class or function of the user's own, `mynet:VideoNet`: anything that is called
with the modality, the width of the features and its own arguments, and returns a module. `timm:NAME` is one of timm's.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from crmt.doors import ENCODERS, is_path, one_line, split_arguments
from crmt.errors import BadInputError
from crmt.modality import Modality

TIMM = "timm:"
"""How the names of timm's models begin."""
WEIGHTS = "weights"
"""The argument that names a file to start from. A saved model has weights of its own: it is rebuilt without it."""

Given = str | Mapping[str, Any]
"""A name, or `{"path": name, **arguments}`."""


def encoder_names() -> list[str]:
    """The names of the encoders in this folder."""
    return ENCODERS.names()


def is_foreign(given: Given) -> bool:
    """Whether building it imports code of the user's own."""
    name, _ = split_arguments(given)
    return is_path(name) and not name.startswith(TIMM)


def find_encoder(name: str) -> Callable[..., nn.Module]:
    """The class or function that builds an encoder.

    Args:
        name: one of `encoder_names()`, `timm:NAME`, or `package.module:Name` of the user's own code.

    Raises:
        BadInputError: no such encoder; the message lists ours.
    """
    if name.startswith(TIMM):
        from crmt.encoders.pretrained import timm_encoder

        return timm_encoder(name.removeprefix(TIMM))
    found = ENCODERS.find(name)
    if not callable(found):
        raise BadInputError(f"{name} is a {type(found).__name__}, no encoder: make it a class or a function")
    factory: Callable[..., nn.Module] = found
    return factory


def declared_lipschitz(name: str) -> bool:
    """Whether an encoder's class or function says that it is 1-Lipschitz. The certificate verifies it later."""
    return bool(getattr(find_encoder(name), "lipschitz", False))


def build_encoder(given: Given | None, modality: Modality, features: int, *, start_weights: bool = True) -> nn.Module:
    """A freshly initialised encoder.

    Args:
        given: one of `encoder_names()`, `timm:NAME` or `package.module:Name`; a mapping adds arguments: `{"path":
            "mynet:VideoNet", "depth": 3}`.
        modality: what it takes, standardised: `(B, *modality.shape)`.
        features: width of what it gives, `(B, features)`.
        start_weights: whether it starts from the file that its argument `weights` names; otherwise it is built
            without that argument, as for a checkpoint, whose weights are loaded afterwards.

    Raises:
        BadInputError: unknown name, a width or arguments that the encoder does not take, or an encoder that fails.
    """
    try:
        name, arguments = split_arguments(given if given is not None else "")
        factory = find_encoder(name)
    except BadInputError as error:
        raise BadInputError(_of_modality(str(error), modality.name)) from None
    if not start_weights:
        arguments.pop(WEIGHTS, None)
    _check_arguments(factory, name, arguments)
    try:
        encoder = factory(modality, features, **arguments)
    except BadInputError:
        raise
    except Exception as error:
        raise BadInputError(f"{name} cannot be built for {modality.name!r}: {one_line(error)}") from error
    if not isinstance(encoder, nn.Module):
        raise BadInputError(f"{name} gives a {type(encoder).__name__} for {modality.name!r}: give a torch.nn.Module")
    return encoder


def _of_modality(text: str, name: str) -> str:
    return text.replace(". Valid:", f" for {name!r}. Valid:", 1)


def _check_arguments(factory: Callable[..., nn.Module], name: str, arguments: Mapping[str, Any]) -> None:
    """Refuse arguments that the encoder does not take before it is called, so that errors inside of it stay its own."""
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):  # written in C: it says so itself
        return
    try:
        signature.bind("modality", "features", **arguments)
    except TypeError as error:
        raise BadInputError(
            f"{name} cannot be called with (modality, features{''.join(f', {a}' for a in arguments)}): {error}"
        ) from None
