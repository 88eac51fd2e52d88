"""Tiny modalities, models and batches that the tests of crmt share, and closed forms for linear encoders."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from crmt.attacks.base import AttackSettings
from crmt.attacks.curves import AttackPlan
from crmt.certificates.estimate import estimated_radii, gradient_constants
from crmt.certificates.radius import Radii
from crmt.heads import HEADS, OrthogonalHead
from crmt.methods.base import Method, Step
from crmt.modality import Batch, Inputs, Modality
from crmt.model import ModelSpec, MultiModalModel, build_model

VIDEO = Modality(
    name="video",
    shape=(2, 3, 4, 4),
    channel_axis=1,
    mean=(0.4, 0.5, 0.6),
    std=(0.2, 0.25, 0.3),
    box=(0.0, 1.0),
    space="pixels in [0, 1]",
)
AUDIO = Modality(
    name="audio", shape=(1, 6, 5), channel_axis=0, mean=(0.2,), std=(1.5,), box=None, space="standardised log-mel"
)
FLOW = Modality(
    name="flow", shape=(2, 2, 4, 4), channel_axis=1, mean=(0.5, 0.5), std=(0.1, 0.4), box=(0.0, 1.0), space="flow"
)
TINY = (AUDIO, VIDEO, FLOW)
"""For linear encoders."""

IMAGE = replace(VIDEO, shape=(1, 3, 8, 8))
SOUND = replace(AUDIO, shape=(1, 8, 8))
MOTION = replace(FLOW, shape=(1, 2, 8, 8))
TRAINABLE = (SOUND, IMAGE, MOTION)
"""For `small_resnet`."""


PLAN = AttackPlan(epsilons=(2.4, 0.2, 0.6, 1.2), settings=AttackSettings(steps=5))


class LinearEncoder(nn.Module):
    """φ(x) = A x + c on the flattened input."""

    def __init__(self, size: int, features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(size, features)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.linear(x.flatten(1)))


def linear_model(
    head: str,
    modalities: int | tuple[Modality, ...] = 2,
    *,
    classes: int = 4,
    features: int = 6,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> MultiModalModel:
    """Linear encoders under a head with random weights, biases and (where it has them) integration weights."""
    chosen = TINY[:modalities] if isinstance(modalities, int) else modalities
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoders = {m.name: LinearEncoder(torch.Size(m.shape).numel(), features) for m in chosen}
        built = HEADS[head]({m.name: features for m in chosen}, classes)
        with torch.no_grad():
            built.bias.normal_(0, 0.05)
        if isinstance(built, OrthogonalHead):
            built.set_integration(torch.rand(len(chosen), classes) + 0.2)
        return MultiModalModel(chosen, encoders, built).to(dtype).eval()


def effective_weights(model: MultiModalModel) -> list[Tensor]:
    """For linear encoders: the weights V^(m), `(K, size)`, of the logits in the raw input of each modality."""
    weights = []
    with torch.no_grad():
        for i, (name, m) in enumerate(model.modalities.items()):
            rows = model.head.integration[i][:, None] * model.head.weight(name)
            encoder = cast(LinearEncoder, model.encoders[name])
            per_feature = (rows @ encoder.linear.weight).reshape(-1, *m.shape)
            weights.append((per_feature / m.per_channel(m.std).to(rows)).flatten(1))
    return weights


def exact_distances(model: MultiModalModel, inputs: Inputs, labels: Tensor) -> tuple[Tensor, Tensor]:
    """For linear encoders: ℓ2 distance to the decision boundary without any box, joint `(N,)`, uni-modal `(N, M)`.

    0 where the prediction is wrong.
    """
    with torch.no_grad():
        logits = model(inputs).logits
    gap = logits.gather(1, labels[:, None]) - logits
    own = torch.nn.functional.one_hot(labels, logits.shape[1]).bool()
    lengths = torch.stack([(v[labels][:, None] - v[None]).norm(dim=2) for v in effective_weights(model)], 1)
    joint = (gap / lengths.norm(dim=1)).masked_fill(own, float("inf")).amin(1)
    single = (gap[:, None] / lengths).masked_fill(own[:, None], float("inf")).amin(2)
    wrong = (gap.masked_fill(own, float("inf")) <= 0).any(1)
    return joint.masked_fill(wrong, 0), single.masked_fill(wrong[:, None], 0)


def random_inputs(model: MultiModalModel, count: int, seed: int = 0) -> Inputs:
    """Inputs inside their boxes, in the model's dtype."""
    generator = torch.Generator().manual_seed(seed)
    dtype = model.head.bias.dtype
    inputs = {}
    for name, m in model.modalities.items():
        drawn = torch.rand(count, *m.shape, generator=generator, dtype=torch.float64)
        inputs[name] = (drawn if m.box is not None else 3 * drawn - 1.5).to(dtype)
    return inputs


def mostly_right(model: MultiModalModel, inputs: Inputs) -> Tensor:
    """The model's own predictions as labels, every fifth of them changed."""
    with torch.no_grad():
        logits = model(inputs).logits
    labels = logits.argmax(1)
    labels[::5] = (labels[::5] + 1) % logits.shape[1]
    return labels


def in_batches(inputs: Inputs, labels: Tensor, size: int) -> list[Batch]:
    """Cut into batches, with ids `clip-0`, `clip-1`, ..."""
    return [
        Batch(
            {m: x[i : i + size] for m, x in inputs.items()},
            labels[i : i + size],
            tuple(f"clip-{j}" for j in range(i, min(i + size, len(labels)))),
        )
        for i in range(0, len(labels), size)
    ]


def spec(
    head: str = "orthogonal", modalities: int = 2, *, classes: int = 8, features: int = 8, encoder: str = "small_resnet"
) -> ModelSpec:
    """A model on `TRAINABLE` modalities."""
    chosen = TRAINABLE[:modalities]
    return ModelSpec(
        modalities=chosen,
        encoders={m.name: encoder for m in chosen},
        features=features,
        head=head,
        classes=tuple(f"class-{k}" for k in range(classes)),
    )


def trainable(head: str = "orthogonal", modalities: int = 2, *, classes: int = 8, features: int = 8) -> MultiModalModel:
    """A freshly initialised small_resnet model."""
    return build_model(spec(head, modalities, classes=classes, features=features))


def learnable(
    model: MultiModalModel, *, batches: int = 3, size: int = 16, seed: int = 0
) -> Callable[[int], Iterable[Batch]]:
    """Epoch to batches in which every modality shows a pattern of the class under noise; seeded by epoch."""
    generator = torch.Generator().manual_seed(seed)
    patterns = {
        name: torch.rand(model.head.classes, *m.shape, generator=generator) for name, m in model.modalities.items()
    }

    def epoch(number: int) -> Iterable[Batch]:
        draw = torch.Generator().manual_seed(1000 * seed + number)
        for _ in range(batches):
            labels = torch.randint(model.head.classes, (size,), generator=draw)
            inputs = {
                m: (0.7 * p[labels] + 0.3 * torch.rand(size, *p.shape[1:], generator=draw)) for m, p in patterns.items()
            }
            yield Batch(inputs, labels)

    return epoch


def one_step(model: MultiModalModel, batch: Batch, method: Method) -> Step:
    """A training step of `method` on `batch`, as `fit` gives it."""
    return Step(
        model=model,
        companion=method.prepare(model),
        forward=model,
        attacked=model,
        inputs=batch.inputs,
        labels=batch.labels,
        epoch=1,
        generator=torch.Generator().manual_seed(0),
    )


def estimate(model: MultiModalModel, inputs: Inputs, labels: Tensor, runner_up_only: bool = False) -> Radii:
    """The whole chain: τ̂ from the inputs themselves, scores, radii."""
    constants = gradient_constants(model, in_batches(inputs, labels, 16))
    with torch.no_grad():
        scores = model(inputs).scores
    return estimated_radii(model.head, scores, labels, constants, runner_up_only=runner_up_only)
