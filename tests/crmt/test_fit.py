"""Training: orthonormal rows after every step, exact resuming, schedules, errors, and two workers that train as one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from math import cos, pi
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import pytest
import torch
import torch.multiprocessing
from safetensors.torch import load_file
from torch import Tensor, nn

from crmt.errors import BadInputError, CRMTError
from crmt.fit import EpochResult, FitSettings, fit
from crmt.heads import ConcatHead, OrthogonalHead
from crmt.methods import create
from crmt.methods.base import LossTerms, Method, Step
from crmt.modality import Batch
from crmt.model import MultiModalModel, Output
from tests.crmt.test_heads import gram_error
from tests.crmt.tiny import learnable, linear_model, trainable
from tests.crmt.two_processes import METHODS, RANDOM, RANKS, batch_norm, norm_problem, train, work


class Watch(nn.Module):
    """Looks at the rows of the head at every forward pass, that is after every optimiser step before it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = cast(MultiModalModel, model)
        self.errors: list[float] = []

    def forward(self, inputs: Mapping[str, Tensor]) -> Output:
        self.errors.append(gram_error(cast(OrthogonalHead, self.model.head)))
        return cast(Output, self.model(inputs))


def assert_rows_stay_orthonormal(model: MultiModalModel, settings: FitSettings) -> None:
    """After every one of four steps an epoch, while the rows move."""
    first = model.head.weight("audio").detach().clone()
    watches: list[Watch] = []

    def watch(module: nn.Module) -> nn.Module:
        watches.append(Watch(module))
        return watches[0]

    list(fit(model, create("crmt_jt"), learnable(model, batches=4), settings, wrap=watch))
    assert len(watches[0].errors) == 4 * settings.epochs
    assert max(*watches[0].errors, gram_error(cast(OrthogonalHead, model.head))) < 1e-5
    assert float((model.head.weight("audio") - first).detach().abs().max()) > 1e-3


@pytest.mark.parametrize(("classes", "features", "lr"), [(8, 8, 0.05), (8, 16, 0.5), (31, 64, 0.1)])
def test_rows_are_orthonormal_after_every_step(classes: int, features: int, lr: float) -> None:
    model = trainable("orthogonal", 2, classes=classes, features=features)
    assert_rows_stay_orthonormal(model, FitSettings(epochs=3, lr=lr, weight_decay=1e-2))


@pytest.mark.parametrize(
    ("classes", "optimizer", "lr"), [(8, "sgd", 0.1), (8, "adam", 0.01), (31, "sgd", 0.1), (309, "sgd", 0.1)]
)
def test_rows_are_orthonormal_after_every_step_at_512_features(
    classes: int, optimizer: Literal["sgd", "adam"], lr: float
) -> None:
    model = linear_model("orthogonal", 2, classes=classes, features=512, dtype=torch.float32)
    assert_rows_stay_orthonormal(model, FitSettings(epochs=1, lr=lr, optimizer=optimizer, weight_decay=1e-2))


@pytest.mark.parametrize("name", ["jt", "crmt_jt"])
def test_metrics_of_an_epoch(name: str) -> None:
    method = create(name)
    model = trainable(method.head)
    (result,) = fit(model, method, learnable(model), FitSettings(epochs=1, lr=0.05))
    expected = {"loss", "cross_entropy", "train_accuracy", "lr", "seconds"}
    assert set(result.metrics) == expected | ({"margin_term"} if name == "crmt_jt" else set())
    if name == "crmt_jt":
        m = result.metrics
        assert m["loss"] == pytest.approx(m["cross_entropy"] + 2 * m["margin_term"], rel=1e-4)


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

        def loss(self, step: Step) -> LossTerms:
            terms = create("jt").loss(step)
            return terms._replace(total=0 * terms.output.logits.sum(), parts={})

    model = trainable()
    before = {k: v.detach().clone() for k, v in model.named_parameters()}
    list(fit(model, Nothing(), learnable(model), FitSettings(epochs=1, lr=0.1, weight_decay=0.1)))
    for name, parameter in model.named_parameters():
        moved = not torch.equal(parameter, before[name])
        assert moved == (name.startswith("encoders.") and parameter.ndim > 1), name


class Diverges(Method):
    """JT whose loss is no number in its second epoch."""

    title, head = "diverges", "concat"

    def loss(self, step: Step) -> LossTerms:
        terms = create("jt").loss(step)
        return terms._replace(total=terms.total * (float("nan") if step.epoch == 2 else 1))


def test_a_loss_that_is_not_finite_stops_and_names_the_epoch() -> None:
    model = trainable("concat")
    seen: list[EpochResult] = []
    with pytest.raises(CRMTError, match=r"the loss is nan in epoch 2: lower train.lr \(now 0.05\)"):
        for result in fit(model, Diverges(), learnable(model), FitSettings(epochs=4, lr=0.05)):
            seen.append(result)
    assert [r.epoch for r in seen] == [1]


def test_an_epoch_without_a_batch_stops() -> None:
    model = trainable("concat")
    empty: Iterable[Batch] = []
    with pytest.raises(CRMTError, match=r"an epoch had no batch: lower train.batch_size"):
        next(fit(model, create("jt"), lambda _: empty, FitSettings(epochs=1, lr=0.1)))


class Records(Method):
    """JT that keeps what it was given."""

    title, head = "records", "concat"
    seen: ClassVar[list[Step]] = []

    def loss(self, step: Step) -> LossTerms:
        self.seen.append(step)
        return create("jt").loss(step)


def recorded(settings: FitSettings) -> list[Step]:
    Records.seen.clear()
    model = trainable("concat")
    list(fit(model, Records(), learnable(model, batches=2), settings))
    return list(Records.seen)


def test_noise_is_gaussian_of_the_given_deviation_and_only_where_asked_for() -> None:
    plain, noisy, same, other = (
        recorded(FitSettings(epochs=2, lr=0.05, noise=noise, seed=seed))
        for noise, seed in (({}, 0), ({"audio": 0.5}, 0), ({"audio": 0.5}, 0), ({"audio": 0.5}, 1))
    )
    added = torch.stack([n.inputs["audio"] - p.inputs["audio"] for n, p in zip(noisy, plain, strict=True)])
    assert float(added.std()) == pytest.approx(0.5, abs=0.02)
    assert float(added.mean()) == pytest.approx(0, abs=0.03)
    assert len(added.flatten().unique()) > 0.9 * added.numel()  # every step its own
    for n, p, s, o in zip(noisy, plain, same, other, strict=True):
        assert torch.equal(n.inputs["video"], p.inputs["video"])
        assert torch.equal(n.inputs["audio"], s.inputs["audio"])
        assert not torch.equal(n.inputs["audio"], o.inputs["audio"])
        again = torch.Generator().manual_seed(n.generator.initial_seed())
        drawn = torch.randn(p.inputs["audio"].shape, generator=again)
        assert torch.equal(n.inputs["audio"], p.inputs["audio"] + 0.5 * drawn)


def test_noise_of_an_unknown_modality_is_refused() -> None:
    with pytest.raises(BadInputError, match=r"noise for flow; the model has audio, video"):
        recorded(FitSettings(epochs=1, lr=0.05, noise={"flow": 0.1}))


@pytest.mark.parametrize(
    ("name", "head", "message"),
    [
        ("crmt_jt", "concat", r"^CRMT-JT needs the head OrthogonalHead, the model has ConcatHead: .*head='orthogonal'"),
        ("jt", "orthogonal", r"^JT needs the head ConcatHead, the model has OrthogonalHead: .*head='concat'"),
        ("msefm", "concat", r"^MSEFM needs the head OddOneOutHead, the model has ConcatHead: .*head='odd_one_out'"),
        ("radius_loss", "concat", r"^radius loss needs the head OrthogonalHead"),
    ],
)
def test_a_method_on_another_head_than_its_own_is_refused(name: str, head: str, message: str) -> None:
    model = trainable(head)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(BadInputError, match=message):
        next(fit(model, create(name), learnable(model), FitSettings(epochs=1, lr=0.1)))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_method_of_an_unknown_head_is_refused_and_a_subclass_of_its_head_is_not() -> None:
    class Odd(Records):
        title, head = "odd", "square"

    class Own(ConcatHead):
        pass

    model = trainable("concat")
    with pytest.raises(
        BadInputError, match=r"^odd needs a head 'square', which there is not: add it to crmt.heads.HEADS"
    ):
        next(fit(model, Odd(), learnable(model), FitSettings(epochs=1, lr=0.1)))
    model.head = Own(dict.fromkeys(model.modalities, 8), 8)
    assert len(list(fit(model, create("jt"), learnable(model), FitSettings(epochs=1, lr=0.1)))) == 1


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"optimizer": "Adam"}, r"^no optimizer 'Adam'\. Valid: sgd, adam\. Did you mean 'adam'\?$"),
        ({"optimizer": "adamw"}, r"^no optimizer 'adamw'\. .* Did you mean 'adam'\?$"),
        ({"optimizer": torch.optim.SGD}, r"^no optimizer <class .*SGD'>\. Valid: sgd, adam\."),
        ({"schedule": "Cosine"}, r"^no schedule 'Cosine'\. Valid: cosine, step\. Did you mean 'cosine'\?$"),
        ({"schedule": "xyz"}, r"^no schedule 'xyz'\. Valid: cosine, step\.$"),
    ],
)
def test_unknown_settings_are_refused(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        FitSettings(epochs=1, lr=0.1, **setting)


@pytest.mark.parametrize("name", ["jt", "radius_loss"])
def test_a_model_that_is_all_frozen_is_refused(name: str) -> None:
    method = create(name)
    model = trainable(method.head).requires_grad_(False)
    with pytest.raises(
        BadInputError, match=r"^nothing to train, all parameters are frozen: call requires_grad_\(True\)"
    ):
        next(fit(model, method, learnable(model), FitSettings(epochs=1, lr=0.1)))


class Modes(Method):
    """JT that keeps the mode of every module in its steps."""

    title, head = "modes", "concat"
    seen: ClassVar[list[dict[str, bool]]] = []

    def loss(self, step: Step) -> LossTerms:
        self.seen.append({name: module.training for name, module in step.model.named_modules()})
        return create("jt").loss(step)


def modes(model: MultiModalModel) -> list[dict[str, bool]]:
    """Of every module in each of 2 epochs of one step, between which the caller measures in evaluation mode."""
    Modes.seen.clear()
    for _ in fit(model, Modes(), learnable(model, batches=1), FitSettings(epochs=2, lr=0.05)):
        model.eval()
    assert len(Modes.seen) == 2
    return list(Modes.seen)


def test_what_was_frozen_and_in_evaluation_mode_stays_as_it_is() -> None:
    model = trainable("concat").train()
    model.encoders["audio"] = nn.Sequential(model.encoders["audio"], nn.Dropout(0.5))
    frozen = model.encoders["audio"].requires_grad_(False).eval()
    before = {k: v.clone() for k, v in frozen.state_dict().items()}
    for seen in modes(model):
        for name, training in seen.items():
            assert training == (not name.startswith("encoders.audio")), name
    assert all(torch.equal(v, before[k]) for k, v in frozen.state_dict().items())  # batch norm's statistics too
    assert not any(p.requires_grad for p in frozen.parameters())


def test_all_else_trains_in_training_mode() -> None:
    """Evaluation mode without frozen parameters, frozen parameters in training mode, and what has no parameters."""
    model = trainable("concat")
    model.encoders["audio"] = nn.Sequential(model.encoders["audio"], nn.Dropout(0.5))
    model.eval()
    model.encoders["video"].requires_grad_(False).train()
    assert all(all(seen.values()) for seen in modes(model))


def test_what_a_method_freezes_is_left_out_of_its_own_training_alone() -> None:
    """Also where the training stops half-way and the generator is kept, and where it never begins."""
    model = trainable()
    head = cast(OrthogonalHead, model.head)
    halted = fit(model, create("radius_loss"), learnable(model), FitSettings(epochs=3, lr=0.05))
    for epoch in (1, 2):
        next(halted)
        assert head.log_integration.requires_grad, epoch
        assert torch.equal(head.integration, torch.ones_like(head.integration)), epoch
    list(fit(model, create("crmt_jt"), learnable(model), FitSettings(epochs=1, lr=0.05)))
    assert bool((head.integration != 1).all())
    with pytest.raises(RuntimeError, match=r"on purpose"):
        next(fit(model, create("radius_loss"), learnable(model), FitSettings(epochs=1, lr=0.05), wrap=refuse))
    assert head.log_integration.requires_grad
    head.log_integration.requires_grad_(False)  # the user's own choice
    list(fit(model, create("radius_loss"), learnable(model), FitSettings(epochs=1, lr=0.05)))
    assert not head.log_integration.requires_grad


def refuse(module: nn.Module) -> nn.Module:
    raise RuntimeError("on purpose")


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


def test_two_workers_mix_by_the_same_lambda(two: Path) -> None:
    first, second = (json.loads((two / f"mix-{rank}.json").read_text()) for rank in range(RANKS))
    assert first == second and 0 < first < 1


@pytest.mark.parametrize("method", METHODS)
def test_two_workers_stay_the_same_and_train_as_one_does_at_the_same_global_batch(method: str, two: Path) -> None:
    """Companions too. What a method draws at random differs by worker, so those that do train otherwise than one."""
    found = [json.loads((two / f"{method}-{rank}.json").read_text()) for rank in range(RANKS)]
    first, second = (load_file(two / f"{method}-{rank}") for rank in range(RANKS))
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert torch.equal(value, second[key]), key
    for one, other in zip(*found, strict=True):
        assert one.keys() == other.keys()
        assert all(one[k] == other[k] for k in set(one) - {"seconds"})
    if method in RANDOM:
        return
    metrics, weights = train(method, lambda batch: batch, lambda module: module)
    assert len(found[0]) == len(metrics) == 2
    for alone, both in zip(metrics, found[0], strict=True):
        for key in set(alone) - {"seconds"}:
            assert both[key] == pytest.approx(alone[key], rel=1e-4, abs=1e-4), key
    for key, value in weights.items():
        torch.testing.assert_close(first[key], value, rtol=1e-3, atol=1e-3, msg=key)
