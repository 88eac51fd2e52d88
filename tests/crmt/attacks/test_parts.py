"""Modalities that an attack leaves alone are encoded once, and nothing else changes by that."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from crmt.attacks import Ball, attack, attack_names, pgd
from crmt.model import MultiModalModel, Output, in_parts
from tests.crmt.attacks.test_strong import seeded
from tests.crmt.tiny import linear_model, mostly_right, random_inputs


class Counted(nn.Module):
    """Counts the passes of an encoder."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.passes = 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        features: Tensor = self.encoder(x)
        return features


class Whole(MultiModalModel):
    """A model whose own `forward` mixes the modalities before the head: it may not be taken in parts."""

    def forward(self, inputs: dict[str, Tensor]) -> Output:
        features = self.features(inputs)
        mean = torch.stack(list(features.values())).mean(0)
        return self.decide({m: f + mean for m, f in features.items()})


def test_still_modalities_are_encoded_once_however_many_steps() -> None:
    passes = []
    for steps in (3, 13):
        model = linear_model("orthogonal", 3)
        encoder = Counted(model.encoders["video"])
        model.encoders["video"] = encoder
        inputs = random_inputs(model, 8)
        pgd(model, inputs, mostly_right(model, inputs), Ball.joint(["audio"], 0.3), steps=steps)
        passes.append(encoder.passes)
    assert passes[0] == passes[1]


@pytest.mark.parametrize("name", sorted(set(attack_names()) - {"auto"}))
def test_taking_a_model_in_parts_changes_no_attack(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = linear_model("orthogonal", 3)
    inputs = random_inputs(model, 16)
    labels = mostly_right(model, inputs)
    ball = Ball.joint(["flow"], 0.2)
    found = attack(name, model, inputs, labels, ball, generator=seeded())
    monkeypatch.setattr("crmt.attacks.search.in_parts", lambda _: False)
    whole = attack(name, model, inputs, labels, ball, generator=seeded())
    torch.testing.assert_close(found.margin, whole.margin)
    torch.testing.assert_close(found.inputs, whole.inputs)


def test_a_model_with_a_forward_of_its_own_is_taken_whole() -> None:
    plain = linear_model("concat", 2)
    model = Whole(list(plain.modalities.values()), dict(plain.encoders.items()), plain.head).double().eval()
    assert in_parts(plain) and not in_parts(model)
    inputs = random_inputs(model, 16)
    labels = mostly_right(model, inputs)
    found = pgd(model, inputs, labels, Ball.joint(["audio"], 0.5))
    with torch.no_grad():
        logits = model(found.inputs).logits
    right = logits.gather(1, labels[:, None]).squeeze(1)
    others = logits.scatter(1, labels[:, None], float("-inf")).amax(1)
    torch.testing.assert_close(found.margin, right - others)
