"""The audit in a report: a table a certificate, what its radii rest on, and the alarm where a sound one was refuted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from pipelines.reporting.data import RunData, Share, wilson
from pipelines.reporting.names import JOINT
from pipelines.reporting.plotting import MANY
from pipelines.reporting.render import render


@dataclass(frozen=True)
class AuditedBall:
    """A row of an audit's table: the best trial of a method, in one ball."""

    method: str
    ball: str
    radius: float
    """The mean."""
    found: tuple[int, int] | None
    """(violations, audited clips); None where nothing was audited."""
    share: Share
    allowed: int
    """Violations that chance explains."""
    refuted: bool
    abstained: tuple[int, int] | None
    """(clips, of clips); of the joint ball alone."""


@dataclass(frozen=True)
class AuditTable:
    """What is said of one certificate."""

    certificate: str
    rows: list[AuditedBall]
    rests_on: str
    total: tuple[int, int, int] | None
    """(trials, violations, audited clips) over all trials, joint ball; None where there is only one."""


def audit(data: RunData) -> Markup:
    """Violations of the radii under attack, of the best trial of each method and over all trials."""
    balls = (JOINT, *data.modalities) if len(data.best) <= MANY else (JOINT,)
    tables = [AuditTable(c, _rows(data, c, balls), _rests_on(data, c), _total(data, c)) for c in data.certificates]
    return render("audit", data, tables=[t for t in tables if t.rows], balls=balls, few=len(data.best) <= MANY)


def _rows(data: RunData, certificate: str, balls: tuple[str, ...]) -> list[AuditedBall]:
    rows = []
    for method, trial_id in data.best.items():
        for ball in balls:
            found = data.audit(trial_id, certificate, ball)
            by_chance = certificate in data.by_chance and ball == JOINT
            abstained = data.abstained(trial_id, certificate) if by_chance else None
            if found is None and not abstained:
                continue
            allowed = data.allowed(trial_id, certificate, ball)
            refuted = found is not None and data.is_sound(certificate) and found[0] > allowed
            radius, share = data.mean_radius(trial_id, certificate, ball).value, wilson(*(found or (0, 0)))
            rows.append(AuditedBall(method, ball, radius, found, share, allowed, refuted, abstained))
    return rows


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
