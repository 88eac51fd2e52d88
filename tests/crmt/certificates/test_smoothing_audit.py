"""The audit of smoothing: sound radii withstand it, overstated ones do not; and what chance may break."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom
from torch import Tensor, nn

from crmt.attacks import Ball, pgd
from crmt.certificates.sampling import SmoothedClip, SmoothingSettings, generator_of, smooth, smoothed_radii
from crmt.certificates.smoothing_audit import Smoothed, audit_smoothing, violations_allowed
from crmt.errors import BadInputError
from crmt.fit import FitSettings, fit
from crmt.losses import logit_margin
from crmt.methods import create
from crmt.modality import Inputs
from crmt.model import MultiModalModel, evaluating
from tests.crmt.tiny import exact_distances, in_batches, learnable, linear_model, random_inputs, trainable

CPU = torch.device("cpu")


SIGMAS = {"audio": 0.3, "video": 0.05, "flow": 0.02}


def linear_case(modalities: int) -> tuple[MultiModalModel, Inputs, Tensor, SmoothingSettings, list[SmoothedClip]]:
    """A linear model of two classes, whose radii are as large as they can be, and its clips."""
    model = linear_model("orthogonal", modalities, classes=2, seed=modalities)
    inputs = random_inputs(model, 12, seed=1)
    with torch.no_grad():
        labels = model(inputs).logits.argmax(1)
    setting = SmoothingSettings(sigmas={m: SIGMAS[m] for m in model.modalities}, n0=50, n=1000)
    return model, inputs, labels, setting, list(smooth(model, in_batches(inputs, labels, 5), setting))


@pytest.mark.parametrize("inflation", [1, 3])
@pytest.mark.parametrize("modalities", [1, 2, 3])
def test_the_audit_breaks_what_lies_beyond_the_boundary_and_nothing_else(modalities: int, inflation: float) -> None:
    """The smoothed classifier of a linear one with two classes has the linear one's boundary, at a known distance."""
    model, inputs, labels, setting, clips = linear_case(modalities)
    claimed = [replace(c, radius=inflation * c.radius) for c in clips]
    found = audit_smoothing(model, in_batches(inputs, labels, 5), claimed, setting, steps=8, draws=8)
    assert list(found) == ["joint", *model.modalities]
    radii = smoothed_radii(claimed, tuple(model.modalities), setting.sigmas)
    joint, single = exact_distances(model, inputs, labels)
    balls = {"joint": (radii.joint, joint)}
    balls |= {m: (radii.unimodal[:, i], single[:, i]) for i, m in enumerate(radii.modalities)}
    for name, (radius, distance) in balls.items():
        audited, violated = found[name]
        assert torch.equal(audited, radius > 0) and audited.sum() >= 8
        inside = 0.99 * radius < distance
        assert int((violated & inside).sum()) <= violations_allowed(len(clips), setting.alpha) == 1
    assert inflation > 1 or (radii.joint <= joint).all()
    # audio, the first modality, has no box that holds an attack back; well beyond the boundary no sample is in doubt
    radius, distance = balls["audio"]
    true = torch.tensor([c.radius for c in clips])
    beyond = (0.99 * radius / distance - 1) * true > 0.4  # in units of σ, or more: the true R is not below the claimed
    assert found["audio"].violated[beyond].all()
    assert int(beyond.sum()) >= (4 if inflation > 1 else 0)


def test_a_trained_model_withstands_the_audit() -> None:
    model = trainable("orthogonal", 2, classes=4)
    epochs = learnable(model, batches=6, size=16)
    noise = dict.fromkeys(model.modalities, 0.2)
    for _ in fit(model, create("crmt_jt"), epochs, FitSettings(epochs=5, lr=0.05, noise=noise)):
        pass
    held_out = next(iter(epochs(99)))
    batches = in_batches(held_out.inputs, held_out.labels, 6)
    setting = SmoothingSettings(sigmas=noise, n0=20, n=300)
    clips = list(smooth(model, batches, setting))
    counted: list[int] = []
    found = audit_smoothing(model, batches, clips, setting, steps=8, draws=8, progress=counted.append)
    assert sum(counted) == len(clips) == 16
    for audited, violated in found.values():
        assert audited.sum() >= 8  # it has something to attack
        assert int(violated.sum()) <= violations_allowed(len(clips), setting.alpha)


def test_wrong_and_abstaining_clips_are_not_audited() -> None:
    model, inputs, labels, setting, clips = linear_case(2)
    clips[0] = replace(clips[0], predicted=-1, radius=0.0)
    clips[1] = replace(clips[1], predicted=1 - clips[1].label)
    for audited, violated in audit_smoothing(
        model, in_batches(inputs, labels, 4), clips, setting, steps=1, draws=2
    ).values():
        assert not audited[:2].any() and not violated[:2].any() and audited[2:].any()


def test_the_audit_needs_the_clips_of_its_inputs() -> None:
    model, inputs, labels, setting, clips = linear_case(1)
    batches = in_batches(inputs, labels, 5)
    other = [replace(c, label=1 - c.label) for c in clips]
    for wrong in (clips[:-1], [*clips, clips[0]], other, []):
        with pytest.raises(BadInputError, match="smoothed clips"):
            audit_smoothing(model, batches, wrong, setting, steps=1, draws=2)
    with pytest.raises(BadInputError, match="needs one for each of audio"):
        audit_smoothing(model, batches, clips, replace(setting, sigmas={"video": 0.1}))
    for name in ("draws", "steps", "restarts"):
        with pytest.raises(BadInputError, match="must be 1 or more"):
            audit_smoothing(model, batches, clips, setting, **{name: 0})


def test_more_restarts_find_no_less_on_the_same_noise() -> None:
    model, inputs, labels, setting, clips = linear_case(2)
    claimed = [replace(c, radius=2 * c.radius) for c in clips]
    batches = in_batches(inputs, labels, 12)
    once, twice = (
        audit_smoothing(model, batches, claimed, setting, steps=2, draws=4, restarts=restarts) for restarts in (1, 2)
    )
    assert twice["audio"].violated.sum() >= once["audio"].violated.sum() > 0
    again = audit_smoothing(model, batches, claimed, setting, steps=2, draws=4, restarts=2)
    assert all(torch.equal(again[ball].violated, found.violated) for ball, found in twice.items())


def test_smoothed_logits_are_the_log_of_the_mean_probability() -> None:
    model = trainable("concat", 2).eval()
    inputs = random_inputs(model, 3)
    sigmas = dict.fromkeys(model.modalities, 0.3)
    smoothed = Smoothed(model, sigmas, draws=5, generator=generator_of(CPU, 0))
    noise = {m: getattr(smoothed, f"_{m}_noise") for m in model.modalities}
    with evaluating(smoothed):
        found = smoothed(inputs)
        each = [model({m: x + noise[m][i] for m, x in inputs.items()}) for i in range(5)]
    torch.testing.assert_close(found.logits.exp(), torch.stack([e.logits.softmax(1) for e in each]).mean(0))
    torch.testing.assert_close(found.scores, torch.stack([e.scores for e in each]).mean(0))
    for m, mean in found.features.items():
        torch.testing.assert_close(mean, torch.stack([e.features[m] for e in each]).mean(0))


def test_an_attack_takes_the_smoothed_model_as_it_takes_any() -> None:
    model, inputs, labels, setting, _ = linear_case(2)
    smoothed = Smoothed(model, setting.sigmas, draws=16, generator=generator_of(CPU, 0))
    assert not smoothed.training  # as the model that it wraps
    result = pgd(smoothed, inputs, labels, Ball.joint(model.modalities, 0.5), steps=5)  # type: ignore[arg-type]
    with torch.no_grad():
        clean = smoothed(inputs).logits
    margin = logit_margin(clean, labels)
    assert (result.margin < margin)[margin > 0].all() and (margin > 0).sum() >= 8
    assert not model.training and isinstance(smoothed, nn.Module)


@settings(max_examples=50, deadline=None)
@given(clips=st.integers(1, 2000), alpha=st.sampled_from([0.05, 0.001, 1e-5]))
def test_the_allowance_is_exceeded_by_chance_once_in_a_thousand_at_most(clips: int, alpha: float) -> None:
    allowed = violations_allowed(clips, alpha)
    assert binom.sf(allowed, clips, 2 * alpha) <= 0.001  # P(more than allowed)
    assert allowed == 0 or binom.sf(allowed - 1, clips, 2 * alpha) > 0.001
    assert allowed <= violations_allowed(clips + 1, alpha)
