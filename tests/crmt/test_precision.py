"""bf16 and compiled training: what is computed in which type, what is refused, and that radii and checks stay exact."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Literal, cast

import pytest
import torch
from torch import Tensor, nn

from crmt.attacks import Ball, pgd
from crmt.attacks.base import AttackSettings
from crmt.attacks.curves import AttackPlan
from crmt.beside import beside
from crmt.certificates import create as certificate
from crmt.certificates.audit import AuditPlan
from crmt.errors import BadInputError
from crmt.evaluation import EvaluationPlan, evaluate
from crmt.fit import FitSettings, fit
from crmt.losses import logit_margin
from crmt.methods import create
from crmt.methods.base import LossTerms, Method, Step
from crmt.modality import Batch
from crmt.model import MultiModalModel, evaluating
from crmt.precision import check_compiler, check_precision, computing, exact
from tests.crmt.tiny import in_batches, learnable, linear_model, mostly_right, random_inputs, spec, trainable

CPU = torch.device("cpu")
BF16 = FitSettings(epochs=6, lr=0.05, precision="bf16")


class Types(nn.Module):
    """Notes in which type an encoder computes, and the arithmetic that is switched on."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.seen: list[tuple[bool, torch.dtype, str, bool]] = []

    def forward(self, x: Tensor) -> Tensor:
        found = cast(Tensor, self.encoder(x))
        products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
        self.seen.append((self.training, found.dtype, products, convolutions))
        return found


def watched(model: MultiModalModel, modality: str) -> Types:
    types = Types(model.encoders[modality])
    model.encoders[modality] = types
    return types


@pytest.mark.parametrize("name", ["jt", "crmt_jt", "crmt_at", "crmt_gradient"])
def test_bf16_training_learns_with_weights_scores_and_losses_in_float32(name: str) -> None:
    method = create(name, epsilon=0.2, attack_steps=2) if name in ("crmt_at", "crmt_gradient") else create(name)
    model = trainable(method.head, 2, classes=4)
    types = watched(model, "audio")
    results = list(fit(model, method, learnable(model, batches=6), BF16))
    assert {dtype for _, dtype, _, _ in types.seen} == {torch.bfloat16}
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert all(v.dtype == torch.float32 for v in results[-1].state()["model"].values() if v.is_floating_point())
    with evaluating(model), torch.no_grad():
        right = torch.cat([model(b.inputs).logits.argmax(1) == b.labels for b in learnable(model)(77)])
    assert float(right.float().mean()) > 0.8


def test_scores_and_logits_are_float32_under_autocast() -> None:
    model = trainable()
    inputs = next(iter(learnable(model)(1))).inputs
    with computing("bf16", CPU):
        output = model(inputs)
    assert {output.logits.dtype, output.scores.dtype, *(z.dtype for z in output.features.values())} == {torch.float32}
    expected = model.head.scores(output.features)
    assert torch.equal(output.scores, expected)


class LooksFirst(Method):
    """JT after a pass without gradients: a cache of cast weights would leave the training pass without any."""

    title, head = "looks first", "concat"

    def loss(self, step: Step) -> LossTerms:
        with torch.no_grad():
            step.forward(step.inputs)
        return create("jt").loss(step)


def test_a_pass_without_gradients_does_not_take_them_from_the_next() -> None:
    model = trainable("concat")
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    list(fit(model, LooksFirst(), learnable(model), replace(BF16, epochs=1)))
    assert all(not torch.equal(p, before[n]) for n, p in model.named_parameters())


@pytest.mark.parametrize("encoder", ["lipschitz_conv", "small_resnet"])
def test_every_encoder_trains_in_bf16_and_orthogonal_layers_stay_orthogonal(encoder: str) -> None:
    from crmt.certificates.lipschitz import lipschitz_constants
    from crmt.model import build_model

    model = build_model(spec(encoder=encoder, features=8))
    list(fit(model, create("crmt_jt"), learnable(model, batches=2), replace(BF16, epochs=1)))
    if encoder == "lipschitz_conv":
        with evaluating(model):
            assert bool((lipschitz_constants(model) <= 1.001).all())


def test_what_cannot_be_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInputError, match=r"no precision 'bf61'. Valid: fp32, bf16. Did you mean 'bf16'\?"):
        FitSettings(epochs=1, lr=0.1, precision=cast(Any, "bf61"))
    with pytest.raises(BadInputError, match=r"compile is an int \(1\): give True or False"):
        FitSettings(epochs=1, lr=0.1, compile=cast(Any, 1))
    with pytest.raises(BadInputError, match=r"autocast of a float32 model, and this one is float64: call model.float"):
        check_precision("bf16", CPU, torch.float64)
    model = linear_model("concat", 1)
    with pytest.raises(BadInputError, match=r"this one is float64"):
        next(fit(model, create("jt"), learnable(model), BF16))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setenv("CXX", "my-compiler")
    with pytest.raises(BadInputError, match=r"needs a C\+\+ compiler, and none of my-compiler is installed"):
        check_compiler(CPU)
    model = trainable("concat")
    with pytest.raises(BadInputError, match=r"or set train.compile to false"):
        next(fit(model, create("jt"), learnable(model), FitSettings(epochs=1, lr=0.1, compile=True)))


def test_a_gpu_without_bfloat16_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100")
    with pytest.raises(BadInputError, match=r"Tesla V100 does not compute in bfloat16: set train.precision to fp32"):
        check_precision("bf16", torch.device("cuda"))


@pytest.fixture
def rough_arithmetic() -> Iterator[None]:
    """What a caller may have switched on."""
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("high")
    yield
    torch.backends.cudnn.allow_tf32 = before[0]
    torch.set_float32_matmul_precision(before[1])


@pytest.mark.usefixtures("rough_arithmetic")
def test_exact_arithmetic_ends_with_its_block() -> None:
    with computing("bf16", CPU):
        with pytest.raises(KeyError), exact(CPU):
            assert not torch.is_autocast_enabled("cpu")
            assert torch.get_float32_matmul_precision() == "highest" and not torch.backends.cudnn.allow_tf32
            raise KeyError
        assert torch.is_autocast_enabled("cpu")
    assert torch.get_float32_matmul_precision() == "high" and torch.backends.cudnn.allow_tf32


@pytest.mark.usefixtures("rough_arithmetic")
def test_radii_are_exact_and_attacks_alone_follow_the_precision() -> None:
    model = trainable(classes=4)
    data = list(learnable(model)(1))
    types = watched(model, "audio")
    attacks = AttackPlan(names=("pgd",), balls=("joint",), epsilons=(0.3,), settings=AttackSettings(steps=3))
    audit = AuditPlan(attack="pgd", settings=AttackSettings(steps=2), samples=8)
    rough = replace(attacks, precision="bf16")
    plan = EvaluationPlan(attacks=rough, audit=audit, certificates=(certificate("estimate"),))
    found = evaluate(model, data, plan, training=data)
    exact_passes = [s for s in types.seen if s[2:] == ("highest", False)]
    others = [s for s in types.seen if s[2:] == ("high", True)]
    assert {dtype for _, dtype, _, _ in exact_passes} == {torch.float32}
    assert {dtype for _, dtype, _, _ in others} == {torch.bfloat16, torch.float32}  # searched, and judged
    assert found.curves[0].settings["precision"] == "bf16"
    plain = evaluate(model, data, replace(plan, attacks=attacks), training=data)
    assert "precision" not in plain.curves[0].settings
    assert torch.equal(found.certified[0].radii.joint, plain.certified[0].radii.joint)


@pytest.mark.parametrize("steps", [1, 5])
def test_an_attack_in_bf16_is_judged_in_float32(steps: int) -> None:
    model = trainable(classes=4).eval()
    inputs = random_inputs(model, 24)
    labels = mostly_right(model, inputs)
    with computing("bf16", CPU):
        found = pgd(model, inputs, labels, Ball.joint(model.modalities, 0.05), steps=steps)
    with torch.no_grad():
        expected = logit_margin(model(found.inputs).logits, labels)
    torch.testing.assert_close(found.margin, expected)


@pytest.mark.parametrize("name", ["jt", "crmt_jt", "crmt_at", "msefm", "crmt_gradient"])
def test_compiled_training_is_the_same_training(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the backend that only traces: what a compiler makes of the graph is torch's affair, and takes minutes."""
    compiled = torch.compile
    calls: list[Callable[..., Any]] = []

    def traced(function: Callable[..., Any], *, dynamic: bool) -> Any:
        calls.append(function)
        return compiled(function, dynamic=dynamic, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", traced)
    torch._dynamo.reset()
    states = []
    for compile_it in (False, True):
        method = create(name)
        model = trainable(method.head)
        settings = FitSettings(epochs=1, lr=0.01, compile=compile_it)
        list(fit(model, method, learnable(model, batches=2, size=8), settings))
        states.append(model.state_dict())
    assert calls == [model, model]
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, rtol=1e-3, atol=1e-4, msg=key)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_state_of_another_device_goes_on_with_this_ones_optimiser(optimizer: Literal["sgd", "adam"]) -> None:
    model = trainable()
    settings = FitSettings(epochs=2, lr=0.01, optimizer=optimizer)
    state = next(iter(fit(model, create("crmt_jt"), learnable(model), settings))).state()
    for group in state["optimizer"]["param_groups"]:
        group["fused"], group["foreach"] = True, False
    (result,) = fit(model, create("crmt_jt"), learnable(model), settings, state=state)
    assert all(group["fused"] is None for group in result.state()["optimizer"]["param_groups"])


def test_batches_are_checked_before_they_are_handed_on_and_not_asked_for_early() -> None:
    model = trainable()
    batches = in_batches(random_inputs(model, 6), torch.zeros(6, dtype=torch.int64), 2)
    asked: list[int] = []

    def source() -> Iterator[Batch]:
        for i, batch in enumerate(batches):
            asked.append(i)
            yield batch

    checked: list[Batch] = []
    taken = []
    for batch in beside(source(), CPU, checked.append):
        assert checked[-1] is batch and len(asked) == len(taken) + 1
        taken.append(batch)
    assert all(a is b for a, b in zip(taken, batches, strict=True))

    def refuse(batch: Batch) -> None:
        raise BadInputError("bad")

    with pytest.raises(BadInputError, match="bad"):
        next(beside(source(), CPU, refuse))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_reach_a_gpu_whole_while_it_works() -> None:
    device = torch.device("cuda")
    given = [Batch({"a": torch.full((4, 1000), float(i))}, torch.full((4,), i)) for i in range(20)]
    busy = torch.randn(2000, 2000, device=device)
    sums = []
    for batch in beside(given, device, lambda b: None):
        for _ in range(20):
            busy = busy @ busy / busy.norm()
        sums.append(batch.inputs["a"].sum() + 4000 * batch.labels[0])
    assert torch.stack(sums).tolist() == [8000.0 * i for i in range(20)]
