"""The methods that balance modalities (GB, OGM-GE, PMR): coefficients, state and losses by their definitions."""

from __future__ import annotations

from math import exp, log, tanh
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from crmt.errors import BadInputError
from crmt.fit import FitSettings, fit
from crmt.methods import create
from crmt.methods._shared import common_seed
from crmt.methods.base import Epoch, Step
from crmt.methods.gb import GB, LEAST_CHANGE, Blend, blend_weights
from crmt.methods.ogm_ge import OGMGE, confidence
from crmt.methods.pmr import PMR, imbalance
from crmt.modality import Batch
from crmt.model import MultiModalModel, Output, build_model, evaluating
from tests.crmt.tiny import learnable, linear_model, mostly_right, one_step, random_inputs, spec, trainable


def problem(modalities: int, count: int = 12) -> tuple[MultiModalModel, Batch]:
    model = linear_model("concat", modalities)
    inputs = random_inputs(model, count)
    return model, Batch(inputs, mostly_right(model, inputs))


def finish(method: GB | PMR, step: Step, number: int, held_out: list[Batch]) -> None:
    """Ends epoch `number` as `fit` does."""
    with evaluating(step.model), torch.no_grad():
        method.after_epoch(Epoch(model=step.model, companion=step.companion, epoch=number, held_out=lambda: held_out))


def softmax(values: list[float]) -> list[float]:
    total = sum(exp(v) for v in values)
    return [exp(v) / total for v in values]


def mean_entropy(logits: Tensor, labels: Tensor) -> float:
    rows = zip(logits.tolist(), labels.tolist(), strict=True)
    return sum(-log(softmax(h)[y]) for h, y in rows) / len(labels)


# OGM-GE


def test_confidence_is_each_modalitys_with_its_share_of_the_bias(modalities: int) -> None:
    model, batch = problem(modalities)
    output = model(batch.inputs)
    found = confidence(output, model.head.bias, batch.labels)
    for m, name in enumerate(model.modalities):
        logits = output.features[name] @ model.head.weight(name).T + model.head.bias / modalities
        rows = zip(logits.tolist(), batch.labels.tolist(), strict=True)
        assert float(found[m]) == pytest.approx(sum(softmax(h)[y] for h, y in rows) / 12)


@pytest.mark.parametrize(
    ("confidences", "expected"),
    [
        ([0.8, 0.4], [1 - tanh(0.3 * 2), 1]),
        ([0.1, 0.4], [1, 1 - tanh(0.3 * 4)]),
        ([0.5, 0.5], [1, 1]),
        ([0.7], [1]),
        ([0.9, 0.2, 0.4], [1 - tanh(0.3 * 3), 1, 1]),
        ([0.6, 0.2, 0.7], [1 - tanh(0.3 * 0.6 / 0.45), 1, 1 - tanh(0.3 * 0.7 / 0.4)]),
        ([0.5, 0.0], [1 - tanh(0.3 * 1e30), 1]),
    ],
)
def test_modulation_coefficients(confidences: list[float], expected: list[float]) -> None:
    found = OGMGE(ogm_alpha=0.3).coefficients(torch.tensor(confidences))
    assert found.tolist() == pytest.approx(expected, rel=1e-5)


def test_gradients_of_convolutions_are_scaled_and_made_noisy_and_others_left(modalities: int) -> None:
    method = OGMGE(ogm_alpha=0.5)
    model = trainable("concat", modalities, features=64).train()
    batch = next(iter(learnable(model)(1)))
    step = one_step(model, batch, method)
    terms = method.loss(step)
    terms.total.backward()
    before = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    factors = method.coefficients(confidence(terms.output, model.head.bias, batch.labels)).tolist()
    assert min(factors) < 1 or modalities == 1
    method.after_backward(step, terms)
    residuals = []
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        if not (name.startswith("encoders.") and parameter.ndim == 4):
            assert torch.equal(parameter.grad, before[name]), name
            continue
        factor = factors[list(model.modalities).index(name.split(".")[1])]
        residual = (parameter.grad - factor * before[name]) / before[name].std()
        if residual.numel() > 5000:
            assert float(residual.mean()) == pytest.approx(0, abs=0.06), name
            assert float(residual.std()) == pytest.approx(1, abs=0.06), name
            assert abs(float(torch.corrcoef(torch.stack([residual, before[name]]).flatten(1))[0, 1])) < 0.06, name
        residuals.append(residual.flatten()[:8])
    assert len(torch.cat(residuals).unique()) == torch.cat(residuals).numel()  # every layer has its own noise


def test_only_gradients_are_modulated_and_there_must_be_some(modalities: int) -> None:
    method = OGMGE()
    model = trainable("concat", modalities)
    batch = next(iter(learnable(model)(1)))
    terms = method.loss(one_step(model, batch, method))
    assert float(terms.total.detach()) == pytest.approx(
        mean_entropy(model(batch.inputs).logits, batch.labels), rel=1e-5
    )
    for other in (linear_model("concat", modalities), build_model(spec("concat", encoder="lipschitz_conv"))):
        with pytest.raises(
            BadInputError, match=r"ogm_ge modulates the kernels of convolutions, and no encoder has one"
        ):
            method.prepare(other)


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("transposed", [False, True])
def test_kernels_of_any_dimension_are_modulated(axes: int, transposed: bool) -> None:
    torch.manual_seed(0)
    layer = getattr(nn, f"Conv{'Transpose' if transposed else ''}{axes}d")
    inputs = {m: torch.randn(8, 2, *[5] * axes) for m in ("a", "b")}
    encoders = {m: nn.Sequential(layer(2, 3, 3), nn.Flatten(), nn.LazyLinear(6)) for m in inputs}
    model = MultiModalModel.around(encoders, inputs, 4, head="concat")
    batch, method = Batch(inputs, torch.arange(8) % 4), OGMGE(ogm_alpha=0.5)
    step = one_step(model, batch, method)
    terms = method.loss(step)
    terms.total.backward()
    before = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    factors = method.coefficients(confidence(terms.output, model.head.bias, batch.labels))
    method.after_backward(step, terms)
    for name, parameter in model.named_parameters():
        kernel = name.endswith("0.weight")
        assert parameter.grad is not None and torch.equal(parameter.grad, before[name]) != kernel
        if kernel:
            factor = float(factors[0 if ".a." in name else 1])
            noise = (parameter.grad - factor * before[name]) / before[name].std(correction=0)
            assert 0.7 < float(noise.std()) < 1.3


def test_an_encoder_of_two_modalities_is_modulated_once() -> None:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Conv1d(2, 3, 3), nn.Flatten(), nn.Linear(9, 6))
    inputs = {m: torch.randn(8, 2, 5) for m in ("a", "b")}
    model = MultiModalModel.around(dict.fromkeys(inputs, encoder), inputs, 4, head="concat")
    batch, method = Batch(inputs, torch.arange(8) % 4), OGMGE(ogm_alpha=0.5)
    step = one_step(model, batch, method)
    terms = method.loss(step)
    terms.total.backward()
    kernel = encoder[0].weight
    before = kernel.grad.clone()  # type: ignore[union-attr,operator]
    factor = float(method.coefficients(confidence(terms.output, model.head.bias, batch.labels)).mean())
    method.after_backward(step, terms)
    noise = (kernel.grad - factor * before) / before.std(correction=0)  # type: ignore[operator]
    drawn = torch.randn(noise.shape, generator=torch.Generator().manual_seed(_seed_of(batch, model, method)))
    torch.testing.assert_close(noise, drawn, rtol=1e-4, atol=1e-4)


def _seed_of(batch: Batch, model: MultiModalModel, method: OGMGE) -> int:
    return common_seed(one_step(model, batch, method), 2**31)


# PMR


@pytest.mark.parametrize(
    ("confidences", "slow", "fast"),
    [
        ([0.6, 0.4], [0, 0.5], [0.5, 0]),
        ([0.1, 0.9], [1, 0], [0, 1]),
        ([0.3], [0], [0]),
        ([0.5, 0.0], [0, 1], [1, 0]),
        ([0.0, 0.0], [0, 0], [0, 0]),
        ([0.4, 0.5, 0.6], [0.375, 0, 0], [0, 0, 1 / 3]),
    ],
)
def test_imbalance(confidences: list[float], slow: list[float], fast: list[float]) -> None:
    found = imbalance(torch.tensor(confidences))
    assert found[0].tolist() == pytest.approx(slow, abs=1e-6)
    assert found[1].tolist() == pytest.approx(fast, abs=1e-6)


@pytest.mark.parametrize("epoch", [2, 9])
def test_prototypical_rebalance(epoch: int, modalities: int) -> None:
    """The second loss, term by term, after an epoch that did not see class 3."""
    method = PMR(pmr_alpha=0.8, pmr_entropy=0.3)
    model, batch = problem(modalities)
    kept = batch.labels != 3
    first = Batch({m: x[kept] for m, x in batch.inputs.items()}, batch.labels[kept])
    step = one_step(model, first, method)
    method.loss(step)
    finish(method, step, 1, [])
    labels = torch.arange(12) % 4
    again = Step(**{**vars(step), "inputs": batch.inputs, "labels": labels, "epoch": epoch})
    features = model(batch.inputs).features
    expected = mean_entropy(model(batch.inputs).logits, labels)
    confidences, prototypical, spreads = [], [], []
    for name in model.modalities:
        old = model(first.inputs).features[name]
        classes = [k for k in range(4) if bool((first.labels == k).any())]
        assert 3 not in classes
        centres = [old[first.labels == k].mean(0) for k in classes]
        right, terms, spread = 0.0, 0.0, 0.0
        for z, y in zip(features[name], labels.tolist(), strict=True):
            p = softmax([-float((z - c).detach().norm()) for c in centres])
            spread -= sum(q * log(q) for q in p) / 12
            if y in classes:
                right += p[classes.index(y)]
                terms -= log(p[classes.index(y)]) / 12
        confidences.append(right)
        prototypical.append(terms)
        spreads.append(spread)
    for m in range(modalities if modalities > 1 else 0):
        others = (sum(confidences) - confidences[m]) / (modalities - 1)
        expected += 0.8 * min(max(others / confidences[m] - 1, 0), 1) * prototypical[m]
        if epoch <= 5:
            expected -= 0.3 * min(max(confidences[m] / others - 1, 0), 1) * spreads[m]
    assert float(method.loss(again).total.detach()) == pytest.approx(expected, rel=1e-9)


def test_prototypes_move_with_momentum_and_keep_what_is_not_seen_again() -> None:
    method = PMR(pmr_momentum=0.25)
    model, batch = problem(2)
    batch = batch._replace(labels=torch.arange(12) % 3)
    step = one_step(model, batch, method)
    method.loss(step)
    finish(method, step, 1, [])
    features = model(batch.inputs).features["video"]
    old = [features[batch.labels == k].mean(0) for k in range(3)]
    state = step.companion.state_dict()
    torch.testing.assert_close(state["video.mean"][:3], torch.stack(old))
    assert state["video.seen"].tolist() == [True, True, True, False]
    other = Batch({m: x.flip(1) for m, x in batch.inputs.items()}, torch.arange(12) % 2)
    method.loss(Step(**{**vars(step), "inputs": other.inputs, "labels": other.labels, "epoch": 2}))
    finish(method, step, 2, [])
    features = model(other.inputs).features["video"]
    new = [0.25 * old[k] + 0.75 * features[other.labels == k].mean(0) for k in range(2)]
    torch.testing.assert_close(step.companion.state_dict()["video.mean"][:3], torch.stack([*new, old[2]]))
    assert not step.companion.state_dict()["video.count"].any()


@pytest.mark.parametrize("everything", [False, True])
def test_pmr_trains_under_autocast(everything: bool) -> None:
    """Around the encoders and the head alone, and around all of `fit`."""

    class Mixed(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, inputs: dict[str, Tensor]) -> Output:
            with torch.autocast("cpu", torch.bfloat16):
                return cast(Output, self.model(inputs))

    torch.manual_seed(0)
    model = trainable("concat", classes=4)
    wider = nn.ModuleDict({m: nn.Sequential(e, nn.Linear(8, 8)) for m, e in model.encoders.items()})
    model.encoders = wider  # features of a linear layer are bfloat16 there
    with torch.autocast("cpu", torch.bfloat16, enabled=everything):
        results = list(fit(model, PMR(), learnable(model), FitSettings(epochs=6, lr=0.05), wrap=Mixed))
    assert results[-1].metrics["cross_entropy"] < results[0].metrics["cross_entropy"]
    means = results[-1].state()["companion"]
    assert means["video.mean"].dtype == torch.float32 and bool(means["video.seen"].all())


# GB


def test_blending_weights_are_generalisation_over_squared_overfitting() -> None:
    before = torch.tensor([[2.0, 2.0, 2.0], [2.0, 2.0, 2.0]])
    now = torch.tensor([[1.0, 0.5, 0.9], [1.2, 1.5, 1.4]])
    ratio = [0.8 / 0.2**2, 0.5 / 1.0**2, 0.6 / 0.5**2]
    assert blend_weights(before, now).tolist() == pytest.approx([r / sum(ratio) for r in ratio], rel=1e-5)
    worse = torch.tensor([[1.0, 1.0, 1.0], [3.0, 2.0, 2.0]])  # nothing generalised
    ratio = [LEAST_CHANGE / 2.0**2, LEAST_CHANGE / 1.0**2, LEAST_CHANGE / 1.0**2]
    assert blend_weights(before, worse).tolist() == pytest.approx([r / sum(ratio) for r in ratio], rel=1e-5)
    assert blend_weights(before, before).tolist() == pytest.approx([1 / 3] * 3)


def test_gradient_blending(modalities: int) -> None:
    """Equal weights for a super-epoch of two, then those of the definition; heads see features."""
    method = cast(GB, create("gb", gb_super_epoch=2))
    model, batch = problem(modalities)
    held = [Batch({m: x[:7] for m, x in batch.inputs.items()}, batch.labels[:7].roll(1)) for _ in range(2)]
    step = one_step(model, batch, method)
    blend = cast(Blend, step.companion)
    assert float(method.loss(step).parts["unimodal_cross_entropy"].detach()) == pytest.approx(modalities * log(4))
    finish(method, step, 1, held)
    assert blend.weights.tolist() == pytest.approx([1 / (modalities + 1)] * (modalities + 1))
    with torch.no_grad():
        for p in blend.heads.parameters():
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(len(p.shape))))

    def losses(data: Batch) -> list[float]:
        output = model(data.inputs)
        single = [output.features[m] @ blend.heads[m].weight.T + blend.heads[m].bias for m in model.modalities]
        return [mean_entropy(h, data.labels) for h in [*single, output.logits]]

    terms = method.loss(step)
    train, held_out = losses(batch), losses(held[0])
    assert float(terms.total.detach()) == pytest.approx(sum(train) / (modalities + 1))
    finish(method, step, 2, held)
    start = log(4)
    ratio = [
        max(start - h, LEAST_CHANGE) / max(abs(h - t), LEAST_CHANGE) ** 2 for t, h in zip(train, held_out, strict=True)
    ]
    weights = [r / sum(ratio) for r in ratio]
    assert blend.weights.tolist() == pytest.approx(weights, rel=1e-6)
    total = float(method.loss(step).total.detach())
    assert total == pytest.approx(sum(w * t for w, t in zip(weights, train, strict=True)))


def test_without_held_out_clips_the_weights_stay_equal() -> None:
    method = GB(gb_super_epoch=1)
    model, batch = problem(2)
    step = one_step(model, batch, method)
    method.loss(step)
    finish(method, step, 1, [])
    assert cast(Blend, step.companion).weights.tolist() == pytest.approx([1 / 3] * 3)
