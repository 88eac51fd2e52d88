"""Certificates, one file each, found by name: radii with their provenance, and the audit that attacks inside each.

A new file is a new certificate, and so is a class of the user's own: `create("mycertificates:Interval", depth=3)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from crmt.certificates.base import Certificate, ClipCertificate, IntegrationConstants, ScoreCertificate
from crmt.certificates.estimate import Estimate
from crmt.doors import CERTIFICATES
from crmt.errors import BadInputError
from crmt.model import MultiModalModel

__all__ = [
    "Certificate",
    "ClipCertificate",
    "ScoreCertificate",
    "certificate_class",
    "certificate_names",
    "create",
    "for_step2",
]


def certificate_names() -> list[str]:
    """The names of the certificates in this folder."""
    return CERTIFICATES.names()


def certificate_class(name: str) -> type[Certificate]:
    """The class of a certificate.

    Args:
        name: one of `certificate_names()`, or `package.module:Name` of the user's own code.

    Raises:
        BadInputError: no such certificate, or a class that is none.
    """
    kind: type[Certificate] = CERTIFICATES.find(name)
    if not (isinstance(kind, type) and issubclass(kind, (ScoreCertificate, ClipCertificate))):
        raise BadInputError(
            f"{name} is no certificate: make it a class that derives from ScoreCertificate or ClipCertificate of "
            "crmt.certificates"
        )
    for needed in ("name", "title", "word", "sound", "meaning"):
        if not hasattr(kind, needed):
            raise BadInputError(f"{name} says no {needed!r}: every certificate has one, as crmt.certificates.base says")
    if not kind.name.isidentifier():  # it is part of files' names
        raise BadInputError(f"{name}: a certificate cannot be called {kind.name!r}: take letters, digits and _")
    return kind


def create(name: str, **settings: Any) -> Certificate:
    """The certificate of that name, with its settings.

    Args:
        name: one of `certificate_names()`, or `package.module:Name` of the user's own code.
        settings: fields of its class.

    Raises:
        BadInputError: no such certificate, or a setting that it does not take.
    """
    kind = certificate_class(name)
    unknown = settings.keys() - set(kind.parameters())
    if unknown:
        takes = ", ".join(kind.parameters()) or "none"
        raise BadInputError(f"{name} has no setting {', '.join(sorted(unknown))}; it takes {takes}")
    try:
        return kind(**settings)
    except TypeError as error:  # a setting without a default, or a class that leaves something out
        raise BadInputError(f"{name} cannot be made a certificate: {error}") from None


def for_step2(
    certificates: Sequence[Certificate], model: MultiModalModel, tau: Tensor
) -> tuple[Certificate, IntegrationConstants]:
    """The certificate whose mean radius step 2 maximises, and the constants for that: a sound one if one of them has
    such constants, otherwise the estimate.

    Args:
        certificates: those that the run asks for.
        model: after step 1.
        tau: τ̂ from training clips, `(M, K)`.
    """
    for certificate in [*sorted(certificates, key=lambda c: not c.sound), Estimate()]:
        constants = certificate.integration_constants(model, tau)
        if constants is not None:
            return certificate, constants
    raise AssertionError("the estimate's radius can always be maximised")
