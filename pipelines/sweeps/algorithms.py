"""Search algorithms by name: ours, Ray's own, or a user's."""

from __future__ import annotations

from typing import Any

import optuna
from ray.tune.search import SEARCH_ALG_IMPORT, BasicVariantGenerator, ConcurrencyLimiter, SearchAlgorithm, Searcher

from crmt.errors import BadInputError
from pipelines.config.run_config import RunConfig
from pipelines.sweeps.parts import METRIC, MODE, build, explained, find, parameters

OURS = ("optuna", "random", "grid", "points")
"""`grid` and `points` say themselves how many trials there are."""
_FIELD, _OPTIONS = "sweep.algorithm", "sweep.algorithm_options"
_KNOWN = {name: SEARCH_ALG_IMPORT["optuna" if name in ("optuna", "points") else "random"] for name in OURS} | {
    name: load for name, load in SEARCH_ALG_IMPORT.items() if name not in (*OURS, "variant_generator")
}


def algorithm_of(config: RunConfig, concurrent: int) -> Searcher | SearchAlgorithm:
    """The search algorithm of a sweep, of which no more than `concurrent` trials run at once.

    It gets the seed and the points of `sweep.start_with` where it names arguments for them.

    Raises:
        BadInputError: no such algorithm, a package that is missing, options that it does not take, or start points or
            `sweep.max_concurrent` that it cannot have.
    """
    sweep = config.sweep
    name = sweep.algorithm if config.search else "random"
    points = config.start_points()
    part = find(name, _KNOWN, "a search algorithm", _FIELD)
    if sweep.algorithm_options and name in ("grid", "points"):
        raise BadInputError(f"{_OPTIONS} takes no effect with {name}: leave it out")
    named, _ = parameters(part) if callable(part) else ([], False)
    if points and config.search and name not in OURS and "points_to_evaluate" not in named:
        raise BadInputError(f"sweep.start_with takes no effect with {name}, which has no points_to_evaluate")
    ours = {
        "points_to_evaluate": None if name == "grid" else points or None,
        "seed": sweep.seed,
        "random_state": sweep.seed,
        "random_state_seed": sweep.seed,
        "max_concurrent": concurrent,
    }
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # the live table and errors speak alone
    algorithm = build(part, name, sweep.algorithm_options, ours, _OPTIONS)
    if not isinstance(algorithm, Searcher | SearchAlgorithm):
        raise BadInputError(
            f"{_FIELD}: {name} gave {type(algorithm).__name__}, not a Searcher or SearchAlgorithm of Ray"
        )
    return _limited(algorithm, name, named, sweep.max_concurrent, concurrent)


def _limited(
    algorithm: Searcher | SearchAlgorithm, name: str, named: list[str], asked: int | None, concurrent: int
) -> Searcher | SearchAlgorithm:
    """Tune limits a plain Searcher alone, and ignores its own `max_concurrent_trials` with everything else."""
    if isinstance(algorithm, ConcurrencyLimiter):
        algorithm.set_max_concurrency(min(algorithm.max_concurrent, concurrent))
        return algorithm
    if isinstance(algorithm, Searcher):
        return ConcurrencyLimiter(algorithm, max_concurrent=concurrent)
    if isinstance(algorithm, BasicVariantGenerator):
        algorithm.max_concurrent = concurrent
    elif asked is not None and "max_concurrent" not in named:
        raise BadInputError(
            f"sweep.max_concurrent: {name} is a SearchAlgorithm that takes no max_concurrent: leave it out, or make it "
            "a Searcher"
        )
    return algorithm


def check_algorithm(config: RunConfig, space: dict[str, Any]) -> None:
    """Refuse a search algorithm that cannot be had, or that cannot search this space.

    Raises:
        BadInputError: as `algorithm_of`, or a kind of search entry that it does not know.
    """
    algorithm = algorithm_of(config, 1)
    if not config.search:
        return
    name = config.sweep.algorithm
    try:
        taken = algorithm.set_search_properties(METRIC, MODE, space)
    except Exception as error:  # each library has its own
        raise explained(error, _FIELD, name) from error
    if not taken:
        raise BadInputError(f"{_FIELD}: {name} has a metric or a space of its own; the sweep sets both: leave them out")
