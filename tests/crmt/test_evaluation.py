"""One call measures a model: the numbers that its parts give one by one, from batches as they are."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crmt.attacks import Ball, fgm
from crmt.attacks.curves import AttackPlan
from crmt.certificates import create
from crmt.certificates.audit import AuditPlan
from crmt.certificates.estimate import estimated_radii, gradient_constants
from crmt.errors import BadInputError
from crmt.evaluation import EvaluationPlan, Share, evaluate, training_facts
from crmt.predictions import predict
from tests.crmt.tiny import in_batches, linear_model, mostly_right, random_inputs

PLAN = EvaluationPlan(
    attacks=AttackPlan(names=("fgm",), epsilons=(0.2, 0.6), product={"audio": (0.2,), "video": (0.1, 0.3)}),
    attacked=7,
    audit=AuditPlan(attack="pgd", samples=5),
    tau_samples=8,
)


@given(st.integers(1, 3000), st.data())
def test_a_share_carries_its_wilson_interval(n: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, n))
    found = Share.of(successes, n)
    p, z = successes / n, 1.959963984540054
    centre, half = (p + z**2 / (2 * n)) / (1 + z**2 / n), (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    half *= z / (1 + z**2 / n)
    assert found.value == p and found.n == n
    assert found.low == pytest.approx(centre - half, abs=1e-9) and found.high == pytest.approx(centre + half, abs=1e-9)


def test_it_gives_what_its_parts_give() -> None:
    model = linear_model("orthogonal", 2)
    inputs, known = random_inputs(model, 20), random_inputs(model, 24, seed=1)
    labels, training = mostly_right(model, inputs), in_batches(known, mostly_right(model, known), 8)
    batches = in_batches(inputs, labels, 6)
    found = evaluate(model, batches, PLAN, training=training)
    with torch.no_grad():
        right = model(inputs).logits.argmax(1) == labels
    assert found.accuracy("clean_accuracy") == Share.of(int(right.sum()), 20)
    assert {(a.name, a.modality) for a in found.accuracies} == {
        ("clean_accuracy", None),
        *((name, m) for name in ("unimodal_accuracy", "missing_accuracy") for m in model.modalities),
    }
    joint = next(c for c in found.curves if c.ball == "joint")
    first = {m: x[:7] for m, x in inputs.items()}
    for epsilon, share in zip(joint.budgets, joint.shares, strict=True):
        assert isinstance(epsilon, float)
        broken = fgm(model, first, labels[:7], Ball.joint(model.modalities, epsilon)).broken
        assert share == Share.of(int((~broken).sum()), 7)
    (certified,) = found.certified
    constants = gradient_constants(model, training[:1])
    expected = estimated_radii(model.head, predict(model, batches).scores, labels, constants)
    assert torch.equal(certified.radii.joint, expected.joint) and certified.settings["tau_samples"] == 8
    assert len(certified.audits["joint"]) == 5
    rows = found.rows()
    assert {r["name"] for r in rows["metrics"]} >= {"clean_accuracy", "missing_accuracy", "mean_radius"}
    assert len(rows["radii"]) == 3 * 20 and len(rows["curves"]) == 3 * 2 + 2
    assert {r["clip_id"] for r in rows["radii"] if r["audited"]} <= {f"clip-{i}" for i in range(5)}


def test_batches_are_a_list_or_a_function_that_opens_them() -> None:
    model = linear_model("orthogonal", 2)
    inputs = random_inputs(model, 12)
    batches = in_batches(inputs, mostly_right(model, inputs), 5)
    facts = training_facts(model, batches)
    asked: list[int | None] = []

    def opened(limit: int | None):
        asked.append(limit)
        cut = batches if limit is None else in_batches(inputs, mostly_right(model, inputs), limit)[:1]
        return iter(cut)

    listed, opened_anew = (evaluate(model, b, PLAN, training=facts).rows() for b in (batches, opened))
    assert opened_anew == listed and set(asked) == {None, 7, 5}
    with pytest.raises(BadInputError, match="can be gone through once only"):
        evaluate(model, iter(batches), PLAN, training=facts)


def test_without_training_clips_what_needs_them_is_left_out_or_refused() -> None:
    model = linear_model("orthogonal", 2, dtype=torch.float32)
    inputs = random_inputs(model, 8)
    batches = in_batches(inputs, mostly_right(model, inputs), 4)
    with pytest.raises(BadInputError, match="estimated radius needs gradients of training clips: give `training`"):
        evaluate(model, batches, PLAN)
    smoothing = create("smoothing", sigmas={"audio": 0.1, "video": 0.1}, n0=4, n=20)
    plan = EvaluationPlan(attacks=PLAN.attacks, certificates=(smoothing,), audit=AuditPlan(samples=2))
    found = evaluate(model, batches, plan)
    assert not [a for a in found.accuracies if a.name == "unimodal_accuracy"]
    (certified,) = found.certified
    assert certified.certificate is smoothing and len(certified.labels) == 8
    assert certified.settings["audit"] == "pgd over the noise" and certified.settings["alpha"] == 0.001


def test_importing_crmt_loads_nothing_and_lends_names() -> None:
    code = (
        "import sys, crmt; assert 'torch' not in sys.modules; from crmt import Ball, fit, evaluate; import crmt.fit; "
        "assert callable(crmt.fit) and crmt.fit is fit; assert all(hasattr(crmt, n) for n in crmt.__all__)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
