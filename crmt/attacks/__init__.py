"""Attacks within ℓ2 and ℓ∞ balls around the inputs of any set of modalities (method.md, section 5)."""

from crmt.attacks.balls import Ball
from crmt.attacks.gradient import ATTACK_LOSSES, AttackResult, fgm, pgd

__all__ = ["ATTACK_LOSSES", "AttackResult", "Ball", "fgm", "pgd"]
