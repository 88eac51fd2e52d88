"""Warnings of what can be computed but means nothing: models that are random in evaluation, radii without end."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crmt.attacks import Ball, pgd
from crmt.certificates.estimate import estimated_radii, gradient_constants
from crmt.certificates.radius import radii
from crmt.errors import CRMTWarning
from crmt.modality import Batch
from crmt.model import MultiModalModel
from crmt.predictions import predict
from crmt.randomness import generator_on

INPUTS = {"a": torch.randn(12, 10, generator=torch.Generator().manual_seed(0))}
LABELS = torch.arange(12) % 3
BATCH = Batch(INPUTS, LABELS)


class LeftOn(nn.Module):
    """A dropout that does not ask for the mode."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.linear, self.share = nn.Linear(10, 8), share

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.linear(x), self.share)


class Noisy(LeftOn):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.share * torch.rand(len(x), 8).to(x)


def model_of(encoder: nn.Module) -> MultiModalModel:
    torch.manual_seed(0)
    return MultiModalModel.around({"a": encoder}, INPUTS, 3)


USES = {
    "predict": lambda model: predict(model, [BATCH]),
    "pgd": lambda model: pgd(model, INPUTS, LABELS, Ball.joint(["a"], 0.1), steps=1),
    "tau": lambda model: gradient_constants(model, [BATCH]),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("kind", [LeftOn, Noisy])
def test_a_model_that_is_random_in_evaluation_is_warned_of_once(kind: type[LeftOn], use: str) -> None:
    model = model_of(kind(0.3))
    with pytest.warns(CRMTWarning, match=r"the model is random in evaluation: two passes of the same inputs"):
        USES[use](model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for again in USES.values():
            again(model)


@pytest.mark.parametrize("use", USES)
def test_a_model_that_is_random_in_training_alone_is_not(use: str) -> None:
    model = model_of(nn.Sequential(nn.Linear(10, 8), nn.Dropout(0.5), nn.BatchNorm1d(8))).train()
    before = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        USES[use](model)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_tau_of_0_and_endless_radii_are_warned_of() -> None:
    model = model_of(nn.Sequential(nn.Linear(10, 8), nn.Tanh()))
    found = predict(model, [BATCH])
    right = found.logits(model.head).argmax(1)
    tau = gradient_constants(model, [BATCH])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert bool(estimated_radii(model.head, found.scores, right, tau).joint.isfinite().all())
    with torch.no_grad():
        model.encoders["a"][0].weight.zero_()  # type: ignore[index,union-attr,operator]
        model.head.bias.copy_(torch.tensor([2.0, 0.0, 0.0]))
    collapsed = predict(model, [BATCH])
    nothing = gradient_constants(model, [BATCH])
    first = collapsed.logits(model.head).argmax(1)
    with pytest.warns(CRMTWarning, match=r"the constants of a are 0, .* and 12 of 12 joint radii are infinite"):
        assert bool(estimated_radii(model.head, collapsed.scores, first, nothing).joint.isinf().all())


def test_one_class_is_no_reason_to_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        radii("estimate", ("a",), torch.ones(2, 1, 1), torch.zeros(1), torch.zeros(2).long(), torch.zeros(1, 1, 1))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16], ids=str)
def test_radii_of_small_types_are_computed_in_float32(kind: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(0)
    given = [torch.randn(9, 2, 4, generator=draw), torch.randn(4, generator=draw), torch.rand(2, 4, 4, generator=draw)]
    small = [t.to(kind) for t in given]
    labels = (small[0].float().sum(1) + small[1].float()).argmax(1)
    found = radii("estimate", ("a", "b"), small[0], small[1], labels, small[2])
    exact = radii("estimate", ("a", "b"), small[0].double(), small[1].double(), labels, small[2].double())
    assert found.joint.dtype == torch.float32
    torch.testing.assert_close(found.joint.double(), exact.joint, rtol=1e-5, atol=1e-6)


def test_a_generator_draws_where_it_is_wanted() -> None:
    generator = torch.Generator().manual_seed(3)
    assert generator_on(torch.device("cpu"), generator) is generator


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_equal_seeds_give_equal_numbers_on_a_gpu_and_each_call_others() -> None:
    device = torch.device("cuda")
    drawn = []
    for _ in range(2):
        generator = torch.Generator().manual_seed(3)
        for _ in range(2):
            drawn.append(torch.randn(5, generator=generator_on(device, generator), device=device))
    assert torch.equal(drawn[0], drawn[2]) and torch.equal(drawn[1], drawn[3])
    assert not torch.equal(drawn[0], drawn[1])
