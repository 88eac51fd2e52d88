"""The clips that could not be decoded, with their reasons."""

from __future__ import annotations

from markupsafe import Markup

from pipelines.reporting.data import RunData
from pipelines.reporting.render import render

ROWS_SHOWN = 20


def quarantine(data: RunData) -> Markup:
    """Clips that could not be used."""
    rows, clips = data.tables["quarantine"], data.provenance.get("clips")
    counts = {k: n for k, n in clips.items() if isinstance(n, int)} if isinstance(clips, dict) else {}
    failed = max(len(rows), counts.pop("failed", 0))
    columns = rows.head(ROWS_SHOWN)[["clip_id", "split", "reason", "detail"]].astype(object)
    return render(
        "quarantine",
        data,
        failed=failed,
        total=sum(counts.values()) + failed if counts else None,
        reasons=rows.reason.fillna("unknown").value_counts().to_dict(),
        shown=columns.where(columns.notna(), "").to_numpy().tolist(),
        count=len(rows),
    )
