"""Orthonormal rows by Cholesky: exact for bad matrices too, differentiable twice, copied, read from earlier files."""

from __future__ import annotations

import copy
import pickle
import warnings
from pathlib import Path
from typing import cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal

from crmt.checkpoint import load_model, load_state, save_model, save_state
from crmt.errors import CRMTWarning
from crmt.fit import FitSettings, fit
from crmt.heads import OrthogonalHead
from crmt.methods import create
from crmt.model import MultiModalModel, evaluating
from crmt.orthonormal import OrthonormalLinear, orthonormal_rows
from tests.crmt.tiny import learnable, random_inputs, spec, trainable


def gram_error(rows: Tensor) -> float:
    return float((rows.double() @ rows.double().mT - torch.eye(len(rows))).abs().max())


def with_condition(kappa: float, rows: int, width: int) -> Tensor:
    """A float32 matrix of that condition number, whose rows mix all directions."""
    draw = torch.Generator().manual_seed(0)
    left = torch.linalg.qr(torch.randn(rows, rows, generator=draw, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(width, rows, generator=draw, dtype=torch.float64)).Q
    exponents = torch.linspace(0, -1, rows, dtype=torch.float64)
    return ((left * kappa**exponents) @ right.mT).float()


@pytest.mark.parametrize("kappa", [1, 1e3, 1e5])
@pytest.mark.parametrize(("rows", "width"), [(1, 3), (8, 8), (309, 512)])
def test_rows_are_orthonormal_also_where_the_matrix_is_badly_conditioned(kappa: float, rows: int, width: int) -> None:
    assert gram_error(orthonormal_rows(with_condition(kappa, rows, width))) < 1e-6


@given(st.integers(1, 6), st.integers(0, 4), st.integers(0, 10_000), st.floats(1e-6, 1e6))
def test_they_are_the_q_factor_whatever_the_lengths_of_rows(rows: int, more: int, seed: int, length: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    free = torch.randn(rows, rows + more, generator=draw, dtype=torch.float64)
    found = orthonormal_rows(free * length * torch.rand(rows, 1, generator=draw, dtype=torch.float64).add(0.01))
    q, r = torch.linalg.qr(free.mT)
    torch.testing.assert_close(found, (q * r.diagonal().sign()).mT, rtol=1e-5, atol=1e-5)
    assert gram_error(found) < 1e-10


def test_dependent_rows_give_finite_ones_with_finite_gradients() -> None:
    free = torch.randn(4, 6)
    free[2] = free[0] + free[1]
    free.requires_grad_()
    rows = orthonormal_rows(free)
    rows.square().sum().backward()
    assert free.grad is not None
    assert bool(rows.isfinite().all() and free.grad.isfinite().all())


@pytest.mark.parametrize("shape", [(1, 3), (4, 4), (3, 7)])
def test_first_and_second_derivatives(shape: tuple[int, int]) -> None:
    free = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(orthonormal_rows, free)
    assert torch.autograd.gradgradcheck(orthonormal_rows, free)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_autocast_and_reduced_products_do_not_reach_the_factorisation(dtype: torch.dtype) -> None:
    free = torch.randn(31, 64).to(dtype)
    expected = orthonormal_rows(free)
    assert expected.dtype == dtype
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(orthonormal_rows(free), expected)
    finally:
        torch.set_float32_matmul_precision("highest")


def test_copies_and_pickles_of_a_held_layer_are_whole_and_not_held() -> None:
    layer = OrthonormalLinear(torch.randn(3, 5))
    with layer.held():
        held = layer.weight
        assert layer.weight is held and not held.requires_grad
        others = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))]
    assert layer.weight.requires_grad
    for other in others:
        assert torch.equal(other.weight, layer.weight)
        with torch.no_grad():
            other.free.add_(torch.randn(3, 5))
        assert not torch.allclose(other.weight, layer.weight)


def test_evaluation_computes_the_rows_once() -> None:
    model = trainable()
    with evaluating(model):
        assert model.head.weight("audio") is model.head.weight("audio")
    assert model.head.weight("audio") is not model.head.weight("audio")


def test_a_compiled_head_gives_the_same_scores_and_gradients() -> None:
    head = OrthogonalHead({"a": 8}, 4)
    features = torch.randn(5, 8)

    def gradient(module: nn.Module) -> tuple[Tensor, Tensor]:
        head.zero_grad()
        scores = module({"a": features})
        scores.square().sum().sin().backward()
        return scores.detach(), cast(Tensor, cast(OrthonormalLinear, head.linears["a"]).free.grad).clone()

    class Scores(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = head

        def forward(self, given: dict[str, Tensor]) -> Tensor:
            return self.head.scores(given)

    compiled = cast(nn.Module, torch.compile(Scores(), backend="aot_eager"))
    torch.testing.assert_close(gradient(compiled), gradient(Scores()))


class _UnitDiagonal(nn.Module):
    """What earlier versions put before torch's reflections, so that weight decay did not reach their signs."""

    def forward(self, raw: Tensor) -> Tensor:
        return raw.diagonal_scatter(raw.diagonal().sign())

    def right_inverse(self, raw: Tensor) -> Tensor:
        return raw


def earlier(model: MultiModalModel) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The state that an earlier version would have kept of such a model, and the weights of its head."""
    state = {k: v for k, v in model.state_dict().items() if not k.endswith(".free")}
    weights = {}
    for i, m in enumerate(model.modalities):
        torch.manual_seed(i)
        layer = orthogonal(nn.Linear(model.head.weight(m).shape[1], model.head.classes, bias=False))
        parametrizations = cast(nn.ModuleList, cast(nn.ModuleDict, layer.parametrizations)["weight"])
        parametrizations.insert(0, _UnitDiagonal())
        with torch.no_grad():  # as training would have moved it, the signs decayed
            cast(Tensor, parametrizations.original).add_(0.2 * torch.randn(layer.weight.shape))
        state |= {f"head.linears.{m}.{k}": v for k, v in layer.state_dict().items()}
        weights[m] = layer.weight.detach().clone()
    return state, weights


@pytest.mark.parametrize("features", [8, 16])
def test_what_earlier_versions_saved_gives_the_same_weights(features: int, tmp_path: Path) -> None:
    described = spec(features=features)
    model = trainable(features=features)
    state, weights = earlier(model)
    kept = dict(state)
    model.load_state_dict(state)
    assert state.keys() == kept.keys()
    for m, weight in weights.items():
        torch.testing.assert_close(model.head.weight(m), weight, rtol=0, atol=1e-6)
    save_model(tmp_path, model, described, {})
    again, _, _ = load_model(tmp_path)
    inputs = random_inputs(model.eval(), 3)
    torch.testing.assert_close(again(inputs).scores, model(inputs).scores)


def test_a_model_that_an_earlier_version_wrote_to_disk_is_read(tmp_path: Path) -> None:
    model = trainable()
    state, weights = earlier(model)

    class Earlier(MultiModalModel):
        def state_dict(self, *args: object, **kwargs: object) -> dict[str, Tensor]:  # type: ignore[override]
            return state

    model.__class__ = Earlier
    save_model(tmp_path, model, spec(), {})
    found, _, _ = load_model(tmp_path)
    for m, weight in weights.items():
        torch.testing.assert_close(found.head.weight(m), weight, rtol=0, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_training_goes_on_from_an_earlier_version_with_fresh_momentum_of_its_rows(
    optimizer: str, tmp_path: Path
) -> None:
    model = trainable()
    settings = FitSettings(epochs=2, lr=0.01, optimizer=optimizer)  # type: ignore[arg-type]
    first = next(iter(fit(model, create("crmt_jt"), learnable(model), settings))).state()
    first["model"], weights = earlier(model)
    save_state(tmp_path, first)
    second = trainable()
    with pytest.warns(CRMTWarning, match=r"momentum of head.linears.audio.free, head.linears.video.free begins anew"):
        (result,) = fit(second, create("crmt_jt"), learnable(second), settings, state=load_state(tmp_path))
    assert result.epoch == 2
    # the same training with the weights taken over by hand and those momenta dropped
    third = trainable()
    state = {**first, "model": {k: v for k, v in first["model"].items() if "parametrizations" not in k}}
    for m, weight in weights.items():
        state["model"][f"head.linears.{m}.free"] = 0.5 * weight
    names = [n for n, p in third.named_parameters() if n.startswith("encoders.") and p.ndim > 1]
    names += [n for n, _ in third.named_parameters() if n not in names]
    gone = {i for i, n in enumerate(names) if n.endswith(".free")}
    entries = {i: e for i, e in first["optimizer"]["state"].items() if i not in gone}
    assert len(entries) == len(first["optimizer"]["state"]) - 2
    state["optimizer"] = {**first["optimizer"], "state": entries}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(fit(third, create("crmt_jt"), learnable(third), settings, state=state))
    for name, value in third.state_dict().items():
        torch.testing.assert_close(second.state_dict()[name], value, rtol=1e-5, atol=1e-5, msg=name)
