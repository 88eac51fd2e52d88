"""The evaluation protocol: order, bookkeeping of dropped samples, and the whole chain for one to three modalities."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from crmt.attacks import AttackSettings
from crmt.attacks.curves import attack_curves
from crmt.certificates.audit import audit_batches
from crmt.certificates.estimate import estimated_radii, gradient_constants
from crmt.errors import BadInputError
from crmt.fit import Batch, FitSettings, fit
from crmt.heads import OrthogonalHead
from crmt.integration import optimise_integration
from crmt.methods import create
from crmt.model import MultiModalModel, build_model
from crmt.predictions import Predictions, predict
from tests.crmt.tiny import PLAN, in_batches, learnable, linear_model, mostly_right, random_inputs, spec


def test_predictions_are_the_models_in_the_order_given(trained: tuple[MultiModalModel, Batch]) -> None:
    model, whole = trained
    seen: list[int] = []
    found = predict(model, in_batches(whole.inputs, whole.labels, 7), seen.append)
    assert found.ids == tuple(f"clip-{i}" for i in range(24))
    assert torch.equal(found.labels, whole.labels)
    assert seen == [7, 7, 7, 3]
    with torch.no_grad():
        output = model.eval()(whole.inputs)
        torch.testing.assert_close(found.scores, output.scores)
        torch.testing.assert_close(found.logits(model.head), output.logits)
        contributions = model.head.integration * output.scores
        reference = contributions.mean(0)
        for i in range(2):
            alone = contributions[:, i] + reference[1 - i] + model.head.bias
            assert torch.equal(found.unimodal(model.head, reference)[:, i], alone.argmax(1))
        for i, (name, m) in enumerate(model.modalities.items()):
            without = model({**whole.inputs, name: m.missing(whole.inputs[name])}).logits.argmax(1)
            assert torch.equal(found.missing[:, i], without)


def test_logits_follow_the_integration_weights_of_the_head_now() -> None:
    model = linear_model("orthogonal", 2)
    inputs = random_inputs(model, 5)
    found = predict(model, in_batches(inputs, mostly_right(model, inputs), 5))
    assert isinstance(model.head, OrthogonalHead)
    model.head.set_integration(3 * model.head.integration)
    with torch.no_grad():
        torch.testing.assert_close(found.logits(model.head), model(inputs).logits)


def test_missing_modalities_can_be_left_out_and_parts_put_together() -> None:
    model = linear_model("concat", 3)
    inputs = random_inputs(model, 10)
    batches = in_batches(inputs, mostly_right(model, inputs), 4)
    whole = predict(model, batches)
    parts = Predictions.concatenated([predict(model, batches[:2]), predict(model, batches[2:])])
    assert parts.ids == whole.ids
    for a, b in ((parts.labels, whole.labels), (parts.scores, whole.scores), (parts.missing, whole.missing)):
        assert torch.equal(a, b)
    without = predict(model, batches, missing=False)
    assert without.missing.shape == (10, 0)
    assert torch.equal(without.scores, whole.scores)


def test_nothing_to_evaluate_is_refused() -> None:
    with pytest.raises(BadInputError, match=r"the split is empty"):
        predict(linear_model("concat"), [])


def whole_chain(name: str, modalities: int, device: str) -> None:
    """fit ▸ τ ▸ step 2 ▸ predictions ▸ radii ▸ curves ▸ audit."""
    method = create(name)
    model = build_model(spec(method.head, modalities, classes=4)).to(device)

    def batches(epoch: int) -> list[Batch]:
        return [
            Batch({m: x.to(device) for m, x in b.inputs.items()}, b.labels.to(device), tuple(map(str, range(16))))
            for b in learnable(build_model(spec(method.head, modalities, classes=4)), batches=4)(epoch)
        ]

    list(fit(model, method, batches, FitSettings(epochs=6, lr=0.05)))
    training, test = batches(50), batches(51)[:2]
    constants = gradient_constants(model, training)
    assert constants.tau.shape == (modalities, 4)
    if method.step2:
        scores = predict(model, training)
        assert isinstance(model.head, OrthogonalHead)
        found = optimise_integration(
            scores.scores.to(device), scores.labels.to(device), model.head.bias, constants.tau, model.head.integration,
            steps=50,
        )  # fmt: skip
        assert found.mean_radius_after >= found.mean_radius_before > 0
        model.head.set_integration(found.weights)
    predictions = predict(model, test)
    assert predictions.missing.shape == (32, modalities)
    accuracy = (predictions.logits(model.head).argmax(1) == predictions.labels).float().mean()
    assert float(accuracy) > 0.5
    radii = estimated_radii(model.head, predictions.scores, predictions.labels, constants)
    assert radii.joint.device == predictions.scores.device
    assert torch.equal(radii.joint > 0, predictions.logits(model.head).argmax(1) == predictions.labels)
    curves = attack_curves(model, test, replace(PLAN, settings=AttackSettings(steps=5, restarts=2)))
    assert {c.ball for c in curves} == {"joint", *model.modalities}
    for curve in curves:
        assert bool((~curve.robust | (radii.joint > 0)[:, None]).all())
    seen: list[int] = []
    audits = audit_batches(
        model, test, radii, attack="pgd", settings=AttackSettings(steps=5, restarts=2), progress=seen.append
    )
    assert set(audits) == {"joint", *model.modalities}
    assert sum(seen) == 32
    for result in audits.values():
        assert torch.equal(result.audited, radii.joint > 0)
        assert not bool((result.violated & ~result.audited).any())


@pytest.mark.parametrize("name", ["jt", "crmt_jt"])
def test_one_two_and_three_modalities_go_through_the_whole_chain(name: str, modalities: int) -> None:
    whole_chain(name, modalities, "cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["jt", "crmt_jt"])
def test_the_whole_chain_runs_on_a_gpu(name: str) -> None:
    whole_chain(name, 2, "cuda")
