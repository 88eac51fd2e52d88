"""Schedulers by name, which stop trials early or change them: ours, Ray's own, or a user's."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from ray.tune.schedulers import SCHEDULER_IMPORT, ASHAScheduler, TrialScheduler

from crmt.doors import is_path
from crmt.errors import BadInputError
from pipelines.config.run_config import RunConfig
from pipelines.sweeps.parts import METRIC, MODE, TIME, build, find, parameters

OURS = ("asha", "none")
_FIELD, _OPTIONS = "sweep.scheduler", "sweep.scheduler_options"
_COPYING = ("pbt", "pbt_replay", "pb2")
"""Schedulers that let a trial go on with the state of another one."""


def _importer(found: Any) -> Callable[[], Any]:
    """Ray's table has classes, and functions that import a class."""
    return found if inspect.isfunction(found) else partial(_same, found)


def _same(found: Any) -> Any:
    return found


_KNOWN: dict[str, Callable[[], Any]] = {"asha": partial(_same, ASHAScheduler), "none": partial(_same, None)} | {
    name: _importer(found) for name, found in SCHEDULER_IMPORT.items() if name != "resource_changing"
}
"""Ray's schedulers, without the one that changes a trial's CPUs and GPUs: the configuration sets those."""


def scheduler_of(config: RunConfig, space: dict[str, Any]) -> TrialScheduler | None:
    """The scheduler of a sweep, which counts time in epochs; None: every trial is trained in full.

    The last rung of one that has rungs is the last validation before the end: a trial that was trained in full is
    never cut, since step 2, attacks and radii are still to come.

    Args:
        space: `search` as Tune's domains, from which population-based training draws.

    Raises:
        BadInputError: no such scheduler, a package that is missing, or options that it does not take.
    """
    sweep, name = config.sweep, config.sweep.scheduler
    part = find(name, _KNOWN, "a scheduler", _FIELD)
    if name == "none":
        if sweep.scheduler_options:
            raise BadInputError(f"{_OPTIONS} takes no effect with none: leave it out")
        return None
    if name in _COPYING and sweep.most_workers > 1:
        raise BadInputError(f"{_FIELD}: {name} copies models between trials, which needs sweep.workers 1")
    every, epochs = config.select.every, config.train.epochs
    last = (epochs - 1) // every * every
    ours: dict[str, Any] = {"time_attr": TIME}
    if not is_path(name):
        ours |= {
            "max_t": max(last, 1),
            "grace_period": min(sweep.grace_epochs, max(last, 1)),
            "reduction_factor": sweep.reduction_factor,
            "stop_last_trials": False,
            "hyperparam_mutations": {p: d for p, d in space.items() if p.startswith("train.") and p != "train.method"},
        }
    scheduler = build(part, name, sweep.scheduler_options, ours, _OPTIONS)
    if not isinstance(scheduler, TrialScheduler):
        raise BadInputError(f"{_FIELD}: {name} gave {type(scheduler).__name__}, not a TrialScheduler of Ray")
    no_rung = last < 1 and not is_path(name) and "max_t" in parameters(part)[0]
    return None if no_rung else scheduler


def check_scheduler(config: RunConfig, space: dict[str, Any]) -> None:
    """Refuse a scheduler that cannot be had, or that compares trials by a metric of its own.

    Raises:
        BadInputError: see `scheduler_of`.
    """
    scheduler = scheduler_of(config, space)
    if scheduler is not None and not scheduler.set_search_properties(METRIC, MODE):
        raise BadInputError(
            f"{_FIELD}: {config.sweep.scheduler} has a metric of its own; the sweep sets it: leave it out"
        )
