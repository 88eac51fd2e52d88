"""Attacks within ℓ2 and ℓ∞ balls around the inputs of any set of modalities."""

from crmt.attacks.apgd import apgd
from crmt.attacks.balls import Ball
from crmt.attacks.gradient import fgm, pgd
from crmt.attacks.losses import ATTACK_LOSSES
from crmt.attacks.minimal import MinimalResult, minimal_norm
from crmt.attacks.random import missing, noise
from crmt.attacks.registry import ATTACKS, PARTS, AttackSettings, attack, auto
from crmt.attacks.search import AttackResult
from crmt.attacks.square import square

__all__ = [
    "ATTACKS",
    "ATTACK_LOSSES",
    "PARTS",
    "AttackResult",
    "AttackSettings",
    "Ball",
    "MinimalResult",
    "apgd",
    "attack",
    "auto",
    "fgm",
    "minimal_norm",
    "missing",
    "noise",
    "pgd",
    "square",
]
