"""` Did you mean ...?`: the nearest valid name, or the one that the word given stands for. Imports nothing big."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

SYNONYMS = {
    "eps": "epsilon",
    "wd": "weight_decay",
    "decay": "weight_decay",
    "learning_rate": "lr",
    "learningrate": "lr",
    "lr_rate": "lr",
    "bs": "batch_size",
    "batch": "batch_size",
    "batchsize": "batch_size",
    "num_epochs": "epochs",
    "n_epochs": "epochs",
    "max_epochs": "epochs",
    "opt": "optimizer",
    "optim": "optimizer",
    "lambda": "rho",
    "n_trials": "trials",
    "num_trials": "trials",
    "num_samples": "trials",
    "num_workers": "workers",
    "random_state": "seed",
    "n_mels": "mels",
    "sr": "sample_rate",
    "lr_scheduler": "schedule",
}
"""What people also call a field."""
_FIRST = ("train.", "data.", "model.", "select.", "attack.", "certify.", "sweep.")
"""Of fields with one name, the one of training is meant."""


def nearest(name: str, valid: Sequence[str]) -> str:
    """` Did you mean ...?` for a name that is not in `valid`, or the valid ones where none is near.

    Args:
        name: as it was given, perhaps a dotted path.
        valid: the names that there are.
    """
    found = closest(name, valid)
    return f" Did you mean {found!r}?" if found else f" Valid: {', '.join(valid)}."


def closest(name: str, valid: Sequence[str]) -> str | None:
    """The valid name that was probably meant: one with the same last part, the field's own word for it, or a near one.

    Args:
        name: as it was given, perhaps a dotted path.
        valid: the names that there are.
    """
    section, _, leaf = name.rpartition(".")
    for word in (leaf, SYNONYMS.get(leaf.lower())):
        tail = [v for v in valid if word is not None and v.rpartition(".")[2] == word]
        if tail:
            return min(tail, key=lambda v: _rank(v, section))
    return next(iter(difflib.get_close_matches(name, valid, n=1, cutoff=0.4)), None)


def _rank(path: str, section: str) -> tuple[bool, int]:
    """A field of the section that was named comes first, then one of training, and so on down the file."""
    order = next((i for i, first in enumerate(_FIRST) if path.startswith(first)), len(_FIRST))
    return not (section and path.startswith(f"{section}.")), order + 10 * path.count(".")
