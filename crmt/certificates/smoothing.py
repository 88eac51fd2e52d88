"""The certificate of randomised smoothing: of a smoothed classifier, with its own noise for every modality."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from crmt.certificates.audit import Audit, AuditPlan
from crmt.certificates.base import ClipCertificate
from crmt.certificates.radius import Radii
from crmt.certificates.sampling import (
    NAME,
    SmoothedClip,
    SmoothingSettings,
    largest_radius,
    least_n,
    smooth,
    smoothed_radii,
)
from crmt.certificates.smoothing_audit import audit_smoothing
from crmt.errors import BadInputError
from crmt.modality import Batch
from crmt.model import MultiModalModel
from crmt.progress import Progress, silent
from crmt.settings import Precision, setting


@dataclass(frozen=True, kw_only=True)
class Smoothing(ClipCertificate):
    """Randomised smoothing. The radii are those of the smoothed classifier, which may abstain."""

    name = NAME
    title = "smoothing"
    word = "certified radius"
    sound = True
    meaning = "certified radius from randomised smoothing: sound with probability 1 - alpha a clip"
    final_only = True
    indicators = False
    audited_by = "pgd over the noise"
    result = SmoothedClip

    sigmas: dict[str, float] = setting({}, above=0)
    """Modality to the deviation of its noise, in its space; every modality of the model needs one."""
    n0: int = setting(100, at_least=1)
    """Noisy copies that choose the class."""
    n: int = setting(1000, at_least=1)
    """Further noisy copies, that bound the probability of that class."""
    alpha: float = setting(0.001, above=0, below=1)
    """Each radius holds with probability 1 - alpha."""
    samples: int | None = setting(100, at_least=1)
    """Test clips that are smoothed; all when null."""
    precision: Precision = "fp32"
    """What the network computes in; the certified classifier is the one that computes so, fp32 or bf16."""

    def __post_init__(self) -> None:
        if self.samples is not None and self.samples < 1:
            raise BadInputError(f"{self.name}: samples must be 1 or more, not {self.samples}")
        # sigmas may be left out until the certificate is asked for
        self._sampling(0, self.sigmas or {"none": 1.0})

    def described(self) -> str:
        """Its line in the preflight, with the largest radius that it can certify."""
        furthest = min(self.sigmas.values()) * largest_radius(self.n, self.alpha)
        return f"{super().described()} (sigma {self.sigmas}, n {self.n}: no joint radius beyond {furthest:.2f})"

    def check_modalities(self, modalities: Sequence[str]) -> None:
        missing = [m for m in modalities if m not in self.sigmas]
        if missing:
            raise BadInputError(f"certify.{self.name}.sigmas: give one for {', '.join(missing)}, too")
        for name in self.sigmas:
            if name not in modalities:
                raise BadInputError(
                    f"certify.{self.name}.sigmas: the model has no {name!r}; it has {', '.join(modalities)}"
                )
        if self.n < least_n(self.alpha):
            raise BadInputError(
                f"certify.{self.name}.n: {self.n} copies certify nothing at alpha {self.alpha}, even if all agree: "
                f"give {least_n(self.alpha)} or more"
            )

    def settings(self, seed: int) -> dict[str, Any]:
        said = asdict(self)
        # fp32 goes without saying, so that results of an older version are found
        precise = {} if self.precision == "fp32" else {"precision": self.precision}
        return {key: said[key] for key in ("sigmas", "n0", "n", "alpha")} | precise | {"noise_seed": seed}

    def certify(
        self,
        model: MultiModalModel,
        batches: Iterable[Batch],
        seed: int,
        *,
        done: Mapping[str, Any],
        progress: Progress = silent,
    ) -> Iterator[SmoothedClip]:
        return smooth(model, batches, self._sampling(seed), done=done, progress=progress)

    def radii(self, model: MultiModalModel, results: Sequence[Any]) -> Radii:
        return smoothed_radii(results, tuple(model.modalities), self.sigmas)

    def audit(
        self,
        model: MultiModalModel,
        batches: Iterable[Batch],
        radii: Radii,  # noqa: ARG002
        results: Sequence[Any],
        plan: AuditPlan,
        progress: Progress = silent,
    ) -> dict[str, Audit]:
        """Attack by PGD on the mean over the noise, whatever attack the plan names; arguments as in `Certificate`."""
        return audit_smoothing(
            model,
            batches,
            results,
            self._sampling(plan.seed),
            steps=plan.settings.steps,
            restarts=plan.settings.restarts,
            seed=plan.seed + 1,  # other noise than the certificate's
            progress=progress,
        )

    def _sampling(self, seed: int, sigmas: Mapping[str, float] | None = None) -> SmoothingSettings:
        return SmoothingSettings(
            sigmas=self.sigmas if sigmas is None else sigmas,
            n0=self.n0,
            n=self.n,
            alpha=self.alpha,
            seed=seed,
            precision=self.precision,
        )


CERTIFICATE = Smoothing
