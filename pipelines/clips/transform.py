"""Stored arrays to what a model takes: each kind of modality by its own rule, and its mean where a clip lacks it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crmt.modality import Modality
from pipelines.clips.cache import ClipCache
from pipelines.clips.kinds import Kind, kinds_of
from pipelines.clips.random_choices import ChoiceGroup, RandomChoices, group_of
from pipelines.clips.rows import present_column
from pipelines.clips.stored import Each, InMemory, Stored, in_turn
from pipelines.config.schema import DataConfig

__all__ = ["RandomChoices", "Transform"]


@dataclass(frozen=True)
class Transform:
    """Turns stored arrays into what a model takes."""

    data: DataConfig
    constants: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Modality to the mean and deviation that batches are standardised with (sound only); 0 and 1 where not given."""
    modalities: dict[str, Modality] = field(default_factory=dict)
    """Modality to what knows its mean, which stands in where a clip lacks it; 0 where not given."""

    @staticmethod
    def of(cache: ClipCache, data: DataConfig) -> Transform:
        """A transform with the statistics of a cache.

        Args:
            cache: of the clips that the model is trained on.
            data: declares the modalities.
        """
        kinds, metas = kinds_of(data), cache.modalities
        constants = {name: (m.mean[0], m.std[0]) for name, m in metas.items() if kinds[name].standardised}
        return Transform(data, constants, {name: kinds[name].modality(meta) for name, meta in metas.items()})

    @cached_property
    def kinds(self) -> dict[str, Kind]:
        """The modalities that the configuration declares."""
        return kinds_of(self.data)

    @cached_property
    def groups(self) -> dict[str, ChoiceGroup | None]:
        """Modality to the group whose random choices it shares."""
        return {name: group_of(kind.column, kind.pictures, self.data) for name, kind in self.kinds.items()}

    def front_end(self) -> dict[str, Any]:
        """How inputs are standardised, as JSON for a model's card."""
        return {"constants": {name: list(pair) for name, pair in self.constants.items()}}

    def with_front_end(self, card: Mapping[str, Any]) -> Transform:
        """The same transform, but standardising as when a saved model was trained.

        Args:
            card: what `front_end` gave for that model.
        """
        if "constants" not in card:  # cards of models from before sound could have another name
            constants = {"audio": (card["audio_mean"], card["audio_std"])}
        else:
            constants = {name: (mean, std) for name, (mean, std) in card["constants"].items()}
        return replace(self, constants=self.constants | constants)

    def draw(self, size: int, seed: Sequence[int]) -> RandomChoices:
        """The random choices of a training batch of `size` clips."""
        return RandomChoices.draw(size, self.data, seed, self.groups.values())

    def __call__(
        self,
        clips: Mapping[str, np.ndarray | Stored],
        choices: RandomChoices | None,
        device: torch.device,
        each: Each = in_turn,
    ) -> dict[str, Tensor]:
        """A batch as a model takes it, `(B, *shape)` of every modality in `clips`.

        Args:
            clips: modality to stored values, and `present_<modality>` to which clips have it, `(B,)`.
            choices: the random choices of a training batch; None: the plain form, middle candidate and centre crop.
            device: where the work is done and the result lies; decoding and cutting are done before.
            each: shares the clips out to threads for that.
        """
        inputs: dict[str, Tensor] = {}
        for name in (m for m in self.kinds if m in clips):
            given = clips[name]
            stored = InMemory(given, np.arange(len(given))) if isinstance(given, np.ndarray) else given
            own = None if choices is None else choices.of(self.groups[name])
            # torch wants memory that can be written; arrays in the object store cannot, and are copied
            gathered = np.require(self.kinds[name].gather(stored, own, each), requirements=("C", "W"))
            values = self.kinds[name].transform(
                torch.from_numpy(gathered).to(device), self.constants.get(name, (0.0, 1.0)), own
            )
            present = clips.get(present_column(name))
            if isinstance(present, np.ndarray) and not present.all():
                lacking = torch.from_numpy(~present).to(device)
                stand_in = self.modalities.get(name)
                values[lacking] = stand_in.missing(values[lacking]) if stand_in else torch.zeros_like(values[lacking])
            inputs[name] = values
        return inputs
