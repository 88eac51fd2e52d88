"""What no trial could use: batches larger than train, a validation split too small."""

from __future__ import annotations

from crmt.errors import BadInputError
from pipelines.config.run_config import RunConfig
from pipelines.sources.index import ClipIndex

FEWEST = 10
"""Clips of a validation split that was carved: by fewer, trials are chosen by chance."""


def check_clips(config: RunConfig, index: ClipIndex, *, choosing: bool) -> None:
    """Refuse clips that are too few to train on or to choose by, before they are decoded.

    Args:
        config: of the run.
        index: the clips, split.
        choosing: whether trials are chosen by the validation split.

    Raises:
        BadInputError: a batch that train cannot fill, or a carved validation split of fewer than `FEWEST` clips.
    """
    counts = index.clips["split"].value_counts()
    train, validation = int(counts.get("train", 0)), int(counts.get("validation", 0))
    entry = config.search.get("train.batch_size")
    smallest = min(next(iter(entry.values()))) if entry else config.train.batch_size  # else single trials fail
    if smallest > train:
        raise BadInputError(
            f"train.batch_size ({smallest}) is larger than train, which has {train} clips: no step could be made. Give "
            f"{train} or less"
        )
    if choosing and index.carved and validation < FEWEST:
        raise BadInputError(
            f"{validation} clips were carved from train for validation, by data.validation_share "
            f"{config.data.validation_share:g}: models cannot be chosen by fewer than {FEWEST}. Raise it, or leave "
            "out data.limit, or give rows whose split is `validation`"
        )
