"""What certificates need of a trial: a store to go on from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.runs.results import ResultsStore


@dataclass(frozen=True)
class TrialClipStore:
    """What certificates that look at one clip after the other have found, so that a trial that was stopped goes on."""

    store: ResultsStore
    trial_id: str
    rank: int

    def done(self, certificate: str, digest: str, settings: str) -> dict[str, dict[str, Any]]:
        """The results of every rank by clip id; arguments as in `crmt.certification.ClipStore`."""
        rows: Any = self.store.read("certified_clips")
        same = (rows.trial_id == self.trial_id) & (rows.certificate == certificate)
        mine = rows[same & (rows.weights_sha256 == digest) & (rows.settings == settings)]
        return {row.clip_id: json.loads(row.result) for row in mine.itertuples(index=False)}

    def save(self, certificate: str, digest: str, settings: str, results: Mapping[str, dict[str, Any]]) -> None:
        """Write this rank's results in place of its earlier ones."""
        same = {"trial_id": self.trial_id, "certificate": certificate, "weights_sha256": digest, "settings": settings}
        rows = [same | {"clip_id": clip, "result": json.dumps(result)} for clip, result in results.items()]
        self.store.write("certified_clips", f"{self.trial_id}.{certificate}.{self.rank}", rows)
