"""Gradients that are 0, that are not there and that are not numbers: attacks and τ; and points that rounding moves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crmt.attacks import AttackSettings, Ball, apgd, attack, auto, minimal_norm, pgd, square
from crmt.certificates.estimate import estimated_radii, gradient_constants
from crmt.errors import BadInputError
from crmt.integration import optimise_integration
from crmt.methods._shared import adversarial
from crmt.modality import Batch, Inputs
from crmt.model import MultiModalModel
from tests.crmt.attacks.test_gradient import NORMS, Norm
from tests.crmt.attacks.test_strong import seeded
from tests.crmt.tiny import linear_model, mostly_right, random_inputs

GRADIENT_ATTACKS = ("fgm", "pgd", "apgd_ce", "apgd_dlr", "minimal_norm", "auto")


class Body(nn.Module):
    """Some function in front of a linear layer."""

    def __init__(self, function: Callable[[Tensor], Tensor], size: int, features: int = 8) -> None:
        super().__init__()
        self.function, self.linear = function, nn.Linear(size, features)

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.linear(self.function(x.flatten(1)))
        return features


def of(function: Callable[[Tensor], Tensor], inputs: Inputs, classes: int = 4) -> MultiModalModel:
    """An untrained model whose first encoder has that function in front; the others are linear."""
    torch.manual_seed(0)
    functions = [function, *[nn.Identity()] * (len(inputs) - 1)]
    encoders = {m: Body(f, x[0].numel()) for f, (m, x) in zip(functions, inputs.items(), strict=True)}
    return MultiModalModel.around(encoders, inputs, classes)


def predicted(model: MultiModalModel, inputs: Inputs) -> Tensor:
    with torch.no_grad():
        return model.eval()(inputs).logits.argmax(1)


def frozen(x: Tensor) -> Tensor:
    with torch.no_grad():
        return x.tanh()


def test_inference_mode_is_refused_where_gradients_are_needed() -> None:
    inputs = {"a": torch.randn(8, 5), "b": torch.randn(8, 3)}
    model = of(torch.tanh, inputs)
    labels, ball = predicted(model, inputs), Ball.joint(["a", "b"], 5.0)
    with torch.no_grad():
        assert bool(pgd(model, inputs, labels, ball).broken.all())
        gradient_constants(model, [Batch(inputs, labels)])
    with torch.inference_mode():
        for name in GRADIENT_ATTACKS:
            with pytest.raises(BadInputError, match="inference_mode"):
                attack(name, model, inputs, labels, ball)
        with pytest.raises(BadInputError, match="inference_mode"):
            gradient_constants(model, [Batch(inputs, labels)])
        square(model, inputs, labels, ball, queries=5, generator=seeded())  # needs none


def test_an_encoder_that_gives_no_gradient_is_refused_and_not_called_robust() -> None:
    inputs = {"a": torch.randn(8, 5), "b": torch.randn(8, 3)}
    model = of(frozen, inputs)
    labels = predicted(model, inputs)
    for ball in (Ball.joint(["a"], 1.0), Ball.joint(["a", "b"], 1.0)):
        for name in GRADIENT_ATTACKS:
            with pytest.raises(BadInputError, match=r"'a', but there is no gradient.*requires_grad_"):
                attack(name, model, inputs, labels, ball)
        with pytest.raises(BadInputError, match="no gradient"):
            adversarial(model, inputs, labels, ball, 2)
    with pytest.raises(BadInputError, match="no gradient"):
        gradient_constants(model, [Batch(inputs, labels)])
    assert bool(pgd(model, inputs, labels, Ball.joint(["b"], 9.0)).broken.any())  # b alone has one


def test_a_modality_that_the_scores_ignore_has_radius_infinity() -> None:
    inputs = {"a": torch.randn(8, 5), "b": torch.randn(8, 3)}
    model = of(lambda x: torch.ones_like(x), inputs)
    labels = predicted(model, inputs)
    constants = gradient_constants(model, [Batch(inputs, labels)])
    assert bool((constants.tau[0] == 0).all()) and bool((constants.tau[1] > 0).all())
    radii = estimated_radii(model.head, model(inputs).scores.detach(), labels, constants)
    assert bool(radii.unimodal[:, 0].isinf().all())
    assert not bool(pgd(model, inputs, labels, Ball.joint(["a"], 9.0)).broken.any())


@pytest.mark.parametrize("run", [pgd, apgd, auto, lambda *given, generator: minimal_norm(*given, generator=generator)])
def test_where_the_gradient_is_zero_attacks_go_on_at_random(run: Callable[..., Any]) -> None:
    """Silence in front of a power spectrum: x² has no gradient at 0."""
    inputs = {"a": torch.zeros(16, 40), "b": torch.zeros(16, 3)}
    model = of(torch.square, inputs)
    labels, ball = predicted(model, inputs), Ball.joint(["a"], 6.0)
    assert bool(attack("pgd", model, inputs, labels, ball, settings=AttackSettings(restarts=3)).broken.all())
    found = run(model, inputs, labels, ball, generator=seeded())
    moved = found.inputs["a"].flatten(1).norm(dim=1)
    assert bool((predicted(model, found.inputs) != labels).all()) and bool(moved.isfinite().all())


def test_auto_looks_behind_a_threshold() -> None:
    """Only one coordinate has a gradient at x, and it alone changes nothing."""
    inputs = {"a": torch.zeros(12, 30)}
    inputs["a"][:, 0] = 1.0
    model = of(lambda x: F.softshrink(x, 0.05), inputs, classes=2)
    body, weight = model.encoders["a"].linear, model.head.weight("a")
    read = torch.zeros(2, 30)
    read[0, 0], read[1, 1:] = 1.0, 4.0  # class 0 sees the first coordinate, class 1 all others
    with torch.no_grad():
        body.bias.zero_()
        body.weight.copy_(weight.T @ read)  # the head's rows are orthonormal
    labels, ball = predicted(model, inputs), Ball.joint(["a"], 0.45)
    assert bool((labels == 0).all()) and not bool(pgd(model, inputs, labels, ball, steps=60).broken.any())
    assert bool(auto(model, inputs, labels, ball, generator=seeded()).broken.all())


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("offset", [1e4, 1e6])
def test_rounding_takes_no_point_out_of_the_ball(norm: Norm, offset: float) -> None:
    inputs = {"a": offset + torch.randn(12, 50), "b": torch.randn(12, 3)}
    model = of(lambda x: (x - offset).tanh(), inputs)
    labels = predicted(model, inputs)
    for epsilon in (0.1, 1.0):
        ball = Ball.joint(["a", "b"], epsilon, norm)
        for name in (*GRADIENT_ATTACKS, "square", "noise"):
            found = attack(name, model, inputs, labels, ball, generator=seeded())
            moved = {m: (found.inputs[m].double() - inputs[m].double()) for m in inputs}
            assert float(ball.gauge(moved).max()) <= 1 + 1e-4, name
            with torch.no_grad():
                wrong = model(found.inputs).logits.argmax(1) != labels
            assert bool((wrong <= found.broken).all()) and bool((found.broken <= wrong | (found.margin == 0)).all())


def test_adversarial_training_leaves_out_gradients_that_are_no_numbers() -> None:
    inputs = {"a": torch.randn(8, 6), "b": torch.randn(8, 3)}
    inputs["a"][:4, :3] = 0

    def length(x: Tensor) -> Tensor:
        return x.unflatten(1, (2, 3)).square().sum(2).sqrt().repeat(1, 3)  # at 0 its gradient is NaN

    model = of(length, inputs)
    moved = adversarial(model, inputs, predicted(model, inputs), Ball.joint(["a", "b"], 0.5), 3)
    assert all(bool(x.isfinite().all()) for x in moved.values()) and not torch.equal(moved["a"][4:], inputs["a"][4:])


def test_step_2_works_where_gradients_are_off_and_tau_skips_empty_batches() -> None:
    model = linear_model("orthogonal", 2, classes=4)
    inputs = random_inputs(model, 30)
    labels = mostly_right(model, inputs)
    whole = gradient_constants(model, [Batch(inputs, labels)])
    nothing = Batch({m: x[:0] for m, x in inputs.items()}, labels[:0])
    assert torch.equal(gradient_constants(model, [nothing, Batch(inputs, labels)]).tau, whole.tau)
    with torch.no_grad():
        given = (model(inputs).scores, labels, model.head.bias, whole.tau, model.head.integration)
        inside = optimise_integration(*given)
    assert torch.equal(inside.weights, optimise_integration(*(t.detach() for t in given)).weights)
