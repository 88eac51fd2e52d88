"""`auto`, the strongest attack: all that declare a place in it, cheapest first, each on what still stands."""

from __future__ import annotations

from functools import partial

from crmt.attacks.apgd import apgd
from crmt.attacks.base import Attack, Call, improved, run_in_turn
from crmt.attacks.registry import attack, find_attack, parts_of_auto
from crmt.attacks.search import AttackResult


class Auto(Attack):
    """All parts; those that began at x alone see nothing that lies behind a coordinate without a gradient there."""

    title = "auto (strongest of all)"
    settings = ("loss", "steps", "restarts", "targets", "queries")
    random = True

    def run(self, call: Call) -> AttackResult:
        found = run_in_turn(call, [find_attack(name) for name in self.parts()])
        return improved(found, call, _apgd_from_random) if call.settings.restarts == 1 else found

    def parts(self) -> tuple[str, ...]:
        return parts_of_auto()


def _apgd_from_random(call: Call) -> AttackResult:
    """APGD on DLR, not aimed, from a random point of the ball."""
    attacked = {m: call.inputs[m] for m in call.ball.attacked}
    drawn = call.ball.random(attacked, call.generator)
    start = {m: x + drawn[m] for m, x in attacked.items()}
    return apgd(*call.target, loss="dlr", steps=2 * call.settings.steps, start=start, generator=call.generator)


ATTACK = Auto

auto = partial(attack, "auto")
"""The strongest attack: FGM, PGD, minimal-norm, APGD-CE, APGD-DLR with targets, Square, each on what stands.

Where no part has a random restart, APGD-DLR from a random point comes last: coordinates without a gradient at x, such
as those that a threshold cuts off, move from there only. Every part starts where it would alone, so no part that draws
nothing at random breaks more by itself. Arguments and errors as `attack`.
"""
