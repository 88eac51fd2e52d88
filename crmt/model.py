"""A multi-modal classifier: standardise ▸ encode ▸ head. It returns logits and uni-modal scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from crmt.arguments import check_kind, check_whole, said
from crmt.encoders import Given, build_encoder
from crmt.errors import BadInputError
from crmt.heads import HEADS, Head
from crmt.modality import Inputs, Modality, check_floating, check_inputs, check_name
from crmt.orthonormal import OrthonormalLinear
from crmt.precision import without_autocast


class Output(NamedTuple):
    """What a model returns."""

    logits: Tensor
    """h, `(B, K)`."""
    scores: Tensor
    """s, `(B, M, K)`, in the order of the head's modalities."""
    features: Inputs
    """φ, `(B, d_m)` each."""


class MultiModalModel(nn.Module):
    """Any encoders under a head. Inputs are raw, in each modality's space: the standardisation is inside.

    Args:
        standardise: give encoders (x − mean) / std; otherwise x itself.

    Raises:
        BadInputError: modalities, encoders and head that do not name the same.
    """

    def __init__(
        self,
        modalities: Sequence[Modality],
        encoders: Mapping[str, nn.Module],
        head: Head,
        *,
        standardise: bool = True,
    ) -> None:
        super().__init__()
        self.modalities = {m.name: m for m in modalities}
        if tuple(self.modalities) != head.modalities or set(self.modalities) != set(encoders):
            raise BadInputError(
                f"modalities {tuple(self.modalities)}, encoders {tuple(encoders)} and head {head.modalities} differ"
            )
        self.encoders = nn.ModuleDict(encoders)
        self.head = head
        for m in modalities:
            mean, std = (m.per_channel(values).to(head.bias) for values in (m.mean, m.std))
            self.register_buffer(f"_{m.name}_mean", mean if standardise else torch.zeros_like(mean), persistent=False)
            self.register_buffer(f"_{m.name}_std", std if standardise else torch.ones_like(std), persistent=False)

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

        Inputs are taken as they are, without standardisation: budgets and radii are distances between them. Encoders
        are not converted: the head takes the inputs' type and device.

        Args:
            inputs: a batch of training inputs, to take shapes, widths and means from. The mean over the batch, for
                each index of the first axis of an input, is what stands in for a missing modality.
            boxes: modality to the range of its valid values, which attacks keep to; left out: any value.

        Raises:
            BadInputError: encoders, inputs and boxes of different modalities or names that `check_name` refuses;
                inputs that are not finite, not floating or not all of one type, below float32 for an orthogonal head;
                an encoder that is no module or does not give `(B, d)` of that type; an unknown head, or fewer features
                than classes under an orthogonal head.
        """
        if not isinstance(head, str) or head not in HEADS:
            raise BadInputError(f"no head {said(head)}. Valid: {', '.join(HEADS)}")
        check_kind("encoders", encoders, (Mapping, nn.ModuleDict), "a dictionary of modality to torch.nn.Module")
        check_kind("inputs", inputs, Mapping, "a dictionary of modality to tensor, such as {'video': x}")
        check_kind("boxes", {} if boxes is None else boxes, Mapping, "a dictionary of modality to (low, high)")
        check_whole("classes", classes)
        ranges = boxes or {}
        for name in (*encoders, *inputs, *ranges):
            check_name(name)
        if not encoders or set(encoders) != set(inputs):
            raise BadInputError(
                f"encoders for {', '.join(encoders) or 'nothing'}, inputs of {', '.join(inputs) or 'nothing'}: "
                "give the same, at least one modality"
            )
        unknown = [name for name in ranges if name not in encoders]
        if unknown:
            raise BadInputError(f"boxes for {', '.join(unknown)}; the model has {', '.join(encoders)}")
        modalities = [_modality_of(name, inputs[name], ranges.get(name)) for name in encoders]
        like = inputs[modalities[0].name]
        for name, x in inputs.items():
            if (x.dtype, x.device) != (like.dtype, like.device):
                raise BadInputError(
                    f"{name!r} is {x.dtype} on {x.device}, {modalities[0].name!r} is {like.dtype} on {like.device}: "
                    "give all inputs in one type on one device"
                )
        if head == "orthogonal" and like.dtype not in (torch.float32, torch.float64):
            raise BadInputError(
                f"an orthogonal head cannot be {like.dtype}: give float32 inputs and train under torch.autocast"
            )
        widths = {name: _width(name, encoder, inputs[name]) for name, encoder in encoders.items()}
        built = HEADS[head](widths, classes).to(like.device, like.dtype)
        return MultiModalModel(modalities, encoders, built, standardise=False)

    def encode(self, name: str, x: Tensor) -> Tensor:
        """φ^(m)(x^(m)), `(B, d_m)`: the features of one modality, which depend on no other.

        Args:
            name: the modality's.
            x: `(B, *shape)`, in its space.
        """
        standardised = (x - getattr(self, f"_{name}_mean")) / getattr(self, f"_{name}_std")
        return cast(Tensor, self.encoders[name](standardised))

    def features(self, inputs: Mapping[str, Tensor]) -> Inputs:
        """φ^(m)(x^(m)), `(B, d_m)` each."""
        check_inputs(self.modalities, inputs)
        return {name: self.encode(name, inputs[name]) for name in self.modalities}

    def decide(self, features: Inputs) -> Output:
        """What follows from the features.

        Args:
            features: φ, `(B, d_m)` of every modality.
        """
        with without_autocast(self.head.bias.device):
            if any(z.dtype != self.head.bias.dtype for z in features.values()):  # under autocast
                # products with K rows cost little, and scores of 8 bits would decide margins by rounding
                features = {m: z.to(self.head.bias.dtype) for m, z in features.items()}
            scores = self.head.scores(features)
            return Output(self.head.logits(scores), scores, features)

    def forward(self, inputs: Mapping[str, Tensor]) -> Output:
        """Inputs `(B, *shape)` of every modality, in its space. Under torch.autocast the encoders alone follow it."""
        return self.decide(self.features(inputs))


def in_parts(model: nn.Module) -> bool:
    """Whether the model's output is `decide` of what `encode` gives for each modality, so that those that stay as they
    are need not be encoded again. A subclass with another `forward` is taken whole."""
    if not isinstance(model, MultiModalModel):
        return False
    own = type(model)
    same = own.forward is MultiModalModel.forward and own.features is MultiModalModel.features
    return same and not model._forward_hooks and not model._forward_pre_hooks


def _modality_of(name: str, inputs: Tensor, box: tuple[float, float] | None) -> Modality:
    """The modality of inputs as they are. Its mean is theirs, for each index of the first axis, kept in the box."""
    if box is not None:
        check_kind(f"the box of {name!r}", box, Sequence, "(low, high)")
        if len(box) != 2 or not all(isinstance(v, (int, float)) for v in box) or not box[0] < box[1]:
            raise BadInputError(f"the box of {name!r} is {box}: give (low, high) with low < high")
    check_floating(name, inputs, box)
    if inputs.ndim < 2 or not inputs.numel():
        raise BadInputError(f"{name!r} has shape {tuple(inputs.shape)}: give (batch, ...), and at least one input")
    mean = inputs.detach().transpose(0, 1).flatten(1).mean(1)
    if not bool(mean.isfinite().all()):
        raise BadInputError(f"{name!r} holds NaN or infinity: leave such inputs out or repair them")
    kept = mean if box is None else mean.clamp(*box)
    return Modality(
        name=name,
        shape=tuple(inputs.shape[1:]),
        channel_axis=0,
        mean=tuple(kept.tolist()),
        std=(1.0,) * len(kept),
        box=box,
        space="as given",
    )


def _width(name: str, encoder: nn.Module, inputs: Tensor) -> int:
    """How many features the encoder gives; nothing of the caller's is changed."""
    if not isinstance(encoder, nn.Module):
        raise BadInputError(f"the encoder of {name!r} is a {type(encoder).__name__}: give a torch.nn.Module")
    with evaluating(encoder), torch.no_grad():
        try:
            found = encoder(inputs.detach().clone())  # a first layer may work in place
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
            first = (str(error) or type(error).__name__).splitlines()[0]
            raise BadInputError(
                f"the encoder of {name!r} fails on inputs of {tuple(inputs.shape)} in {inputs.dtype}: {first}"
            ) from error
    if not isinstance(found, Tensor):
        raise BadInputError(
            f"the encoder of {name!r} gives a {type(found).__name__}: it must give one tensor of features"
        )
    if found.ndim != 2 or len(found) != len(inputs):
        raise BadInputError(f"the encoder of {name!r} gives {tuple(found.shape)}: it must give (batch, features)")
    if found.dtype != inputs.dtype:
        raise BadInputError(
            f"the encoder of {name!r} gives {found.dtype} features of {inputs.dtype} inputs: give both in one type"
        )
    return found.shape[1]


def check_initialised(tensors: Mapping[str, Tensor]) -> None:
    """Refuse parameters without a shape.

    Raises:
        BadInputError: names the first such parameter.
    """
    for name, value in tensors.items():
        if is_lazy(value):
            raise BadInputError(f"{name} is of a lazy layer without a shape yet: give the model one batch first")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, parameters frozen and weights that are made from others computed once, until the block ends."""
    check_kind("the model", model, nn.Module, "a crmt.MultiModalModel")
    modes = [(module, module.training) for module in model.modules()]
    # a lazy layer's have no value yet, and may not be touched before its first batch
    wanted = [(p, p.requires_grad) for p in model.parameters() if not is_lazy(p)]
    model.eval()
    for parameter, _ in wanted:
        parameter.requires_grad_(False)
    try:
        with parametrize.cached(), ExitStack() as held:
            for part in model.modules():
                if isinstance(part, OrthonormalLinear):
                    held.enter_context(part.held())
            yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, grad in wanted:
            parameter.requires_grad_(grad)


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Everything that rebuilds a model but its weights; goes into the checkpoint's card as JSON."""

    modalities: tuple[Modality, ...]
    encoders: dict[str, Given]
    """modality: name or path, or `{"path": ..., **arguments}`."""
    features: int
    head: str
    classes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return asdict(self)

    @staticmethod
    def from_json(card: Mapping[str, Any]) -> ModelSpec:
        """What `to_json` gave."""

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


def build_model(spec: ModelSpec, seed: int = 0, *, start_weights: bool = True) -> MultiModalModel:
    """A freshly initialised model; the same `seed` gives the same weights, whatever was drawn before.

    Args:
        spec: encoders by path are imported: build only what you trust.
        start_weights: as in `build_encoder`; False where a checkpoint's are loaded afterwards.

    Raises:
        BadInputError: an unknown encoder or head, a modality without an encoder, or an encoder that cannot be built.
    """
    check_kind("spec", spec, ModelSpec, "a ModelSpec")
    check_whole("seed", seed)
    if spec.head not in HEADS:
        raise BadInputError(f"no head {spec.head!r}. Valid: {', '.join(HEADS)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoders = {
            m.name: build_encoder(spec.encoders.get(m.name), m, spec.features, start_weights=start_weights)
            for m in spec.modalities
        }
        head = HEADS[spec.head]({m.name: spec.features for m in spec.modalities}, len(spec.classes))
        return MultiModalModel(spec.modalities, encoders, head)
