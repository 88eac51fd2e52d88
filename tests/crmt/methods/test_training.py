"""Every method in real training runs: it learns with one, two and three modalities, and resumes exactly from disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from crmt.checkpoint import load_state, save_state
from crmt.fit import EpochResult, FitSettings, fit
from crmt.methods import Method, create, method_names
from crmt.model import MultiModalModel, evaluating
from tests.crmt.tiny import learnable, trainable

SETTINGS = {"epsilon": 0.2, "attack_steps": 2, "gb_super_epoch": 2, "mixup_alpha": 0.3}
"""A small budget, since the tiny inputs are small; super-epochs short enough to end."""


def train(
    method: Method, model: MultiModalModel, epochs: int, state: Path | None = None, stop: int = 0, batches: int = 3
) -> tuple[list[EpochResult], dict[str, Tensor]]:
    """Results and the companion's final state; stops after epoch `stop`, leaving its state on disk."""
    results = []
    settings = FitSettings(epochs=epochs, lr=0.05, seed=3)
    data = learnable(model, batches=batches)
    loaded = None if state is None or stop else load_state(state)
    for result in fit(model, method, data, settings, state=loaded, held_out=lambda: data(1000)):
        results.append(result)
        companion = {k: v.clone() for k, v in result.state()["companion"].items()}
        if stop and state is not None and result.epoch == stop:
            save_state(state, result.state())
            break
    return results, companion


@pytest.mark.parametrize("name", method_names())
def test_every_method_learns(name: str, modalities: int) -> None:
    method = create(name, **SETTINGS)
    model = trainable(method.head, modalities, classes=4)
    results, _ = train(method, model, 6, batches=6)
    assert results[-1].metrics["cross_entropy"] < results[0].metrics["cross_entropy"]
    with evaluating(model), torch.no_grad():
        right = torch.cat([model(b.inputs).logits.argmax(1) == b.labels for b in learnable(model)(77)])
    assert float(right.float().mean()) > 0.8


@pytest.mark.parametrize("name", method_names())
@pytest.mark.parametrize("stop", [1, 3])
def test_resuming_from_disk_equals_an_undisturbed_run(name: str, stop: int, tmp_path: Path) -> None:
    method = create(name, **SETTINGS)
    whole = trainable(method.head)
    undisturbed, companion = train(method, whole, 4)
    train(method, trainable(method.head), 4, tmp_path, stop)
    second = trainable(method.head)
    with torch.no_grad():  # what is loaded must replace everything
        for p in second.head.parameters():
            p.add_(1) if p.ndim == 1 else None
    resumed, resumed_companion = train(method, second, 4, tmp_path)
    assert [r.epoch for r in resumed] == list(range(stop + 1, 5))
    for old, new in zip(undisturbed[stop:], resumed, strict=True):
        assert new.metrics["loss"] == pytest.approx(old.metrics["loss"], rel=1e-6)
    assert companion.keys() == resumed_companion.keys()
    for expected, found in ((whole.state_dict(), second.state_dict()), (companion, resumed_companion)):
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-6, atol=1e-6, msg=key)
