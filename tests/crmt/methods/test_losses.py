"""Each method's loss against its formula, term by term on linear encoders, and the inputs that it trains on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import cast

import pytest
import torch
from torch import Tensor

from crmt.attacks import Ball, pgd
from crmt.fit import FitSettings, fit
from crmt.heads import OddOneOutHead
from crmt.losses import logit_margin
from crmt.methods import create
from crmt.methods._shared import adversarial, margin_loss, mixed
from crmt.methods.base import LossTerms, Step
from crmt.modality import Batch, Inputs
from crmt.model import MultiModalModel, Output
from tests.crmt.test_losses import naive, naive_mixed
from tests.crmt.tiny import (
    AUDIO,
    VIDEO,
    effective_weights,
    learnable,
    linear_model,
    mostly_right,
    one_step,
    random_inputs,
    trainable,
)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """By definition."""
    chosen = [h[y].exp() / h.exp().sum() for h, y in zip(logits, labels.tolist(), strict=True)]
    return -torch.stack(chosen).log().mean()


@dataclass
class Spy:
    """A forward pass that remembers what went through it."""

    model: MultiModalModel
    inputs: Inputs = field(default_factory=dict)
    output: Output | None = None

    def __call__(self, inputs: Mapping[str, Tensor]) -> Output:
        self.inputs = dict(inputs)
        self.output = cast(Output, self.model(inputs))
        return self.output


def run(name: str, modalities: int, **settings: float) -> tuple[LossTerms, Step, Spy]:
    """The loss of a method on a linear model and eight inputs; what it saw."""
    method = create(name, **settings)
    model = linear_model(method.head, modalities)
    inputs = random_inputs(model, 8)
    spy = Spy(model)
    step = replace(one_step(model, Batch(inputs, mostly_right(model, inputs)), method), forward=spy)
    return method.loss(step), step, spy


@pytest.mark.parametrize("name", ["jt", "ojt", "crmt_step2", "pmr"])
def test_cross_entropy_methods(name: str, modalities: int) -> None:
    """PMR has no prototypes before the first epoch ends."""
    terms, step, _ = run(name, modalities)
    torch.testing.assert_close(terms.total, cross_entropy(step.model(step.inputs).logits, step.labels))


@pytest.mark.parametrize("name", ["crmt_jt", "crmt_step1", "jt_log_term"])
@pytest.mark.parametrize("rho", [0.0, 2.0])
def test_margin_methods(name: str, rho: float, modalities: int) -> None:
    terms, step, _ = run(name, modalities, rho=rho)
    output = step.model(step.inputs)
    entropy = cross_entropy(output.logits, step.labels)
    margin = naive(output.logits[:, None] if name == "jt_log_term" else output.scores, step.labels)
    torch.testing.assert_close(terms.total, entropy + rho * margin)
    assert terms.parts.keys() == {"cross_entropy", "margin_term"}


@pytest.mark.parametrize("rho", [0.0, 2.0])
def test_the_gradient_method(rho: float, modalities: int) -> None:
    """Clip by clip: its loss and ε times the length of that loss's gradient by all its inputs together."""
    terms, step, _ = run("crmt_gradient", modalities, rho=rho, epsilon=1e-3)
    losses, lengths = [], []
    for i, label in enumerate(step.labels):
        inputs = {m: x[i : i + 1].clone().requires_grad_() for m, x in step.inputs.items()}
        output, one = step.model(inputs), label[None]
        losses.append(cross_entropy(output.logits, one) + rho * naive(output.scores, one))
        gradients = torch.autograd.grad(losses[-1], list(inputs.values()))
        lengths.append(torch.cat([g.flatten() for g in gradients]).norm())
    torch.testing.assert_close(terms.parts["gradient_norm"], torch.stack(lengths).mean())
    grown = (terms.total - torch.stack(losses).mean()) / 1e-3
    torch.testing.assert_close(grown, torch.stack(lengths).mean(), rtol=1e-2, atol=0)


def gradients_of(total: Tensor, model: MultiModalModel) -> Tensor:
    learning = [p for p in model.parameters() if p.requires_grad]
    return torch.cat([g.flatten() for g in torch.autograd.grad(total, learning, materialize_grads=True)])


def differentiated_twice(step: Step, rho: float, epsilon: float) -> Tensor:
    """mean_i [ℓ_i + ε ‖∇_x ℓ_i‖], whose gradient by the parameters goes through that of ℓ."""
    inputs = {m: x.clone().requires_grad_() for m, x in step.inputs.items()}
    total = margin_loss(step.forward(inputs), step.labels, rho).total
    found = torch.autograd.grad(total * len(step.labels), list(inputs.values()), create_graph=True)
    return total + epsilon * torch.stack([g.flatten(1).square().sum(1) for g in found]).sum(0).sqrt().mean()


def test_the_gradient_method_moves_parameters_as_differentiating_twice_does(modalities: int) -> None:
    terms, step, _ = run("crmt_gradient", modalities, rho=2.0, epsilon=1e-2)
    found = gradients_of(terms.total, step.model)
    plain = gradients_of(margin_loss(step.model(step.inputs), step.labels, 2.0).total, step.model)
    exact = gradients_of(differentiated_twice(step, 2.0, 1e-2), step.model)
    # the penalty's part alone
    torch.testing.assert_close(found - plain, exact - plain, rtol=1e-2, atol=1e-2 * float((exact - plain).norm()))


def test_the_gradient_method_goes_nearly_the_exact_way_through_relus_and_batch_norm() -> None:
    model = trainable(classes=4)
    data = learnable(model, batches=4, size=64)
    list(fit(model, create("crmt_jt"), data, FitSettings(epochs=2, lr=0.05)))
    model.train()
    method = create("crmt_gradient", epsilon=0.2)
    step = one_step(model, next(iter(data(9))), method)
    found = gradients_of(method.loss(step).total, model)
    exact = gradients_of(differentiated_twice(step, 2.0, 0.2), model)
    plain = gradients_of(margin_loss(model(step.inputs), step.labels, 2.0).total, model)

    def cosine(other: Tensor) -> float:
        return float(torch.cosine_similarity(other, exact, dim=0))

    assert cosine(found) > 0.8 > 0.7 > cosine(plain)
    assert float(found.norm() / exact.norm()) == pytest.approx(1, abs=0.15)


def test_a_clip_without_a_gradient_stays_where_it_is() -> None:
    model = trainable(classes=4)
    with torch.no_grad():
        for p in model.encoders.parameters():
            p.zero_()
    method = create("crmt_gradient")
    terms = method.loss(one_step(model, next(iter(learnable(model)(1))), method))
    assert bool(terms.total.isfinite()) and float(terms.parts["gradient_norm"]) == 0


def test_the_gradient_method_has_the_loss_at_the_worst_point_of_a_small_ball(modalities: int) -> None:
    terms, step, _ = run("crmt_gradient", modalities, epsilon=1e-4)
    plain, _, _ = run("crmt_jt", modalities)
    names = list(step.model.modalities)
    inputs = {m: x.clone().requires_grad_() for m, x in step.inputs.items()}
    output = step.model(inputs)
    loss = cross_entropy(output.logits, step.labels) + 2.0 * naive(output.scores, step.labels)
    gradients = dict(zip(names, torch.autograd.grad(loss * 8, list(inputs.values())), strict=True))
    length = torch.stack([g.flatten(1).square().sum(1) for g in gradients.values()]).sum(0).sqrt()
    moved = {m: inputs[m] + 1e-4 * g / length.view(-1, *[1] * (g.ndim - 1)) for m, g in gradients.items()}
    there = step.model(moved)
    worst = cross_entropy(there.logits, step.labels) + 2.0 * naive(there.scores, step.labels)
    grown, expected = (float((loss - plain.total).detach()) for loss in (worst, terms.total))
    assert grown == pytest.approx(expected, rel=1e-2)


def test_unimodal_cross_entropy(modalities: int) -> None:
    terms, step, _ = run("ojt_unimodal_ce", modalities, unimodal_weight=0.7)
    output = step.model(step.inputs)
    expected = cross_entropy(output.logits, step.labels)
    for m in range(modalities):
        expected = expected + 0.7 * cross_entropy(output.scores[:, m], step.labels)
    torch.testing.assert_close(terms.total, expected)


@pytest.mark.parametrize("name", ["mixup", "crmt_mix"])
def test_mixing_methods(name: str, modalities: int) -> None:
    terms, step, spy = run(name, modalities, mixup_alpha=0.5)
    step.generator.manual_seed(0)
    drawn = mixed(step, 0.5)
    partner = {tuple(x.flatten().tolist()): i for i, x in enumerate(next(iter(step.inputs.values())))}
    assert len(partner) == 8
    order = [int(i) for i in _order(step, drawn.inputs, drawn.mix)]
    assert sorted(order) == list(range(8))
    for m, x in step.inputs.items():  # every modality by the same λ and the same partner
        torch.testing.assert_close(spy.inputs[m], drawn.mix * x + (1 - drawn.mix) * x[order])
    first, second = step.labels, step.labels[order]
    assert spy.output is not None
    logits, scores = spy.output.logits, spy.output.scores
    logs = logits - logits.exp().sum(1, keepdim=True).log()
    each = drawn.mix * logs.gather(1, first[:, None]) + (1 - drawn.mix) * logs.gather(1, second[:, None])
    expected = -each.mean()
    if name == "crmt_mix":
        expected = expected + 2 * naive_mixed(scores, first, second, drawn.mix)
    torch.testing.assert_close(terms.total, expected)


def _order(step: Step, found: Inputs, mix: float) -> Tensor:
    """Which input each was mixed with, by looking for it."""
    name, x = next(iter(step.inputs.items()))
    partners = ((found[name] - mix * x) / (1 - mix)).flatten(1)
    return torch.cdist(partners, x.flatten(1)).argmin(1)


@pytest.mark.parametrize("alpha", [0.3, 1.0, 4.0])
def test_lambda_follows_the_beta_distribution(alpha: float) -> None:
    _, step, _ = run("mixup", 1)
    drawn = torch.tensor([mixed(step, alpha).mix for _ in range(3000)], dtype=torch.float64)
    assert float(drawn.mean()) == pytest.approx(0.5, abs=0.03)
    assert float(drawn.var()) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)


@pytest.mark.parametrize("name", ["mmat", "crmt_at"])
def test_adversarial_methods(name: str, modalities: int) -> None:
    terms, step, spy = run(name, modalities, epsilon=0.4, attack_steps=5)
    output = step.model(spy.inputs)
    expected = cross_entropy(output.logits, step.labels)
    if name == "crmt_at":
        expected = expected + 2 * naive(output.scores, step.labels)
    torch.testing.assert_close(terms.total, expected)
    deltas = {m: spy.inputs[m] - x for m, x in step.inputs.items()}
    lengths = torch.cat([d.flatten(1) for d in deltas.values()], 1).norm(dim=1)
    assert float(lengths.max()) <= 0.4 + 1e-6
    assert float(lengths.min()) > 0.1
    for m, modality in step.model.modalities.items():
        if modality.box is not None:
            assert float(spy.inputs[m].min()) >= modality.box[0] - 1e-6
            assert float(spy.inputs[m].max()) <= modality.box[1] + 1e-6
    weaker = pgd(step.model, step.inputs, step.labels, Ball.joint(step.model.modalities, 0.4), steps=5).inputs
    for other in (step.inputs, weaker):
        assert expected > cross_entropy(step.model(other).logits, step.labels)


@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("names", [("audio",), ("audio", "video")])
def test_on_a_linear_model_the_training_attack_reaches_the_farthest_point(names: tuple[str, ...], scale: float) -> None:
    """Two classes, no box: x + ε along the weights' difference, in the attacked modalities; also where x is wrong, and
    on a confident model, where the gradient of the cross-entropy is 0."""
    model = linear_model("concat", (AUDIO, replace(VIDEO, box=None)), classes=2)
    with torch.no_grad():
        for m in model.head.modalities:
            model.head.weight(m).mul_(scale)
    inputs = random_inputs(model, 6)
    labels = torch.tensor([0, 1, 0, 1, 0, 1])
    found = adversarial(model, inputs, labels, Ball.joint(names, 0.8), 5)
    slopes = dict(zip(model.modalities, (v[1] - v[0] for v in effective_weights(model)), strict=True))
    length = torch.cat([slopes[m] for m in names]).norm()
    sign = (1 - 2 * labels)[:, None].double()
    for m, x in inputs.items():
        moved = 0.8 * sign * slopes[m] / length if m in names else torch.zeros(6, x[0].numel(), dtype=x.dtype)
        torch.testing.assert_close((found[m] - x).flatten(1), moved)


def test_the_training_attack_points_away_from_the_right_class_of_a_confident_model() -> None:
    """Float32, margins of about 25: the cross-entropy's gradient no longer sees h_y, since 1 − p_y is 0."""
    model = linear_model("concat", (AUDIO,), classes=3, dtype=torch.float32)
    inputs = random_inputs(model, 8)
    with torch.no_grad():
        clean = logit_margin(model(inputs).logits, labels := model(inputs).logits.argmax(1))
        for parameter in (model.head.bias, model.head.weight("audio")):
            parameter.mul_(25 / clean.median())
        before = logit_margin(model(inputs).logits, labels)
        found = adversarial(model, inputs, labels, Ball.joint(["audio"], 0.5), 5)
        gained = before - logit_margin(model(found).logits, labels)
        best = before - pgd(model, inputs, labels, Ball.joint(["audio"], 0.5), steps=20).margin
    assert float(before.median()) == pytest.approx(25, rel=1e-4)
    assert float((gained / best).min()) > 0.9


def test_the_training_attack_leaves_what_it_cannot_change() -> None:
    alone = linear_model("concat", 2, classes=1)
    inputs = random_inputs(alone, 3)
    found = adversarial(alone, inputs, torch.zeros(3, dtype=torch.long), Ball.joint(["audio"], 1.0), 3)
    assert all(torch.equal(found[m], x) and not found[m].requires_grad for m, x in inputs.items())
    model = linear_model("concat", 2)
    with torch.no_grad():
        model.head.weight("audio").zero_()
    found = adversarial(model, inputs, torch.tensor([0, 1, 2]), Ball.joint(["audio"], 1.0), 3)
    assert all(torch.equal(found[m], x) for m, x in inputs.items())


def test_the_training_attack_leaves_batch_norm_and_modes_alone() -> None:
    model = trainable("concat").train()
    batch = next(iter(learnable(model)(1)))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    adversarial(model, batch.inputs, batch.labels, Ball.joint(model.modalities, 0.5), 3)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(m.training for m in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_the_odd_one_out_method(modalities: int) -> None:
    terms, step, spy = run("msefm", modalities, epsilon=0.3, msefm_weight=0.5)
    perturbed = []
    for m, x in step.inputs.items():
        torch.testing.assert_close(spy.inputs[m][:8], x)
        perturbed.append((spy.inputs[m][8:] - x).flatten(1).norm(dim=1))
    lengths = torch.stack(perturbed, 1)
    assert torch.equal((lengths > 0).sum(1), torch.ones(8, dtype=torch.int64))  # one modality of each clip
    assert float(lengths.max()) <= 0.3 + 1e-6
    odd = lengths.argmax(1)
    assert len(set(odd.tolist())) == modalities  # every modality is somebody's
    output = step.model(spy.inputs)
    guesses = cast(OddOneOutHead, step.model.head).odd_one_out(output.features)
    which = torch.cat([torch.full((8,), modalities), odd])
    expected = cross_entropy(output.logits, torch.cat([step.labels, step.labels]))
    expected = expected + 0.5 * cross_entropy(guesses, which)
    torch.testing.assert_close(terms.total, expected)
    torch.testing.assert_close(terms.output.logits, step.model(step.inputs).logits)
    assert terms.output.features["audio"].shape == (8, 6)
