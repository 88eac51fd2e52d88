"""The folder of a run: its name, its provenance (`run.json`), and where everything in it lies."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

from crmt.errors import BadInputError
from crmt.modality import Modality
from pipelines.clips.prepare import Prepared
from pipelines.config.run_config import RunConfig, parse
from pipelines.infra.entry import CONSOLE
from pipelines.infra.files import check_place
from pipelines.infra.storage import Folder, Where, folder_at
from pipelines.runs.code_version import code_version
from pipelines.runs.lock import hold_run
from pipelines.runs.results import ResultsStore
from pipelines.runs.words import words_of

RUNS = Path("runs")
CARD = "run.json"
_PACKAGES = ("torch", "ray", "numpy", "optuna", "librosa", "decord2", "imageio-ffmpeg", "pyarrow")
_GPU = "accelerator_type:"
"""How Ray's resources begin that name the models of the GPUs."""


def now() -> str:
    """ISO 8601, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def check_free(folder: Path | None) -> None:
    """Refuse a folder that a new run cannot have, before anything costs time.

    Raises:
        BadInputError: it holds something already, or cannot be made.
    """
    check_place(folder)
    where = (folder or RUNS).resolve()
    if folder is not None and where.exists() and (not where.is_dir() or any(where.iterdir())):
        raise BadInputError(f"{where} exists and is not empty: go on with --resume {where}, or name another folder")
    nearest = next(p for p in (where, *where.parents) if p.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise BadInputError(f"{where} cannot be made: {nearest} is not a folder to write in. Name another with --out")


def create_run(folder: Path | None, dataset: str, kind: str, storage: Folder | None = None) -> Where:
    """A new run folder: `folder`, or <dataset>-<kind>-<time> in runs/ or on a server.

    Args:
        folder: where it shall be; None: a name of its own.
        dataset: its name.
        kind: `sweep`, `train` or `evaluation`.
        storage: the folder of a server that takes it; None: this machine.

    Raises:
        BadInputError: the folder holds something already, or cannot be made.
    """
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    if storage is not None:
        name = f"{dataset}-{kind}-{stamp}"
        taken = storage.folders(f"{name}*")
        return storage / (f"{name}-{len(taken) + 1}" if taken else name)
    check_free(folder)
    if folder is None:
        run = _numbered((RUNS / f"{dataset}-{kind}-{stamp}").resolve())
    else:
        run = folder.resolve()
        run.mkdir(parents=True, exist_ok=True)
    (run / "results").mkdir(exist_ok=True)
    return run


def _numbered(path: Path) -> Path:
    """A folder of this name that nobody else has made: the second run of a second is NAME-2."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for number in count(1):
        run = path if number == 1 else path.with_name(f"{path.name}-{number}")
        try:
            run.mkdir()
        except FileExistsError:
            continue
        return run
    raise AssertionError("numbers do not end")


def latest_run() -> Path:
    """The newest sweep under runs/.

    Raises:
        BadInputError: there is none.
    """
    found = [p.parent for p in RUNS.glob(f"*/{CARD}") if (p.parent / "tune").is_dir()]
    if not found:
        raise BadInputError(f"no sweep to resume under {RUNS.resolve()}: give --resume the folder of a run")
    return max(found, key=lambda p: (p / CARD).stat().st_mtime).resolve()


def _version(package: str) -> str | None:
    """None: it is not installed, as ours in a copied folder."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _session() -> dict[str, Any]:
    """Which code computes now, on what. `dirty` is null where neither git nor commit.json tells."""
    import ray

    resources, code = ray.cluster_resources(), code_version()
    packages = _PACKAGES if code.commit else (*_PACKAGES, CONSOLE)  # without a commit, our version
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "commit": code.commit,
        "dirty": code.dirty,
        "started": now(),
        "versions": {p: _version(p) for p in packages} | {"python": platform.python_version()},
        "hardware": {
            "cpus": int(resources.get("CPU", os.cpu_count() or 1)),
            "memory_gib": round((resources.get("memory", 0) + resources.get("object_store_memory", 0)) / 2**30, 1),
            "gpus": int(resources.get("GPU", 0)),
            "gpu_models": sorted(r.removeprefix(_GPU) for r in resources if r.startswith(_GPU)),
            "nodes": len(ray.nodes()),
        },
    }


def _new_card(
    config: RunConfig, prepared: Prepared, modalities: Sequence[Modality], name: str, kind: str
) -> dict[str, Any]:
    cache = prepared.cache
    return {
        "name": name,
        "kind": kind,
        "dataset": cache.name,
        "clips": {**cache.counts, "failed": cache.failed},
        "incomplete": cache.incomplete,
        "clips_sha256": cache.clips_sha256,
        "cache_key": cache.key,
        "classes": len(cache.classes),
        "class_names": list(cache.classes),
        "modalities": [m.name for m in modalities],
        "spaces": {m.name: m.space for m in modalities},
        "batches": prepared.delivery,
        "config": config.model_dump(mode="json"),
        "words": words_of(config, trained=kind == "evaluation"),
    }


def write_card(run: Where, card: dict[str, Any]) -> None:
    """Write `run.json`, atomically."""
    folder_at(run).write(CARD, json.dumps(card, indent=1).encode(), durable=False)


def read_card(run: Where) -> tuple[dict[str, Any], RunConfig]:
    """`run.json` and the configuration in it.

    Raises:
        BadInputError: not the folder of a run.
    """
    try:
        card = json.loads(folder_at(run).read(CARD))
        return card, parse(card["config"], str(run / CARD))
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, BadInputError):
            raise
        raise BadInputError(f"{run} is not the folder of a run: it has no readable {CARD}") from None


def open_run(
    config: RunConfig,
    prepared: Prepared,
    modalities: Sequence[Modality],
    kind: str,
    *,
    held: ExitStack,
    folder: Path | None = None,
    storage: Folder | None = None,
    resume: Where | None = None,
) -> TrialInput:
    """Make the folder of a run, or open the one to go on with, and write its provenance.

    The lock of a new folder is taken into `held`; who resumes holds it already.

    A run that goes on lists each session in `run.json`; models carry the commit of the session that made them.

    Raises:
        BadInputError: the folder holds something, or is not that of the same kind of run on the same decoded clips.
    """
    session, cache = _session(), prepared.cache
    if resume is None:
        run = create_run(folder, cache.name, kind, storage)
        held.enter_context(hold_run(run))
        card = _new_card(config, prepared, modalities, run.name, kind) | session
    else:
        run = resume
        card, _ = read_card(run)
        if card.get("kind") != kind:
            raise BadInputError(f"{run} is a {card.get('kind')}, not a {kind}: go on with the command that made it")
        if card["cache_key"] != cache.key:
            raise BadInputError(f"the clips are no longer those that {run} was started with: start a new run")
        card["name"] = run.name  # the folder may have been renamed or copied
        card["sessions"] = [*card.get("sessions", []), session]
    write_card(run, card)
    # a number never travels without the clips that are missing from it
    ResultsStore(run / "results").write("quarantine", "ingest", cache.quarantine)
    current = {k: session[k] for k in ("commit", "dirty", "versions")}
    same = {k: card[k] for k in ("clips_sha256", "cache_key", "dataset")}
    return TrialInput(run, tuple(modalities), cache.classes, current | same)


@dataclass(frozen=True)
class TrialInput:
    """What all trials of a run share."""

    run: Where
    modalities: tuple[Modality, ...]
    classes: tuple[str, ...]
    provenance: dict[str, Any]
    """Goes into the model's card: clips_sha256, cache_key, commit, versions."""
