"""What the parts of a run are called, for its card: so that a report knows a part of the user's own like ours."""

from __future__ import annotations

from typing import Any

from crmt.attacks import find_attack
from crmt.doors import is_path
from crmt.methods import method_class
from pipelines.config.run_config import RunConfig


def words_of(config: RunConfig, *, trained: bool = False) -> dict[str, Any]:
    """Titles, and what else tables say, of every part that trials of this configuration can use.

    Args:
        config: of the run.
        trained: whether a saved model is measured. A method by path is not imported then, since the model's card may
            come from anybody: it is called by the last part of its path.

    Returns: `methods` and `attacks`, name to title, and `certificates`, name to title, word, sound and meaning, as JSON
        can hold them. Names are those that results are stored with.

    Raises:
        BadInputError: a part that does not exist.
    """
    entry = config.search.get("train.method")
    methods = list(next(iter(entry.values()))) if entry else [config.train.method]
    attacks = dict.fromkeys([*config.attack.names, config.certify.audit_attack])
    return {
        "methods": {str(name): _title(str(name), trained) for name in methods},
        "certificates": {
            c.name: {"title": c.title, "word": c.said_word(), "sound": c.sound, "meaning": c.meaning}
            for c in config.certificates()
        },
        "attacks": {name: find_attack(name).title for name in attacks},
    }


def _title(method: str, trained: bool) -> str:
    if trained and is_path(method):
        return method.rpartition(":")[2]
    return method_class(method).title
