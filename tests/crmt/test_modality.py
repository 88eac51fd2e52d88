"""Modalities: standardisation constants, the stand-in for a missing input, and refused batches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from crmt.errors import BadInputError
from crmt.modality import check_inputs
from tests.crmt.tiny import AUDIO, VIDEO


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
