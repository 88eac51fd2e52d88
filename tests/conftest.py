"""Shared by all tests: one thread (two cores are shared with whatever else runs) and a model of every head."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, settings

from crmt.fit import FitSettings, fit
from crmt.methods import create
from crmt.modality import Batch
from crmt.model import MultiModalModel, build_model
from tests.crmt.tiny import learnable, linear_model, spec

torch.set_num_threads(1)
# how long an example takes is the machine's affair
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


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


@pytest.fixture(scope="module")
def trained() -> tuple[MultiModalModel, Batch]:
    """A quickly trained model and clips of its own kind."""
    model = build_model(spec(classes=4))
    epochs = learnable(model, batches=6)
    list(fit(model, create("crmt_jt"), epochs, FitSettings(epochs=4, lr=0.05)))
    parts = list(epochs(99))
    inputs = {m: torch.cat([b.inputs[m] for b in parts])[:24] for m in model.modalities}
    return model, Batch(inputs, torch.cat([b.labels for b in parts])[:24])
