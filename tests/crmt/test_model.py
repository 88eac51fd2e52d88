"""The model: standardisation inside, any number of modalities, `evaluating`, and the specification's round trip."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from crmt.errors import BadInputError
from crmt.heads import ConcatHead
from crmt.modality import Batch
from crmt.model import ModelSpec, MultiModalModel, build_model, evaluating
from crmt.predictions import predict
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


# MultiModalModel.around


class Seen(nn.Module):
    """Flattens, and keeps what it was given."""

    seen: Tensor

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x.detach().clone()
        return x.flatten(1)


def batch_of(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Of a video in [0, 1], the channels far apart, and a sound."""
    draw = torch.Generator().manual_seed(0)
    video = (torch.rand(16, 3, 2, 2, generator=draw) + torch.arange(3)[:, None, None]) / 3
    return {"video": video.to(dtype), "sound": (5 + torch.randn(16, 8, generator=draw)).to(dtype)}


def around(encoders: Any = None, inputs: Any = None, **settings: Any) -> MultiModalModel:
    given = batch_of() if inputs is None else inputs
    made = {name: nn.Flatten() for name in given} if encoders is None else encoders
    return MultiModalModel.around(made, given, 4, **settings)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_around_gives_encoders_the_inputs_as_they_are_and_replaces_what_is_missing_by_its_mean(
    dtype: torch.dtype,
) -> None:
    inputs = batch_of(dtype)
    encoders = {name: Seen() for name in inputs}
    model = around(encoders, inputs, boxes={"video": (0, 1)})
    model(inputs)
    assert all(torch.equal(encoders[m].seen, x) and encoders[m].seen.dtype == dtype for m, x in inputs.items())
    means = {"video": inputs["video"].mean((0, 2, 3)), "sound": inputs["sound"].mean(0)}
    for name, modality in model.modalities.items():
        found = modality.missing(inputs[name])
        shape = (1, -1, 1, 1) if name == "video" else (1, -1)
        torch.testing.assert_close(found, means[name].reshape(shape).expand_as(found))
    assert float(means["video"].std()) > 0.3 and float(means["sound"].min()) > 4
    labels = torch.arange(16) % 4
    absent = predict(model, [Batch(inputs, labels)]).missing
    for i, (name, modality) in enumerate(model.modalities.items()):
        expected = model({**inputs, name: modality.missing(inputs[name])}).logits.argmax(1)
        assert torch.equal(absent[:, i], expected)


@pytest.mark.parametrize("value", [0.1, 1.0, 1.2])
def test_the_mean_lies_in_the_box(value: float) -> None:
    """Also where rounding, or an input, is outside."""
    model = around(inputs={"v": torch.full((7, 5), value)}, boxes={"v": (0.0, 1.0)})
    assert model.modalities["v"].mean == pytest.approx([min(value, 1.0)] * 5)
    assert all(0 <= x <= 1 for x in model.modalities["v"].mean)


def test_around_changes_neither_inputs_nor_modes_nor_types_of_encoders() -> None:
    inputs = batch_of()
    copies = {m: x.clone() for m, x in inputs.items()}
    norm = nn.BatchNorm1d(12)
    video = nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), norm, nn.Dropout(0.5, inplace=True)).train()
    norm.eval()
    sound = nn.Sequential(nn.Hardtanh(-0.1, 0.1, inplace=True), nn.Linear(8, 8))
    sound.register_buffer("table", torch.ones(2, dtype=torch.float64))  # in a type of its own
    video.requires_grad_(False)
    model = around({"video": video, "sound": sound}, inputs)
    model(inputs)
    assert all(torch.equal(copies[m], x) for m, x in inputs.items())
    assert video.training and not norm.training and sound.training
    assert cast(Tensor, sound.table).dtype == torch.float64
    assert not any(p.requires_grad for p in video.parameters()) and all(p.requires_grad for p in sound.parameters())
    leaf = {"v": torch.ones(2, 4, requires_grad=True)}
    assert around(inputs=leaf).modalities["v"].mean == (1.0,) * 4 and leaf["v"].grad is None


class Gives(nn.Module):
    """What it was given, changed."""

    def __init__(self, change: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.change = change

    def forward(self, x: Tensor) -> object:
        return self.change(x)


SOUND = batch_of()["sound"]


def of(change: Callable[[Tensor], object]) -> MultiModalModel:
    return around({"a": Gives(change)}, {"a": SOUND})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: around(boxes={"vidoe": (0, 1)}), r"^boxes for vidoe; the model has video, sound$"),
        (lambda: around({}, {}), r"^encoders for nothing, inputs of nothing: give the same, at least one modality$"),
        (lambda: around({}), r"^encoders for nothing, inputs of video, sound: give the same"),
        (lambda: of(lambda x: (x, None)), r"^the encoder of 'a' gives a tuple: it must give one tensor of features$"),
        (lambda: of(lambda x: None), r"^the encoder of 'a' gives a NoneType"),
        (lambda: of(lambda x: x[0]), r"^the encoder of 'a' gives \(8,\): it must give \(batch, features\)$"),
        (lambda: of(lambda x: x.long()), r"^the encoder of 'a' gives torch.int64 features of torch.float32 inputs: "),
        (lambda: of(lambda x: x.bfloat16()), r"^the encoder of 'a' gives torch.bfloat16 features of torch.float32 inp"),
        (
            lambda: around({"a": torch.relu}, {"a": SOUND}),
            r"^the encoder of 'a' is a builtin.*: give a torch.nn.Module",
        ),
        (lambda: around(inputs={"a": SOUND.long()}), r"^'a' holds int64 values: convert to float, or give the embeddi"),
        (
            lambda: around(inputs={"a": (SOUND * 9).byte()}, boxes={"a": (0, 1)}),
            r"^'a' holds uint8 values: convert to float in \[0, 1\]$",
        ),
        (lambda: around(inputs={"a": SOUND.tolist()}), r"^'a' is a list: give a tensor$"),
        (lambda: around(inputs={"a": SOUND[:, 0]}), r"^'a' has shape \(16,\): give \(batch, ...\), and at least one"),
        (lambda: around(inputs={"a": SOUND[:0]}), r"^'a' has shape \(0, 8\): give \(batch, ...\), and at least one"),
        (lambda: around(inputs={"a": SOUND.log() * torch.inf}), r"^'a' holds NaN or infinity: leave such inputs out"),
        (
            lambda: around(inputs=batch_of(torch.bfloat16)),
            r"^an orthogonal head cannot be torch.bfloat16: give float32",
        ),
        (lambda: around(inputs=batch_of(torch.float16)), r"^an orthogonal head cannot be torch.float16: give float32"),
        (
            lambda: around(inputs=batch_of() | {"sound": SOUND.double()}),
            r"^'sound' is torch.float64 on cpu, 'video' is torch.float32 on cpu: give all inputs in one type",
        ),
        *(
            (lambda name=name: around(inputs={name: SOUND}), r"^no modality can be called .*: rename it$")
            for name in ("type", "values", "v.rgb", "", 0)
        ),
        (lambda: around(boxes={"v.rgb": (0, 1)}), r"^no modality can be called 'v.rgb'"),
    ],
)
def test_what_cannot_be_built_around_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        make()


def test_a_concat_head_takes_bfloat16() -> None:
    model = around(inputs=batch_of(torch.bfloat16), head="concat")
    assert model(batch_of(torch.bfloat16)).logits.dtype == torch.bfloat16
