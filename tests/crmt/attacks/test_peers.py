"""PGD, APGD and auto against foolbox and ART, on the concatenated input of a trained model, at the same budget."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from crmt.attacks import AttackSettings, Ball, apgd, attack, auto, minimal_norm, parts_of_auto, pgd
from crmt.fit import FitSettings, fit
from crmt.methods import create
from crmt.modality import Inputs
from crmt.model import MultiModalModel, build_model
from tests.crmt.attacks.test_strong import without_boxes
from tests.crmt.tiny import learnable, spec

CLIPS = 80


class Concatenated(nn.Module):
    """The model as a function of one vector, `(B, D)`, for peers that know nothing of modalities."""

    def __init__(self, model: MultiModalModel) -> None:
        super().__init__()
        self.model = model
        self.sizes = {name: torch.Size(m.shape).numel() for name, m in model.modalities.items()}

    def forward(self, joined: Tensor) -> Tensor:
        parts = joined.split(list(self.sizes.values()), dim=1)
        shapes = [m.shape for m in self.model.modalities.values()]
        inputs = {n: p.reshape(-1, *s) for n, p, s in zip(self.sizes, parts, shapes, strict=True)}
        logits: Tensor = self.model(inputs).logits
        return logits


@pytest.fixture(scope="module")
def trained() -> Iterator[tuple[MultiModalModel, Inputs, Tensor]]:
    model = build_model(spec("concat", classes=4))
    epochs = learnable(model, batches=8, size=32)
    list(fit(model, create("jt"), epochs, FitSettings(epochs=4, lr=0.05)))
    without_boxes(model).eval()
    parts = list(epochs(90))
    inputs = {m: torch.cat([b.inputs[m] for b in parts])[:CLIPS] for m in model.modalities}
    yield model, inputs, torch.cat([b.labels for b in parts])[:CLIPS]


def joined(inputs: Inputs) -> Tensor:
    return torch.cat([x.flatten(1) for x in inputs.values()], dim=1)


def accuracy(model: MultiModalModel, points: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return float((Concatenated(model)(points).argmax(1) == labels).double().mean())


def budget(model: MultiModalModel, inputs: Inputs, labels: Tensor) -> float:
    """At which about half of the clips fall: where a weaker attack shows."""
    radius = minimal_norm(model, inputs, labels, Ball.joint(model.modalities, 1.0), steps=10).radius
    return float(radius.median())


def test_pgd_and_apgd_are_as_strong_as_foolbox_and_art(trained: tuple[MultiModalModel, Inputs, Tensor]) -> None:
    foolbox = pytest.importorskip("foolbox")
    attacks = pytest.importorskip("art.attacks.evasion")
    estimators = pytest.importorskip("art.estimators.classification")
    model, inputs, labels = trained
    points, epsilon = joined(inputs), budget(model, inputs, labels)
    wrapped = Concatenated(model).eval()

    peer = foolbox.attacks.L2ProjectedGradientDescentAttack(steps=20, rel_stepsize=0.125, random_start=False)
    wide = foolbox.PyTorchModel(wrapped, bounds=(-100, 100), device="cpu")
    _, found, _ = peer(wide, points, labels, epsilons=epsilon)
    assert float((found - points).norm(dim=1).max()) <= epsilon * (1 + 1e-4)
    of_foolbox = accuracy(model, found, labels)

    classifier = estimators.PyTorchClassifier(
        wrapped, nn.CrossEntropyLoss(), input_shape=(points.shape[1],), nb_classes=4, clip_values=(-100, 100),
        device_type="cpu",
    )  # fmt: skip
    np.random.seed(0)
    auto_pgd = attacks.AutoProjectedGradientDescent(
        classifier, norm=2, eps=epsilon, eps_step=2 * epsilon, max_iter=20, nb_random_init=1, batch_size=CLIPS,
        loss_type="cross_entropy", verbose=False,
    )  # fmt: skip
    found = torch.from_numpy(auto_pgd.generate(points.numpy(), np.eye(4, dtype=np.float32)[labels.numpy()]))
    assert float((found - points).norm(dim=1).max()) <= epsilon * (1 + 1e-3)
    of_art = accuracy(model, found, labels)

    clean = accuracy(model, points, labels)
    assert max(of_foolbox, of_art) < clean - 0.1  # the peers do attack
    ball = Ball.joint(model.modalities, epsilon)
    # the peers climb the cross-entropy, so ours does: which loss is stronger, it or the margin, depends on the model
    same = pgd(model, inputs, labels, ball, steps=20, loss="cross_entropy")
    assert float((~same.broken).double().mean()) <= of_foolbox + 0.01
    ours = apgd(model, inputs, labels, ball, steps=20)
    assert float((~ours.broken).double().mean()) <= min(of_art, of_foolbox) + 0.01


def test_auto_is_at_least_as_strong_as_each_part(trained: tuple[MultiModalModel, Inputs, Tensor]) -> None:
    model, inputs, labels = trained
    inputs, labels = {m: x[:24] for m, x in inputs.items()}, labels[:24]
    chosen = AttackSettings(steps=5, queries=50)
    ball = Ball.joint(model.modalities, budget(model, inputs, labels))
    strongest = auto(model, inputs, labels, ball, settings=chosen, generator=torch.Generator().manual_seed(0))
    found = {
        name: attack(name, model, inputs, labels, ball, settings=chosen, generator=torch.Generator().manual_seed(0))
        for name in parts_of_auto()
    }
    for part in found.values():
        assert int(strongest.broken.sum()) >= int(part.broken.sum())
    assert int(found["fgm"].broken.sum()) < int(strongest.broken.sum())
