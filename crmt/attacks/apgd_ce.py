"""APGD-CE: Auto-PGD on the cross-entropy."""

from __future__ import annotations

from crmt.attacks.apgd import apgd
from crmt.attacks.base import Attack, Call
from crmt.attacks.search import AttackResult


class ApgdCe(Attack):
    """Auto-PGD on the cross-entropy, with twice the steps of PGD."""

    title = "APGD-CE"
    settings = ("steps", "restarts")
    random = True
    place_in_auto = 40

    def run(self, call: Call) -> AttackResult:
        s = call.settings
        return apgd(
            *call.target,
            loss="cross_entropy",
            steps=2 * s.steps,
            restarts=s.restarts,
            start=call.start,
            generator=call.generator,
        )


ATTACK = ApgdCe
