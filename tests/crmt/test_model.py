"""The model: standardisation inside, any number of modalities, `evaluating`, and the specification's round trip."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from crmt.errors import BadInputError
from crmt.heads import ConcatHead
from crmt.model import ModelSpec, MultiModalModel, build_model, evaluating
from tests.crmt.tiny import AUDIO, VIDEO, LinearEncoder, effective_weights, linear_model, random_inputs, spec, trainable


def test_logits_are_affine_in_the_raw_input(linear: MultiModalModel) -> None:
    """So the standardisation is inside the model, once, per channel."""
    x, y = random_inputs(linear, 5), random_inputs(linear, 5, seed=1)
    moved = sum(
        (x[m] - y[m]).flatten(1) @ v.T for m, v in zip(linear.modalities, effective_weights(linear), strict=True)
    )
    torch.testing.assert_close(linear(x).logits - linear(y).logits, moved)


def test_the_mean_input_gives_zero_features_without_bias() -> None:
    model = linear_model("concat", 2)
    for encoder in model.encoders.values():
        assert isinstance(encoder, LinearEncoder)
        torch.nn.init.zeros_(encoder.linear.bias)
    inputs = {name: m.missing(torch.zeros(2, *m.shape, dtype=torch.float64)) for name, m in model.modalities.items()}
    assert float(model(inputs).scores.detach().abs().max()) < 1e-6  # the constants are float32


def test_scores_of_one_modality_do_not_depend_on_another(linear: MultiModalModel) -> None:
    x, y = random_inputs(linear, 3), random_inputs(linear, 3, seed=1)
    for i, m in enumerate(linear.modalities):
        mixed = {**y, m: x[m]}
        assert torch.equal(linear(mixed).scores[:, i], linear(x).scores[:, i])


def test_the_order_of_the_batch_does_not_matter_and_extra_inputs_are_ignored() -> None:
    model = linear_model("concat", 3)
    x = random_inputs(model, 3)
    assert torch.equal(model(dict(reversed(x.items())) | {"smell": torch.rand(3)}).logits, model(x).logits)


def test_evaluating_restores_mode_and_gradients() -> None:
    model = trainable().train()
    frozen = model.head.bias.requires_grad_(False)
    with evaluating(model):
        assert not model.training
        assert not any(p.requires_grad for p in model.parameters())
        assert model.head.weight("video") is model.head.weight("video")  # computed once
    assert model.training
    assert all(p.requires_grad == (p is not frozen) for p in model.parameters())
    assert model.head.weight("video").requires_grad


def test_evaluating_leaves_batch_norm_alone_and_restores_after_an_error() -> None:
    model = trainable().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(RuntimeError, match=r"on purpose"), evaluating(model):
        model({m.name: torch.rand(4, *m.shape) for m in model.modalities.values()})
        raise RuntimeError("on purpose")
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_the_specification_survives_json() -> None:
    original = spec("concat", 3)
    assert ModelSpec.from_json(json.loads(json.dumps(original.to_json()))) == original


def test_the_seed_alone_decides_the_initial_weights() -> None:
    torch.manual_seed(1)
    first = build_model(spec(), seed=3).state_dict()
    state = torch.get_rng_state()
    second = build_model(spec(), seed=3).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, second[k]) for k, v in first.items())
    other = build_model(spec(), seed=4).state_dict()
    assert any(not torch.equal(v, other[k]) for k, v in first.items())


def test_bad_specifications_are_refused() -> None:
    with pytest.raises(BadInputError, match=r"no head 'linear'. Valid: concat, orthogonal"):
        build_model(spec("linear"))
    with pytest.raises(BadInputError, match=r"no encoder 'vgg' for 'audio'. Valid"):
        build_model(spec(encoder="vgg"))
    with pytest.raises(BadInputError, match=r"for 'video'"):
        build_model(replace(spec(), encoders={"audio": "small_resnet"}))
    with pytest.raises(BadInputError, match=r"9 orthonormal rows"):
        build_model(spec(classes=9))


def test_bad_batches_are_refused() -> None:
    model = linear_model("concat", 2)
    inputs = random_inputs(model, 3)
    with pytest.raises(BadInputError, match=r"no 'video'"):
        model({"audio": inputs["audio"]})
    with pytest.raises(BadInputError, match=r"'video' has shape"):
        model({**inputs, "video": inputs["video"][..., :3]})


def test_parts_that_do_not_fit_together_are_refused() -> None:
    encoders = {"audio": LinearEncoder(30, 6)}
    with pytest.raises(BadInputError, match=r"differ"):
        MultiModalModel((AUDIO, VIDEO), encoders, ConcatHead({"audio": 6, "video": 6}, 3))
    with pytest.raises(BadInputError, match=r"differ"):
        MultiModalModel((AUDIO,), encoders, ConcatHead({"video": 6}, 3))
