"""A configuration's `search` and `sweep` as Tune's domains, search algorithm and scheduler."""

from __future__ import annotations

from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler

from crmt.errors import BadInputError
from pipelines.config.run_config import RunConfig
from pipelines.sweeps.preflight import Plan


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


def _scheduler(config: RunConfig) -> ASHAScheduler | None:
    """ASHA whose last rung is the last validation before the end: a trial that was trained in full is never cut, since
    step 2, attacks and radii are still to come."""
    every, epochs = config.select.every, config.train.epochs
    last = (epochs - 1) // every * every
    if config.sweep.scheduler == "none" or last < 1:
        return None
    return ASHAScheduler(
        time_attr="epoch",
        max_t=last,
        grace_period=min(config.sweep.grace_epochs, last),
        reduction_factor=config.sweep.reduction_factor,
        stop_last_trials=False,
    )


def tune_config(config: RunConfig, plan: Plan) -> tune.TuneConfig:
    from ray.tune.search import BasicVariantGenerator, SearchAlgorithm, Searcher
    from ray.tune.search.optuna import OptunaSearch

    sweep = config.sweep
    points = config.start_points()
    algorithm: Searcher | SearchAlgorithm
    if sweep.algorithm in ("optuna", "points") and config.search:
        algorithm = OptunaSearch(points_to_evaluate=points or None, seed=sweep.seed)
    else:
        chosen = points if sweep.algorithm == "random" else None
        algorithm = BasicVariantGenerator(points_to_evaluate=chosen, random_state=sweep.seed)
    return tune.TuneConfig(
        metric="selected",
        mode="max",
        search_alg=algorithm,
        scheduler=_scheduler(config),
        num_samples=1 if sweep.algorithm == "grid" else plan.trials,
        max_concurrent_trials=plan.concurrent,
    )
