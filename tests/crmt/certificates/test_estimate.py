"""τ̂ equals its definition, computed naively, for every modality, class and pair; and the closed form where linear."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from crmt.certificates.estimate import gradient_constants, score_gram, score_norms
from crmt.errors import BadInputError
from crmt.gradients import GradientConstants
from crmt.heads import HEADS, ConcatHead
from crmt.model import MultiModalModel
from tests.crmt.tiny import (
    AUDIO,
    VIDEO,
    LinearEncoder,
    effective_weights,
    in_batches,
    linear_model,
    mostly_right,
    random_inputs,
    trainable,
)


def test_the_constants_of_nearly_equal_scores_survive_single_precision() -> None:
    """Two rows that differ by 1e-4 of their length: the difference of float32 squares would be noise."""
    model = linear_model("concat", (AUDIO,), dtype=torch.float32)
    with torch.no_grad():
        rows = model.head.weight("audio")
        rows.mul_(100)
        rows[1] = rows[0] + 1e-2 * torch.randn(rows.shape[1], generator=torch.Generator().manual_seed(0))
    inputs = random_inputs(model, 4)
    found = gradient_constants(model, in_batches(inputs, mostly_right(model, inputs), 4)).pair
    (exact,) = effective_weights(model.double())
    assert found is not None and found.dtype == torch.float32
    assert float(found[0, 0, 1]) == pytest.approx(float((exact[0] - exact[1]).norm()), rel=0.01)


def uni_modal_score(model: MultiModalModel, name: str, x: Tensor) -> Tensor:
    """s^(m)(x^(m)), `(K,)`, of one input, from the parts of the model by hand."""
    m = model.modalities[name]
    standardised = (x[None] - m.per_channel(m.mean)) / m.per_channel(m.std)
    return (model.encoders[name](standardised) @ model.head.weight(name).T)[0]


def naive(model: MultiModalModel, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """τ̂ `(M, K)` and the pair constants `(M, K, K)`, one sample, class and modality at a time."""
    classes = model.head.classes
    tau = torch.zeros(len(model.modalities), classes)
    pair = torch.zeros(len(model.modalities), classes, classes)
    for i, name in enumerate(model.modalities):
        for x in inputs[name]:
            gradients = []
            for k in range(classes):
                leaf = x.clone().requires_grad_()
                (g,) = torch.autograd.grad(uni_modal_score(model, name, leaf)[k], leaf)
                gradients.append(g)
            for k in range(classes):
                tau[i, k] = max(tau[i, k], gradients[k].norm())
                for j in range(classes):
                    pair[i, k, j] = max(pair[i, k, j], (gradients[k] - gradients[j]).norm())
    return tau, pair


@pytest.fixture
def convolutional(head: str, modalities: int) -> MultiModalModel:
    """A small_resnet model with batch-norm statistics of its own and a gain that τ must see."""
    model = trainable(head, modalities, classes=3)
    inputs = random_inputs(model, 16)
    with torch.no_grad():
        for _ in range(10):
            model.train()(inputs)
    return model


def test_equals_the_definition(convolutional: MultiModalModel, head: str) -> None:
    model = convolutional.eval()
    inputs = random_inputs(model, 5, seed=1)
    tau, pair = naive(model, inputs)
    found = gradient_constants(model.train(), in_batches(inputs, torch.zeros(5, dtype=torch.long), 5))
    torch.testing.assert_close(found.tau, tau, rtol=1e-4, atol=1e-6)
    assert found.samples == 5
    assert model.training
    assert (found.pair is None) == (head == "orthogonal")
    with_pairs = gradient_constants(model, in_batches(inputs, torch.zeros(5, dtype=torch.long), 2), pairs=True)
    assert with_pairs.pair is not None
    torch.testing.assert_close(with_pairs.pair, pair, rtol=1e-3, atol=1e-5)


def test_the_integration_weights_do_not_enter(convolutional: MultiModalModel) -> None:
    """τ is of the UNI-MODAL score: the fused logit would count a twice."""
    inputs = in_batches(random_inputs(convolutional, 4), torch.zeros(4, dtype=torch.long), 4)
    before = gradient_constants(convolutional, inputs).tau
    if not isinstance(convolutional.head, ConcatHead):
        convolutional.head.set_integration(5 * convolutional.head.integration)  # type: ignore[operator]
    torch.testing.assert_close(gradient_constants(convolutional, inputs).tau, before)


@pytest.mark.parametrize("size", [1, 3, 7])
def test_the_split_into_batches_does_not_matter(size: int) -> None:
    model = trainable("concat", 2, classes=3)
    inputs, labels = random_inputs(model, 7), torch.zeros(7, dtype=torch.long)
    whole = gradient_constants(model, in_batches(inputs, labels, 7))
    parts = gradient_constants(model, in_batches(inputs, labels, size))
    assert whole.samples == parts.samples == 7
    torch.testing.assert_close(parts.tau, whole.tau, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(parts.pair, whole.pair, rtol=1e-3, atol=1e-5)


def test_a_batch_too_big_for_memory_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    model = linear_model("concat", 3)
    batches = in_batches(random_inputs(model, 7), torch.zeros(7, dtype=torch.long), 7)
    whole = gradient_constants(model, batches)
    monkeypatch.setattr("crmt.certificates.estimate._JACOBIAN_ELEMENTS", 1)
    cut = gradient_constants(model, batches)
    torch.testing.assert_close(cut.tau, whole.tau)
    assert cut.samples == 7


def test_merged_is_the_maximum_of_disjoint_sets() -> None:
    model = trainable("concat", 2, classes=3)
    batches = in_batches(random_inputs(model, 8), torch.zeros(8, dtype=torch.long), 4)
    first, second = (gradient_constants(model, [b]) for b in batches)
    merged, both = first.merged(second), gradient_constants(model, batches)
    assert torch.equal(merged.tau, both.tau)
    assert merged.pair is not None
    assert both.pair is not None
    assert torch.equal(merged.pair, both.pair)
    assert merged.samples == 8
    assert GradientConstants(first.tau, None, 4).merged(second).pair is None


def test_linear_encoders_give_the_closed_form(linear: MultiModalModel) -> None:
    """Also: every input has the same gradient, so one input is enough."""
    inputs = random_inputs(linear, 3)
    found = gradient_constants(linear, in_batches(inputs, mostly_right(linear, inputs), 2), pairs=True)
    assert found.pair is not None
    for i, (name, m) in enumerate(linear.modalities.items()):
        encoder = linear.encoders[name]
        assert isinstance(encoder, LinearEncoder)
        with torch.no_grad():
            rows = (linear.head.weight(name) @ encoder.linear.weight).reshape(-1, *m.shape)
            rows = (rows / m.per_channel(m.std)).flatten(1)
        torch.testing.assert_close(found.tau[i], rows.norm(dim=1))
        torch.testing.assert_close(found.pair[i], torch.cdist(rows, rows), atol=1e-6, rtol=1e-6)


def test_gram_is_that_of_the_gradients(linear: MultiModalModel) -> None:
    gram = score_gram(linear, random_inputs(linear, 3))
    assert gram.shape == (3, len(linear.modalities), 4, 4)
    torch.testing.assert_close(gram, gram.transpose(2, 3))
    assert float(torch.linalg.eigvalsh(gram).min()) > -1e-9


class Blind(nn.Module):
    """An encoder that ignores its input."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.ones(len(x), 6)


@pytest.mark.parametrize("blind", ["audio", "both"])
def test_an_encoder_that_ignores_its_input_has_tau_zero(blind: str) -> None:
    encoders: dict[str, nn.Module] = {"audio": Blind(), "video": Blind() if blind == "both" else LinearEncoder(96, 6)}
    model = MultiModalModel((AUDIO, VIDEO), encoders, ConcatHead({"audio": 6, "video": 6}, 3))
    found = gradient_constants(model, in_batches(random_inputs(model, 2), torch.tensor([0, 1]), 2))
    assert found.tau[0].tolist() == [0, 0, 0]
    assert found.pair is not None
    assert float(found.pair[0].max()) == 0
    assert bool((found.tau[1] > 0).all()) == (blind == "audio")


def test_it_works_where_gradients_are_off_and_leaves_the_model_alone() -> None:
    model = trainable("concat", 2, classes=3).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    batches = in_batches(random_inputs(model, 4), torch.zeros(4, dtype=torch.long), 4)
    with torch.no_grad():
        found = gradient_constants(model, batches)
    torch.testing.assert_close(found.tau, gradient_constants(model, batches).tau)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not batches[0].inputs["audio"].requires_grad


def test_no_input_is_refused() -> None:
    with pytest.raises(BadInputError, match=r"at least one training input"):
        gradient_constants(linear_model("concat"), [])


@pytest.mark.parametrize("head", ["concat", "orthogonal"])
def test_a_score_without_a_gradient_is_refused(head: str) -> None:
    """The length of a silent clip: its gradient is NaN, which would be no bound, and larger than no other."""

    class Magnitude(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1).square().sum(1, keepdim=True).sqrt() * torch.ones(8, dtype=x.dtype)

    sound = HEADS[head]({"audio": 8}, 4)
    model = MultiModalModel([AUDIO], {"audio": Magnitude()}, sound)
    inputs = random_inputs(model, 4)
    gradient_constants(model, in_batches(inputs, torch.zeros(4, dtype=torch.int64), 4))
    inputs["audio"][1] = torch.tensor(AUDIO.mean).reshape([-1] + [1] * (inputs["audio"].dim() - 2))
    with pytest.raises(BadInputError, match=r"'audio' has no finite gradient at a training input"):
        gradient_constants(model, in_batches(inputs, torch.zeros(4, dtype=torch.int64), 2))


class Alone(nn.Module):
    """An encoder whose gradient serves one class at a time: it looks at a number of it."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.encoder(x)
        if features.requires_grad:
            features.register_hook(lambda g: g if float(g.sum()) == float("inf") else g.clone())
        return features


@pytest.mark.parametrize("pairs", [True, False])
@pytest.mark.parametrize("at_once", [1, 5, 10, 1000])
def test_classes_in_one_pass_give_what_they_give_alone(
    pairs: bool, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = trainable("concat", 2, classes=7)
    batches = in_batches(random_inputs(model, 5), torch.zeros(5, dtype=torch.long), 3)
    monkeypatch.setattr("crmt.certificates.estimate._ROWS", {"cpu": 1})
    alone = gradient_constants(model, batches, pairs=pairs)
    monkeypatch.setattr("crmt.certificates.estimate._ROWS", {"cpu": at_once})
    done: list[int] = []
    found = gradient_constants(model, batches, pairs=pairs, progress=done.append)
    torch.testing.assert_close(found.tau, alone.tau, rtol=1e-6, atol=0)
    assert (found.pair is None) == (not pairs) and sum(done) == 5
    if found.pair is not None and alone.pair is not None:
        torch.testing.assert_close(found.pair, alone.pair, rtol=1e-5, atol=1e-9)


def test_what_cannot_be_batched_goes_class_by_class() -> None:
    model = linear_model("orthogonal", 2)
    batches = in_batches(random_inputs(model, 3), torch.zeros(3, dtype=torch.long), 3)
    expected = gradient_constants(model, batches)
    for name, encoder in model.encoders.items():
        model.encoders[name] = Alone(encoder)
    found = gradient_constants(model, batches)
    torch.testing.assert_close(found.tau, expected.tau)


def test_no_memory_means_fewer_classes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = linear_model("orthogonal", 2)
    inputs = random_inputs(model, 3)
    expected = score_norms(model, inputs)
    whole, sizes = torch.autograd.grad, []

    def short(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("is_grads_batched"):
            sizes.append(len(args[2]))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(*args, **kwargs)

    monkeypatch.setattr(torch.autograd, "grad", short)
    torch.testing.assert_close(score_norms(model, inputs), expected)
    assert sizes == [4]


@pytest.mark.parametrize("features", [3, 5])
def test_more_classes_than_features_take_no_more_gradients_than_features(features: int) -> None:
    model = linear_model("concat", 2, classes=9, features=features)
    inputs = random_inputs(model, 4)
    counted: list[int] = []
    gram = score_gram(model, inputs, counted.append)
    assert sum(counted) == 4 * features
    norms = score_norms(model, inputs)
    torch.testing.assert_close(gram.diagonal(dim1=2, dim2=3).sqrt(), norms)
    zero = torch.zeros(4, dtype=torch.long)
    tau, pair = naive(model, inputs)
    found = gradient_constants(model, in_batches(inputs, zero, 4))
    torch.testing.assert_close(found.tau, tau, check_dtype=False)
    torch.testing.assert_close(found.pair, pair, check_dtype=False)
