"""The sections of a report without figures: the head with its one sentence, all trials, quarantine, definitions."""

from __future__ import annotations

import json
from html import escape
from typing import Any

import numpy as np
import pandas as pd

from pipelines.report_audit import alert
from pipelines.report_data import RunData, Share, params_of, params_text
from pipelines.report_html import (
    DASH,
    STATUSES,
    duration,
    method_label,
    nothing,
    number,
    percent,
    section,
    table,
)
from pipelines.report_names import COLUMN_OF, JOINT, PRODUCT, attack_short, method_name, under

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
QUARANTINE_ROWS = 20


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


# --- all trials ---------------------------------------------------------------------------------------


def trials(data: RunData) -> str:
    """Every trial of the run in a table that sorts on a click."""
    rows, title = data.summary, "All trials"
    if rows.empty:
        return section("trials", title, nothing("No trial has started yet."))
    attacked = data.column(data.headline) if data.headline is not None else None
    space = escape(data.space_of(JOINT))
    heads = [("Trial", "text"), ("Status", "text"), ("Method", "text"), ("Parameters", "text"), ("Epochs", "number")]
    heads += [("Time", "number"), ("Validation", "number"), ("Clean", "number")]
    heads += [(f"Joint {escape(attack_short(data.attack))},<br>ε = {data.headline:g}", "number")] if attacked else []
    heads += [(f"Mean joint radius,<br>{escape(data.certificate_name(c))}", "number") for c in data.certificates]
    head = "".join(
        f'<th scope="col" data-type="{kind}"{" class=r" if kind == "number" else ""}>'
        f'<button type="button">{text}</button></th>'
        for text, kind in heads
    )
    body = "".join(_trial_row(data, row, attacked) for _, row in rows.iterrows())
    by = data.selected_by
    text = (
        f"<p class=muted>Click a head to sort. Validation{': ' + escape(by) if by else ''} on the validation split; "
        f"clean, attacked and radius on the test split, after the last step{' (' + space + ')' if space else ''}.</p>"
    )
    return section(
        "trials",
        title,
        f'{text}<div class="scroll" tabindex="0" role="region" aria-label="All trials"><table class="sortable">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>",
    )


def _trial_row(data: RunData, row: pd.Series, attacked: str | None) -> str:
    status, trial_id = str(row.status), escape(str(row.trial_id))
    params = escape(params_text(params_of(row.params))) or DASH
    params = params.replace(" ", "\u00a0").replace(",\u00a0", ", ")  # break between parameters only
    error = f'<div class="error">{escape(str(row.error))}</div>' if isinstance(row.error, str) and row.error else ""
    tag = '<br><span class="tag">chosen</span>' if row.trial_id in data.best.values() else ""
    tested = [(row.clean_accuracy, percent), *([(row[attacked], percent)] if attacked else [])]
    tested += [(row.get(f"{COLUMN_OF.get(c, c)}_mean_radius", np.nan), number) for c in data.certificates]
    badge = status if status in STATUSES else "stopped"
    cells = [
        f'<td data-sort="{escape(status)}"><span class="badge {badge}">{escape(status)}</span></td>',
        f'<td class="nowrap" data-sort="{escape(method_name(row.method))}">{method_label(row.method)}</td>',
        f'<td data-sort="{params}">{params}</td>',
        _number_cell(row.epochs, lambda v: f"{v:.0f}"),
        _number_cell(row.seconds, duration),
        _number_cell(row.selected_value, percent),
    ]
    if error and all(pd.isna(value) for value, _ in tested):  # the error takes the place of the numbers
        cells.append(f'<td colspan="{len(tested)}">{error}</td>')
    else:
        cells[2] = f'<td data-sort="{params}">{params}{error}</td>'
        cells += [_number_cell(value, show) for value, show in tested]
    head = f'<th scope="row" class="nowrap" data-sort="{trial_id}"><code>{trial_id}</code>{tag}</th>'
    return f"<tr>{head}{''.join(cells)}</tr>"


def _number_cell(value: Any, show: Any) -> str:
    if value is None or pd.isna(value):
        return f'<td class="r" data-sort="">{DASH}</td>'
    return f'<td class="r nowrap" data-sort="{float(value):.9g}">{show(float(value))}</td>'


# --- quarantine and definitions -----------------------------------------------------------------------


def quarantine(data: RunData) -> str:
    """Clips that could not be used."""
    rows, title = data.tables["quarantine"], "Quarantine"
    clips = data.provenance.get("clips")
    good = [v for k, v in clips.items() if k != "failed" and isinstance(v, int)] if isinstance(clips, dict) else []
    counted = clips.get("failed") if isinstance(clips, dict) else None
    failed = max(len(rows), counted if isinstance(counted, int) else 0)
    total = f" of {sum(good) + failed:,}" if good else ""
    left_out = " and were left out, each with a reason" if failed else ""
    text = f"<p class=muted>{failed}{total} clips failed{left_out}."
    if rows.empty:
        return section("quarantine", title, text + "</p>")
    counts = rows.reason.fillna("unknown").value_counts()
    summary = table(
        [("Reason", False), ("Clips", True)],
        [[escape(str(k)), str(v)] for k, v in counts.items()],
        "Failures by reason",
    )
    columns = rows.head(QUARANTINE_ROWS)[["clip_id", "split", "reason", "detail"]].astype(object)
    shown = [[escape(str(v)) for v in row] for row in columns.where(columns.notna(), "").to_numpy().tolist()]
    heads = [("Clip", False), ("Split", False), ("Reason", False), ("Detail", False)]
    more = f"The first {len(shown)} of {len(rows)}; all" if len(rows) > len(shown) else "All"
    text += f' {more} in <a href="tables/quarantine.csv">tables/quarantine.csv</a>.</p>'
    gap = "<div style='height:14px'></div>"
    return section("quarantine", title, text + summary + gap + table(heads, shown, "Quarantined clips"))


def has_product(data: RunData) -> bool:
    """Whether a budget grid was attacked."""
    return bool((data.tables["curves"].ball == PRODUCT).any())


def words(data: RunData) -> str:
    """Definitions, and where the tables lie."""
    space = escape(data.space_of(JOINT)) or "see the axis labels"
    items = [
        (
            "Ball",
            "The set of changed inputs that is considered. <b>Joint</b>: one ℓ2 budget ε over all modalities together, "
            "Σ ‖δ‖² ≤ ε². <b>One modality</b>: the whole budget on it, the others untouched. <b>Product</b>: every "
            "modality within a budget of its own, all at once.",
        ),
        (
            "Space",
            f"Budgets and radii are ℓ2 distances in: {space}. Normalisation is part of the model. A video radius of 1 "
            "in ImageNet-normalised units, as papers often give it, is about 0.226 in pixel units.",
        ),
        (
            "Attacked accuracy",
            "Share of test clips that the model still gets right after the attack. FGM: one step; PGD: many, with the "
            "best point kept; APGD: PGD that finds its own steps, on cross-entropy (CE) or difference of logits (DLR); "
            "minimal-norm: the smallest change that breaks a clip; Square: queries alone, no gradients; auto: a clip "
            "counts as kept where none of these breaks it; noise: random, no attack. It can only overstate "
            "robustness: another attack may find more.",
        ),
        (
            "Estimated radius",
            "Margin divided by a Lipschitz constant <b>estimated</b> from gradients on training clips; 0 where "
            "the prediction is wrong. It is not a certificate, and the audit counts how often an attack refutes it.",
        ),
        (
            "Certified radius",
            "The same from a constant that holds by construction; or, with the probability that its name gives, by "
            "randomised smoothing, which vouches for the smoothed classifier: no change within it alters the "
            "prediction. Radii of different kinds never share a column or a line.",
        ),
        (
            "Intervals",
            "95 %: Wilson for shares, normal for mean radii. They cover the choice of test clips, not the chance in "
            "training: another seed may give another model.",
        ),
        (
            "One modality alone, missing",
            "Alone: the other modalities' scores held at their mean over training clips. Missing: the modality's input "
            "replaced by its mean. A model that ignores a modality looks robust to attacks on it: read these beside "
            "the attacks on one modality.",
        ),
        (
            "Choice",
            "Hyperparameters and trials are chosen on the validation split, carved from train by source video. The "
            "test split is used once, for the numbers on this page.",
        ),
    ]
    html = "".join(f"<dt>{k}</dt><dd>{v}</dd>" for k, v in items)
    names = ("summary", *data.tables, *(["product"] if has_product(data) else []))
    links = ", ".join(f'<a href="tables/{n}.csv">{n}</a>' for n in names)
    return section(
        "words",
        "How to read this page",
        f'<dl class="words">{html}</dl><p class="small muted" style="margin-top:16px">All numbers as CSV: {links}.</p>',
    )
