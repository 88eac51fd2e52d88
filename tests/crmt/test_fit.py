"""Training: orthonormal rows after every step, exact resuming, schedules, errors, and two workers that train as one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from math import cos, pi
from pathlib import Path
from typing import cast

import pytest
import torch
import torch.multiprocessing
from safetensors.torch import load_file
from torch import Tensor, nn

from crmt.checkpoint import load_state, save_state
from crmt.errors import CRMTError
from crmt.fit import Batch, EpochResult, FitSettings, fit
from crmt.heads import OrthogonalHead
from crmt.methods import create
from crmt.methods.base import Method
from crmt.model import MultiModalModel, Output
from tests.crmt.test_heads import gram_error
from tests.crmt.tiny import learnable, linear_model, trainable
from tests.crmt.two_processes import METHODS, RANKS, batch_norm, norm_problem, train, work


class Watch(nn.Module):
    """Looks at the rows of the head at every forward pass, that is after every optimiser step before it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = cast(MultiModalModel, model)
        self.errors: list[float] = []

    def forward(self, inputs: Mapping[str, Tensor]) -> Output:
        self.errors.append(gram_error(cast(OrthogonalHead, self.model.head)))
        return cast(Output, self.model(inputs))


@pytest.mark.parametrize(("classes", "features", "lr"), [(8, 8, 0.05), (8, 16, 0.5), (31, 64, 0.1)])
def test_rows_are_orthonormal_after_every_step(classes: int, features: int, lr: float) -> None:
    model = trainable("orthogonal", 2, classes=classes, features=features)
    first = model.head.weight("audio").detach().clone()
    watches: list[Watch] = []

    def watch(module: nn.Module) -> nn.Module:
        watches.append(Watch(module))
        return watches[0]

    settings = FitSettings(epochs=3, lr=lr, weight_decay=1e-2)
    results = list(fit(model, create("crmt_jt"), learnable(model, batches=4), settings, wrap=watch))
    assert len(results) == 3
    assert len(watches[0].errors) == 12
    assert max(*watches[0].errors, gram_error(cast(OrthogonalHead, model.head))) < 1e-5
    assert float((model.head.weight("audio") - first).detach().abs().max()) > 1e-3


@pytest.mark.parametrize("name", ["jt", "crmt_jt"])
def test_training_learns(name: str, modalities: int) -> None:
    method = create(name)
    model = trainable(method.head, modalities, classes=4)
    results = list(fit(model, method, learnable(model, batches=6), FitSettings(epochs=6, lr=0.05)))
    assert [r.epoch for r in results] == [1, 2, 3, 4, 5, 6]
    assert results[-1].metrics["loss"] < results[0].metrics["loss"]
    assert results[-1].metrics["train_accuracy"] > 0.8
    expected = {"loss", "cross_entropy", "train_accuracy", "lr", "seconds"}
    assert set(results[0].metrics) == expected | ({"margin_term"} if name == "crmt_jt" else set())
    if name == "crmt_jt":
        last = results[-1].metrics
        assert last["loss"] == pytest.approx(last["cross_entropy"] + 2 * last["margin_term"], rel=1e-4)


@pytest.mark.parametrize("name", ["jt", "crmt_jt"])
@pytest.mark.parametrize("stop", [1, 3])
def test_resuming_from_disk_equals_an_undisturbed_run(name: str, stop: int, tmp_path: Path) -> None:
    method, settings = create(name), FitSettings(epochs=5, lr=0.05)
    whole = trainable(method.head)
    undisturbed = list(fit(whole, method, learnable(whole), settings))

    first = trainable(method.head)
    for result in fit(first, method, learnable(first), settings):
        if result.epoch == stop:
            save_state(tmp_path, result.state())
            break
    second = trainable(method.head)
    with torch.no_grad():  # what is loaded must replace everything
        for p in second.head.parameters():
            p.add_(1) if p.ndim == 1 else None
    resumed = list(fit(second, method, learnable(second), settings, state=load_state(tmp_path)))
    assert [r.epoch for r in resumed] == list(range(stop + 1, 6))
    for old, new in zip(undisturbed[stop:], resumed, strict=True):
        assert new.metrics["loss"] == pytest.approx(old.metrics["loss"], rel=1e-6)
    for key, value in whole.state_dict().items():
        torch.testing.assert_close(second.state_dict()[key], value, rtol=1e-6, atol=1e-6, msg=key)


def test_a_finished_state_yields_nothing_more() -> None:
    model, settings = trainable(), FitSettings(epochs=2, lr=0.05)
    last = list(fit(model, create("crmt_jt"), learnable(model), settings))[-1]
    assert list(fit(model, create("crmt_jt"), learnable(model), settings, state=last.state())) == []


def test_same_seed_same_weights() -> None:
    def run() -> dict[str, Tensor]:
        model = trainable()
        list(fit(model, create("crmt_jt"), learnable(model), FitSettings(epochs=2, lr=0.05)))
        return model.state_dict()

    second = run()
    assert all(torch.equal(v, second[k]) for k, v in run().items())


def test_the_cosine_schedule() -> None:
    settings = FitSettings(epochs=10, lr=0.4)
    assert settings.lr_at(1) == 0.4
    assert settings.lr_at(6) == pytest.approx(0.2)
    assert settings.lr_at(10) == pytest.approx(0.2 * (1 + cos(0.9 * pi)))
    rates = [settings.lr_at(e) for e in range(1, 11)]
    assert rates == sorted(rates, reverse=True)
    assert min(rates) > 0


def test_the_step_schedule() -> None:
    settings = FitSettings(epochs=140, lr=1e-3, schedule="step", step_every=60)
    assert [settings.lr_at(e) for e in (1, 60, 61, 120, 121, 140)] == pytest.approx(
        [1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5]
    )


def test_the_schedule_is_what_the_optimiser_uses() -> None:
    """Plain SGD, one batch an epoch: a bias moves by exactly lr · gradient."""
    model = linear_model("concat", 1)
    batch = next(iter(learnable(model, batches=1)(1)))
    batch = Batch({m: x.double() for m, x in batch.inputs.items()}, batch.labels)
    settings = FitSettings(epochs=3, lr=0.1, momentum=0.0, weight_decay=0.0)
    before = model.head.bias.detach().clone()
    for result in fit(model, create("jt"), lambda _: [batch], settings):
        assert model.head.bias.grad is not None
        torch.testing.assert_close(model.head.bias, before - settings.lr_at(result.epoch) * model.head.bias.grad)
        assert result.metrics["lr"] == settings.lr_at(result.epoch)
        before = model.head.bias.detach().clone()


def test_weight_decay_leaves_orthogonal_weights_biases_and_integration_alone() -> None:
    """With a zero gradient only decay moves weights, and it moves the encoders alone."""

    class Nothing(Method):
        title, head = "nothing", "orthogonal"

        def loss(self, forward, inputs, labels):  # type: ignore[no-untyped-def]
            output = forward(inputs)
            zero = 0 * output.logits.sum()
            return create("jt").loss(forward, inputs, labels)._replace(total=zero, parts={}, output=output)

    model = trainable()
    before = {k: v.detach().clone() for k, v in model.named_parameters()}
    list(fit(model, Nothing(), learnable(model), FitSettings(epochs=1, lr=0.1, weight_decay=0.1)))
    for name, parameter in model.named_parameters():
        moved = not torch.equal(parameter, before[name])
        assert moved == (name.startswith("encoders.") and parameter.ndim > 1), name


def poisoned(model: MultiModalModel, epoch: int) -> Iterator[Batch]:
    for batch in learnable(model)(epoch):
        yield batch._replace(inputs={m: x * (float("nan") if epoch == 2 else 1) for m, x in batch.inputs.items()})


def test_a_loss_that_is_not_finite_stops_and_names_the_epoch() -> None:
    model = trainable()
    seen: list[EpochResult] = []
    with pytest.raises(CRMTError, match=r"the loss is nan in epoch 2: lower train.lr \(now 0.05\)"):
        for result in fit(model, create("crmt_jt"), lambda e: poisoned(model, e), FitSettings(epochs=4, lr=0.05)):
            seen.append(result)
    assert [r.epoch for r in seen] == [1]


def test_an_epoch_without_a_batch_stops() -> None:
    model = trainable()
    empty: Iterable[Batch] = []
    with pytest.raises(CRMTError, match=r"an epoch had no batch: lower train.batch_size"):
        next(fit(model, create("jt"), lambda _: empty, FitSettings(epochs=1, lr=0.1)))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder where two gloo processes left their results."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(work, args=(str(folder),), nprocs=RANKS)
    return folder


def test_batch_norm_of_two_processes_is_that_of_the_whole_batch(two: Path) -> None:
    expected = batch_norm(*norm_problem())
    found = [load_file(two / f"norm-{rank}") for rank in range(RANKS)]
    for key in ("first", "second", "x"):  # each rank holds its half
        torch.testing.assert_close(torch.cat([f[key] for f in found]), expected[key], rtol=1e-4, atol=1e-4, msg=key)
    for key in ("mean", "var", "steps"):
        for f in found:
            torch.testing.assert_close(f[key], expected[key], rtol=1e-5, atol=1e-5)
    for key in ("weight", "bias"):
        torch.testing.assert_close(found[0][key] + found[1][key], expected[key], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_two_workers_train_as_one_does_at_the_same_global_batch(method: str, two: Path) -> None:
    metrics, weights = train(method, lambda batch: batch, lambda module: module)
    for rank in range(RANKS):
        found = json.loads((two / f"{method}-{rank}.json").read_text())
        assert len(found) == len(metrics) == 3
        for one, both in zip(metrics, found, strict=True):
            for key in set(one) - {"seconds"}:
                assert both[key] == pytest.approx(one[key], rel=1e-4, abs=1e-4), key
        for key, value in load_file(two / f"{method}-{rank}").items():
            torch.testing.assert_close(value, weights[key], rtol=1e-3, atol=1e-3, msg=key)
