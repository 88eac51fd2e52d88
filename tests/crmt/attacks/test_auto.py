"""auto is as strong as each of its parts, also where gradients are masked; and where Square starts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from crmt.attacks import AttackSettings, Ball, attack, auto, fgm, minimal_norm, square
from crmt.model import MultiModalModel
from tests.crmt.attacks.test_gradient import NORMS, Norm
from tests.crmt.attacks.test_strong import margins, seeded, without_boxes
from tests.crmt.tiny import linear_model, mostly_right, random_inputs, trainable


class Quantised(nn.Module):
    """An encoder behind a rounding, whose gradient is 0 everywhere: masked gradients."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.encoder((8 * x).round() / 8)
        return features


def masked() -> MultiModalModel:
    model = without_boxes(linear_model("concat", 2, classes=3, dtype=torch.float32))
    model.encoders = nn.ModuleDict({m: Quantised(e) for m, e in model.encoders.items()})
    return model


@pytest.mark.parametrize("norm", NORMS)
def test_where_gradients_are_masked_auto_is_as_strong_as_square(norm: Norm) -> None:
    model = masked()
    inputs = random_inputs(model, 40)
    labels = mostly_right(model, inputs)
    ball = Ball.joint(model.modalities, 0.7 if norm == "l2" else 0.04, norm)
    chosen = AttackSettings(steps=3, queries=60, targets=1)
    alone = attack("square", model, inputs, labels, ball, settings=chosen, generator=seeded())
    standing = margins(model, inputs, labels) > 0
    assert 5 < int(alone.broken[standing].sum()) < int(standing.sum())  # the budget is one where strength shows
    from_x = attack("square", model, inputs, labels, ball, settings=chosen, start=inputs, generator=seeded())
    assert torch.equal(from_x.margin, alone.margin)
    together = auto(model, inputs, labels, ball, settings=chosen, generator=seeded())
    assert together.broken.sum() >= alone.broken.sum()


def test_square_goes_on_from_a_start_that_is_better_than_its_tiles() -> None:
    model = without_boxes(linear_model("concat", 2, classes=3, dtype=torch.float32))
    inputs = random_inputs(model, 20)
    with torch.no_grad():
        labels = model(inputs).logits.argmax(1)
    ball = Ball.joint(model.modalities, 0.05)
    best = fgm(model, inputs, labels, ball)
    found = square(model, inputs, labels, ball, queries=1, start=best.inputs, generator=seeded())
    assert bool((found.margin <= best.margin + 1e-6).all())


@pytest.mark.parametrize("kind", ["linear", "convolutional", "masked"])
def test_auto_breaks_whatever_a_part_without_chance_breaks(kind: str) -> None:
    model = masked() if kind == "masked" else linear_model("orthogonal", 3, classes=6)
    if kind == "convolutional":
        model = trainable(modalities=2).double()
        with torch.no_grad():
            for _ in range(20):  # sensible batch-norm statistics
                model.train()(random_inputs(model, 16))
        model.eval()
    inputs = random_inputs(model, 24)
    labels = mostly_right(model, inputs)
    unit = Ball.joint(model.modalities, 1.0)
    radius = minimal_norm(model, inputs, labels, unit, steps=10).radius
    finite = radius[radius.isfinite() & (radius > 0)]
    chosen = AttackSettings(steps=2, queries=2, targets=2)
    for factor in (0.9, 1.0, 1.2):
        ball = Ball.joint(model.modalities, factor * float(finite.median()) if len(finite) else 0.5)
        strongest = auto(model, inputs, labels, ball, settings=chosen, generator=seeded()).broken
        # where the whole gradient is 0, all but FGM go on at random
        for name in ("fgm",) if kind == "masked" else ("fgm", "pgd", "minimal_norm", "apgd_ce", "apgd_dlr"):
            alone = attack(name, model, inputs, labels, ball, settings=chosen, generator=seeded()).broken
            assert bool((alone <= strongest).all()), name
