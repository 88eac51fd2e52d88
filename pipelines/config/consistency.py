"""Settings that do not fit each other, each section being valid by itself: refused without torch, clips or Ray."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from crmt.doors import is_path
from crmt.errors import BadInputError
from pipelines.config.modality import check_modalities
from pipelines.config.run_config import RunConfig, effective_params, value_at

_JOINT, _EACH = "joint", "each"


def values_of(config: RunConfig, path: str, own: Any = None) -> list[Any]:
    """What trials may get for a field: the values of its search entry, the ends of a range, or its one value.

    Args:
        config: of the run.
        path: of the field, dotted.
        own: the value where it is not searched; None: the configuration's.
    """
    entry = config.search.get(path)
    return list(next(iter(entry.values()))) if entry else [own or value_at(config, path)]


def methods_of(config: RunConfig) -> list[str]:
    """Methods that trials may get."""
    return [str(m) for m in values_of(config, "train.method")]


def check_consistency(config: RunConfig, training: bool = True) -> None:
    """Refuse settings that no trial can use together.

    Args:
        config: of the run.
        training: False where a saved model is only measured.

    Raises:
        BadInputError: a modality that the clips or the model do not have, batches or samples that the workers of a
            trial cannot share, a search that changes nothing, or a scheduler that can stop no trial.
    """
    for encoders in values_of(config, "model.encoders"):
        check_modalities(encoders, config.data.declared)
        _check_names(config, list(encoders))
    _check_workers(config, training)
    if config.sweep.algorithm == "points" and config.search and not config.sweep.start_with:
        raise BadInputError("sweep.algorithm is points: list them in sweep.start_with")
    if training:
        if config.train.options and not any(is_path(name) for name in methods_of(config)):
            raise BadInputError(
                "train.options is for a method of your own (package.module:Name): give ours its settings as "
                "train.<name>"
            )
        _check_search_matters(config)
        _check_rungs(config)


def _check_names(config: RunConfig, modalities: list[str]) -> None:
    """Refuse settings of modalities that the model does not have."""
    for ball in config.attack.balls:
        if ball not in (_JOINT, _EACH, *modalities):
            raise BadInputError(f"attack.balls: {ball!r} is not joint, each or one of {', '.join(modalities)}")
    given: dict[str, Iterable[str]] = {"train.noise": config.train.noise, "attack.product": config.attack.product}
    for path, names in given.items():
        for name in names:
            if name not in modalities:
                raise BadInputError(f"{path}: the model has no {name!r}; it has {', '.join(modalities)}")


def _check_workers(config: RunConfig, training: bool) -> None:
    """Refuse batches and samples that the workers of a trial cannot share."""
    sweep = config.sweep
    for size in values_of(config, "train.batch_size") if training else []:
        for workers in range(sweep.fewest_workers, sweep.most_workers + 1):
            if size % workers:
                raise BadInputError(f"train.batch_size ({size}) must be a multiple of sweep.workers ({workers})")
    samples = {
        "train.tau_samples": config.train.tau_samples,
        "select.samples": config.select.samples,
        "attack.samples": config.attack.samples,
        "certify.audit_samples": config.certify.audit_samples,
    }
    for path, count in samples.items():
        check_share(path, count, sweep.most_workers)


def check_share(path: str, count: int | None, workers: int) -> None:
    """Refuse samples of which some worker would get none.

    Args:
        path: of the field, dotted.
        count: how many; None: all; 0: none wanted.
        workers: of a trial.

    Raises:
        BadInputError: with both numbers.
    """
    if count and count < workers:
        raise BadInputError(f"{path} ({count}) must not be below sweep.workers ({workers}): each takes a share")


def _check_search_matters(config: RunConfig) -> None:
    """Refuse a searched field that no method of the run takes: its trials would be repeats of each other."""
    methods = methods_of(config)
    if any(is_path(name) for name in methods):
        return  # found out by the trial: its module may lie elsewhere
    for path in config.search:
        if all(effective_params(name, {path: 1})[path] is None for name in methods):
            raise BadInputError(
                f"search.{path}: {' and '.join(methods)} take{'s' * (len(methods) == 1)} no notice of it, so trials "
                f"would differ in nothing: leave it out of `search` (--set {path}=null fixes it), or search a method "
                "that takes it"
            )


def _check_rungs(config: RunConfig) -> None:
    """Refuse an ASHA that could never stop a trial."""
    sweep, epochs = config.sweep, max(values_of(config, "train.epochs"))
    if config.search and sweep.scheduler == "asha" and sweep.grace_epochs > epochs:
        raise BadInputError(
            f"sweep.grace_epochs ({sweep.grace_epochs}) is above train.epochs ({epochs:g}), so ASHA stops no trial: "
            "lower it, or give sweep.scheduler=none"
        )
