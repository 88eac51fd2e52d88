"""The lipschitz certificate: verified constants, refusals, radii against closed forms, the audit of a trained model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch
from deel.torchlip import GroupSort2, InvertibleDownSampling, SpectralConv2d, SpectralLinear
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from crmt.certificates import lipschitz
from crmt.certificates.audit import audit
from crmt.certificates.lipschitz import lipschitz_constants, lipschitz_pair_constants, lipschitz_radii
from crmt.encoders.orthogonal_layers import cayley
from crmt.errors import BadInputError, CRMTError
from crmt.fit import FitSettings, fit
from crmt.heads import HEADS, ConcatHead, Head, OrthogonalHead
from crmt.methods import create
from crmt.model import MultiModalModel, build_model, evaluating
from tests.crmt import tiny


def lipschitz_model(head: str = "orthogonal", modalities: int = 2, seed: int = 0) -> MultiModalModel:
    return build_model(tiny.spec(head, modalities, encoder="lipschitz_conv"), seed)


@pytest.fixture(scope="module")
def trained() -> MultiModalModel:
    model = lipschitz_model()
    batches = tiny.learnable(model, batches=4)
    settings = FitSettings(epochs=6, lr=5e-3, optimizer="adam", weight_decay=0)
    for _ in fit(model, create("radius_loss", shift=1.0), batches, settings):
        pass
    return model


# --- the constant --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("modalities", [1, 3])
def test_constants_are_one_before_and_after_training(modalities: int) -> None:
    model = lipschitz_model(modalities=modalities)
    settings = FitSettings(epochs=2, lr=0.5, optimizer="sgd")
    seen = [lipschitz_constants(model)]
    for _ in fit(model, create("radius_loss"), tiny.learnable(model, batches=2), settings):
        seen.append(lipschitz_constants(model))
    assert not torch.equal(seen[0], seen[-1])
    for constants in seen:
        torch.testing.assert_close(constants, torch.ones(modalities).double(), atol=1e-4, rtol=0)


@given(seed=st.integers(0, 10_000), scale=st.floats(1e-2, 10))
@settings(max_examples=15, deadline=None)
def test_no_pair_of_inputs_is_drawn_apart(trained: MultiModalModel, seed: int, scale: float) -> None:
    model = copy.deepcopy(trained).double()
    x = tiny.random_inputs(model, 4, seed)
    generator = torch.Generator().manual_seed(seed)
    y = {m: v + scale * torch.randn(v.shape, generator=generator, dtype=v.dtype) for m, v in x.items()}
    with evaluating(model), torch.no_grad():
        for m, difference in _feature_distances(model, x, y).items():
            assert (difference <= (x[m] - y[m]).flatten(1).norm(dim=1) * (1 + 1e-5)).all()


def _feature_distances(model: MultiModalModel, x: dict[str, Tensor], y: dict[str, Tensor]) -> dict[str, Tensor]:
    one, other = model.features(x), model.features(y)
    return {m: (one[m] - other[m]).norm(dim=1) for m in one}


def test_adversarial_pairs_come_near_the_constant_and_stay_below() -> None:
    spec = replace(tiny.spec(features=64, encoder="lipschitz_conv"), modalities=(tiny.SOUND, tiny.IMAGE))
    model = build_model(spec).double()
    x = tiny.random_inputs(model, 4)
    with evaluating(model):
        for m in x:
            others = {k: v for k, v in x.items() if k != m}

            def features(raw: Tensor, m: str = m, others: dict[str, Tensor] = others) -> Tensor:
                return model.features({**others, m: raw})[m]

            direction = torch.randn_like(x[m])
            for _ in range(30):  # the leading direction of the Jacobian, by power iteration
                _, pushed = torch.func.jvp(features, (x[m],), (direction,))
                _, pull = torch.func.vjp(features, x[m])
                direction = F.normalize(pull(pushed)[0].flatten(1), dim=1).reshape(x[m].shape)
            step = 1e-4 * direction
            ratio = _feature_distances(model, x, {**x, m: x[m] + step})[m] / step.flatten(1).norm(dim=1)
            assert (ratio <= 1 + 1e-5).all()
            assert ratio.mean() > 0.3  # the search for a bad pair did search


def test_constants_survive_saving_copying_and_double_precision(trained: MultiModalModel, tmp_path: Path) -> None:
    save_file({k: v.contiguous() for k, v in trained.state_dict().items()}, tmp_path / "weights.safetensors")
    loaded = lipschitz_model(seed=5)
    loaded.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    inputs = tiny.random_inputs(trained, 4)
    with torch.no_grad():
        for model in (loaded, copy.deepcopy(trained)):
            assert torch.equal(model.eval()(inputs).logits, trained.eval()(inputs).logits)
            assert torch.equal(model.train()(inputs).logits, trained.eval()(inputs).logits)
            with parametrize.cached():
                assert torch.equal(model(inputs).logits, trained(inputs).logits)
    torch.testing.assert_close(lipschitz_constants(loaded), lipschitz_constants(trained), atol=0, rtol=0)
    double = copy.deepcopy(trained).double()
    exact = lipschitz_constants(double)
    torch.testing.assert_close(exact, torch.ones_like(exact), atol=1e-9, rtol=0)


def test_another_deviation_is_another_constant() -> None:
    model = lipschitz_model()
    std = cast(Tensor, model.get_buffer("_video_std"))
    std[0, 0, 1] /= 2
    constants = dict(zip(model.modalities, lipschitz_constants(model).tolist(), strict=True))
    assert constants["video"] == pytest.approx(2, abs=1e-4)
    assert constants["audio"] == pytest.approx(1, abs=1e-4)


def test_an_encoder_of_deel_torchlips_own_layers_is_verified_too() -> None:
    audio = nn.Sequential(
        SpectralConv2d(1, 4, 3, padding=1),
        GroupSort2(),
        InvertibleDownSampling(2),
        nn.Flatten(),
        SpectralLinear(256, 8),
    )
    model = MultiModalModel([tiny.SOUND], {"audio": audio}, OrthogonalHead({"audio": 8}, 4))
    (constant,) = lipschitz_constants(model) * tiny.SOUND.std[0]  # nothing undoes the division by the deviation
    assert 0.3 < constant <= 1 + 1e-3
    with evaluating(model):
        x = tiny.random_inputs(model, 1)["audio"]
        jacobian = torch.autograd.functional.jacobian(audio, x).reshape(8, -1)
    assert torch.linalg.matrix_norm(jacobian, ord=2) <= constant


# --- refusals ------------------------------------------------------------------------------------------------------


def test_a_standard_encoder_is_refused_with_what_to_do() -> None:
    with pytest.raises(BadInputError, match=r"'audio' has a ConvEncoder.*model.encoders.audio: lipschitz_conv"):
        lipschitz_constants(tiny.trainable())


def _replaced(model: MultiModalModel, index: int, change: Callable[[nn.Module], nn.Module]) -> MultiModalModel:
    changed = copy.deepcopy(model)
    trunk = cast(nn.Sequential, changed.encoders["video"].trunk)
    trunk[index] = change(trunk[index])
    return changed


def _plain(layer: nn.Module, factor: float = 1.0) -> nn.Module:
    """A layer of torch with the orthogonal layer's weights, multiplied."""
    if isinstance(layer, nn.Linear):
        plain: nn.Linear | nn.Conv2d = nn.Linear(layer.in_features, layer.out_features)
    else:
        conv = cast(nn.Conv2d, layer)
        plain = nn.Conv2d(conv.in_channels, conv.out_channels, conv.kernel_size, padding=conv.padding)  # type: ignore[arg-type]
    plain.load_state_dict({"weight": factor * cast(Tensor, layer.weight), "bias": cast(Tensor, layer.bias)})
    return plain


@pytest.mark.parametrize("index", [2, 4, 7, 9, 12, 14])
def test_tampered_weights_are_refused_by_layer(index: int) -> None:
    model = lipschitz_model()
    honest = _replaced(model, index, _plain)
    assert lipschitz_constants(honest).max() < 1 + 1e-4
    with pytest.raises(CRMTError, match=rf"video.trunk.{index} .*has norm 1\.0[12].*above 1"):
        lipschitz_constants(_replaced(model, index, lambda layer: _plain(layer, 1.02)))
    with pytest.raises(CRMTError, match=f"video.trunk.{index} .*norm nan"):
        lipschitz_constants(_replaced(model, index, lambda layer: _plain(layer, float("nan"))))


def test_a_convolution_tampered_at_one_frequency_is_refused() -> None:
    def sharpened(layer: nn.Module) -> nn.Module:
        plain = _plain(layer)
        with torch.no_grad():
            cast(Tensor, plain.weight)[0, 0] += 0.3 * torch.tensor([[1.0, -1, 1], [-1, 1, -1], [1, -1, 1]])
        return plain

    with pytest.raises(CRMTError, match=r"video.trunk.4 \(Conv2d\)"):
        lipschitz_constants(_replaced(lipschitz_model(), 4, sharpened))


class _Louder(nn.Flatten):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return 2 * super().forward(input)


def test_a_layers_own_coefficient_counts() -> None:
    assert lipschitz_constants(_replaced(lipschitz_model(), 3, lambda _: GroupSort2(k_coef_lip=0.5)))[1] < 0.51
    with pytest.raises(CRMTError, match=r"video.trunk.3 \(GroupSort2\) has norm 1.5"):
        lipschitz_constants(_replaced(lipschitz_model(), 3, lambda _: GroupSort2(k_coef_lip=1.5)))


def test_the_coefficient_of_a_layer_that_ignores_it_does_not() -> None:
    """deel-torchlip's InvertibleDownSampling takes a coefficient, and its Sequential gives it one, and it multiplies by
    nothing."""
    shuffled = nn.Sequential(InvertibleDownSampling(2, k_coef_lip=0.5), nn.Flatten())
    model = MultiModalModel([tiny.SOUND], {"audio": shuffled}, OrthogonalHead({"audio": 64}, 4))
    assert lipschitz_constants(model)[0] * tiny.SOUND.std[0] == pytest.approx(1)


def test_a_layer_that_is_used_twice_counts_twice() -> None:
    layer = nn.Linear(64, 64, bias=False)
    with torch.no_grad():
        layer.weight.copy_(1.0009 * torch.eye(64))
    model = MultiModalModel(
        [tiny.SOUND], {"audio": nn.Sequential(nn.Flatten(), layer, layer)}, OrthogonalHead({"audio": 64}, 4)
    )
    assert lipschitz_constants(model)[0] * tiny.SOUND.std[0] == pytest.approx(1.0009**2, rel=1e-6)


def _hooked(layer: nn.Module) -> nn.Module:
    layer.register_forward_hook(lambda *given: 10 * given[-1])
    return layer


@pytest.mark.parametrize(
    ("index", "layer", "message"),
    [
        (3, nn.GELU(), "GELU, whose Lipschitz constant is not known"),
        (11, _Louder(), "_Louder, whose Lipschitz constant is not known"),  # a subclass may do anything
        (4, nn.Conv2d(4, 4, 3, padding=1, groups=2), "one group"),
        (4, nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), "zeros as padding"),
        (4, SpectralConv2d(4, 4, 5, padding=2, padding_mode="symmetric"), "zeros as padding"),  # its own, in forward
        (4, _hooked(nn.Conv2d(4, 4, 3, padding=1)), r"video.trunk.4 has a hook"),
        (4, nn.utils.weight_norm(nn.Conv2d(4, 4, 3, padding=1)), r"video.trunk.4 has a hook"),  # stale until it is used
    ],
)
def test_an_unknown_layer_is_refused(index: int, layer: nn.Module, message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        lipschitz_constants(_replaced(lipschitz_model(), index, lambda _: layer))


def _offset_model(length: float, dtype: torch.dtype) -> MultiModalModel:
    """One linear encoder with orthonormal rows, whose bias is long where the head does not look."""
    encoder = nn.Linear(6, 3)
    with torch.no_grad():
        encoder.weight.copy_(torch.eye(3, 6))
        encoder.bias.copy_(torch.tensor([0.0, 0.0, length]))
    inputs = {"a": torch.zeros(2, 6)}
    return MultiModalModel.around({"a": encoder}, inputs, 2, head="concat").to(dtype)


def test_a_long_offset_in_single_precision_is_refused() -> None:
    """Rounding is relative to it, and nothing in the scores shows it."""
    assert lipschitz_constants(_offset_model(50, torch.float32)) == pytest.approx(1)
    with pytest.raises(CRMTError, match=r"a \(Linear\) maps 0 to a vector of length 1e\+06.*to float64"):
        lipschitz_constants(_offset_model(1e6, torch.float32))
    assert lipschitz_constants(_offset_model(1e6, torch.float64)) == pytest.approx(1)
    model = lipschitz_model()
    with torch.no_grad():
        cast(Tensor, cast(nn.Sequential, model.encoders["video"].trunk)[4].bias).add_(1e5)
    with pytest.raises(CRMTError, match=r"video.trunk.4 .*maps 0 to a vector"):
        lipschitz_constants(model)


def test_arithmetic_that_rounds_more_is_refused() -> None:
    model = lipschitz_model()
    torch.set_float32_matmul_precision("high")
    try:
        with pytest.raises(BadInputError, match=r"torch.set_float32_matmul_precision\('highest'\)"):
            lipschitz_constants(model)
        lipschitz_constants(copy.deepcopy(model).double())
    finally:
        torch.set_float32_matmul_precision("highest")
    with torch.autocast("cpu"), pytest.raises(BadInputError, match=r"outside torch.autocast"):
        lipschitz_constants(model)


@pytest.mark.parametrize("labels", [[0, 3], [-1, 0]])
def test_labels_out_of_range_are_refused(labels: list[int]) -> None:
    head = OrthogonalHead({"a": 8}, 3)
    with pytest.raises(BadInputError, match=r"labels run from .*; the model's classes are 0 to 2"):
        lipschitz_radii(head, torch.randn(2, 1, 3), torch.tensor(labels), torch.ones(1))


# --- the radii -----------------------------------------------------------------------------------------------------


def orthogonal_linear_model(head: str, modalities: int) -> MultiModalModel:
    """Linear encoders with orthonormal rows in the raw input, under a head with random weights."""
    model = tiny.linear_model(head, modalities)
    with torch.no_grad():
        for name, m in model.modalities.items():
            linear = cast(tiny.LinearEncoder, model.encoders[name]).linear
            rows = cayley(torch.randn(linear.weight.shape, dtype=torch.float64))
            linear.weight.copy_((rows.reshape(-1, *m.shape) * m.per_channel(m.std).double()).flatten(1))
    return model


@pytest.mark.parametrize("modalities", [1, 2, 3])
@pytest.mark.parametrize("head", ["orthogonal", "concat"])
def test_radii_of_orthogonal_linear_encoders_are_the_exact_distances(head: str, modalities: int) -> None:
    model = orthogonal_linear_model(head, modalities)
    inputs = tiny.random_inputs(model, 40)
    labels = tiny.mostly_right(model, inputs)
    with torch.no_grad():
        scores = model(inputs).scores
    found = lipschitz_radii(model.head, scores, labels, torch.ones(modalities))
    joint, single = tiny.exact_distances(model, inputs, labels)
    assert found.certificate == "lipschitz" and (joint > 0).any() and (joint == 0).any()
    for mine, exact in ((found.joint, joint), (found.unimodal, single)):
        assert (mine <= exact * (1 + 1e-9)).all()
        torch.testing.assert_close(mine, exact, rtol=1e-7, atol=1e-9)


def test_radii_of_other_linear_encoders_are_below_the_exact_distances() -> None:
    for head in ("orthogonal", "concat"):
        model = tiny.linear_model(head, 3)
        inputs = tiny.random_inputs(model, 40)
        labels = tiny.mostly_right(model, inputs)
        constants = torch.stack(
            [
                torch.linalg.matrix_norm(
                    (e.linear.weight.reshape(-1, *m.shape) / m.per_channel(m.std)).flatten(1), ord=2
                )
                for e, m in zip(model.encoders.values(), model.modalities.values(), strict=True)
            ]
        )
        with torch.no_grad():
            found = lipschitz_radii(model.head, model(inputs).scores, labels, constants)
        joint, single = tiny.exact_distances(model, inputs, labels)
        assert (found.joint <= joint).all() and (found.unimodal <= single).all() and (found.joint > 0).any()


def test_pair_constants_are_those_of_the_formula() -> None:
    head = OrthogonalHead({"a": 8, "b": 12}, 5)
    head.set_integration(torch.rand(2, 5) + 0.1)
    a = head.integration.detach().double()
    constants = torch.tensor([1.0, 2.0])
    expected = constants[:, None, None] * (a[:, :, None] ** 2 + a[:, None, :] ** 2).sqrt()
    off = ~torch.eye(5, dtype=torch.bool).expand(2, 5, 5)
    found = lipschitz_pair_constants(head, constants)
    torch.testing.assert_close(found[off], expected[off], rtol=1e-5, atol=0)
    concat = ConcatHead({"a": 8}, 3)
    with torch.no_grad():
        concat.weight("a")[2] = concat.weight("a")[1]
    distances = lipschitz_pair_constants(concat, torch.ones(1))[0]
    assert distances[0, 1] == pytest.approx(
        float((concat.weight("a")[0] - concat.weight("a")[1]).detach().norm()), rel=1e-5
    )
    assert 0 < distances[1, 2] < 1e-5  # equal rows: never below the truth


def test_rounding_in_single_precision_is_within_what_the_radii_allow(trained: MultiModalModel) -> None:
    inputs = tiny.random_inputs(trained, 64)
    exact = _rounded_weights(trained)
    with torch.no_grad():
        rough = trained.eval()(inputs)
        fine = exact({m: x.double() for m, x in inputs.items()})
    assert 0 < (rough.logits - fine.logits).abs().max() < lipschitz.ROUNDING[torch.float32] / 8
    labels = rough.logits.argmax(1)
    constants = lipschitz_constants(trained)
    assert (lipschitz_radii(trained.head, rough.scores, labels, constants).joint > 0).any()


def _rounded_weights(model: MultiModalModel) -> MultiModalModel:
    """The model's very weights, used in double precision."""
    plain = copy.deepcopy(model)
    for encoder in plain.encoders.values():
        trunk = cast(nn.Sequential, encoder.trunk)
        for i, layer in enumerate(trunk):
            if parametrize.is_parametrized(layer):
                trunk[i] = _plain(layer)
    return plain.double().eval()


def test_a_tie_has_no_radius_and_half_precision_is_refused() -> None:
    head = OrthogonalHead({"a": 8}, 3)
    scores = torch.tensor([[[1.0, 1.0, 0.0]], [[1.0, 0.999999, 0.0]], [[1.0, 0.9, 0.0]]])
    found = lipschitz_radii(head, scores, torch.zeros(3, dtype=torch.int64), torch.ones(1))
    assert found.joint[0] == 0 and found.joint[1] == 0 < found.joint[2]  # the second margin may be rounding
    with pytest.raises(BadInputError, match="float16"):
        lipschitz_radii(head, scores.half(), torch.zeros(3, dtype=torch.int64), torch.ones(1))


def test_a_head_that_mixes_modalities_is_refused() -> None:
    class Mixing(Head):
        additive = False

    with pytest.raises(BadInputError, match="Mixing mixes the modalities"):
        lipschitz_radii(Mixing({"a": 8}, 3), torch.zeros(1, 1, 3), torch.zeros(1, dtype=torch.int64), torch.ones(1))


def test_a_head_that_may_compute_anything_is_refused() -> None:
    class Louder(ConcatHead):
        def scores(self, features: dict[str, Tensor]) -> Tensor:
            return 10 * super().scores(features)

    hooked = ConcatHead({"a": 8}, 3)
    _hooked(hooked)
    for head, message in ((Louder({"a": 8}, 3), "Louder is neither"), (hooked, "head has a hook")):
        with pytest.raises(BadInputError, match=message):
            lipschitz_radii(head, torch.zeros(1, 1, 3), torch.zeros(1, dtype=torch.int64), torch.ones(1))


@pytest.mark.parametrize("head", list(HEADS))
def test_the_audit_of_a_trained_model_finds_nothing(head: str, trained: MultiModalModel) -> None:
    model = trained if head == "orthogonal" else lipschitz_model(head)
    if not model.head.additive:
        return
    if model is not trained:
        settings = FitSettings(epochs=6, lr=1e-2, optimizer="adam", weight_decay=0)
        for _ in fit(model, create("jt"), tiny.learnable(model, batches=2), settings):
            pass
    batch = next(iter(tiny.learnable(model, size=32)(99)))
    with evaluating(model), torch.no_grad():
        scores = model(batch.inputs).scores
    found = lipschitz_radii(model.head, scores, batch.labels, lipschitz_constants(model))
    assert (found.joint > 0).sum() >= 8
    for name, result in audit(model, batch.inputs, batch.labels, found, attack="pgd").items():
        assert result.audited.sum() >= 8 and not result.violated.any(), name
