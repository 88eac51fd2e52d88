"""A configuration's `search` and `sweep` as Tune's domains and Tune's configuration."""

from __future__ import annotations

from typing import Any

from ray import tune

from crmt.errors import BadInputError
from pipelines.config.run_config import RunConfig
from pipelines.sweeps.algorithms import algorithm_of, check_algorithm
from pipelines.sweeps.loggers import loggers_of
from pipelines.sweeps.parts import METRIC, MODE
from pipelines.sweeps.preflight import Plan
from pipelines.sweeps.schedulers import check_scheduler, scheduler_of


def search_space(config: RunConfig) -> dict[str, Any]:
    """`search` as Tune's domains.

    Raises:
        BadInputError: a continuous range in a grid.
    """
    grid = config.sweep.algorithm == "grid"
    space: dict[str, Any] = {}
    for path, entry in config.search.items():
        kind, values = next(iter(entry.items()))
        if kind in ("choice", "grid"):
            space[path] = tune.grid_search(values) if grid else tune.choice(values)
        elif grid:
            raise BadInputError(f"search.{path}: sweep.algorithm is grid, which needs a list of values, not {kind}")
        elif kind == "int":
            space[path] = tune.randint(int(values[0]), int(values[1]) + 1)
        else:
            space[path] = (tune.uniform if kind == "uniform" else tune.loguniform)(*values)
    return space


def check_search(config: RunConfig) -> None:
    """Refuse what Tune could not run, before Ray is started: each part is made once and thrown away.

    Raises:
        BadInputError: a search algorithm, scheduler or logger that cannot be had, or not for this search space.
    """
    space = search_space(config)
    check_algorithm(config, space)
    check_scheduler(config, space)
    loggers_of(config)


def tune_config(config: RunConfig, plan: Plan) -> tune.TuneConfig:
    """What is searched, how, and by how many trials."""
    return tune.TuneConfig(
        metric=METRIC,
        mode=MODE,
        search_alg=algorithm_of(config, plan.concurrent),
        scheduler=scheduler_of(config, search_space(config)),
        num_samples=1 if config.sweep.algorithm == "grid" else plan.trials,
    )
