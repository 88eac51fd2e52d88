"""The audit of `smoothing`: attack the smoothed classifier inside its radius, then decide there with fresh noise."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import log

import torch
from torch import Tensor, nn

from crmt.attacks.balls import Ball
from crmt.attacks.pgd import pgd
from crmt.attacks.search import check_counts
from crmt.certificates.audit import INSIDE, Audit
from crmt.certificates.sampling import (
    ABSTAINED,
    SmoothedClip,
    SmoothingSettings,
    generator_of,
    noisy_copies,
    smooth_clip,
    smoothed_radii,
)
from crmt.errors import BadInputError
from crmt.modality import Batch
from crmt.model import MultiModalModel, Output
from crmt.progress import Progress, silent


class Smoothed(nn.Module):
    """A differentiable stand-in for the smoothed classifier: the mean over `draws` fixed draws of the noise.

    `logits` are the log of the mean probability (Salman et al., NeurIPS 2019); scores and features are means. Attacks
    take it as they take a model, and then average their gradients over the noise (Athalye et al., ICML 2018).

    Args:
        model: the base classifier f.
        sigmas: σ_m by modality, in its space.
        draws: how many noises are averaged over.
        generator: gives the noise, on the model's device.

    Raises:
        BadInputError: draws below 1.
    """

    def __init__(
        self, model: MultiModalModel, sigmas: Mapping[str, float], *, draws: int = 32, generator: torch.Generator
    ) -> None:
        super().__init__()
        if draws < 1:
            raise BadInputError(f"draws must be 1 or more, not {draws}")
        self.model = model
        self.modalities = model.modalities
        self.draws = draws
        like = model.head.bias
        zeros = {n: torch.zeros(m.shape, dtype=like.dtype, device=like.device) for n, m in model.modalities.items()}
        for name, noise in noisy_copies(zeros, sigmas, draws, generator).items():
            self.register_buffer(f"_{name}_noise", noise, persistent=False)
        self.train(model.training)

    def forward(self, inputs: Mapping[str, Tensor]) -> Output:
        """The mean outputs over the noise; runs the model on B × draws copies.

        Args:
            inputs: x, `(B, *shape)` of every modality.
        """
        copies = {n: (inputs[n][:, None] + getattr(self, f"_{n}_noise")).flatten(0, 1) for n in self.modalities}
        logits, scores, features = self.model(copies)

        def apart(values: Tensor) -> Tensor:
            return values.unflatten(0, (-1, self.draws))

        log_probability = apart(logits.log_softmax(1)).logsumexp(1) - log(self.draws)
        return Output(log_probability, apart(scores).mean(1), {n: apart(f).mean(1) for n, f in features.items()})


def audit_smoothing(
    model: MultiModalModel,
    batches: Iterable[Batch],
    clips: Sequence[SmoothedClip],
    settings: SmoothingSettings,
    *,
    steps: int = 20,
    restarts: int = 1,
    draws: int = 32,
    seed: int = 1,
    progress: Progress = silent,
) -> dict[str, Audit]:
    """Attack at 0.99 r jointly and at 0.99 r^(m) each modality alone: ball name to `Audit`.

    A violation is a point where the smoothed classifier, sampled anew, predicts another class and does not abstain: a
    majority by chance among few copies does not count. `violations_allowed` says how many a sound certificate may show.

    Args:
        model: the base classifier f.
        batches: labelled clips, in the order of `clips`, inside their boxes.
        clips: what `smooth` gave for them.
        settings: those of the certificate.
        steps: steps of every run of PGD.
        restarts: runs of PGD.
        draws: noises that the attack averages over; a forward pass holds at most `settings.batch` copies.
        seed: fixes the attack's noise and starts; not the seed of the certificate.
        progress: called with the number of clips after each part of a batch.

    Raises:
        BadInputError: clips that are not those of the inputs, modalities that differ, counts below 1.
    """
    settings.check_model(model)
    check_counts(steps=steps, restarts=restarts)
    radii = smoothed_radii(clips, tuple(model.modalities), settings.sigmas)
    balls = {"joint": radii.joint} | {m: radii.unimodal[:, i] for i, m in enumerate(radii.modalities)}
    violated = {name: torch.zeros(len(clips), dtype=torch.bool) for name in balls}
    noise = generator_of(model.head.bias.device, seed, "attack")
    smoothed = Smoothed(model, settings.sigmas, draws=draws, generator=noise)
    starts = torch.Generator(model.head.bias.device).manual_seed(seed)
    done = 0
    for batch in batches:
        _check_same(clips[done : done + len(batch.labels)], batch.labels)
        for rows in torch.arange(len(batch.labels)).split(max(1, settings.batch // draws)):
            for name, radius in balls.items():
                chosen = rows[radius[done + rows] > 0]
                if len(chosen) == 0:
                    continue
                here = chosen.to(batch.labels.device)
                attacked = radii.modalities if name == "joint" else (name,)
                # not drop_broken: on the attack's own few draws a changed prediction means little, and only a point
                # well beyond the boundary convinces other draws
                points = pgd(
                    smoothed,  # type: ignore[arg-type]  # all that attacks ask of a model
                    {m: x[here] for m, x in batch.inputs.items()},
                    batch.labels[here],
                    Ball.joint(attacked, INSIDE * radius[done + chosen].to(here.device)),
                    steps=steps,
                    restarts=restarts,
                    generator=starts,
                ).inputs
                there = [clips[i] for i in (done + chosen).tolist()]
                violated[name][done + chosen] = _changed(model, points, there, settings, f"audit {seed} {name}")
            progress(len(rows))
        done += len(batch.labels)
    if done != len(clips):
        raise BadInputError(f"{len(clips)} smoothed clips for {done} inputs: give those of these very inputs")
    return {name: Audit(radius > 0, violated[name]) for name, radius in balls.items()}


def _check_same(clips: Sequence[SmoothedClip], labels: Tensor) -> None:
    if [c.label for c in clips] != labels.tolist():
        raise BadInputError("the smoothed clips are not those of the inputs: give one for each input, in their order")


def _changed(
    model: MultiModalModel,
    points: Mapping[str, Tensor],
    clips: Sequence[SmoothedClip],
    settings: SmoothingSettings,
    stream: str,
) -> Tensor:
    """Whether g surely predicts another class at each of the points, `(B,)`, on the CPU.

    The noise of `stream` is not the attack's, which an attack overfits, nor the certificate's.
    """
    decided = []
    for row, clip in enumerate(clips):
        point = {m: points[m][row] for m in model.modalities}
        found = smooth_clip(model, point, clip.label, settings, name=clip.id, stream=stream, weights=clip.weights or "")
        decided.append(found.predicted not in (ABSTAINED, clip.label))
    return torch.tensor(decided)


def violations_allowed(clips: int, alpha: float, level: float = 0.999) -> int:
    """The most violations, in one ball, that chance explains at `level` when every certificate is sound.

    A violation needs a wrong certificate or a wrong decision at the attacked point; each happens with probability α at
    most, so the count is below a Binomial(clips, 2 α).

    Args:
        clips: ALL that were smoothed. α bounds wrong certificates among all clips, not among those certified: many
            clips near p_A = 1/2 give few certificates, and those are wrong more often than α.
        alpha: the probability, per clip, that a certificate is wrong.
        level: the probability with which chance gives no more violations than that.
    """
    from scipy.stats import binom  # slow to import, and needed by few

    return int(binom.ppf(level, clips, min(1.0, 2 * alpha)))
