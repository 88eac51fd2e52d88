"""crmt on other people's models: own encoders of any kind, one to three modalities, and every kind of bad input."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crmt.attacks import AttackSettings, Ball, pgd
from crmt.certificates.audit import audit
from crmt.certificates.estimate import estimated_radii, gradient_constants
from crmt.certificates.radius import Radii
from crmt.errors import BadInputError
from crmt.fit import FitSettings, fit
from crmt.heads import ConcatHead, OrthogonalHead
from crmt.integration import optimise_integration
from crmt.losses import margin_regulariser
from crmt.methods import create
from crmt.modality import Batch
from crmt.model import MultiModalModel
from crmt.predictions import predict

CLASSES = 4
SHAPES = {"lidar": (3, 20), "camera": (3, 8, 8), "imu": (6,)}


class Recurrent(nn.Module):
    """Somebody's own encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(3, 16, batch_first=True)
        self.dropout = nn.Dropout(0.05)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.rnn(x.transpose(1, 2))[0].mean(1))


def encoders(count: int) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    made: dict[str, nn.Module] = {
        "lidar": Recurrent(),
        "camera": nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(72, 12)),
        "imu": nn.Sequential(nn.Linear(6, 24), nn.Tanh()),
    }
    return {name: made[name] for name in list(SHAPES)[:count]}


def clips(count: int, n: int = 48) -> Batch:
    """Each class moves every input by a direction of its own."""
    draw = torch.Generator().manual_seed(1)
    labels = torch.arange(n) % CLASSES
    inputs = {}
    for name, shape in list(SHAPES.items())[:count]:
        centres = torch.rand(CLASSES, shape[0], *[1] * (len(shape) - 1), generator=draw)
        inputs[name] = 0.7 * centres[labels] + 0.3 * torch.rand(n, *shape, generator=draw)
    return Batch(inputs, labels)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("head", ["orthogonal", "concat"])
def test_the_whole_method_on_own_encoders(count: int, head: str) -> None:
    batch = clips(count)
    model = MultiModalModel.around(
        encoders(count), batch.inputs, CLASSES, head=head, boxes=dict.fromkeys(batch.inputs, (0.0, 1.0))
    )
    method = create("crmt_jt" if head == "orthogonal" else "jt")
    settings = FitSettings(epochs=40, lr=0.02, optimizer="adam")
    losses = [e.metrics["loss"] for e in fit(model, method, lambda _: [batch], settings)]
    assert losses[-1] < losses[0]

    constants = gradient_constants(model, [batch])
    predictions = predict(model, [batch])
    before = estimated_radii(model.head, predictions.scores, predictions.labels, constants).joint.mean()
    if isinstance(model.head, OrthogonalHead):
        found = optimise_integration(
            predictions.scores, batch.labels, model.head.bias, constants.tau, model.head.integration
        )
        model.head.set_integration(found.weights)
    radii = estimated_radii(model.head, predictions.scores, predictions.labels, constants)
    assert float(radii.joint.mean()) >= float(before) * (1 - 1e-4) > 0
    assert radii.unimodal.shape == (48, count) and bool((radii.joint[:, None] <= radii.unimodal * (1 + 1e-6)).all())

    clean = float((predictions.logits(model.head).argmax(1) == batch.labels).float().mean())
    attacked = pgd(model, batch.inputs, batch.labels, Ball.joint(batch.inputs, 1.0))
    assert clean > 0.5 and float((~attacked.broken).float().mean()) <= clean
    assert all(float(x.min()) >= 0 and float(x.max()) <= 1 for x in attacked.inputs.values())
    audits = audit(model, batch.inputs, batch.labels, radii, attack="pgd", settings=AttackSettings(steps=3))
    assert set(audits) == {"joint", *batch.inputs}


def test_own_training_loop_with_the_head_and_the_margin_loss_alone() -> None:
    """Nothing of ours but a head and a loss, inside somebody's own module and loop."""

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.nets = nn.ModuleDict(encoders(2))
            self.head = OrthogonalHead({"lidar": 16, "camera": 12}, CLASSES)

        def forward(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            scores = self.head.scores({m: net(inputs[m]) for m, net in self.nets.items()})
            return self.head.logits(scores), scores

    model, batch = Own(), clips(2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(40):
        logits, scores = model(batch.inputs)
        loss = F.cross_entropy(logits, batch.labels) + 2 * margin_regulariser(scores, batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 1
    for name in ("lidar", "camera"):
        weight = model.head.weight(name)
        torch.testing.assert_close(weight @ weight.T, torch.eye(CLASSES), rtol=0, atol=1e-5)


def test_the_readmes_recipe_measures_in_evaluation_mode() -> None:
    """With an encoder that differs from itself in training."""
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    (recipe,) = (b for b in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "optimise_integration" in b)
    plain = "nn.Linear(60, 32), nn.Tanh()"
    assert plain in recipe
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    exec(compile(recipe.replace(plain, f"{plain}, nn.BatchNorm1d(32), nn.Dropout(0.5)"), "README.md", "exec"), names)
    model, inputs = names["model"], names["batch"].inputs
    assert model.training
    with torch.no_grad():
        torch.testing.assert_close(names["clean"].scores, model.eval()(inputs).scores)
        assert not torch.allclose(names["clean"].scores, model.train()(inputs).scores, rtol=0.1, atol=0.1)


def test_measuring_leaves_the_model_as_it_was() -> None:
    batch = clips(2)
    model = MultiModalModel.around(encoders(2), batch.inputs, CLASSES).train()
    model.encoders["lidar"].dropout.eval()  # somebody keeps it switched off  # type: ignore[union-attr,operator]
    frozen = next(model.encoders["camera"].parameters()).requires_grad_(False)
    predict(model, [batch])
    gradient_constants(model, [batch])
    pgd(model, batch.inputs, batch.labels, Ball.joint(batch.inputs, 0.1), steps=1)
    assert model.training and not model.encoders["lidar"].dropout.training
    assert not frozen.requires_grad and model.head.bias.requires_grad


def around(**changes: object) -> MultiModalModel:
    batch = clips(2)
    return MultiModalModel.around(**({"encoders": encoders(2), "inputs": batch.inputs, "classes": CLASSES} | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: around(classes=13), r"13 orthonormal rows need at least 13 features of 'camera', not 12"),
        (lambda: around(head="round"), r"no head 'round'. Valid: .*concat.*orthogonal"),
        (lambda: around(encoders=encoders(1)), r"encoders for lidar, inputs of lidar, camera: give the same"),
        (lambda: around(encoders={"lidar": Recurrent(), "camera": nn.Identity()}), r"must give \(batch, features\)"),
    ],
)
def test_models_that_cannot_be_built_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        make()


def poisoned(batch: Batch) -> Batch:
    inputs = {m: x.clone() for m, x in batch.inputs.items()}
    inputs["camera"][3, 0, 0, 0] = float("nan")
    return batch._replace(inputs=inputs, ids=tuple(f"clip {i}" for i in range(len(batch.labels))))


BAD: list[tuple[Callable[[Batch], Batch], str]] = [
    (poisoned, r"'camera' holds NaN or infinity \(clips clip 3\): leave such inputs out"),
    (lambda b: b._replace(labels=b.labels + 1), r"labels run from 1 to 4; the model's classes are 0 to 3"),
    (lambda b: b._replace(labels=b.labels - 1), r"labels run from -1 to 2; the model's classes are 0 to 3"),
    (lambda b: b._replace(labels=b.labels.float()), r"give one int64 an input"),
    (lambda b: b._replace(labels=b.labels[:-1]), r"give one int64 an input"),
    (lambda b: b._replace(inputs={"lidar": b.inputs["lidar"]}), r"the batch has no 'camera'; the model needs lidar"),
    (lambda b: b._replace(inputs=b.inputs | {"camera": b.inputs["camera"][:, :2]}), r"'camera' has shape .* needs"),
    (lambda b: b._replace(inputs=b.inputs | {"camera": b.inputs["camera"][:5]}), r"48 of 'lidar', 5 of 'camera'"),
]


@pytest.mark.parametrize(("spoil", "message"), BAD)
def test_batches_that_cannot_be_used_are_refused(spoil: Callable[[Batch], Batch], message: str) -> None:
    good = clips(2)
    model, bad = MultiModalModel.around(encoders(2), good.inputs, CLASSES), spoil(good)
    uses: list[Callable[[], object]] = [
        lambda: predict(model, [bad]),
        lambda: gradient_constants(model, [bad]),
        lambda: next(fit(model, create("crmt_jt"), lambda _: [bad], FitSettings(epochs=1, lr=0.1))),
    ]
    for use in uses:
        with pytest.raises(BadInputError, match=message):
            use()
    with pytest.raises(BadInputError):
        pgd(model, bad.inputs, bad.labels, Ball.joint(good.inputs, 0.1), steps=1)


def test_other_mistakes_are_refused() -> None:
    batch = clips(2)
    model = MultiModalModel.around(encoders(2), batch.inputs, CLASSES)
    concat = ConcatHead({"lidar": 16, "camera": 12}, CLASSES)
    with pytest.raises(BadInputError, match=r"no training method 'crmt_jtt'"):
        create("crmt_jtt")
    with pytest.raises(BadInputError, match=r"noise for radar; the model has lidar, camera"):
        next(fit(model, create("jt"), lambda _: [batch], FitSettings(epochs=1, lr=0.1, noise={"radar": 1.0})))
    with pytest.raises(BadInputError, match=r"0 or more, not -1"):
        Ball.joint(["lidar"], -1.0)
    with pytest.raises(BadInputError, match=r"integration weights must be positive"):
        model.head.set_integration(-torch.ones(2, CLASSES))  # type: ignore[operator]
    with pytest.raises(BadInputError, match=r"pairs=True"):
        estimated_radii(concat, torch.zeros(1, 2, CLASSES), torch.zeros(1).long(), gradient_constants(model, [batch]))
    short = Radii("estimate", ("lidar", "camera"), torch.ones(3), torch.ones(3, 2), torch.ones(3, 2))
    with pytest.raises(BadInputError, match=r"3 radii for 48 inputs"):
        audit(model, batch.inputs, batch.labels, short)
