"""The head of a report: its one sentence, the alarm, where the run comes from, and links to the sections."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from pipelines.reporting.data import RunData, Share, has_product
from pipelines.reporting.render import STATUSES, percent, render
from pipelines.reporting.sections.audit import refuted


def outcome(data: RunData) -> str:
    """One sentence of plain text: what came out, computed from the best trial of each method."""
    if not data.best:
        return "Nothing was finished: no trial of this run has come to its end, so there is no result to report."
    epsilon, name = data.headline, data.names.method
    clean = {m: data.metric(t, "clean_accuracy").value for m, t in data.best.items()}
    if epsilon is None and not np.isfinite(list(clean.values())).any():
        parts = [f"{name(m)} {percent(data.trial(t).selected_value)}" for m, t in data.best.items()]
        return f"Nothing was finished and tested yet. Best on the validation split so far: {', '.join(parts)}."
    if epsilon is None:
        parts = [f"{name(m)} {percent(value)}" for m, value in clean.items()]
        return f"Clean test accuracy of the best trial of each method: {', '.join(parts)}. Nothing was attacked yet."
    ranked = sorted(
        ((m, data.attacked(t, epsilon)) for m, t in data.best.items()),
        key=lambda item: -item[1].value if np.isfinite(item[1].value) else np.inf,
    )
    (method, top), rest = ranked[0], [r for r in ranked[1:] if np.isfinite(r[1].value)]
    if not np.isfinite(top.value):
        return "No trial that has come to its end was attacked yet."
    text = f"Under {data.names.attack_with_budget(data.attack, epsilon)}, {name(method)} keeps {percent(top.value)}"
    if not rest:
        return f"{text} of the test clips right; without attack it has {percent(clean[method])}."
    second, second_share = rest[0]
    text += f" where {name(second)} keeps {percent(second_share.value)}"
    if rest[1:]:
        text += f" and {name(rest[-1][0])}, the last of {len(ranked)}, {percent(rest[-1][1].value)}"
    unattacked = " and ".join(f"{name(m)} has {percent(clean[m])}" for m in (method, second))
    return f"{text}; without attack {unattacked}.{_doubt(top, second_share)}"


def _doubt(first: Share, second: Share) -> str:
    if first.has_interval and second.has_interval and first.low <= second.high:
        return f" The 95 % intervals overlap: {first.n} clips do not tell the first two apart under attack."
    return ""


def header(data: RunData) -> Markup:
    """Name, outcome and provenance."""
    card, trials = data.provenance, data.tables["trials"]
    command, started = card.get("command"), str(card.get("started") or trials.started.dropna().min() or "")
    few = " and ".join(map(data.names.method, data.best)) if len(data.best) <= 2 else f"{len(data.best)} methods"
    return render(
        "header",
        data,
        name=str(card.get("name") or data.run.resolve().name),
        methods=few,
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
