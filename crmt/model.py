"""A multi-modal classifier: standardise ▸ encode ▸ head. It returns logits and uni-modal scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from crmt.encoders import build_encoder
from crmt.errors import BadInputError
from crmt.heads import HEADS, Head
from crmt.modality import Inputs, Modality, check_inputs


class Output(NamedTuple):
    """What a model returns."""

    logits: Tensor
    """h, `(B, K)`."""
    scores: Tensor
    """s, `(B, M, K)`, in the order of the head's modalities."""
    features: Inputs
    """φ, `(B, d_m)` each."""


class MultiModalModel(nn.Module):
    """Any encoders under a head. Inputs are raw, in each modality's space: the standardisation is inside."""

    def __init__(self, modalities: Sequence[Modality], encoders: Mapping[str, nn.Module], head: Head) -> None:
        super().__init__()
        self.modalities = {m.name: m for m in modalities}
        if tuple(self.modalities) != head.modalities or set(self.modalities) != set(encoders):
            raise BadInputError(
                f"modalities {tuple(self.modalities)}, encoders {tuple(encoders)} and head {head.modalities} differ"
            )
        self.encoders = nn.ModuleDict(encoders)
        self.head = head
        for m in modalities:
            self.register_buffer(f"_{m.name}_mean", m.per_channel(m.mean), persistent=False)
            self.register_buffer(f"_{m.name}_std", m.per_channel(m.std), persistent=False)

    @staticmethod
    def around(
        encoders: Mapping[str, nn.Module],
        inputs: Mapping[str, Tensor],
        classes: int,
        *,
        head: str = "orthogonal",
        boxes: Mapping[str, tuple[float, float]] | None = None,
    ) -> MultiModalModel:
        """A model around your own encoders, each from a batch of its modality to features `(B, d)`.

        Inputs are taken as they are, without standardisation: budgets and radii are distances between them.

        Args:
            inputs: a batch to take shapes and widths from; at least 2 inputs.
            boxes: modality to the range of its valid values, which attacks keep to; left out: any value.

        Raises:
            BadInputError: encoders and inputs of different modalities, an encoder that does not give `(B, d)`, an
                unknown head, or fewer features than classes under an orthogonal head.
        """
        if head not in HEADS:
            raise BadInputError(f"no head {head!r}. Valid: {', '.join(HEADS)}")
        if set(encoders) != set(inputs):
            raise BadInputError(f"encoders for {', '.join(encoders)}, inputs of {', '.join(inputs)}: give the same")
        widths, modalities = {}, []
        for name, encoder in encoders.items():
            with evaluating(encoder), torch.no_grad():
                found = encoder(inputs[name])
            if found.ndim != 2 or len(found) != len(inputs[name]):
                shape = tuple(found.shape)
                raise BadInputError(f"the encoder of {name!r} gives {shape}: it must give (batch, features)")
            widths[name] = found.shape[1]
            modalities.append(
                Modality(
                    name=name,
                    shape=tuple(inputs[name].shape[1:]),
                    channel_axis=0,
                    mean=(0.0,) * inputs[name].shape[1],
                    std=(1.0,) * inputs[name].shape[1],
                    box=(boxes or {}).get(name),
                    space="as given",
                )
            )
        like = next(iter(inputs.values()))
        return MultiModalModel(modalities, encoders, HEADS[head](widths, classes)).to(like.device, like.dtype)

    def features(self, inputs: Mapping[str, Tensor]) -> Inputs:
        """φ^(m)(x^(m)), `(B, d_m)` each."""
        check_inputs(self.modalities, inputs)
        return {
            name: self.encoders[name]((inputs[name] - getattr(self, f"_{name}_mean")) / getattr(self, f"_{name}_std"))
            for name in self.modalities
        }

    def forward(self, inputs: Mapping[str, Tensor]) -> Output:
        """Inputs `(B, *shape)` of every modality, in its space."""
        features = self.features(inputs)
        scores = self.head.scores(features)
        return Output(self.head.logits(scores), scores, features)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, parameters frozen and parametrised weights computed once, until the block ends."""
    modes = [(module, module.training) for module in model.modules()]
    wanted = [p.requires_grad for p in model.parameters()]
    model.eval()
    model.requires_grad_(False)
    try:
        with parametrize.cached():
            yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, grad in zip(model.parameters(), wanted, strict=True):
            parameter.requires_grad_(grad)


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Everything that rebuilds a model but its weights; goes into the checkpoint's card as JSON."""

    modalities: tuple[Modality, ...]
    encoders: dict[str, str]
    features: int
    head: str
    classes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(card: Mapping[str, Any]) -> ModelSpec:
        def modality(raw: Mapping[str, Any]) -> Modality:
            fixed: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()}
            return Modality(**fixed)

        return ModelSpec(
            modalities=tuple(modality(m) for m in card["modalities"]),
            encoders=dict(card["encoders"]),
            features=int(card["features"]),
            head=card["head"],
            classes=tuple(card["classes"]),
        )


def build_model(spec: ModelSpec, seed: int = 0) -> MultiModalModel:
    """A freshly initialised model; the same `seed` gives the same weights, whatever was drawn before.

    Raises:
        BadInputError: an unknown encoder or head, or a modality without an encoder.
    """
    if spec.head not in HEADS:
        raise BadInputError(f"no head {spec.head!r}. Valid: {', '.join(HEADS)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoders = {
            m.name: build_encoder(cast(str, spec.encoders.get(m.name)), m, spec.features) for m in spec.modalities
        }
        head = HEADS[spec.head]({m.name: spec.features for m in spec.modalities}, len(spec.classes))
        return MultiModalModel(spec.modalities, encoders, head)
