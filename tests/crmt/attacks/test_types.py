"""Every attack in every floating type: inputs in ball and box, and what the model says there."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from crmt.attacks import AttackSettings, Ball, attack, attack_names, minimal_norm, missing
from crmt.attacks.balls import moved
from crmt.errors import BadInputError
from crmt.losses import logit_margin
from crmt.methods._shared import adversarial
from crmt.modality import Inputs
from crmt.model import MultiModalModel

TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
NARROW = TYPES[:2]
BOXES = {"a": (-1.5, 1.5), "b": (0.0, 0.7)}
"""No 16-bit float is 0.7."""
SETTINGS = AttackSettings(steps=3, targets=1, queries=20)


def case(kind: torch.dtype, boxed: bool) -> tuple[MultiModalModel, Inputs, Tensor]:
    """The same small model and inputs in each type."""
    torch.manual_seed(0)
    inputs = {"a": torch.randn(24, 10), "b": torch.rand(24, 2, 5, 5)}
    if boxed:
        inputs = {m: x.clamp(*BOXES[m]) for m, x in inputs.items()}
    encoders: dict[str, nn.Module] = {
        "a": nn.Sequential(nn.Linear(10, 16), nn.Tanh()),
        "b": nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(36, 8)),
    }
    given = {m: x.to(kind) for m, x in inputs.items()}
    model = MultiModalModel.around(
        {m: copy.deepcopy(e).to(kind) for m, e in encoders.items()},
        given,
        4,
        head="concat",
        boxes=BOXES if boxed else None,
    )
    with torch.no_grad():
        labels = model(given).logits.argmax(1)
    labels[::6] = (labels[::6] + 1) % 4
    return model, given, labels


def length(deltas: list[Tensor], norm: str) -> Tensor:
    flat = torch.cat([d.flatten(1) for d in deltas], 1)
    return flat.norm(dim=1) if norm == "l2" else flat.abs().amax(1)


def balls(norm: Literal["l2", "linf"]) -> dict[str, tuple[Ball, Callable[[Inputs], Tensor]]]:
    """Each with its own measure of how far out a δ is, in float64: 1 at the edge."""
    size = 0.15 if norm == "l2" else 0.01
    each = torch.linspace(0, 2 * size, 24)
    wide = each.double().clamp_min(1e-12)
    return {
        "joint": (Ball.joint(["a", "b"], size, norm), lambda d: length([d["a"], d["b"]], norm) / size),
        "one": (Ball.joint(["b"], size, norm), lambda d: length([d["b"]], norm) / size),
        "product": (
            Ball.product({"a": size, "b": each}, norm),
            lambda d: torch.maximum(length([d["a"]], norm) / size, length([d["b"]], norm) / wide),
        ),
    }


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("kind", TYPES, ids=str)
@pytest.mark.parametrize("name", attack_names())
def test_inputs_lie_in_ball_and_box_and_the_verdict_is_the_models(
    name: str, kind: torch.dtype, norm: Literal["l2", "linf"]
) -> None:
    for boxed, which in ((False, "joint"), (True, "product"), (True, "one")):
        model, inputs, labels = case(kind, boxed)
        ball, measure = balls(norm)[which]
        found = attack(name, model, inputs, labels, ball, settings=SETTINGS, generator=torch.Generator().manual_seed(1))
        assert all(x.dtype == kind and bool(x.isfinite().all()) for x in found.inputs.values())
        far = measure({m: x.double() - inputs[m].double() for m, x in found.inputs.items()})
        assert float(far.max()) <= 1 + 1e-5
        if boxed:
            for m, x in found.inputs.items():
                low, high = BOXES[m]
                # x itself may be what the type has for the edge of its box
                assert float(x.double().max()) <= max(high, float(inputs[m].max()))
                assert float(x.double().min()) >= min(low, float(inputs[m].min()))
        assert set(ball.attacked) >= {m for m, x in found.inputs.items() if not torch.equal(x, inputs[m])}
        with torch.no_grad():
            margin = logit_margin(model(found.inputs).logits, labels)
        assert torch.equal(~(margin > 0), found.broken)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("kind", NARROW, ids=str)
def test_few_digits_cost_an_attack_little(kind: torch.dtype, norm: Literal["l2", "linf"]) -> None:
    """What it breaks is about what it breaks in float32."""
    shares = {}
    for each in (torch.float32, kind):
        model, inputs, labels = case(each, False)
        ball = Ball.joint(["a", "b"], 0.4 if norm == "l2" else 0.06, norm)
        for name in ("pgd", "square"):
            found = attack(name, model, inputs, labels, ball, settings=AttackSettings(queries=100))
            shares[each, name] = float(found.broken.float().mean())
    for name in ("pgd", "square"):
        assert 0.2 < shares[torch.float32, name] < 0.95
        assert abs(shares[kind, name] - shares[torch.float32, name]) < 2.5 / 24  # two clips


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_the_nearest_adversarial_inputs_are_adversarial(kind: torch.dtype, norm: Literal["l2", "linf"]) -> None:
    model, inputs, labels = case(kind, True)
    found = minimal_norm(model, inputs, labels, Ball.joint(["a", "b"], 1.0, norm), steps=10)
    wide, wide_inputs, _ = case(torch.float64, True)
    exact = minimal_norm(wide, wide_inputs, labels, Ball.joint(["a", "b"], 1.0, norm), steps=10)
    reached = found.radius.isfinite()
    assert float(reached.float().mean()) > 0.8
    with torch.no_grad():
        margin = logit_margin(model(found.inputs).logits, labels)
    assert not bool((margin[reached] > 0).any())
    far = length([x.double() - inputs[m].double() for m, x in found.inputs.items()], norm)
    assert bool((far <= found.radius.double() * (1 + 1e-5) + 1e-12)[reached].all())
    both = reached & exact.radius.isfinite() & (exact.radius > 0.05)
    torch.testing.assert_close(found.radius[both].double().median(), exact.radius[both].median(), rtol=0.1, atol=0)


@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_training_attacks_stay_inside_too(kind: torch.dtype) -> None:
    model, inputs, labels = case(kind, True)
    found = adversarial(model, inputs, labels, Ball.joint(["a", "b"], 0.05), 3)
    far = length([x.double() - inputs[m].double() for m, x in found.items()], "l2")
    assert 0.01 < float(far.max()) <= 0.05 * (1 + 1e-5)
    gone = missing(model, inputs, labels, ["a"])
    assert gone.inputs["a"].dtype == kind and bool(gone.margin.isfinite().all())


@pytest.mark.parametrize("kind", NARROW, ids=str)
def test_a_sum_is_rounded_towards_x(kind: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(0)
    scale = 10.0 ** torch.randint(-8, 4, (20000,), generator=draw)
    x = (torch.randn(20000, generator=draw) * scale).to(kind)
    delta = torch.randn(20000, generator=draw) * scale.roll(1)
    found = moved(x, delta)
    step = found.double() - x.double()
    assert bool((step.abs() <= delta.double().abs() * (1 + 1e-6)).all())
    assert not bool(((step != 0) & (step.sign() != delta.double().sign())).any())
    further = torch.nextafter(found, torch.where(delta > 0, torch.inf, -torch.inf).to(kind))
    beyond = (further.double() - x.double()).abs() >= delta.double().abs() * (1 - 1e-6)
    assert bool(beyond[delta != 0].all())  # and by no more than that
    assert bool(moved(x, delta * 1e30).isfinite().all())


def test_other_types_are_refused() -> None:
    model, inputs, labels = case(torch.float32, False)
    with pytest.raises(BadInputError, match=r"'a' is float8_e4m3fn: attacks take float16, bfloat16"):
        attack("pgd", model, inputs | {"a": inputs["a"].to(torch.float8_e4m3fn)}, labels, Ball.joint(["a"], 0.1))


def test_each_is_every_modalitys_own_ball() -> None:
    """As `balls: [each]` of a configuration."""
    found = Ball.each(["a", "b"], 0.3, "linf")
    assert found == {m: Ball.joint([m], 0.3, "linf") for m in ("a", "b")}
    model, inputs, labels = case(torch.float32, False)
    for m, ball in found.items():
        moved_inputs = attack("pgd", model, inputs, labels, ball, settings=SETTINGS).inputs
        assert [n for n in inputs if not torch.equal(moved_inputs[n], inputs[n])] == [m]
