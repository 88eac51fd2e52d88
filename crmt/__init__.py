"""CRMT: Certifiable Robust Multi-modal Training as plain PyTorch.

`import crmt` loads nothing; what most code needs is found here by name, and loaded when it is first asked for.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what `_LENDERS` says, for type checkers and editors
    from crmt.attacks import Ball, pgd
    from crmt.certificates.audit import audit
    from crmt.certificates.estimate import estimated_radii, gradient_constants
    from crmt.evaluation import EvaluationPlan, evaluate
    from crmt.fit import FitSettings, fit
    from crmt.heads import OrthogonalHead
    from crmt.integration import optimise_integration
    from crmt.losses import margin_regulariser
    from crmt.methods import create
    from crmt.modality import Batch, Modality
    from crmt.model import MultiModalModel
    from crmt.predictions import predict

__all__ = [
    "Ball",
    "Batch",
    "EvaluationPlan",
    "FitSettings",
    "Modality",
    "MultiModalModel",
    "OrthogonalHead",
    "audit",
    "create",
    "estimated_radii",
    "evaluate",
    "fit",
    "gradient_constants",
    "margin_regulariser",
    "optimise_integration",
    "pgd",
    "predict",
]

_LENDERS = {
    "crmt.attacks": ("Ball", "pgd"),
    "crmt.certificates.audit": ("audit",),
    "crmt.certificates.estimate": ("estimated_radii", "gradient_constants"),
    "crmt.evaluation": ("EvaluationPlan", "evaluate"),
    "crmt.fit": ("FitSettings", "fit"),
    "crmt.heads": ("OrthogonalHead",),
    "crmt.integration": ("optimise_integration",),
    "crmt.losses": ("margin_regulariser",),
    "crmt.methods": ("create",),
    "crmt.modality": ("Batch", "Modality"),
    "crmt.model": ("MultiModalModel",),
    "crmt.predictions": ("predict",),
}
_LENDER_OF = {name: module for module, names in _LENDERS.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _LENDER_OF:
        raise AttributeError(f"module 'crmt' has no attribute {name!r}")
    return getattr(import_module(_LENDER_OF[name]), name)


class _Package(ModuleType):
    """Importing the module `crmt.fit` would set `crmt.fit` to the module, in place of the function of that name."""

    def __setattr__(self, name: str, value: Any) -> None:
        lent = name in _LENDER_OF and isinstance(value, ModuleType)
        super().__setattr__(name, getattr(value, name) if lent else value)


sys.modules[__name__].__class__ = _Package
