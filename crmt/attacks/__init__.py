"""Attacks within ℓ2 and ℓ∞ balls around the inputs of any set of modalities, one file each, found by name.

A new file is a new attack, and so is a class of the user's own: `attack("myattacks:Spiral", ...)`.
"""

from crmt.attacks.apgd import apgd
from crmt.attacks.auto import auto
from crmt.attacks.balls import Ball
from crmt.attacks.base import Attack, AttackSettings, Call
from crmt.attacks.fgm import fgm
from crmt.attacks.losses import ATTACK_LOSSES
from crmt.attacks.minimal_norm import MinimalResult, minimal_norm
from crmt.attacks.missing import missing
from crmt.attacks.noise import noise
from crmt.attacks.pgd import pgd
from crmt.attacks.registry import attack, attack_names, find_attack, parts_of_auto
from crmt.attacks.search import AttackResult
from crmt.attacks.square import square

__all__ = [
    "ATTACK_LOSSES",
    "Attack",
    "AttackResult",
    "AttackSettings",
    "Ball",
    "Call",
    "MinimalResult",
    "apgd",
    "attack",
    "attack_names",
    "auto",
    "fgm",
    "find_attack",
    "minimal_norm",
    "missing",
    "noise",
    "parts_of_auto",
    "pgd",
    "square",
]
