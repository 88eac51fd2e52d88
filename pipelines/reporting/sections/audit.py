"""The audit in a report: a table a certificate, what its radii rest on, and the alarm where a sound one was refuted."""

from __future__ import annotations

from html import escape
from typing import Any

import numpy as np
import pandas as pd

from pipelines.reporting.data import RunData, wilson
from pipelines.reporting.html import method_label, nothing, number, percent, section, table
from pipelines.reporting.names import JOINT, SOUND, method_name, settings_text
from pipelines.reporting.plotting import MANY

TITLE = "Do the radii hold? The audit"
WORDS = {
    "estimate": "Not a certificate: a share of violations is a finding, and says how far the estimate can be trusted.",
    "lipschitz": "Sound by construction: a single violation would be a bug.",
    "smoothing": "Sound but for chance: it vouches for the smoothed classifier, which may abstain (counted as wrong, "
    "with radius 0). More violations than chance explains would be a bug.",
}


def audit(data: RunData) -> str:
    """Violations of the radii under attack, of the best trial of each method and over all trials."""
    blocks = [_certificate(data, c) for c in data.certificates]
    if not any(blocks):
        return section("audit", TITLE, nothing("No radius has been audited by attack in this run."))
    few_methods = len(data.best) <= MANY
    joint = f" The joint ball is shown ({escape(data.space_of(JOINT))}); the others are in tables/radii.csv."
    text = (
        "<p class=muted>For each audited clip an attack tries to change the prediction strictly inside the clip's own "
        "radius. A violation refutes the radius. No violation is no proof: the attack may be too weak."
        f"{'' if few_methods else joint}</p>"
    )
    return section("audit", TITLE, text + "".join(blocks))


def _certificate(data: RunData, certificate: str) -> str:
    balls = (JOINT, *data.modalities) if len(data.best) <= MANY else (JOINT,)
    smoothed = certificate == "smoothing"
    rows = []
    for method, trial_id in data.best.items():
        for ball in balls:
            found = data.audit(trial_id, certificate, ball)
            if found is None and not (smoothed and ball == JOINT and data.abstained(trial_id)):
                continue
            rows.append(
                [
                    method_label(method),
                    escape(ball) + (f"<small>{escape(data.space_of(ball))}</small>" if len(balls) > 1 else ""),
                    number(data.mean_radius(trial_id, certificate, ball).value),
                    *_audited(data, trial_id, certificate, ball, found),
                ]
            )
    if not rows:
        return ""
    head = [("Method", False), ("Ball", False), ("Mean radius", True), ("Violations", True)]
    head += [("Allowed by chance", True), ("Abstained", True)] if smoothed else [("Share, 95 % interval", True)]
    name = data.certificate_name(certificate)
    words = f" <span class=muted>{WORDS[certificate]}</span>" if certificate in WORDS else ""
    return (
        f"<h3>Radius: {escape(name)}</h3><p class=small>{words}</p>{table(head, rows, f'Audit of the {name} radii')}"
        f"{_provenance(data, certificate)}{_total(data, certificate)}"
    )


def _audited(
    data: RunData, trial_id: str, certificate: str, ball: str, found: tuple[int, int] | None
) -> tuple[str, ...]:
    if found is None:
        counted, share = "not audited", ""
    else:
        refuted = certificate in SOUND and found[0] > data.allowed(trial_id, certificate, ball)
        counted = f"<b{' class=bad' if refuted else ''}>{found[0]}</b> of {found[1]}"
        interval = wilson(*found)
        ends = f"{100 * interval.low:.1f} – {100 * interval.high:.1f}"
        share = f'{percent(interval.value)} <span class="ci">{ends}</span>'
    if certificate != "smoothing":
        return counted, share
    abstained = data.abstained(trial_id)
    away = f"{abstained[0]} of {abstained[1]}" if abstained and ball == JOINT else ""
    return counted, str(data.allowed(trial_id, certificate, ball)) if found else "", away


def _provenance(data: RunData, certificate: str) -> str:
    """What the radii rest on, said once where all methods agree."""
    texts: dict[str, list[str]] = {}
    for method, trial_id in data.best.items():
        settings = data.rests_on(trial_id, certificate)
        if settings:
            texts.setdefault(settings_text(settings), []).append(method_name(method))
    if not texts:
        return ""
    one = len(texts) == 1
    words = [t if one else f"{', '.join(methods)}: {t}" for t, methods in texts.items()]
    return f'<p class="small muted under">The radii rest on: {escape("; ".join(words))}.</p>'


def _total(data: RunData, certificate: str) -> str:
    found = [c for t in data.tables["trials"].trial_id if (c := data.audit(str(t), certificate))]
    if len(found) < 2:
        return ""
    broken, audited = sum(c[0] for c in found), sum(c[1] for c in found)
    return (
        f'<p class="small muted">Over all {len(found)} audited trials, joint ball: {broken} of {audited} '
        f"{escape(data.certificate_name(certificate))} radii were broken.</p>"
    )


# --- what must not be overlooked ---------------------------------------------------------------------


def refuted(data: RunData) -> list[str]:
    """A sentence for every sound certificate that an attack refuted beyond what chance explains, of any trial."""
    counts = _violations(data.tables["radii"])
    for key, value in _counted(data.tables["metrics"]).items():  # a run whose radii are lost still has these
        counts[key] = max(counts.get(key, 0), value)
    sentences = []
    for (trial_id, stage, certificate, ball), count in sorted(counts.items()):
        allowed = data.allowed(trial_id, certificate, ball, stage)
        if count > allowed:
            rows = data.of("trials", trial_id)
            method = method_name(rows.method.iloc[-1]) if len(rows) else "unknown method"
            by_chance = f", where chance explains {allowed}" if certificate == "smoothing" else ""
            sentences.append(
                f"{trial_id} ({method}, {stage}): {count} {data.certificate_name(certificate)} "
                f"{'radius' if count == 1 else 'radii'} refuted by attack ({ball}){by_chance}"
            )
    return sentences


Key = tuple[str, str, str, str]
"""trial_id, stage, certificate, ball."""


def _violations(radii: pd.DataFrame) -> dict[Key, int]:
    broken = radii[radii.certificate.isin(SOUND) & radii.violated.fillna(False).astype(bool)]
    counts: dict[Any, int] = broken.groupby(["trial_id", "stage", "certificate", "ball"]).size().to_dict()
    return {(str(t), str(s), str(c), str(b)): int(n) for (t, s, c, b), n in counts.items()}


def _counted(metrics: pd.DataFrame) -> dict[Key, int]:
    rows = metrics[(metrics["name"] == "audit_violations") & metrics.certificate.isin(SOUND)]
    rows = rows[np.isfinite(rows.value.astype(float)) & (rows.value > 0)]
    keys = zip(rows.trial_id, rows.stage, rows.certificate, rows.modality.fillna(JOINT), rows.value, strict=True)
    return {(str(t), str(s), str(c), str(b)): round(n) for t, s, c, b, n in keys}


def alert(data: RunData) -> str:
    """The alarm at the top of the page; nothing where every sound radius held."""
    found = refuted(data)
    if not found:
        return ""
    items = "".join(f"<li>{escape(s)}.</li>" for s in found)
    return (
        '<div class="alert" role="alert"><b>A sound certificate was refuted.</b> That is a bug, in the certificate or '
        f"in the attack: do not use these radii.<ul>{items}</ul></div>"
    )
