"""Describes one input of a model: its shape, the space and box in which attacks and radii are measured, and its
standardisation. Also batches and their checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import NamedTuple

import torch
from torch import Tensor, nn

from crmt.arguments import check_kind, check_number, check_whole, said
from crmt.errors import BadInputError

Inputs = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Modality:
    """One input of a model. Attack budgets and radii are distances between raw inputs in `space`.

    Raises:
        BadInputError: a name that `check_name` refuses, or means and deviations that do not fit the channels.
    """

    name: str
    shape: tuple[int, ...]
    """The shape of one input, without the batch: video `(T, 3, H, W)`, audio `(1, mels, frames)`."""
    channel_axis: int
    """The axis of `shape` along which `mean` and `std` have one value each: 1 for video, 0 for audio."""
    mean: tuple[float, ...]
    """The mean of each channel, in `space`; it also stands in for a missing input."""
    std: tuple[float, ...]
    """The standard deviation of each channel, in `space`."""
    box: tuple[float, float] | None
    """The range of valid values; None where any value is valid."""
    space: str
    """The unit of inputs, as tables and plots name it: `pixels in [0, 1]`, `standardised log-mel`."""

    def __post_init__(self) -> None:
        check_name(self.name)
        check_whole(f"modality {self.name!r}: channel_axis", self.channel_axis)
        for field in ("shape", "mean", "std"):
            values = getattr(self, field)
            check_kind(f"modality {self.name!r}: {field}", values, (tuple, list), "a tuple of numbers")
            for value in values:
                check_number(f"modality {self.name!r}: a number of {field}", value)
        if not -len(self.shape) <= self.channel_axis < len(self.shape):
            raise BadInputError(f"modality {self.name!r}: shape {self.shape} has no axis {self.channel_axis}")
        channels = self.shape[self.channel_axis]
        if len(self.mean) != channels or len(self.std) != channels:
            raise BadInputError(
                f"modality {self.name!r}: {channels} channels need as many means and deviations, "
                f"not {len(self.mean)} and {len(self.std)}"
            )
        if not all(isfinite(s) and s > 0 for s in self.std):
            raise BadInputError(f"modality {self.name!r}: deviations must be above 0, not {self.std}")

    def per_channel(self, values: Sequence[float]) -> Tensor:
        """Shape one value a channel so that it broadcasts over a batch of this modality.

        Args:
            values: one for each channel.
        """
        shape = [1] * (len(self.shape) + 1)
        shape[self.channel_axis + 1] = len(values)
        return torch.tensor(values, dtype=torch.float32).reshape(shape)

    def missing(self, batch: Tensor) -> Tensor:
        """What stands in for missing inputs: the modality's mean.

        Args:
            batch: `(B, *shape)`; gives shape, type and device.
        """
        return self.per_channel(self.mean).to(batch).expand_as(batch).clone()


class Batch(NamedTuple):
    """Labelled clips as a model takes them."""

    inputs: Inputs
    """Modality to its inputs, `(B, *shape)`, in the modality's space."""
    labels: Tensor
    """Class numbers, `(B,)`, int64."""
    ids: tuple[str, ...] = ()
    """The name of each clip, for error messages and results; may be left empty."""


def check_name(name: str) -> None:
    """Refuse a modality's name that torch cannot give to a part of a model.

    Raises:
        BadInputError: not a text, an empty one, one with a dot, or a name that torch's modules use (`type`, `values`).
    """
    if not isinstance(name, str) or not name or "." in name or hasattr(nn.ModuleDict(), name):
        raise BadInputError(f"no modality can be called {said(name)}, which torch refuses for a module: rename it")


def check_floating(name: str, values: Tensor, box: tuple[float, float] | None) -> None:
    """Refuse inputs that gradients and attacks cannot move.

    Raises:
        BadInputError: not a tensor, or one whose values are not floating.
    """
    if not isinstance(values, Tensor):
        raise BadInputError(f"{name!r} is a {type(values).__name__}: give a tensor")
    if not values.is_floating_point():
        hint = f" in [{box[0]:g}, {box[1]:g}]" if box else ", or give the embeddings of tokens"
        raise BadInputError(f"{name!r} holds {str(values.dtype).removeprefix('torch.')} values: convert to float{hint}")


def check_batch_kind(batch: object) -> None:
    """Refuse what is no batch.

    Raises:
        BadInputError: another type, or inputs or labels in it of another.
    """
    check_kind("a batch", batch, Batch, "crmt.Batch(inputs, labels)")
    assert isinstance(batch, Batch)
    check_kind("labels", batch.labels, Tensor, "a tensor of class numbers in int64, one an input")


def check_inputs(modalities: Mapping[str, Modality], inputs: Mapping[str, Tensor]) -> None:
    """Refuse a batch that lacks a modality, has the wrong shape or a different number of inputs by modality.

    Raises:
        BadInputError: names the modality, and the shapes or the type that do not fit.
    """
    check_kind("inputs", inputs, Mapping, "a dictionary of modality to tensor, such as {'video': x}")
    for name, modality in modalities.items():
        if name not in inputs:
            raise BadInputError(
                f"the batch has no {name!r}; the model needs {', '.join(modalities)} and got {', '.join(inputs)}"
            )
        check_floating(name, inputs[name], modality.box)
        if inputs[name].ndim < 1 or tuple(inputs[name].shape[1:]) != modality.shape:
            raise BadInputError(
                f"{name!r} has shape {tuple(inputs[name].shape)}; the model needs (batch, "
                f"{', '.join(map(str, modality.shape))})"
            )
    lengths = {name: len(inputs[name]) for name in modalities}
    if len(set(lengths.values())) > 1:
        given = ", ".join(f"{count} of {name!r}" for name, count in lengths.items())
        raise BadInputError(f"the batch has {given}: give as many of every modality")


def check_labels(labels: Tensor, classes: int) -> None:
    """Refuse labels that are not class numbers of a model.

    Raises:
        BadInputError: labels of another type than int64, or out of range.
    """
    check_kind("labels", labels, Tensor, "a tensor of class numbers in int64, one an input")
    if labels.dtype != torch.int64:
        raise BadInputError(f"labels are of type {labels.dtype}: give class numbers in int64")
    if not labels.numel():
        return
    low, high = (int(v) for v in torch.stack(torch.aminmax(labels)).tolist())
    if low < 0 or high >= classes:
        raise BadInputError(f"labels run from {low} to {high}; the model's classes are 0 to {classes - 1}")


def check_batch(modalities: Mapping[str, Modality], batch: Batch, classes: int) -> None:
    """Refuse a batch that a model cannot learn from or be measured on.

    Raises:
        BadInputError: as `check_inputs`; NaN or infinity in an input; labels of another number or out of range.
    """
    check_batch_kind(batch)
    check_inputs(modalities, batch.inputs)
    labels = batch.labels
    if labels.shape != (len(batch.inputs[next(iter(modalities))]),) or labels.dtype != torch.int64:
        raise BadInputError(f"labels have shape {tuple(labels.shape)} and type {labels.dtype}: give one int64 an input")
    # a finite sum has finite terms, and is one pass over them; the other way round it may overflow
    inputs = [batch.inputs[m] for m in modalities]
    sums = [x.sum(dtype=torch.promote_types(x.dtype, torch.float32)) for x in inputs]
    ranged = ((labels >= 0) & (labels < classes)).all()
    *good, labelled = torch.stack([*(s.isfinite() for s in sums), ranged]).tolist()  # one transfer from the device
    for name, fine in zip(modalities, good, strict=True):
        if not fine and not bool(batch.inputs[name].isfinite().all()):
            where = [batch.ids[i] for i in _not_finite(batch.inputs[name])[:3] if i < len(batch.ids)]
            clips = f" (clips {', '.join(where)})" if where else ""
            raise BadInputError(f"{name!r} holds NaN or infinity{clips}: leave such inputs out or repair them")
    if not labelled:
        check_labels(labels, classes)


def _not_finite(inputs: Tensor) -> list[int]:
    """The places in a batch whose input has a NaN or an infinity."""
    return (~inputs.flatten(1).isfinite().all(1)).nonzero().squeeze(1).tolist()
