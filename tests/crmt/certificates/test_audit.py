"""The audit: it catches an overstated radius, passes a true one, and leaves out what has no radius."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from crmt.attacks import AttackSettings, Ball, pgd
from crmt.certificates.audit import audit, audit_batches
from crmt.certificates.estimate import estimated_radii, gradient_constants
from crmt.certificates.radius import Radii
from crmt.errors import BadInputError
from crmt.modality import Inputs
from crmt.model import MultiModalModel
from crmt.predictions import predict
from tests.crmt.tiny import estimate, in_batches, linear_model, mostly_right, random_inputs, trainable


def unboxed_linear(modalities: int) -> MultiModalModel:
    """Two classes, where PGD is exact; boxes removed, so that the exact distance is attainable."""
    model = linear_model("concat", modalities, classes=2)
    model.modalities = {name: replace(m, box=None) for name, m in model.modalities.items()}
    return model


def scaled(true: Radii, factor: float) -> Radii:
    return replace(true, joint=factor * true.joint, unimodal=factor * true.unimodal)


def test_the_audit_catches_an_overstated_radius_and_passes_the_true_one(modalities: int) -> None:
    model = unboxed_linear(modalities)
    inputs = random_inputs(model, 40)
    labels = mostly_right(model, inputs)
    true = estimate(model, inputs, labels)
    honest, overstated = (
        audit(model, inputs, labels, scaled(true, f), settings=AttackSettings(steps=10, queries=20)) for f in (1.0, 1.5)
    )
    assert set(honest) == {"joint", *model.modalities}
    for name in honest:
        assert torch.equal(honest[name].audited, true.joint > 0)
        assert not bool(honest[name].violated.any())
        assert torch.equal(overstated[name].audited, true.joint > 0)
        assert torch.equal(overstated[name].violated, overstated[name].audited)


def test_the_audit_catches_it_with_several_classes_too() -> None:
    model = linear_model("concat", 2, classes=5)
    model.modalities = {name: replace(m, box=None) for name, m in model.modalities.items()}
    inputs = random_inputs(model, 60)
    labels = mostly_right(model, inputs)
    true = estimate(model, inputs, labels)
    for result in audit(model, inputs, labels, true, settings=AttackSettings(steps=20, queries=20)).values():
        assert not bool(result.violated.any())
    for result in audit(model, inputs, labels, scaled(true, 1.5), settings=AttackSettings(steps=20)).values():
        assert float(result.violated[result.audited].float().mean()) > 0.95


def test_infinite_radii_are_audited_and_those_of_zero_are_not() -> None:
    model = linear_model("concat", 2)
    inputs = random_inputs(model, 4)
    with torch.no_grad():
        labels = model(inputs).logits.argmax(1)
    radius = torch.tensor([0.0, float("inf"), float("nan"), 1e-6], dtype=torch.float64)
    found = audit(
        model,
        inputs,
        labels,
        Radii("x", model.head.modalities, radius, radius[:, None].expand(-1, 2), radius[:, None]),
        settings=AttackSettings(queries=20),
    )
    for result in found.values():
        assert result.audited.tolist() == [False, True, False, True]
        assert result.violated.tolist() == [False, True, False, False]
    nothing = Radii("x", model.head.modalities, torch.zeros(4), torch.zeros(4, 2), torch.zeros(4, 2))
    assert not any(bool(r.audited.any() | r.violated.any()) for r in audit(model, inputs, labels, nothing).values())


def test_radii_of_other_inputs_are_refused() -> None:
    model = linear_model("concat", 2)
    inputs = random_inputs(model, 4)
    radius = Radii("x", model.head.modalities, torch.ones(3), torch.ones(3, 2), torch.ones(3, 2))
    with pytest.raises(BadInputError, match=r"3 radii for 4 inputs"):
        audit(model, inputs, torch.zeros(4, dtype=torch.long), radius)


def test_radii_of_the_smoothed_classifier_are_refused() -> None:
    model = linear_model("concat", 2)
    inputs = random_inputs(model, 4)
    radius = Radii("smoothing", model.head.modalities, torch.ones(4), torch.ones(4, 2), torch.ones(4, 2), smoothed=True)
    with pytest.raises(BadInputError, match=r"of the smoothed classifier.*use audit_smoothing"):
        audit(model, inputs, torch.zeros(4, dtype=torch.long), radius)


def test_on_a_trained_like_network_an_attack_at_ten_radii_succeeds_somewhere() -> None:
    """The estimate has the right order of magnitude: not broken at r, broken for some input at 50 r."""
    model = trainable("orthogonal", 2)
    inputs = random_inputs(model, 16)
    with torch.no_grad():
        for _ in range(20):
            model.train()(inputs)
        labels = model.eval()(inputs).logits.argmax(1)
    found = estimate(model, inputs, labels)
    assert not bool(
        audit(model, inputs, labels, found, settings=AttackSettings(steps=10, queries=50))["joint"].violated.any()
    )
    assert bool(pgd(model, inputs, labels, Ball.joint(model.modalities, 50 * found.joint)).broken.any())


def test_audits_in_batches_equal_one_audit() -> None:
    model = linear_model("concat", 2, classes=2)
    model.modalities = {name: replace(m, box=None) for name, m in model.modalities.items()}
    inputs: Inputs = random_inputs(model, 20)
    labels: Tensor = mostly_right(model, inputs)
    constants = gradient_constants(model, in_batches(inputs, labels, 20))
    scores = predict(model, in_batches(inputs, labels, 20)).scores
    true = estimated_radii(model.head, scores, labels, constants)
    factors = torch.linspace(0.5, 1.5, 20, dtype=torch.float64)
    mixed = replace(true, joint=true.joint * factors, unimodal=true.unimodal * factors[:, None])
    for size in (20, 6):
        audits = audit_batches(
            model, in_batches(inputs, labels, size), mixed, settings=AttackSettings(steps=10, queries=20)
        )
        for result in audits.values():
            assert torch.equal(result.violated, (0.99 * factors > 1) & (true.joint > 0))


def test_auto_audits_catch_what_pgd_misses_just_beyond_the_radius() -> None:
    """Five classes at 1.03 of the exact distance: PGD follows the runner-up, auto tries every class."""
    model = linear_model("concat", 2, classes=5)
    model.modalities = {name: replace(m, box=None) for name, m in model.modalities.items()}
    inputs = random_inputs(model, 40)
    labels = mostly_right(model, inputs)
    overstated = scaled(estimate(model, inputs, labels), 1.03 / 0.99)
    for result in audit(model, inputs, labels, overstated, settings=AttackSettings(steps=5, queries=5)).values():
        assert torch.equal(result.violated, result.audited)
    weak = audit(model, inputs, labels, overstated, attack="fgm")
    assert not torch.equal(weak["joint"].violated, weak["joint"].audited)
    with pytest.raises(BadInputError, match=r"no attack 'cw'"):
        audit(model, inputs, labels, overstated, attack="cw")
    with pytest.raises(BadInputError, match=r"40 radii for 20 inputs"):
        audit_batches(model, in_batches(inputs, labels, 20)[:1], overstated, attack="fgm")
