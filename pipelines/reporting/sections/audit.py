"""The audit in a report: a table a certificate, what its radii rest on, and the alarm where a sound one was refuted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from pipelines.reporting.data import RunData, wilson
from pipelines.reporting.names import JOINT
from pipelines.reporting.plotting import MANY
from pipelines.reporting.render import render


def audit(data: RunData) -> Markup:
    """Violations of the radii under attack, of the best trial of each method and over all trials."""
    balls = (JOINT, *data.modalities) if len(data.best) <= MANY else (JOINT,)
    rows = {
        c: [(m, t, b) for m, t in data.best.items() for b in balls if _counts(data, t, c, b)] for c in data.certificates
    }
    return render(
        "audit",
        data,
        rows={certificate: found for certificate, found in rows.items() if found},
        balls=balls,
        rests_on={c: _rests_on(data, c) for c in data.certificates},
        totals={c: _total(data, c) for c in data.certificates},
        wilson=wilson,
    )


def _counts(data: RunData, trial_id: str, certificate: str, ball: str) -> bool:
    """Whether clips were audited, or the classifier may have abstained."""
    by_chance = certificate in data.by_chance and ball == JOINT
    return bool(data.audit(trial_id, certificate, ball) or (by_chance and data.abstained(trial_id, certificate)))


def _rests_on(data: RunData, certificate: str) -> str:
    """What the radii rest on, said once where all methods agree."""
    texts: dict[str, list[str]] = {}
    for method, trial_id in data.best.items():
        settings = data.rests_on(trial_id, certificate)
        if settings:
            texts.setdefault(data.names.settings(settings), []).append(data.names.method(method))
    one = len(texts) == 1
    return "; ".join(text if one else f"{', '.join(methods)}: {text}" for text, methods in texts.items())


def _total(data: RunData, certificate: str) -> tuple[int, int, int] | None:
    found = [c for t in data.tables["trials"].trial_id if (c := data.audit(str(t), certificate))]
    return (len(found), sum(c[0] for c in found), sum(c[1] for c in found)) if len(found) > 1 else None


def refuted(data: RunData) -> list[str]:
    """A sentence for every sound certificate that an attack refuted beyond what chance explains, of any trial."""
    sound = [c for c in data.certificates if data.is_sound(c)]
    counts = _violations(data.tables["radii"], sound)
    for key, value in _counted(data.tables["metrics"], sound).items():  # a run whose radii are lost still has these
        counts[key] = max(counts.get(key, 0), value)
    sentences = []
    for (trial_id, stage, certificate, ball), count in sorted(counts.items()):
        allowed = data.allowed(trial_id, certificate, ball, stage)
        if count > allowed:
            rows = data.rows_of("trials", trial_id)
            method = data.names.method(rows.method.iloc[-1] if len(rows) else None)
            by_chance = f", where chance explains {allowed}" if certificate in data.by_chance else ""
            sentences.append(
                f"{trial_id} ({method}, {stage}): {count} {data.certificate_name(certificate)} "
                f"{'radius' if count == 1 else 'radii'} refuted by attack ({ball}){by_chance}"
            )
    return sentences


Key = tuple[str, str, str, str]
"""trial_id, stage, certificate, ball."""


def _violations(radii: pd.DataFrame, sound: list[str]) -> dict[Key, int]:
    broken = radii[radii.certificate.isin(sound) & radii.violated.fillna(False).astype(bool)]
    counts: dict[Any, int] = broken.groupby(["trial_id", "stage", "certificate", "ball"]).size().to_dict()
    return {(str(t), str(s), str(c), str(b)): int(n) for (t, s, c, b), n in counts.items()}


def _counted(metrics: pd.DataFrame, sound: list[str]) -> dict[Key, int]:
    rows = metrics[(metrics["name"] == "audit_violations") & metrics.certificate.isin(sound)]
    rows = rows[np.isfinite(rows.value.astype(float)) & (rows.value > 0)]
    keys = zip(rows.trial_id, rows.stage, rows.certificate, rows.modality.fillna(JOINT), rows.value, strict=True)
    return {(str(t), str(s), str(c), str(b)): round(n) for t, s, c, b, n in keys}
