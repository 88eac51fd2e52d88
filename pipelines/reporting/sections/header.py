"""The sections of a report without figures: the head with its one sentence, all trials, quarantine, definitions."""

from __future__ import annotations

import json
from html import escape
from typing import Any

import numpy as np
import pandas as pd

from pipelines.reporting.data import RunData, Share, has_product
from pipelines.reporting.html import STATUSES, duration, percent, table
from pipelines.reporting.names import method_name, under
from pipelines.reporting.sections.audit import alert

NAV = (
    ("comparison", "Comparison"),
    ("robustness", "Robustness"),
    ("product", "Budget grid"),
    ("audit", "Audit"),
    ("learning", "Learning"),
    ("search", "Search"),
    ("step2", "Step 2"),
    ("trials", "All trials"),
    ("quarantine", "Quarantine"),
    ("words", "How to read"),
)


# --- the head -----------------------------------------------------------------------------------------


def outcome(data: RunData) -> str:
    """One sentence of plain text: what came out, computed from the best trial of each method."""
    if not data.best:
        return "Nothing was finished: no trial of this run has come to its end, so there is no result to report."
    epsilon = data.headline
    clean = {m: data.metric(t, "clean_accuracy").value for m, t in data.best.items()}
    if epsilon is None and not np.isfinite(list(clean.values())).any():
        parts = [f"{method_name(m)} {percent(data.trial(t).selected_value)}" for m, t in data.best.items()]
        return f"Nothing was finished and tested yet. Best on the validation split so far: {', '.join(parts)}."
    if epsilon is None:
        parts = [f"{method_name(m)} {percent(value)}" for m, value in clean.items()]
        return f"Clean test accuracy of the best trial of each method: {', '.join(parts)}. Nothing was attacked yet."
    ranked = sorted(
        ((m, t, data.attacked(t, epsilon)) for m, t in data.best.items()),
        key=lambda item: -item[2].value if np.isfinite(item[2].value) else np.inf,
    )
    (method, _, top), rest = ranked[0], [r for r in ranked[1:] if np.isfinite(r[2].value)]
    if not np.isfinite(top.value):
        return "No trial that has come to its end was attacked yet."
    text = f"Under {under(data.attack, epsilon)}, {method_name(method)} keeps {percent(top.value)}"
    if not rest:
        return f"{text} of the test clips right; without attack it has {percent(clean[method])}."
    second = rest[0]
    text += f" where {method_name(second[0])} keeps {percent(second[2].value)}"
    text += (
        f" and {method_name(rest[-1][0])}, the last of {len(ranked)}, {percent(rest[-1][2].value)}" if rest[1:] else ""
    )
    unattacked = " and ".join(f"{method_name(m)} has {percent(clean[m])}" for m in (method, second[0]))
    return f"{text}; without attack {unattacked}.{_doubt(top, second[2])}"


def _doubt(first: Share, second: Share) -> str:
    if first.has_interval and second.has_interval and first.low <= second.high:
        return f" The 95 % intervals overlap: {first.n} clips do not tell the first two apart under attack."
    return ""


def header(data: RunData) -> str:
    """Name, outcome and provenance."""
    p, status = data.provenance, data.tables["trials"].status
    name = str(p.get("name") or data.run.resolve().name)
    counts = ", ".join(f"{int((status == s).sum())} {s}" for s in STATUSES if (status == s).any())
    methods = " and ".join(map(method_name, data.best)) if len(data.best) <= 2 else f"{len(data.best)} methods"
    title = f"Robustness of {methods}" if methods else "Robustness"
    dataset = f" on {p['dataset']}" if p.get("dataset") else ""
    shown = [item for item in NAV if item[0] != "product" or has_product(data)]
    nav = "".join(f'<a href="#{anchor}">{label}</a>' for anchor, label in shown)
    return (
        f'<header><p class="kicker">CRMT sweep · {escape(name)}</p><h1>{escape(title + dataset)}</h1>'
        f'{alert(data)}<p class="lead">{escape(outcome(data))}</p>{_unfinished(status)}'
        f"{_strip(data, counts)}<nav aria-label=Sections>{nav}</nav></header>"
    )


def _unfinished(status: pd.Series) -> str:
    running, failed = int((status == "running").sum()), int((status == "failed").sum())
    parts = [f"{running} of {len(status)} trials had not ended when this page was made"] if running else []
    parts += (
        [f"{failed} of {len(status)} trials failed (their errors stand in the table of all trials)"] if failed else []
    )
    return f'<p class="note">{"; ".join(parts)}.</p>' if parts else ""


def _strip(data: RunData, counts: str) -> str:
    p = data.provenance
    clips = p.get("clips") if isinstance(p.get("clips"), dict) else {}
    assert isinstance(clips, dict)
    split_words = [f"{clips[k]:,} {k}" for k in ("train", "validation", "test") if isinstance(clips.get(k), int)]
    split_words += [f"{count:,} without {m}" for m, count in (p.get("incomplete") or {}).items()]
    seconds = data.tables["trials"].seconds.sum()
    started = str(p.get("started") or data.tables["trials"].started.dropna().min() or "")
    items = [
        ("Data set", escape(": ".join(t for t in (str(p.get("dataset") or ""), ", ".join(split_words)) if t))),
        ("Trials", escape(counts or "none")),
        ("Clip list, SHA-256", _hash(p.get("clips_sha256") or _only(data.tables["trials"].clips_sha256))),
        ("Commit", _hash(p.get("commit") or _only(data.tables["trials"]["commit"])) + _dirty(p)),
        ("Hardware", escape(_hardware(p.get("hardware")))),
        ("Started", escape(started.replace("T", " ")[:19] + " UTC") if started and started != "nan" else ""),
        ("Time, summed over trials", duration(seconds) if seconds else ""),
        ("Versions", escape(_versions(p.get("versions")))),
    ]
    cells = "".join(f"<div><dt>{k}</dt><dd>{v}</dd></div>" for k, v in items if v)
    command = p.get("command")
    shown = " ".join(map(str, command)) if isinstance(command, list) else str(command or "")
    if shown:
        cells += f'<div class="full"><dt>Command</dt><dd><code>{escape(shown)}</code></dd></div>'
    return f'<dl class="strip">{cells}</dl>{_everything(p)}'


def _only(column: pd.Series) -> str:
    values = column.dropna().unique()
    return str(values[0]) if len(values) == 1 else ""


def _hash(value: Any) -> str:
    text = str(value or "")
    return f'<code title="{escape(text)}">{escape(text[:12])}</code>' if text else ""


def _dirty(p: dict[str, Any]) -> str:
    return ' <span class="tag">with local changes</span>' if p.get("dirty") else ""


def _hardware(hardware: Any) -> str:
    if not isinstance(hardware, dict):
        return str(hardware or "")
    gpus, models = hardware.get("gpus"), ", ".join(hardware.get("gpu_models") or [])
    names = f"{gpus:g} GPUs{f' ({models})' if models else ''}" if gpus else ""
    words = [f"{hardware['cpus']:g} CPUs"] if isinstance(hardware.get("cpus"), int | float) else []
    words += [f"{hardware['memory_gib']:.0f} GiB"] if isinstance(hardware.get("memory_gib"), int | float) else []
    return ", ".join([*words, names or "no GPU"])


def _versions(versions: Any) -> str:
    if not isinstance(versions, dict):
        return ""
    kept = {k: versions[k] for k in ("python", "torch", "ray") if k in versions} or versions
    return ", ".join(f"{k} {v}" for k, v in kept.items())


def _everything(p: dict[str, Any]) -> str:
    """All of run.json, folded away: a number can be traced without leaving the page."""
    if not p:
        return (
            '<p class="small muted" style="margin-top:10px">This run left no run.json: its provenance is unknown.</p>'
        )
    rows = [
        [f"<code>{escape(str(k))}</code>", escape(json.dumps(v, ensure_ascii=False) if not isinstance(v, str) else v)]
        for k, v in p.items()
    ]
    inner = table([("Key", False), ("Value", False)], rows, "Everything in run.json")
    return f"<details><summary>Everything known about this run</summary>{inner}</details>"
