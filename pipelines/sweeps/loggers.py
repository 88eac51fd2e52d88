"""Loggers of a sweep by name: Ray's own, or a user's Tune callback."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from ray.tune import Callback

from crmt.doors import split_arguments
from crmt.errors import BadInputError
from pipelines.config.run_config import RunConfig
from pipelines.sweeps.parts import build, find

_FIELD = "sweep.loggers"
_AUTOMATIC = "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"
_RAYS = {
    "json": ("ray.tune.logger", "JsonLoggerCallback", "json"),
    "csv": ("ray.tune.logger", "CSVLoggerCallback", "csv"),
    "tensorboardx": ("ray.tune.logger", "TBXLoggerCallback", "tensorboardX"),
    "mlflow": ("ray.air.integrations.mlflow", "MLflowLoggerCallback", "mlflow"),
    "wandb": ("ray.air.integrations.wandb", "WandbLoggerCallback", "wandb"),
    "comet": ("ray.air.integrations.comet", "CometLoggerCallback", "comet_ml"),
    "aim": ("ray.tune.logger.aim", "AimLoggerCallback", "aim"),
}
"""Name to module, class, and the package that it needs."""


def _import(module: str, name: str, package: str) -> Any:
    if find_spec(package) is None:
        raise ImportError(f"it needs the package {package}, which is not installed")
    return getattr(import_module(module), name)


_KNOWN: dict[str, Callable[[], Any]] = {name: partial(_import, *where) for name, where in _RAYS.items()}


def loggers_of(config: RunConfig) -> list[Callback]:
    """The callbacks of `sweep.loggers`; Tune adds its own where the field is left out.

    Raises:
        BadInputError: no such logger, a package that is missing, or options that it does not take.
    """
    found = []
    for entry in config.sweep.loggers or []:
        name, options = split_arguments(entry)
        part = find(name, _KNOWN, "a logger", _FIELD)
        logger = build(part, name, options, {}, _FIELD)
        if not isinstance(logger, Callback):
            raise BadInputError(f"{_FIELD}: {name} gave {type(logger).__name__}, not a ray.tune.Callback")
        found.append(logger)
    return found


@contextmanager
def only_these_loggers(names: Sequence[Any] | None) -> Iterator[None]:
    """Keep Tune from adding loggers of its own where it is said which there are; None: it is not."""
    before = os.environ.get(_AUTOMATIC)
    if names is not None:
        os.environ[_AUTOMATIC] = "1"
    try:
        yield
    finally:
        if before is not None:
            os.environ[_AUTOMATIC] = before
        else:
            os.environ.pop(_AUTOMATIC, None)
