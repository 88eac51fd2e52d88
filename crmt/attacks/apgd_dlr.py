"""APGD-DLR: Auto-PGD on the difference of logits ratio, untargeted, then towards each of the most likely classes."""

from __future__ import annotations

from crmt.attacks.apgd import apgd
from crmt.attacks.base import Attack, Call, improved
from crmt.attacks.search import AttackResult


class ApgdDlr(Attack):
    """Auto-PGD on the DLR loss: one untargeted run, then one towards each of `targets` likely classes."""

    title = "APGD-DLR"
    settings = ("steps", "restarts", "targets")
    random = True
    place_in_auto = 50

    def run(self, call: Call) -> AttackResult:
        found = _apgd_dlr(call, 0)
        targets = call.settings.targets
        return improved(found, call, lambda rest: _apgd_dlr(rest, targets)) if targets else found


def _apgd_dlr(call: Call, targets: int) -> AttackResult:
    s = call.settings
    return apgd(
        *call.target,
        loss="dlr",
        steps=2 * s.steps,
        restarts=s.restarts,
        targets=targets,
        start=call.start,
        generator=call.generator,
    )


ATTACK = ApgdDlr
