"""How randomised smoothing samples a smoothed classifier, with its own noise for every modality, and its radii.

It costs n0 + n forward passes a clip, and holds with probability 1 − α per clip.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from math import floor, isclose, isfinite, log2

import torch
from torch import Tensor

from crmt.arguments import check_batches, check_kind, check_model, check_number, check_whole, shown
from crmt.certificates.radius import Radii
from crmt.checkpoint import digest_of
from crmt.errors import BadInputError, CRMTWarning
from crmt.modality import Batch, Inputs, check_batch_kind, check_inputs
from crmt.model import MultiModalModel, evaluating
from crmt.precision import check_precision, computing
from crmt.progress import Progress, silent
from crmt.settings import Precision

NAME = "smoothing"
ABSTAINED = -1


@dataclass(frozen=True, kw_only=True)
class SmoothingSettings:
    """How the base classifier f is smoothed into g(x) = argmax_c P[ f(x + noise) = c ], and how g is sampled.

    The noise of modality m is N(0, σ_m²) in its raw space and is NOT clamped to the modality's box: the theorem is
    about this very distribution, and a clamp would be part of f.
    """

    sigmas: Mapping[str, float]
    """σ_m of every modality of the model, in its space, above 0."""
    n0: int = 100
    """Copies of a clip that choose the class."""
    n: int = 1000
    """Further copies that bound its probability. No radius exceeds min σ_m · `largest_radius(n, alpha)`."""
    alpha: float = 0.001
    """Probability, per clip, that a certificate is wrong."""
    batch: int = 256
    """Copies in one forward pass: bounds the memory, and changes no noise."""
    seed: int = 0
    precision: Precision = "fp32"
    """What the base classifier f computes in; with `bf16` g is that of f under autocast, and of no other."""

    def __post_init__(self) -> None:
        check_precision(self.precision, torch.device("cpu"))
        if not isinstance(self.sigmas, Mapping):
            raise BadInputError(
                f"smoothing: sigmas is {shown(self.sigmas)}: give one for every modality, such as {{'video': 0.25}}"
            )
        if not self.sigmas:
            raise BadInputError("smoothing needs sigmas: one for every modality of the model")
        for modality, sigma in self.sigmas.items():
            check_number(f"smoothing: sigma of {modality!r}", sigma)
            if not (isfinite(sigma) and sigma > 0):
                raise BadInputError(
                    f"smoothing: sigma of {modality!r} is {sigma}; give one above 0 (no noise, no certificate)"
                )
        for name in ("n0", "n", "batch", "seed"):
            check_whole(f"smoothing: {name}", getattr(self, name))
        for name in ("n0", "n", "batch"):
            if getattr(self, name) < 1:
                raise BadInputError(f"smoothing: {name} must be 1 or more, not {getattr(self, name)}")
        check_number("smoothing: alpha", self.alpha)
        if not 0 < self.alpha < 1:
            raise BadInputError(f"smoothing: alpha must be between 0 and 1, not {self.alpha}")
        if self.n < least_n(self.alpha):
            warnings.warn(
                f"smoothing: {self.n} copies certify nothing at alpha {self.alpha}, even if all agree: give n "
                f"{least_n(self.alpha)} or more",
                CRMTWarning,
                stacklevel=3,
            )

    def check_model(self, model: MultiModalModel) -> None:
        """Refuse settings whose modalities are not the model's.

        Args:
            model: the one to be smoothed.

        Raises:
            BadInputError: names the modalities of both.
        """
        if set(self.sigmas) != set(model.modalities):
            raise BadInputError(
                f"smoothing has a sigma for {', '.join(sorted(self.sigmas))}; "
                f"the model needs one for each of {', '.join(model.modalities)}"
            )


@dataclass(frozen=True)
class SmoothedClip:
    """What sampling g around one clip gave. Plain numbers: `SmoothedClip(**json)` restores a stored one."""

    id: str
    label: int
    predicted: int
    """The class of g, or -1 where it abstained."""
    count: int
    """How many of the n copies were of the class that the n0 copies chose."""
    n: int
    p_lower: float
    """Clopper–Pearson lower bound of that class's probability."""
    radius: float
    """R = Φ⁻¹(p_lower), in units of σ: every δ with Σ_m ‖δ^(m)‖² / σ_m² < R² keeps the prediction. 0 if abstained."""
    sigmas: Mapping[str, float] | None = None
    """σ_m of the noise; None in a result of an older version."""
    weights: str | None = None
    """`crmt.checkpoint.digest_of` the model; None in a result of an older version."""


def probability_bound(count: int, n: int, alpha: float) -> float:
    """The one-sided Clopper–Pearson lower bound of a probability, from a number of trials.

    Args:
        count: successes.
        n: trials.
        alpha: the probability that the bound is above the truth.
    """
    from scipy.special import betaincinv

    return 0.0 if count == 0 else float(betaincinv(count, n - count + 1, alpha))


def radius_of(p_lower: float) -> float:
    """R = Φ⁻¹(p_lower) in units of σ, and 0 where p_lower ≤ 1/2 (Cohen, Rosenfeld & Kolter, ICML 2019, Theorem 1)."""
    from scipy.special import ndtri

    return float(ndtri(p_lower)) if p_lower > 0.5 else 0.0


def largest_radius(n: int, alpha: float = 0.001) -> float:
    """R when all `n` copies agree, Φ⁻¹(α^(1/n)): no clip reaches more, whatever the model."""
    return radius_of(probability_bound(n, n, alpha))


def least_n(alpha: float) -> int:
    """The fewest copies that can certify anything: α^(1/n) > 1/2."""
    return floor(log2(1 / alpha)) + 1


def generator_of(device: torch.device, *key: str | int) -> torch.Generator:
    """A generator that depends on `key` alone, so that the order of clips, batches and workers change nothing.

    Args:
        device: where it draws.
        key: seed, what the noise is for, clip id.
    """
    digest = sha256("\0".join(map(str, key)).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def noisy_copies(
    clip: Mapping[str, Tensor], sigmas: Mapping[str, float], count: int, generator: torch.Generator
) -> Inputs:
    """`count` copies of one clip under Gaussian noise, `(count, *shape)` each.

    Args:
        clip: x, `(*shape)` of every modality.
        sigmas: σ_m by modality, in its space.
        count: how many copies.
        generator: on the clip's device, so that a GPU makes its own noise.
    """
    copies = {m: x.new_empty((count, *x.shape)) for m, x in clip.items()}
    for i in range(count):  # copy by copy: one large draw would give copy i other noise when `count` changes
        for drawn in copies.values():
            drawn[i].normal_(generator=generator)
    return {m: drawn.mul_(sigmas[m]).add_(clip[m]) for m, drawn in copies.items()}


def _classes(
    model: MultiModalModel, clip: Mapping[str, Tensor], settings: SmoothingSettings, generator: torch.Generator
) -> Tensor:
    """The base classifier's class of n0 + n copies; a copy with a NaN logit gets K, the class of no clip."""
    total = settings.n0 + settings.n
    found = []
    device = next(iter(clip.values())).device
    with evaluating(model), torch.no_grad(), computing(settings.precision, device):
        for start in range(0, total, settings.batch):
            count = min(settings.batch, total - start)
            logits = model(noisy_copies(clip, settings.sigmas, count, generator)).logits
            found.append(torch.where(logits.isnan().any(1), logits.shape[1], logits.argmax(1)))
    return torch.cat(found)


def smooth_clip(
    model: MultiModalModel,
    clip: Mapping[str, Tensor],
    label: int,
    settings: SmoothingSettings,
    *,
    name: str,
    stream: str = "certify",
    weights: str | None = None,
) -> SmoothedClip:
    """Certify one clip (Cohen et al., 2019, CERTIFY).

    The n0 copies that choose the class are not among the n that bound its probability, as the theorem wants.

    Args:
        model: the base classifier f.
        clip: x, `(*shape)` of every modality.
        label: y, stored with the result.
        settings: noise, numbers of copies and α.
        name: the clip's id, on which its noise depends.
        stream: another text gives other noise for the same clip.
        weights: `digest_of(model)`, where it is known already.
    """
    generator = generator_of(next(iter(clip.values())).device, settings.seed, stream, name)
    classes = _classes(model, clip, settings, generator)
    chosen = int(classes[: settings.n0].bincount(minlength=model.head.classes + 1)[:-1].argmax())
    count = int((classes[settings.n0 :] == chosen).sum())
    p_lower = probability_bound(count, settings.n, settings.alpha)
    radius = radius_of(p_lower)
    predicted = chosen if radius > 0 else ABSTAINED
    digest = digest_of(model) if weights is None else weights
    return SmoothedClip(name, label, predicted, count, settings.n, p_lower, radius, dict(settings.sigmas), digest)


def smooth(
    model: MultiModalModel,
    batches: Iterable[Batch],
    settings: SmoothingSettings,
    *,
    done: Mapping[str, SmoothedClip] | None = None,
    progress: Progress = silent,
) -> Iterator[SmoothedClip]:
    """The result of every clip, in order, as soon as it is known: who stores each as it comes loses no more than one.

    A clip's noise depends on (seed, clip id) alone, and a forward pass holds copies of one clip only. So a resumed run
    gives the numbers that an uninterrupted one gives, whatever the order, batches or workers, on the same kind of
    device (a GPU draws other noise than a CPU).

    Args:
        model: the base classifier f.
        batches: labelled clips; where they have no ids, a clip's running index is its id.
        settings: noise, numbers of copies and α.
        done: clip id to its result from an earlier run of the same model and settings: given out unchanged.
        progress: called with 1 after each clip.

    Raises:
        BadInputError: modalities that differ from the model's, a NaN or infinity in an input, a label out of range, the
            same id twice, or a clip of `done` with another label, n, alpha, σ or of a model with other weights.
    """
    check_model(model)
    check_batches(batches)
    check_kind("settings", settings, SmoothingSettings, "SmoothingSettings")
    check_kind("done", {} if done is None else done, Mapping, "a mapping of clip ids to SmoothedClip")
    settings.check_model(model)
    return _smooth(model, batches, settings, done or {}, progress)


def _smooth(
    model: MultiModalModel,
    batches: Iterable[Batch],
    settings: SmoothingSettings,
    done: Mapping[str, SmoothedClip],
    progress: Progress,
) -> Iterator[SmoothedClip]:
    seen: set[str] = set()
    digest = digest_of(model)
    for batch in batches:
        check_batch_kind(batch)
        check_inputs(model.modalities, batch.inputs)
        if batch.ids and len(batch.ids) != len(batch.labels):
            raise BadInputError(f"a batch has {len(batch.ids)} ids for {len(batch.labels)} clips")
        for row, label in enumerate(batch.labels.tolist()):
            name = batch.ids[row] if batch.ids else str(len(seen))
            if name in seen:
                raise BadInputError(
                    f"clip {name!r} comes twice: clips need ids of their own, their noise depends on it"
                )
            seen.add(name)
            clip = {m: batch.inputs[m][row] for m in model.modalities}
            _check_clip(name, clip, label, model.head.classes)
            if name in done:
                result = _check_stored(done[name], label, settings, digest)
            else:
                result = smooth_clip(model, clip, label, settings, name=name, weights=digest)
            progress(1)
            yield result


def _check_clip(name: str, clip: Mapping[str, Tensor], label: int, classes: int) -> None:
    if not 0 <= label < classes:
        raise BadInputError(f"clip {name!r} has label {label}; the model's classes are 0 to {classes - 1}")
    for modality, x in clip.items():
        if not bool(x.isfinite().all()):
            raise BadInputError(f"clip {name!r} has NaN or infinity in {modality!r}: leave it out or decode it again")


def _check_stored(clip: SmoothedClip, label: int, settings: SmoothingSettings, digest: str) -> SmoothedClip:
    if not isinstance(clip, SmoothedClip):
        raise BadInputError(f"done holds a {type(clip).__name__}: restore each clip with SmoothedClip(**stored)")
    if clip.sigmas is not None and dict(clip.sigmas) != dict(settings.sigmas):
        raise BadInputError(
            f"the stored result of clip {clip.id!r} is of noise {dict(clip.sigmas)}, now it is "
            f"{dict(settings.sigmas)}: delete it, or resume with those sigmas"
        )
    if clip.weights is not None and clip.weights != digest:
        raise BadInputError(
            f"the stored result of clip {clip.id!r} is of another model (weights {clip.weights[:12]}, now "
            f"{digest[:12]}): delete it, or resume with that model"
        )
    bound = probability_bound(clip.count, clip.n, settings.alpha)
    if clip.label != label or clip.n != settings.n or not isclose(clip.p_lower, bound, rel_tol=1e-9):
        raise BadInputError(
            f"the stored result of clip {clip.id!r} is from other settings or labels (label {clip.label}, n {clip.n}; "
            f"now label {label}, n {settings.n}, alpha {settings.alpha}): delete it, or resume with those settings"
        )
    return clip


def smoothed_radii(clips: Sequence[SmoothedClip], modalities: Sequence[str], sigmas: Mapping[str, float]) -> Radii:
    """r = R · min_m σ_m and r^(m) = R · σ_m, on the CPU; 0 where the prediction is wrong or g abstained.

    `Radii.indicator` is 1 / σ_m, which is what r^(m) = R / η^(m) makes of η: it says nothing about the model, and
    tables leave it out.

    Args:
        clips: what `smooth` gave.
        modalities: the model's, in their order.
        sigmas: σ_m by modality, in its space.

    Raises:
        BadInputError: a modality without a sigma.
    """
    missing = [m for m in modalities if m not in sigmas]
    if missing:
        raise BadInputError(f"no sigma for {', '.join(missing)}; there are {', '.join(sigmas)}")
    radius = torch.tensor([c.radius if c.predicted == c.label else 0.0 for c in clips], dtype=torch.float64)
    sigma = torch.tensor([sigmas[m] for m in modalities], dtype=torch.float64)
    return Radii(
        NAME,
        tuple(modalities),
        radius * sigma.min(),
        radius[:, None] * sigma,
        (1 / sigma).expand(len(clips), -1).clone(),
        smoothed=True,
    )


def certified_accuracy(radius: Tensor, epsilons: Sequence[float]) -> list[float]:
    """Share of N clips that are predicted right with a radius of at least each ε.

    Args:
        radius: `(N,)`, 0 where the prediction is wrong or abstained: such a clip is a failure at ε = 0 too.
        epsilons: the ε, in units of `radius`.
    """
    return [float(((radius > 0) & (radius >= e)).double().mean()) for e in epsilons]
