"""Radii of a test set by each certificate, and their audit, whatever kind the certificate is and how many workers."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from crmt.certificates.audit import Audit, AuditPlan
from crmt.certificates.base import Certificate, ClipCertificate, ScoreCertificate
from crmt.certificates.radius import Radii
from crmt.certificates.smoothing_audit import violations_allowed
from crmt.checkpoint import digest_of
from crmt.gradients import GradientConstants
from crmt.modality import Batch
from crmt.model import MultiModalModel
from crmt.precision import exact
from crmt.predictions import Predictions, predict
from crmt.progress import Progress, silent

Row = dict[str, Any]
Batches = Callable[[int | None], Iterable[Batch]]
"""From a number of clips to the first ones of a test set (None: all), in a fixed order; called more than once."""
AuditedClips = dict[str, dict[str, tuple[bool, bool]]]
"""Ball to clip id to (audited, violated)."""

STORE_SECONDS = 2.0


class ClipStore(Protocol):
    """Keeps what a `ClipCertificate` finds, clip by clip, so that an evaluation that was stopped goes on."""

    def done(self, certificate: str, digest: str, settings: str) -> Mapping[str, Row]:
        """The results of every worker by clip id.

        Args:
            certificate: its name.
            digest: SHA-256 of the model's weights; results of other weights are left out.
            settings: JSON of the certificate's settings; results of others are left out.
        """

    def save(self, certificate: str, digest: str, settings: str, results: Mapping[str, Row]) -> None:
        """Keep results in place of this worker's earlier ones.

        Args:
            certificate: as in `done`, like `digest` and `settings`.
            digest: SHA-256 of the model's weights.
            settings: JSON of the certificate's settings.
            results: by clip id.
        """


def alone(value: Any) -> list[Any]:
    """`Host.gather` of a single worker."""
    return [value]


def quiet(phase: str, clips: int | None, passes: int) -> Progress:  # noqa: ARG001
    """`Host.progress` that tells nobody."""
    return silent


@dataclass(frozen=True, kw_only=True)
class Host:
    """What an evaluation runs on: the workers, each with a share of the clips; a display of progress; a store."""

    gather: Callable[[Any], list[Any]] = alone
    """From a value of this worker to the list of all workers' values, in their order."""
    progress: Callable[[str, int | None, int], Progress] = quiet
    """(phase, clips or None for all, how often each is gone through) to a counter of clips."""
    store: ClipStore | None = None


@dataclass(frozen=True)
class Certified:
    """One certificate's radii of N clips, those of all workers together."""

    certificate: Certificate
    radii: Radii
    ids: tuple[str, ...]
    """N ids; running numbers where the batches have none."""
    labels: list[int]
    predicted: list[int]
    """-1 where a smoothed classifier abstained."""
    audits: AuditedClips
    settings: dict[str, Any]
    """What the radii rest on, and what audited them."""

    def rows(self, space: str) -> list[Row]:
        """One row a ball and clip.

        Args:
            space: what the radii are distances in.
        """
        settings = json.dumps(self.settings)
        eta = self.radii.indicator
        none: list[float | None] = [None] * len(self.labels)
        columns: dict[str, tuple[list[float], list[float | None]]] = {"joint": (self.radii.joint.tolist(), none)}
        for i, m in enumerate(self.radii.modalities):
            indicators = eta[:, i].tolist() if self.certificate.indicators else none
            columns[m] = (self.radii.unimodal[:, i].tolist(), indicators)
        rows = []
        for ball, (values, indicators) in columns.items():
            found = self.audits.get(ball, {})
            for clip, label, guess, radius, indicator in zip(
                self.ids, self.labels, self.predicted, values, indicators, strict=True
            ):
                audited, violated = found.get(clip, (False, False))
                rows.append(
                    {
                        "clip_id": clip,
                        "label": label,
                        "predicted": guess,
                        "certificate": self.certificate.name,
                        "ball": ball,
                        "space": space,
                        "radius": radius,
                        "indicator": indicator,
                        "audited": audited,
                        "violated": violated,
                        "settings": settings,
                    }
                )
        return rows

    def metrics(self) -> list[Row]:
        """mean_radius, median_radius, audit_violations (and how many chance allows), indicator_ratio."""
        rows: list[Row] = []
        values = {None: self.radii.joint} | {m: self.radii.unimodal[:, i] for i, m in enumerate(self.radii.modalities)}
        for modality, radius in values.items():
            finite = radius[radius.isfinite()]
            if len(finite):
                numbers = {"mean_radius": float(finite.mean()), "median_radius": float(finite.median())}
                rows += [{"name": k, "modality": modality, "value": v, "n": len(finite)} for k, v in numbers.items()]
        for ball, found in self.audits.items():
            audited, violated = (sum(f[i] for f in found.values()) for i in (0, 1))
            modality = None if ball == "joint" else ball
            rows.append({"name": "audit_violations", "modality": modality, "value": float(violated), "n": audited})
            if self.certificate.alpha:
                most = float(violations_allowed(len(found), self.certificate.alpha))
                rows.append({"name": "audit_allowed", "modality": modality, "value": most, "n": audited})
        if self.certificate.indicators and {"video", "audio"} <= set(self.radii.modalities):
            video, audio = (self.radii.indicator[:, self.radii.modalities.index(m)] for m in ("video", "audio"))
            ratio = (video / audio)[(self.radii.joint > 0) & (audio > 0)]
            if len(ratio):
                mean = float(ratio.mean())
                rows.append({"name": "indicator_ratio", "modality": None, "value": mean, "n": len(ratio)})
        return [{"certificate": self.certificate.name, **row} for row in rows]


@dataclass(frozen=True)
class Certifier:
    """Certifies this worker's share of the clips and puts all workers' together."""

    model: MultiModalModel
    batches: Batches
    audit: AuditPlan
    seed: int
    host: Host = field(default_factory=Host)

    def __call__(self, certificate: Certificate, predictions: Predictions, tau: GradientConstants | None) -> Certified:
        """One certificate's radii.

        Args:
            certificate: of any kind.
            predictions: of the whole test set, all workers' together.
            tau: τ̂ from training clips; None is refused by certificates that need it.

        Raises:
            BadInputError, CRMTError: a model that the certificate cannot vouch for.
        """
        with exact(self.model.head.bias.device) if certificate.exact_arithmetic else nullcontext():
            if isinstance(certificate, ScoreCertificate):
                return self._by_scores(certificate, predictions, tau)
            assert isinstance(certificate, ClipCertificate)
            return self._by_clips(certificate)

    def _by_scores(
        self, certificate: ScoreCertificate, predictions: Predictions, tau: GradientConstants | None
    ) -> Certified:
        basis = certificate.basis(self.model, tau)
        audits: AuditedClips = {}
        if self.audit.samples:
            sample = predict(self.model, self.batches(self.audit.samples), missing=False)
            audits = self._audited(
                certificate,
                _ids(sample.ids, len(sample.labels)),
                certificate.radii(self.model, sample.scores, sample.labels, basis),
                (),
                self.audit.samples,
            )
        return Certified(
            certificate,
            certificate.radii(self.model, predictions.scores, predictions.labels, basis),
            _ids(predictions.ids, len(predictions.labels)),
            predictions.labels.tolist(),
            predictions.logits(self.model.head).argmax(1).tolist(),
            audits,
            basis.settings | self.audit.settings_said(certificate.audited_by),
        )

    def _by_clips(self, certificate: ClipCertificate) -> Certified:
        parts = self.host.gather(self._results(certificate))
        every = {result.id: result for part in parts for result in part}
        results = list(every.values())
        audits: AuditedClips = {}
        audited = min(self.audit.samples, len(results))
        if audited:
            ids: list[str] = []
            for batch in self.batches(audited):
                ids += batch.ids or [str(len(ids) + i) for i in range(len(batch.labels))]
            mine = [every[i] for i in ids]
            audits = self._audited(certificate, tuple(ids), certificate.radii(self.model, mine), mine, audited)
        return Certified(
            certificate,
            certificate.radii(self.model, results),
            tuple(every),
            [r.label for r in results],
            [r.predicted for r in results],
            audits,
            certificate.settings(self.seed) | self.audit.settings_said(certificate.audited_by),
        )

    def _audited(
        self, certificate: Certificate, ids: tuple[str, ...], radii: Radii, results: Sequence[Any], clips: int
    ) -> AuditedClips:
        progress = self.host.progress(f"audit of {certificate.name}", clips, 1)
        mine = certificate.audit(self.model, self.batches(clips), radii, results, self.audit, progress)
        found: AuditedClips = {}
        for names, audits in self.host.gather((ids, dict(mine))):
            for ball, one in audits.items():
                audit: Audit = one
                pairs = zip(audit.audited.tolist(), audit.violated.tolist(), strict=True)
                found.setdefault(ball, {}).update(zip(names, pairs, strict=True))
        return found

    def _results(self, certificate: ClipCertificate) -> list[Any]:
        """This worker's clips; those that an evaluation before this one had finished come from the store."""
        store, model = self.host.store, self.model
        settings = json.dumps(certificate.settings(self.seed), sort_keys=True)
        digest = digest_of(model) if store else ""
        stored = store.done(certificate.name, digest, settings) if store else {}
        done = {name: certificate.result(**row) for name, row in stored.items()}
        found: dict[str, Any] = {}
        written = time.monotonic()
        progress = self.host.progress(certificate.name, certificate.samples, 1)

        def save() -> None:
            if store:
                rows = {name: asdict(result) for name, result in (done | found).items()}
                store.save(certificate.name, digest, settings, rows)

        try:
            clips = self.batches(certificate.samples)
            for result in certificate.certify(model, clips, self.seed, done=done, progress=progress):
                found[result.id] = result
                if time.monotonic() - written > STORE_SECONDS:
                    save()
                    written = time.monotonic()
        finally:
            save()
        return list(found.values())


def _ids(ids: tuple[str, ...], count: int) -> tuple[str, ...]:
    """The ids; where there are none, running numbers in their place."""
    return ids or tuple(str(i) for i in range(count))
