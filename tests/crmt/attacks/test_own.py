"""Attacks are parts: ours by file, a user's own by path, in curves, grids and audits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from crmt.attacks import AttackSettings, Ball, attack, attack_names, find_attack, parts_of_auto, pgd
from crmt.attacks.curves import AttackPlan, attack_curves
from crmt.certificates.audit import audit
from crmt.errors import BadInputError
from tests.crmt.own_parts import installed
from tests.crmt.tiny import estimate, in_batches, linear_model, mostly_right, random_inputs

QUICK = AttackSettings(steps=3, queries=4, targets=1, draws=2)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    return installed(tmp_path, monkeypatch, "own_attacks")


def test_every_file_is_an_attack_and_auto_runs_the_cheap_ones_first() -> None:
    assert attack_names() == ["apgd_ce", "apgd_dlr", "auto", "fgm", "minimal_norm", "noise", "pgd", "square"]
    assert parts_of_auto() == ("fgm", "pgd", "minimal_norm", "apgd_ce", "apgd_dlr", "square")


def test_results_carry_the_settings_that_an_attack_takes_and_no_others() -> None:
    plan = AttackPlan(settings=AttackSettings(steps=7), seed=3)
    assert plan.settings_of("fgm") == {"loss": "margin"}
    assert plan.settings_of("pgd") == {"loss": "margin", "steps": 7, "restarts": 1, "seed": 3}
    assert plan.settings_of("apgd_dlr") == {"steps": 7, "restarts": 1, "targets": 3, "seed": 3}
    assert plan.settings_of("square") == {"queries": 500, "seed": 3}
    assert list(plan.settings_of("auto")) == ["loss", "steps", "restarts", "targets", "queries", "seed"]


def test_an_attack_of_ones_own_runs_by_path(own: str) -> None:
    model = linear_model("concat", 2)
    inputs = random_inputs(model, 12)
    labels = mostly_right(model, inputs)
    ball = Ball.joint(model.modalities, 0.4)
    found = attack(f"{own}:Twice", model, inputs, labels, ball, settings=QUICK)
    assert torch.equal(found.margin, pgd(model, inputs, labels, ball, steps=6).margin)
    budgets = (0.2, 0.4)
    names = (f"{own}:Twice", "auto")
    plan = AttackPlan(names=names, epsilons=budgets, product={"audio": (0.2,), "video": (0.1, 0.3)}, settings=QUICK)
    curves = {(c.attack, c.ball): c.robust for c in attack_curves(model, in_batches(inputs, labels, 12), plan)}
    assert {a for a, _ in curves} == set(names) and {b for _, b in curves} == {"joint", "audio", "video", "product"}
    assert torch.equal(
        curves[names[0], "joint"][:, 0], ~pgd(model, inputs, labels, Ball.joint(model.modalities, 0.2), steps=6).broken
    )
    for ball_name in ("joint", "audio", "video", "product"):  # auto counts what the plan's other attacks broke
        assert not (curves["auto", ball_name] & ~curves[names[0], ball_name]).any()
    assert plan.settings_of(names[0]) == {"steps": 3}


def test_an_attack_of_ones_own_audits_radii(own: str) -> None:
    model = linear_model("concat", 2)
    model.modalities = {name: replace(m, box=None) for name, m in model.modalities.items()}
    inputs = random_inputs(model, 12)
    with torch.no_grad():
        labels = model(inputs).logits.argmax(1)
    radii = estimate(model, inputs, labels)
    overstated = replace(radii, joint=1.5 * radii.joint, unimodal=1.5 * radii.unimodal)
    honest, broken = (audit(model, inputs, labels, r, attack=f"{own}:Twice") for r in (radii, overstated))
    assert not honest["joint"].violated.any() and broken["joint"].violated.all()


def test_what_is_no_attack_is_refused(own: str) -> None:
    with pytest.raises(BadInputError, match="is no attack: make it a class that derives from"):
        find_attack(f"{own}:NotAnAttack")
    with pytest.raises(BadInputError, match=r"cannot be made an attack.*run"):
        find_attack(f"{own}:Unfinished")
    with pytest.raises(BadInputError, match="Did you mean 'Twice'"):
        AttackPlan(names=(f"{own}:Twic",))
    with pytest.raises(BadInputError, match=r"no attack 'pdg'.*Did you mean 'pgd'"):
        find_attack("pdg")
