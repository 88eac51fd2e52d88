"""Modalities: standardisation constants, the stand-in for a missing input, and refused batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from crmt.attacks import Ball, auto, pgd
from crmt.certificates.estimate import gradient_constants
from crmt.certificates.sampling import SmoothingSettings, smooth
from crmt.errors import BadInputError
from crmt.fit import FitSettings, fit
from crmt.methods import create
from crmt.modality import Batch, check_inputs
from crmt.predictions import predict
from tests.crmt.tiny import AUDIO, VIDEO, linear_model, random_inputs


def test_per_channel_broadcasts_over_the_channel_axis() -> None:
    mean = VIDEO.per_channel(VIDEO.mean)
    assert mean.shape == (1, 1, 3, 1, 1)
    assert mean.flatten().tolist() == pytest.approx(VIDEO.mean)


def test_missing_is_the_mean_in_the_shape_of_the_batch() -> None:
    batch = torch.rand(5, *VIDEO.shape, dtype=torch.float64)
    missing = VIDEO.missing(batch)
    assert missing.shape == batch.shape
    assert missing.dtype == batch.dtype
    for channel, value in enumerate(VIDEO.mean):
        assert missing[:, :, channel].unique().tolist() == pytest.approx([value])
    missing += 1  # its own memory, not a broadcast view
    assert not torch.equal(missing, VIDEO.missing(batch))


@pytest.mark.parametrize(
    "change", [{"mean": (0.5,)}, {"std": (1.0, 1.0)}, {"std": (1.0, 0.0, 1.0)}, {"std": (1.0, float("nan"), 1.0)}]
)
def test_constants_that_do_not_fit_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(BadInputError, match=r"'video'.*deviations"):
        replace(VIDEO, **change)


def test_a_missing_modality_is_named() -> None:
    with pytest.raises(BadInputError, match=r"no 'audio'.*needs audio, video and got video"):
        check_inputs({"audio": AUDIO, "video": VIDEO}, {"video": torch.rand(2, *VIDEO.shape)})


def test_a_wrong_shape_is_shown_beside_the_right_one() -> None:
    with pytest.raises(BadInputError, match=r"'audio' has shape \(2, 1, 5, 6\); the model needs \(batch, 1, 6, 5\)"):
        check_inputs({"audio": AUDIO}, {"audio": torch.rand(2, 1, 5, 6)})


def test_batches_of_different_length_are_refused() -> None:
    inputs = {"audio": torch.rand(2, *AUDIO.shape), "video": torch.rand(3, *VIDEO.shape)}
    with pytest.raises(BadInputError, match=r"has 2 of 'audio', 3 of 'video'"):
        check_inputs({"audio": AUDIO, "video": VIDEO}, inputs)


@pytest.mark.parametrize("name", ["", "v.rgb", "type", "values", "training", 3])
def test_names_that_torch_cannot_hold_are_refused(name: Any) -> None:
    with pytest.raises(BadInputError, match=r"no modality can be called .*: rename it"):
        replace(VIDEO, name=name)


@pytest.mark.parametrize(
    ("name", "dtype", "message"),
    [
        ("video", torch.uint8, r"^'video' holds uint8 values: convert to float in \[0, 1\]$"),
        ("audio", torch.int64, r"^'audio' holds int64 values: convert to float, or give the embeddings of tokens$"),
        ("audio", torch.bool, r"^'audio' holds bool values: convert to float"),
    ],
)
def test_inputs_that_are_not_floating_are_refused_everywhere(name: str, dtype: torch.dtype, message: str) -> None:
    model = linear_model("concat", 2)
    inputs = random_inputs(model, 4)
    inputs[name] = (200 * inputs[name].abs()).to(dtype)
    labels = torch.arange(4)
    batch = Batch(inputs, labels)
    ball = Ball.joint(model.modalities, 0.5)
    uses: list[Callable[[], object]] = [
        lambda: model(inputs),
        lambda: next(fit(model, create("jt"), lambda _: [batch], FitSettings(epochs=1, lr=0.1))),
        lambda: gradient_constants(model, [batch]),
        lambda: predict(model, [batch]),
        lambda: pgd(model, inputs, labels, ball),
        lambda: auto(model, inputs, labels, ball),
        lambda: list(smooth(model, [batch], SmoothingSettings(sigmas=dict.fromkeys(model.modalities, 0.5)))),
    ]
    for use in uses:
        with pytest.raises(BadInputError, match=message):
            use()


def test_inputs_that_are_no_tensors_are_refused() -> None:
    inputs: Any = {"audio": torch.rand(2, *AUDIO.shape).numpy()}
    with pytest.raises(BadInputError, match=r"'audio' is a ndarray: give a tensor"):
        check_inputs({"audio": AUDIO}, inputs)
