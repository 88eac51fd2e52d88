"""Shared by all tests: one thread (two cores are shared with whatever else runs) and a model of every head."""

from __future__ import annotations

import pytest
import torch

from crmt.model import MultiModalModel
from tests.crmt.tiny import linear_model

torch.set_num_threads(1)


@pytest.fixture(params=["concat", "orthogonal"])
def head(request: pytest.FixtureRequest) -> str:
    """The name of each head in turn."""
    return str(request.param)


@pytest.fixture(params=[1, 2, 3], ids=lambda m: f"M={m}")
def modalities(request: pytest.FixtureRequest) -> int:
    """One, two and three modalities in turn."""
    return int(request.param)


@pytest.fixture
def linear(head: str, modalities: int) -> MultiModalModel:
    """A float64 model with linear encoders, for each head and number of modalities."""
    return linear_model(head, modalities)
