"""Sessions: how a trial reports and resumes in this process, in a Tune trial, or in a Ray Train worker."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import nn

from crmt.checkpoint import STATE_CARD, load_state, save_state
from crmt.errors import BadInputError
from pipelines.clips.batches import Placement
from pipelines.infra.storage import Where, folder_at, saving
from pipelines.runs.heartbeat import Heartbeat, _note_report, heartbeat_path


class Session(Protocol):
    """What a trial needs of its surroundings."""

    trial_id: str
    place: Placement

    def wrap(self, module: nn.Module) -> nn.Module:
        """Wrap a model for data-parallel training."""
        ...

    def resume(self) -> dict[str, Any] | None:
        """The training state to resume from; None: begin anew."""
        ...

    def report(self, metrics: Mapping[str, Any], state: Mapping[str, Any] | None) -> None:
        """Report the metrics of an epoch.

        Args:
            metrics: name to number.
            state: what training resumes from; None: nothing to keep.
        """
        ...

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, in their order; every rank gets them."""
        ...

    def collect(self, value: Any) -> list[Any]:
        """The values of all ranks, in their order, on rank 0; nothing on the others, to which much would travel."""
        ...

    def shared(self, value: Any) -> Any:
        """Rank 0's value, on all ranks."""
        ...

    def progress(self, phase: str, fraction: float) -> None:
        """Tell how far a phase is.

        Args:
            phase: its name.
            fraction: how much of it is done, 0 to 1.
        """
        ...


@dataclass
class LocalSession:
    """One worker in this very process; the state lies in the run folder."""

    trial_id: str
    run: Where
    place: Placement = field(default_factory=Placement)

    def __post_init__(self) -> None:
        self._beat = Heartbeat(heartbeat_path(self.run, self.trial_id))
        self._state = folder_at(self.run) / "state" / self.trial_id

    def wrap(self, module: nn.Module) -> nn.Module:
        return module

    def resume(self) -> dict[str, Any] | None:
        return furthest_state(self._state)

    def report(self, metrics: Mapping[str, Any], state: Mapping[str, Any] | None) -> None:
        _note_report(self.run, self.trial_id, metrics)
        if state is None:
            return
        name = f"checkpoint_{state['epoch']:06d}"
        with saving(self._state / name, STATE_CARD) as folder:
            save_state(folder, state)
        for before in self._state.folders("checkpoint_*"):  # not earlier: a kill in between must leave one whole
            if before != name:
                self._state.remove_folder(before)

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def collect(self, value: Any) -> list[Any]:
        return [value]

    def shared(self, value: Any) -> Any:
        return value

    def progress(self, phase: str, fraction: float) -> None:
        self._beat(phase, fraction)


@dataclass
class TuneSession(LocalSession):
    """One worker in the Tune trial's own process: 2 s of overhead instead of a worker group's 14 s."""

    def resume(self) -> dict[str, Any] | None:
        """The state with the most epochs in the trial's folder; Tune's own note of it may be up to 10 s old.

        Where Tune hands over the state of another trial, as population-based training does, it is that one.
        """
        from ray import tune

        storage = tune.get_context().get_storage()
        own = Path(storage.trial_fs_path)
        handed = tune.get_checkpoint()
        if handed is not None and own not in Path(handed.path).parents:
            with handed.as_directory() as folder:
                return load_state(Path(folder))
        return furthest_state(folder_at(self.run) / storage.experiment_dir_name / storage.trial_dir_name)

    def report(self, metrics: Mapping[str, Any], state: Mapping[str, Any] | None) -> None:
        from ray import tune

        if state is None:
            tune.report(dict(metrics))
            return
        with tempfile.TemporaryDirectory() as folder:
            save_state(Path(folder), state)
            tune.report(dict(metrics), checkpoint=tune.Checkpoint.from_directory(folder))


@dataclass
class WorkerSession:
    """One of several Ray Train workers of a trial."""

    trial_id: str
    run: Where
    place: Placement

    def __post_init__(self) -> None:
        self._beat = Heartbeat(heartbeat_path(self.run, self.trial_id))

    def wrap(self, module: nn.Module) -> nn.Module:
        if self.place.device.type == "cuda":
            return nn.parallel.DistributedDataParallel(module, device_ids=[self.place.device.index])
        return nn.parallel.DistributedDataParallel(module)

    def resume(self) -> dict[str, Any] | None:
        from ray import train

        checkpoint = train.get_checkpoint()
        if checkpoint is None:
            return None
        with checkpoint.as_directory() as folder:
            return load_state(Path(folder))

    def report(self, metrics: Mapping[str, Any], state: Mapping[str, Any] | None) -> None:
        from ray import train

        if self.place.rank == 0:
            _note_report(self.run, self.trial_id, metrics)
        if state is None or self.place.rank:
            train.report(dict(metrics))
            return
        with tempfile.TemporaryDirectory() as folder:
            save_state(Path(folder), state)
            train.report(dict(metrics), checkpoint=train.Checkpoint.from_directory(folder))

    def gather(self, value: Any) -> list[Any]:
        gathered: list[Any] = [None] * self.place.world_size
        dist.all_gather_object(gathered, value)
        return gathered

    def collect(self, value: Any) -> list[Any]:
        gathered: list[Any] | None = None if self.place.rank else [None] * self.place.world_size
        dist.gather_object(value, gathered, dst=0)
        return gathered or []

    def shared(self, value: Any) -> Any:
        given = [value]
        dist.broadcast_object_list(given, src=0)
        return given[0]

    def progress(self, phase: str, fraction: float) -> None:
        if self.place.rank == 0:
            self._beat(phase, fraction)


def furthest_state(trial: Where) -> dict[str, Any] | None:
    """The whole checkpoint with the most epochs in a trial's folder; one that a kill cut off is passed over."""
    folder, found = folder_at(trial), []
    for name in folder.folders("checkpoint_*"):
        try:
            with (folder / name).here() as checkpoint:
                found.append(load_state(checkpoint))
        except (BadInputError, OSError):
            continue
    return max(found, key=lambda state: int(state["epoch"]), default=None)


def device_of(gpus: float) -> torch.device:
    """The device of a worker in this process that was given `gpus` GPUs: the current one, or the CPU for 0."""
    return torch.device("cuda", torch.cuda.current_device()) if gpus > 0 else torch.device("cpu")
