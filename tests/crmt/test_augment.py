"""Translation: whole pixels, edges repeated, the channels and frames of one input together, seeded."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from crmt.augment import translate, translate_all
from crmt.errors import BadInputError


@given(shape=st.sampled_from([(5, 4, 6), (5, 3, 4, 6), (5, 2, 3, 4, 6)]), seed=st.integers(0, 99))
def test_every_result_is_a_crop_of_the_padded_input(shape: tuple[int, ...], seed: int) -> None:
    batch = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    moved = translate(batch, (2, 3), torch.Generator().manual_seed(seed))
    assert moved.shape == batch.shape
    for before, after in zip(batch, moved, strict=True):
        padded = F.pad(before.reshape(1, -1, 4, 6), (3, 3, 2, 2), mode="replicate")[0]
        crops = [padded[:, i : i + 4, j : j + 6].reshape(before.shape) for i in range(5) for j in range(7)]
        assert any(torch.equal(after, crop) for crop in crops)


def test_inputs_move_apart_over_the_whole_reach_and_a_seed_repeats() -> None:
    ramp = torch.arange(9.0).expand(400, 1, 9, 9)
    moved = translate(ramp, (0, 2), torch.Generator().manual_seed(0))
    assert moved[:, 0, 0, 4].unique().tolist() == [2, 3, 4, 5, 6]
    assert torch.equal(moved, translate(ramp, (0, 2), torch.Generator().manual_seed(0)))
    assert torch.equal(translate(ramp, (0, 0), torch.Generator()), ramp)


def test_only_the_named_modalities_move() -> None:
    inputs = {"audio": torch.rand(3, 1, 4, 9), "video": torch.rand(3, 2, 3, 6, 6)}
    moved = translate_all(inputs, {"video": (2, 2)}, torch.Generator().manual_seed(0))
    assert torch.equal(moved["audio"], inputs["audio"]) and not torch.equal(moved["video"], inputs["video"])


@pytest.mark.parametrize("reach", [(-1, 0), (0, 9), (4, 0)])
def test_a_reach_outside_the_input_is_refused(reach: tuple[int, int]) -> None:
    with pytest.raises(BadInputError, match="a translation reaches 0 to"):
        translate(torch.rand(2, 1, 4, 9), reach, torch.Generator())
