"""The head of a report: its one sentence, the alarm, where the run comes from, and links to the sections."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from pipelines.reporting.data import RunData, has_product
from pipelines.reporting.render import STATUSES, render
from pipelines.reporting.sections.audit import refuted


def outcome(data: RunData) -> str:
    """One sentence of plain text: what came out, computed from the best trial of each method."""
    clean = {m: data.metric(t, "clean_accuracy").value for m, t in data.best.items()}
    attacked = {m: data.attacked(t, data.headline or 0.0) for m, t in data.best.items()}
    ranked = sorted(attacked, key=lambda m: -attacked[m].value if np.isfinite(attacked[m].value) else np.inf)
    found = [m for m in ranked if np.isfinite(attacked[m].value)]
    text = render(
        "outcome", data, clean=clean, attacked=attacked, found=found, tested=np.isfinite(list(clean.values())).any()
    )
    return re.sub("[ \\n]+", " ", text.unescape()).strip(" ")


def header(data: RunData) -> Markup:
    """Name, outcome and provenance."""
    card, trials = data.provenance, data.tables["trials"]
    command, started = card.get("command"), str(card.get("started") or trials.started.dropna().min() or "")
    methods = " and ".join(map(data.names.method, data.best)) if len(data.best) <= 2 else f"{len(data.best)} methods"
    return render(
        "header",
        data,
        name=str(card.get("name") or data.run.name),
        methods=methods,
        refuted=refuted(data),
        outcome=outcome(data),
        count={s: int((trials.status == s).sum()) for s in STATUSES},
        clips=_clips(card),
        clips_sha256=str(card.get("clips_sha256") or _only(trials.clips_sha256)),
        commit=str(card.get("commit") or _only(trials["commit"])),
        hardware=_hardware(card.get("hardware")),
        started="" if started == "nan" else started.replace("T", " ")[:19],
        seconds=trials.seconds.sum(),
        versions=_versions(card.get("versions")),
        command=" ".join(map(str, command)) if isinstance(command, list) else str(command or ""),
        card=[(k, v if isinstance(v, str) else json.dumps(v, ensure_ascii=False)) for k, v in card.items()],
        with_product=has_product(data),
    )


def _clips(card: dict[str, Any]) -> str:
    """`avdigits: 1,020 train, 597 test, 3 without audio`."""
    found = card.get("clips")
    clips = found if isinstance(found, dict) else {}
    counts = [f"{clips[k]:,} {k}" for k in ("train", "validation", "test") if isinstance(clips.get(k), int)]
    counts += [f"{count:,} without {m}" for m, count in (card.get("incomplete") or {}).items()]
    return ": ".join(text for text in (str(card.get("dataset") or ""), ", ".join(counts)) if text)


def _only(column: pd.Series) -> str:
    values = column.dropna().unique()
    return str(values[0]) if len(values) == 1 else ""


def _hardware(hardware: Any) -> str:
    if not isinstance(hardware, dict):
        return str(hardware or "")
    gpus, models = hardware.get("gpus"), ", ".join(hardware.get("gpu_models") or [])
    named = f"{gpus:g} GPUs{f' ({models})' if models else ''}" if gpus else ""
    parts = [f"{hardware['cpus']:g} CPUs"] if isinstance(hardware.get("cpus"), int | float) else []
    parts += [f"{hardware['memory_gib']:.0f} GiB"] if isinstance(hardware.get("memory_gib"), int | float) else []
    return ", ".join([*parts, named or "no GPU"])


def _versions(versions: Any) -> str:
    if not isinstance(versions, dict):
        return ""
    kept = {k: versions[k] for k in ("python", "torch", "ray") if k in versions} or versions
    return ", ".join(f"{k} {v}" for k, v in kept.items())
