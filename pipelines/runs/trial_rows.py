"""A trial as a row of the table `trials`."""

from __future__ import annotations

import json
from typing import Any

from pipelines.config.run_config import RunConfig, effective_params


def trial_row(
    trial_id: str,
    config: RunConfig,
    params: dict[str, Any],
    provenance: dict[str, Any],
    started: str,
    *,
    resolved: bool = False,
) -> dict[str, Any]:
    """The row of `trials` for a trial that starts; `updated_row` completes it.

    Args:
        resolved: the method's own defaults are written out in `config`, as in a model's card: it is not imported.
    """
    whole = config if resolved else config.resolved()
    return {
        "trial_id": trial_id,
        "status": "running",
        "method": config.train.method,
        "params": json.dumps(effective_params(config.train.method, params)),
        "config": json.dumps(whole.model_dump(mode="json"), sort_keys=True),
        "seed": config.train.seed,
        "epochs": 0,
        "workers": config.sweep.most_workers,
        "seconds": 0.0,
        "started": started,
        "selected_by": f"val_{config.select.metric}",
        "clips_sha256": provenance.get("clips_sha256"),
        "commit": provenance.get("commit"),
    }


def updated_row(row: dict[str, Any], report: dict[str, Any], seconds: float) -> dict[str, Any]:
    """The row of `trials` after a report."""
    return row | {
        "status": "finished" if report.get("finished") else row["status"],
        "epochs": int(report.get("epoch", row["epochs"])),
        "seconds": seconds,
        "selected_value": report.get("selected", row.get("selected_value")),
        "weights_sha256": report.get("weights_sha256"),
        "model": report.get("model"),
    }
