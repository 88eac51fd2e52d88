"""What a certificate is: a name, whether it is sound, its words in tables, and radii. A new one is one file.

There are two kinds. A `ScoreCertificate` needs the scores of the clips and constants of the model; a `ClipCertificate`
needs the clips themselves, one after the other, and what it found is kept clip by clip.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, NamedTuple

from torch import Tensor

from crmt.certificates.audit import Audit, AuditPlan, audit_batches
from crmt.certificates.radius import Radii
from crmt.gradients import GradientConstants
from crmt.heads import Head
from crmt.modality import Batch
from crmt.model import MultiModalModel
from crmt.progress import Progress, silent


class Basis(NamedTuple):
    """What a certificate's radii of all clips rest on."""

    constants: Any
    """What `radii` computes with: verified Lipschitz constants, estimated ones ..."""
    settings: dict[str, Any]
    """The same as JSON can hold it, stored beside every radius."""


class IntegrationConstants(NamedTuple):
    """What step 2 needs to maximise a certificate's mean radius: arguments of `optimise_integration`."""

    tau: Tensor
    """`(M, K)`."""
    pair: Literal["sum", "orthogonal"]


@dataclass(frozen=True, kw_only=True)
class Certificate(ABC):
    """A certificate; derive from `ScoreCertificate` or `ClipCertificate`.

    Its dataclass fields are its settings: `certify.<name>.<field>` in a configuration for ours, arguments beside `path`
    for the user's own.
    """

    name: ClassVar[str]
    """Its name in results, stored with every radius; for ours, the name of the file."""
    title: ClassVar[str]
    """Its name in tables and keys: "smoothing"."""
    word: ClassVar[str]
    """What its radius may be called: "estimated radius", "certified radius"."""
    sound: ClassVar[bool]
    """Whether no attack inside the radius can succeed (but with probability `alpha`)."""
    meaning: ClassVar[str]
    """One line for the preflight: what its radii say."""
    final_only: ClassVar[bool] = False
    """Whether it costs too much for any model but the final one of a trial."""
    indicators: ClassVar[bool] = True
    """Whether `Radii.indicator` says something about the model."""
    lipschitz_encoders: ClassVar[bool] = False
    """Whether encoders must be 1-Lipschitz: those of the user's own are then verified before anything is decoded."""
    exact_arithmetic: ClassVar[bool] = False
    """Whether everything is computed in float32, without autocast and TF32; certificates by scores always are."""
    audited_by: ClassVar[str | None] = None
    """The attack of its own that `audit` uses, in words; None: the one that is asked for."""

    @classmethod
    def parameters(cls) -> tuple[str, ...]:
        """The names of its settings."""
        return tuple(f.name for f in fields(cls))

    @property
    def alpha(self) -> float:
        """The probability, per clip, that its radius is wrong."""
        return 0.0

    @property
    def samples(self) -> int | None:
        """How many clips it certifies, the first of a fixed order; None: all."""
        return None

    def said_word(self) -> str:
        """Its word, with how sure a radius is where chance is in it: "certified radius (99.9 %)"."""
        return f"{self.word} ({100 * (1 - self.alpha):.6g} %)" if self.alpha else self.word

    def described(self) -> str:
        """Its line in the preflight: name and meaning."""
        return f"{self.name}: {self.meaning}"

    def check_head(self, head: type[Head], method: str) -> None:  # noqa: B027
        """Refuse the head of a training method. Called before anything is decoded.

        Args:
            head: its class.
            method: the method's title.

        Raises:
            BadInputError: the head is none that it can vouch for.
        """

    def check_encoder(self, modality: str, encoder: str, lipschitz: bool) -> None:  # noqa: B027
        """Refuse an encoder. Called before anything is decoded.

        Args:
            modality: its name.
            encoder: its name, or `package.module:Name`.
            lipschitz: whether it is 1-Lipschitz by construction.

        Raises:
            BadInputError: the encoder is none that it can vouch for.
        """

    def check_modalities(self, modalities: Sequence[str]) -> None:  # noqa: B027
        """Refuse a model's modalities. Called before anything is decoded.

        Args:
            modalities: their names.

        Raises:
            BadInputError: its settings do not fit them.
        """

    def integration_constants(self, model: MultiModalModel, tau: Tensor) -> IntegrationConstants | None:  # noqa: ARG002
        """What step 2 needs to maximise this certificate's mean radius; None where that is not possible.

        Args:
            model: after step 1.
            tau: τ̂ from training clips, `(M, K)`, on the CPU.
        """
        return None

    def audit(
        self,
        model: MultiModalModel,
        batches: Iterable[Batch],
        radii: Radii,
        results: Sequence[Any],  # noqa: ARG002
        plan: AuditPlan,
        progress: Progress = silent,
    ) -> dict[str, Audit]:
        """Attack inside the radii: ball name to `Audit`.

        Args:
            model: the model that the radii are of.
            batches: the clips of `radii`, in their order.
            radii: of these clips.
            results: what a `ClipCertificate` found for each of them; empty for a `ScoreCertificate`.
            plan: the attack, how hard it tries, and its seed.
            progress: counts clips.
        """
        return audit_batches(
            model, batches, radii, attack=plan.attack, settings=plan.settings, seed=plan.seed, progress=progress
        )


@dataclass(frozen=True, kw_only=True)
class ScoreCertificate(Certificate):
    """A certificate that needs no more of a clip than its scores, which are computed once for all certificates."""

    exact_arithmetic = True
    needs_tau: ClassVar[bool] = False
    """Whether it needs gradients of training clips."""

    @abstractmethod
    def basis(self, model: MultiModalModel, tau: GradientConstants | None) -> Basis:
        """What the radii of all clips rest on.

        Args:
            model: in evaluation mode.
            tau: τ̂ from training clips; None only where `needs_tau` is False.

        Raises:
            BadInputError, CRMTError: a model that it cannot vouch for.
        """

    @abstractmethod
    def radii(self, model: MultiModalModel, scores: Tensor, labels: Tensor, basis: Basis) -> Radii:
        """The radii of N clips.

        Args:
            model: in evaluation mode.
            scores: s, `(N, M, K)`.
            labels: y, `(N,)`.
            basis: what `basis` gave for this model.
        """


@dataclass(frozen=True, kw_only=True)
class ClipCertificate(Certificate):
    """A certificate that looks at the clips one by one. What it finds for a clip is stored as it comes."""

    result: ClassVar[type[Any]]
    """What it finds for one clip: a dataclass of plain numbers with at least `id`, `label` and `predicted` (-1 where
    it abstains). `result(**stored)` restores one."""

    @abstractmethod
    def settings(self, seed: int) -> dict[str, Any]:
        """What the radii rest on, as JSON can hold it; stored results of other settings are not used again.

        Args:
            seed: of the random numbers.
        """

    @abstractmethod
    def certify(
        self,
        model: MultiModalModel,
        batches: Iterable[Batch],
        seed: int,
        *,
        done: Mapping[str, Any],
        progress: Progress = silent,
    ) -> Iterator[Any]:
        """One `result` for every clip, in order, as soon as it is known.

        Args:
            model: in evaluation mode.
            batches: labelled clips with ids.
            seed: of the random numbers.
            done: clip id to its result from an earlier run of this very model and these settings: given out unchanged.
            progress: counts clips.
        """

    @abstractmethod
    def radii(self, model: MultiModalModel, results: Sequence[Any]) -> Radii:
        """The radii of N clips.

        Args:
            model: in evaluation mode.
            results: one `result` for each clip.
        """
