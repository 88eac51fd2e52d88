"""Radii of a split by each certificate, and their audit: the rows of `radii`, and the numbers drawn from them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from crmt.certificates.audit import Audit, audit_batches
from crmt.certificates.estimate import GradientConstants, estimated_radii
from crmt.certificates.lipschitz import lipschitz_constants, lipschitz_radii
from crmt.certificates.radius import Radii
from crmt.certificates.smoothing import SmoothedClip, SmoothingSettings, smooth, smoothed_radii
from crmt.certificates.smoothing_audit import audit_smoothing, violations_allowed
from crmt.checkpoint import digest_of
from crmt.modality import Batch
from crmt.model import MultiModalModel
from crmt.predictions import Predictions, predict
from pipelines.config.run_config import RunConfig
from pipelines.runs.results import ResultsStore

Rows = list[dict[str, Any]]
Gather = Callable[[Any], list[Any]]
Count = Callable[[int], None]
Clips = Callable[[int | None], Iterator[Batch]]
"""The first so many clips of this rank's share of the split (all of them for None), in a fixed order."""
Found = dict[str, dict[str, tuple[bool, bool]]]
"""Ball to clip id to (audited, violated)."""

STORE_SECONDS = 2.0


def exact_arithmetic(config: RunConfig) -> None:
    """Let no product round more than the certificate `lipschitz` allows for, as TF32 does."""
    if "lipschitz" in config.certify.certificates:
        torch.backends.cudnn.allow_tf32 = False
        torch.set_float32_matmul_precision("highest")


@dataclass(frozen=True)
class Certified:
    """One certificate's radii of all ranks' clips."""

    radii: Radii
    ids: tuple[str, ...]
    labels: list[int]
    predicted: list[int]
    """-1 where the smoothed classifier abstained."""
    audits: Found
    settings: dict[str, Any]
    """What the radii rest on."""
    indicators: bool = True
    """Whether η says something about the model."""
    alpha: float = 0.0
    """Probability, per clip, that a radius is wrong."""

    def rows(self, space: str) -> Rows:
        """One row a ball and clip."""
        settings = json.dumps(self.settings)
        eta = self.radii.indicator
        nothing: list[float | None] = [None] * len(self.ids)
        columns: dict[str, tuple[list[float], list[float | None]]] = {"joint": (self.radii.joint.tolist(), nothing)}
        for i, m in enumerate(self.radii.modalities):
            columns[m] = (self.radii.unimodal[:, i].tolist(), eta[:, i].tolist() if self.indicators else nothing)
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
                        "certificate": self.radii.certificate,
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

    def metrics(self) -> Rows:
        """mean_radius, median_radius, audit_violations (and how many chance allows), indicator_ratio."""
        rows: Rows = []
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
            if self.alpha:
                most = float(violations_allowed(len(found), self.alpha))
                rows.append({"name": "audit_allowed", "modality": modality, "value": most, "n": audited})
        if self.indicators and {"video", "audio"} <= set(self.radii.modalities):
            video, audio = (self.radii.indicator[:, self.radii.modalities.index(m)] for m in ("video", "audio"))
            ratio = (video / audio)[(self.radii.joint > 0) & (audio > 0)]
            if len(ratio):
                mean = float(ratio.mean())
                rows.append({"name": "indicator_ratio", "modality": None, "value": mean, "n": len(ratio)})
        return [{"certificate": self.radii.certificate, **row} for row in rows]


@dataclass(frozen=True)
class SmoothingStore:
    """What was smoothed so far, so that a trial that was stopped goes on where it was."""

    store: ResultsStore
    trial_id: str
    rank: int

    def done(self, digest: str, settings: str) -> dict[str, SmoothedClip]:
        """Clips of this very model with these very settings, of every rank."""
        rows = self.store.read("smoothing")
        mine = rows[(rows.trial_id == self.trial_id) & (rows.weights_sha256 == digest) & (rows.settings == settings)]
        columns = ["clip_id", "label", "predicted", "count", "n", "p_lower", "radius"]
        return {row[0]: SmoothedClip(*row) for row in mine[columns].itertuples(index=False)}

    def save(self, clips: Mapping[str, SmoothedClip], digest: str, settings: str) -> None:
        """Write this rank's clips anew."""
        same = {"trial_id": self.trial_id, "weights_sha256": digest, "settings": settings}
        rows = [same | {"clip_id" if k == "id" else k: v for k, v in asdict(c).items()} for c in clips.values()]
        self.store.write("smoothing", f"{self.trial_id}.{self.rank}", rows)


@dataclass(frozen=True)
class Certifier:
    """Certifies this rank's share of the split and puts all ranks' together."""

    config: RunConfig
    clips: Clips
    gather: Gather
    count: Callable[[str, int | None], Count]
    """(phase, number of clips or None for all) to a counter of clips."""
    stored: SmoothingStore | None = None
    phase: str = field(default="", kw_only=True)

    def __call__(
        self, model: MultiModalModel, predictions: Predictions, constants: GradientConstants, final: bool
    ) -> list[Certified]:
        """Every certificate of the configuration; smoothing and audits, which take minutes, of the final model alone.

        Args:
            predictions: of the whole split, all ranks. constants: τ̂.

        Raises:
            BadInputError, CRMTError: a model that the certificate `lipschitz` cannot vouch for.
        """
        found = []
        for name in self.config.certify.certificates:
            if name == "smoothing":
                if final:
                    found.append(self._smoothing(model))
                continue
            found.append(self._by_constants(name, model, predictions, constants, final))
        return found

    def _by_constants(
        self, name: str, model: MultiModalModel, predictions: Predictions, constants: GradientConstants, final: bool
    ) -> Certified:
        settings: dict[str, Any]
        if name == "lipschitz":
            proved = lipschitz_constants(model)
            settings = {"lipschitz_constants": dict(zip(model.modalities, proved.tolist(), strict=True))}

            def of(some: Predictions) -> Radii:
                return lipschitz_radii(model.head, some.scores, some.labels, proved)
        else:
            settings = {"tau_samples": constants.samples}

            def of(some: Predictions) -> Radii:
                return estimated_radii(model.head, some.scores, some.labels, constants)

        return Certified(
            of(predictions),
            predictions.ids,
            predictions.labels.tolist(),
            predictions.logits(model.head).argmax(1).tolist(),
            self._audit(name, model, of) if final else {},
            settings | self._audit_settings(final),
        )

    def _audit_settings(self, final: bool, attack: str | None = None) -> dict[str, Any]:
        """What audits the radii, or that nothing does."""
        certify = self.config.certify
        if not (final and certify.audit_samples):
            return {"audit": None}
        said: dict[str, Any] = {
            "steps": certify.audit_steps,
            "restarts": certify.audit_restarts,
            "seed": self.config.train.seed,
        }
        if attack is None:
            said |= {"queries": self.config.attack.queries, "targets": self.config.attack.targets}
        return {"audit": attack or certify.audit_attack, **said}

    def _audit(self, name: str, model: MultiModalModel, of: Callable[[Predictions], Radii]) -> Found:
        certify = self.config.certify
        if certify.audit_samples == 0:
            return {}
        sample = predict(model, self.clips(certify.audit_samples), missing=False)
        found = audit_batches(
            model,
            self.clips(certify.audit_samples),
            of(sample),
            attack=certify.audit_attack,
            steps=certify.audit_steps,
            restarts=certify.audit_restarts,
            queries=self.config.attack.queries,
            targets=self.config.attack.targets,
            seed=self.config.train.seed,
            progress=self.count(f"{self.phase}: audit of {name}", certify.audit_samples),
        )
        return self._together(sample.ids, found)

    def _together(self, ids: tuple[str, ...], found: Mapping[str, Audit]) -> Found:
        result: Found = {}
        for names, audits in self.gather((ids, dict(found))):
            for ball, one in audits.items():
                pairs = zip(one.audited.tolist(), one.violated.tolist(), strict=True)
                result.setdefault(ball, {}).update(zip(names, pairs, strict=True))
        return result

    def _smoothing(self, model: MultiModalModel) -> Certified:
        chosen = self.config.certify.smoothing
        settings = SmoothingSettings(
            sigmas=chosen.sigmas, n0=chosen.n0, n=chosen.n, alpha=chosen.alpha, seed=self.config.train.seed
        )
        every = {
            clip.id: clip for part in self.gather(self._smoothed(model, settings, chosen.samples)) for clip in part
        }
        return Certified(
            smoothed_radii(list(every.values()), tuple(model.modalities), settings.sigmas),
            tuple(every),
            [c.label for c in every.values()],
            [c.predicted for c in every.values()],
            self._audit_smoothing(model, every, settings),
            {key: value for key, value in asdict(settings).items() if key not in ("batch", "seed")}
            | {"noise_seed": settings.seed}
            | self._audit_settings(True, "pgd over the noise"),
            indicators=False,
            alpha=settings.alpha,
        )

    def _audit_smoothing(
        self, model: MultiModalModel, clips: Mapping[str, SmoothedClip], settings: SmoothingSettings
    ) -> Found:
        certify = self.config.certify
        few = min(certify.audit_samples, len(clips))
        if few == 0:
            return {}
        mine = [clips[i] for batch in self.clips(few) for i in batch.ids]
        found = audit_smoothing(
            model,
            self.clips(few),
            mine,
            settings,
            steps=certify.audit_steps,
            restarts=certify.audit_restarts,
            seed=self.config.train.seed + 1,
            progress=self.count(f"{self.phase}: audit of smoothing", few),
        )
        return self._together(tuple(c.id for c in mine), found)

    def _smoothed(self, model: MultiModalModel, settings: SmoothingSettings, samples: int | None) -> list[SmoothedClip]:
        """This rank's clips; those of an earlier life of the trial come from the store."""
        digest, words = digest_of(model), json.dumps(asdict(settings), sort_keys=True)
        done = self.stored.done(digest, words) if self.stored else {}
        found: dict[str, SmoothedClip] = {}
        written = time.monotonic()
        progress = self.count(f"{self.phase}: smoothing", samples)
        try:
            for clip in smooth(model, self.clips(samples), settings, done=done, progress=progress):
                found[clip.id] = clip
                if self.stored and time.monotonic() - written > STORE_SECONDS:
                    self.stored.save(done | found, digest, words)
                    written = time.monotonic()
        finally:
            if self.stored:
                self.stored.save(done | found, digest, words)
        return list(found.values())
