"""The clips that could not be decoded, with their reasons."""

from __future__ import annotations

from html import escape

from pipelines.reporting.data import RunData
from pipelines.reporting.html import section, table

QUARANTINE_ROWS = 20


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
