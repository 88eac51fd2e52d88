"""Smoothing against closed forms of linear classifiers and scipy; resuming, batching and bad input."""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict, replace
from itertools import islice
from typing import cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, multivariate_normal, norm
from torch import Tensor, nn

from crmt.certificates.sampling import (
    SmoothedClip,
    SmoothingSettings,
    certified_accuracy,
    generator_of,
    largest_radius,
    least_n,
    noisy_copies,
    probability_bound,
    radius_of,
    smooth,
    smoothed_radii,
)
from crmt.certificates.smoothing import Smoothing
from crmt.checkpoint import digest_of
from crmt.errors import BadInputError, CRMTWarning
from crmt.modality import Batch, Inputs
from crmt.model import MultiModalModel
from tests.crmt.tiny import (
    LinearEncoder,
    effective_weights,
    exact_distances,
    in_batches,
    linear_model,
    mostly_right,
    random_inputs,
    trainable,
)

SIGMAS = {"audio": 0.5, "video": 0.2, "flow": 0.1}


def plan(model: MultiModalModel, **changes: object) -> SmoothingSettings:
    """Settings with another sigma for each modality of the model."""
    given = {"sigmas": {m: SIGMAS[m] for m in model.modalities}, "n0": 20, "n": 200, **changes}
    return SmoothingSettings(**given)  # type: ignore[arg-type]


def certify(model: MultiModalModel, inputs: Inputs, labels: Tensor, setting: SmoothingSettings) -> list[SmoothedClip]:
    return list(smooth(model, in_batches(inputs, labels, 4), setting))


def gaps(
    model: MultiModalModel, inputs: Inputs, label: int, row: int, setting: SmoothingSettings
) -> tuple[Tensor, Tensor]:
    """For linear encoders: mean and covariance of h_y − h_j over the noise, for every j ≠ y."""
    with torch.no_grad():
        logits = model({m: x[row : row + 1] for m, x in inputs.items()}).logits[0]
    others = [j for j in range(len(logits)) if j != label]
    scaled = [
        setting.sigmas[m] * (v[label] - v[others])
        for m, v in zip(model.modalities, effective_weights(model), strict=True)
    ]
    w = torch.cat(scaled, 1)
    return logits[label] - logits[others], w @ w.T


@settings(max_examples=200, deadline=None)
@given(n=st.integers(1, 5000), share=st.floats(0, 1), alpha=st.sampled_from([0.05, 0.001, 1e-6]))
def test_the_bound_is_scipys_exact_one(n: int, share: float, alpha: float) -> None:
    count = round(share * n)
    expected = binomtest(count, n).proportion_ci(1 - 2 * alpha, "exact").low
    assert probability_bound(count, n, alpha) == pytest.approx(expected, rel=1e-6, abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(n=st.integers(1, 3000), data=st.data())
def test_more_counts_give_a_larger_radius_up_to_the_largest(n: int, data: st.DataObject) -> None:
    fewer, more = sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n))))
    low, high = (radius_of(probability_bound(c, n, 0.001)) for c in (fewer, more))
    assert 0 <= low <= high <= largest_radius(n, 0.001)
    assert largest_radius(n, 0.001) <= largest_radius(n + 1, 0.001)


def test_the_largest_radius_is_that_of_all_copies_agreeing() -> None:
    assert largest_radius(1000, 0.001) == pytest.approx(norm.ppf(0.001 ** (1 / 1000)))
    assert largest_radius(9, 0.001) == 0  # too few copies certify nothing
    assert largest_radius(10, 0.001) > 0


@pytest.mark.parametrize("modalities", [1, 2, 3])
def test_two_classes_agree_with_the_closed_form(modalities: int) -> None:
    """P = Φ(gap / ‖σ w‖), so R = gap / ‖σ w‖; the measured one lies below it, by no more than sampling explains."""
    model = linear_model("orthogonal", modalities, classes=2, seed=modalities)
    inputs = random_inputs(model, 8, seed=3)
    with torch.no_grad():
        labels = model(inputs).logits.argmax(1)
    setting = plan(model, n0=400, n=4000)
    clips = certify(model, inputs, labels, setting)
    certified = 0
    for row, clip in enumerate(clips):
        mean, covariance = gaps(model, inputs, int(labels[row]), row, setting)
        exact = float(mean / covariance.sqrt())
        p = float(norm.cdf(exact))
        fewest = int(setting.n * p - 4.5 * (setting.n * p * (1 - p)) ** 0.5 - 1)
        assert radius_of(probability_bound(fewest, setting.n, setting.alpha)) <= clip.radius <= exact
        certified += clip.predicted == clip.label
        assert clip.predicted in (-1, clip.label)
    assert certified >= 5
    # with two classes the smoothed classifier is the linear one, whose distances are known
    joint, single = exact_distances(model, inputs, labels)
    found = smoothed_radii(clips, tuple(model.modalities), setting.sigmas)
    assert (found.joint <= joint).all() and (found.unimodal <= single).all()
    assert (found.unimodal > 0).any(0).all()


def test_many_classes_agree_with_the_orthant_probability() -> None:
    model = linear_model("concat", 2, classes=4, seed=1)
    inputs = random_inputs(model, 6, seed=5)
    with torch.no_grad():
        labels = model(inputs).logits.argmax(1)
    setting = plan(model, n=4000)
    for row, clip in enumerate(certify(model, inputs, labels, setting)):
        mean, covariance = gaps(model, inputs, int(labels[row]), row, setting)
        # P(every h_y − h_j > 0) = P(−(noise) < mean), the same by symmetry
        p = float(multivariate_normal(cov=covariance.numpy(), allow_singular=True, seed=0).cdf(mean.numpy()))
        if clip.predicted == clip.label:
            assert clip.count / clip.n == pytest.approx(p, abs=4.5 * (p * (1 - p) / clip.n) ** 0.5 + 1e-3)
            assert clip.p_lower <= p + 1e-4
            assert clip.radius <= float((mean / covariance.diagonal().sqrt()).min())
        else:
            assert p < 0.6


@settings(max_examples=20, deadline=None)
@given(r=st.floats(0, 4), sigmas=st.lists(st.floats(0.01, 3), min_size=1, max_size=3))
def test_radii_are_in_each_modalitys_own_units(r: float, sigmas: list[float]) -> None:
    named = {f"m{i}": s for i, s in enumerate(sigmas)}
    right = SmoothedClip("a", 1, 1, 90, 100, 0.8, r)
    found = smoothed_radii([right, replace(right, predicted=0), replace(right, predicted=-1)], tuple(named), named)
    assert found.certificate == "smoothing" and found.joint.shape == (3,) and found.unimodal.shape == (3, len(named))
    assert found.joint[0] == pytest.approx(r * min(sigmas)) and found.unimodal[0].tolist() == pytest.approx(
        [r * s for s in sigmas]
    )
    assert not found.joint[1:].any() and not found.unimodal[1:].any()
    assert (found.indicator * found.unimodal)[0].tolist() == pytest.approx([r] * len(named))


def test_certified_accuracy_counts_abstentions_as_failures() -> None:
    clip = SmoothedClip("a", 1, 1, 90, 100, 0.8, 1.0)
    clips = [clip, replace(clip, predicted=-1, radius=0.0), replace(clip, predicted=0), replace(clip, radius=3.0)]
    joint = smoothed_radii(clips, ("m",), {"m": 0.5}).joint
    assert certified_accuracy(joint, (0, 0.5, 0.6, 2)) == [0.5, 0.5, 0.25, 0]


def undecided() -> tuple[MultiModalModel, Inputs]:
    """A linear model of two classes, and inputs around which each class has probability 1/2 exactly."""
    model = linear_model("concat", 2, classes=2)
    with torch.no_grad():
        model.head.bias.zero_()
        video, audio = model.head.weight("video"), model.head.weight("audio")
        video[1] = video[0]
        audio[1] = -audio[0]
        cast(LinearEncoder, model.encoders["audio"]).linear.bias.zero_()
    inputs = random_inputs(model, 8)
    inputs["audio"] = model.modalities["audio"].missing(inputs["audio"])
    return model, inputs


def test_it_abstains_where_no_class_has_a_majority() -> None:
    model, inputs = undecided()
    clips = certify(model, inputs, torch.tensor([0, 1] * 4), plan(model))
    assert [c.predicted for c in clips] == [-1] * 8
    assert [c.radius for c in clips] == [0] * 8 and all(0.3 < c.p_lower < 0.5 for c in clips)


def test_the_copies_that_choose_the_class_are_not_those_that_bound_it() -> None:
    """Otherwise the class with more copies would always be the one counted, and the bound would be too high."""
    model, inputs = undecided()
    counts = [c.count for c in certify(model, inputs, torch.zeros(8, dtype=torch.int64), plan(model, n0=1, n=51))]
    assert min(counts) < 25.5 < max(counts)


def test_a_model_that_gives_nan_certifies_nothing() -> None:
    model = linear_model("concat", 2)
    with torch.no_grad():
        model.head.bias[1] = float("nan")
    clips = certify(model, random_inputs(model, 2), torch.tensor([0, 1]), plan(model))
    assert [(c.predicted, c.count, c.radius) for c in clips] == [(-1, 0, 0.0)] * 2


def test_the_noise_of_a_copy_depends_on_neither_the_number_of_copies_nor_the_batch() -> None:
    clip = {"video": torch.zeros(2, 3), "audio": torch.ones(40)}
    sigmas = {"video": 2.0, "audio": 0.5}
    whole = noisy_copies(clip, sigmas, 7, generator_of(torch.device("cpu"), 3, "a"))
    source = generator_of(torch.device("cpu"), 3, "a")
    parts = [noisy_copies(clip, sigmas, size, source) for size in (1, 4, 2)]
    for m in clip:
        assert torch.equal(torch.cat([p[m] for p in parts]), whole[m])
    other = noisy_copies(clip, sigmas, 7, generator_of(torch.device("cpu"), 3, "b"))
    assert not torch.equal(other["video"], whole["video"])


def test_the_noise_has_each_modalitys_deviation_and_is_not_clamped() -> None:
    clip = {"video": torch.full((50, 50), 0.9), "audio": torch.zeros(500)}
    copies = noisy_copies(clip, {"video": 0.5, "audio": 2.0}, 200, generator_of(torch.device("cpu"), 0))
    assert copies["video"].std() == pytest.approx(0.5, rel=0.01) and copies["video"].mean() == pytest.approx(
        0.9, abs=0.01
    )
    assert copies["audio"].std() == pytest.approx(2.0, rel=0.02)
    assert copies["video"].max() > 1 and copies["video"].min() < 0


def test_batches_order_and_passes_change_nothing() -> None:
    model = trainable("orthogonal", 3).eval()
    inputs = random_inputs(model, 7)
    labels = torch.arange(7)
    setting = plan(model, batch=64)
    expected = {c.id: c for c in smooth(model, in_batches(inputs, labels, 7), setting)}
    assert list(expected) == [f"clip-{i}" for i in range(7)]
    reverse = in_batches(inputs, labels, 1)[::-1]
    assert {c.id: c for c in smooth(model, reverse, setting)} == expected
    for clip in smooth(model, in_batches(inputs, labels, 3), replace(setting, batch=1000)):
        assert abs(clip.count - expected[clip.id].count) <= 1  # another pass may round a tie the other way
    other = [c.count for c in smooth(model, in_batches(inputs, labels, 7), replace(setting, seed=1))]
    assert other != [c.count for c in expected.values()]


def test_a_resumed_run_gives_what_an_uninterrupted_one_gives() -> None:
    model = trainable("concat", 2).eval()
    inputs, labels = random_inputs(model, 6), torch.arange(6)
    batches, setting = in_batches(inputs, labels, 4), plan(model)
    expected = list(smooth(model, batches, setting))
    stored = [json.dumps(asdict(c)) for c in islice(smooth(model, batches, setting), 3)]  # then interrupted
    done = {c.id: c for c in (SmoothedClip(**json.loads(s)) for s in stored)}
    counted: list[int] = []
    assert list(smooth(model, batches, setting, done=done, progress=counted.append)) == expected
    assert counted == [1] * 6


def test_clips_that_are_done_cost_no_forward_pass() -> None:
    model = linear_model("concat", 2)
    inputs = random_inputs(model, 3)
    batches, setting = in_batches(inputs, torch.tensor([0, 1, 2]), 3), plan(model)
    done = {c.id: c for c in smooth(model, batches, setting)}
    passes: list[int] = []
    model.register_forward_hook(lambda *_: passes.append(1))
    assert list(smooth(model, batches, setting, done=done)) == list(done.values())
    assert not passes
    del done["clip-1"]
    list(smooth(model, batches, setting, done=done))
    assert len(passes) == 1


def test_without_ids_the_running_index_is_the_id() -> None:
    model = linear_model("concat", 1)
    batches = [b._replace(ids=()) for b in in_batches(random_inputs(model, 5), torch.zeros(5, dtype=torch.int64), 2)]
    assert [c.id for c in smooth(model, batches, plan(model))] == ["0", "1", "2", "3", "4"]


def test_gradient_mode_and_training_mode_are_the_callers_between_clips() -> None:
    model = trainable("orthogonal", 2).train()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    for _ in smooth(model, in_batches(random_inputs(model, 2), torch.tensor([0, 1]), 2), plan(model)):
        assert torch.is_grad_enabled() and model.training
        assert all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())  # batch-norm statistics too


def test_a_forward_pass_holds_no_more_copies_than_the_batch() -> None:
    model = linear_model("concat", 2)
    sizes: list[int] = []

    def note(_: nn.Module, arguments: tuple[Inputs]) -> None:
        sizes.append(len(arguments[0]["video"]))

    model.register_forward_pre_hook(note)
    list(smooth(model, in_batches(random_inputs(model, 2), torch.tensor([0, 1]), 2), plan(model, batch=64)))
    assert sizes == [64, 64, 64, 28] * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_both_precisions(dtype: torch.dtype) -> None:
    model = linear_model("orthogonal", 2, dtype=dtype)
    inputs = random_inputs(model, 4)
    clips = certify(model, inputs, mostly_right(model, inputs), plan(model))
    assert len(clips) == 4 and all(0 <= c.count <= 200 for c in clips)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sigmas": {"audio": 0.0, "video": 0.1}}, "sigma of 'audio' is 0"),
        ({"sigmas": {"audio": 0.1, "video": -1.0}}, "sigma of 'video'"),
        ({"sigmas": {"audio": float("nan"), "video": 0.1}}, "sigma of 'audio' is nan"),
        ({"sigmas": {"audio": float("inf"), "video": 0.1}}, "sigma of 'audio' is inf"),
        ({"sigmas": {}}, "sigmas"),
        ({"n": 0}, "n must be 1 or more, not 0"),
        ({"n0": 0}, "n0"),
        ({"batch": 0}, "batch"),
        ({"alpha": 0.0}, "alpha"),
        ({"alpha": 1.0}, "alpha"),
        ({"alpha": float("nan")}, "alpha"),
    ],
)
def test_settings_that_mean_nothing_are_refused(changes: dict[str, object], says: str) -> None:
    with pytest.raises(BadInputError, match=says):
        plan(linear_model("concat", 2), **changes)


@pytest.mark.parametrize("names", [("audio",), ("audio", "video", "flow"), ("audio", "sound")])
def test_sigmas_must_be_of_the_models_modalities(names: tuple[str, ...]) -> None:
    model = linear_model("concat", 2)
    with pytest.raises(BadInputError, match=r"model needs one for each of audio, video"):
        smooth(model, [], plan(model, sigmas=dict.fromkeys(names, 0.1)))  # at once, not at the first clip
    with pytest.raises(BadInputError, match="no sigma for video"):
        smoothed_radii([], ("audio", "video"), {"audio": 0.1})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda b: b._replace(labels=torch.tensor([0, 4])), "'clip-1' has label 4; the model's classes are 0 to 3"),
        (lambda b: b._replace(labels=torch.tensor([-1, 0])), "'clip-0' has label -1"),
        (lambda b: b._replace(ids=("clip-0", "clip-0")), "'clip-0' comes twice"),
        (lambda b: b._replace(ids=("clip-0",)), "1 ids for 2 clips"),
        (lambda b: b._replace(inputs={"audio": b.inputs["audio"]}), "no 'video'"),
        (
            lambda b: b._replace(inputs=b.inputs | {"video": b.inputs["video"] * float("nan")}),
            "NaN or infinity in 'video'",
        ),
    ],
)
def test_bad_batches_are_refused(change: object, says: str) -> None:
    model = linear_model("concat", 2)
    batch = in_batches(random_inputs(model, 2), torch.tensor([0, 1]), 2)[0]
    bad: Batch = change(batch)  # type: ignore[operator]
    with pytest.raises(BadInputError, match=says):
        list(smooth(model, [bad], plan(model)))


@pytest.mark.parametrize("changes", [{"label": 3}, {"n": 100}, {"p_lower": 0.123}])
def test_stored_clips_of_other_settings_are_refused(changes: dict[str, float]) -> None:
    model = linear_model("concat", 2)
    batches = in_batches(random_inputs(model, 2), torch.tensor([0, 1]), 2)
    first = next(iter(smooth(model, batches, plan(model))))
    with pytest.raises(BadInputError, match="other settings or labels"):
        list(smooth(model, batches, plan(model), done={first.id: replace(first, **changes)}))  # type: ignore[arg-type]


def test_clips_of_other_noise_or_another_model_are_not_gone_on_with() -> None:
    model = linear_model("concat", 2)
    inputs = random_inputs(model, 3)
    batches, setting = in_batches(inputs, torch.tensor([0, 1, 2]), 3), plan(model)
    clips = list(smooth(model, batches, setting))
    assert {c.weights for c in clips} == {digest_of(model)}
    assert all(c.sigmas == setting.sigmas for c in clips)
    stored = {c.id: SmoothedClip(**json.loads(json.dumps(asdict(c)))) for c in clips}
    assert list(smooth(model, batches, setting, done=stored)) == clips
    louder = replace(setting, sigmas={m: 2 * s for m, s in setting.sigmas.items()})
    with pytest.raises(BadInputError, match=r"clip 'clip-0' is of noise {.*}, now it is {.*}: delete it") as caught:
        list(smooth(model, batches, louder, done=stored))
    assert "\n" not in str(caught.value)
    with torch.no_grad():
        model.head.bias[0] += 1e-3
    with pytest.raises(BadInputError, match=r"clip 'clip-0' is of another model \(weights \w{12}, now "):
        list(smooth(model, batches, setting, done=stored))
    old = {c.id: replace(c, sigmas=None, weights=None) for c in clips}  # of a version that did not say
    assert list(smooth(model, batches, setting, done=old)) == list(old.values())


def test_too_few_copies_for_alpha_are_warned_of() -> None:
    """α^(1/n) > 1/2 wants n > log2(1/α)."""
    for alpha, least in ((0.001, 10), (0.5, 2), (0.25, 3), (0.05, 5)):
        assert least_n(alpha) == least
        assert largest_radius(least, alpha) > 0 == largest_radius(least - 1, alpha)
        with pytest.warns(CRMTWarning, match=rf"certify nothing at alpha {alpha}, even if all agree: give n {least}"):
            SmoothingSettings(sigmas={"a": 1.0}, n=least - 1, alpha=alpha)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            SmoothingSettings(sigmas={"a": 1.0}, n=least, alpha=alpha)


def test_the_certified_classifier_is_the_one_that_computes_in_that_precision() -> None:
    seen: list[bool] = []
    model = linear_model("orthogonal", 2, dtype=torch.float32)
    model.encoders["audio"].register_forward_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    inputs = random_inputs(model, 1)
    batch = Batch(inputs, torch.zeros(1, dtype=torch.long))
    for precision in ("fp32", "bf16"):
        certificate = Smoothing(sigmas=dict.fromkeys(model.modalities, 0.2), n0=5, n=20, precision=precision)
        said = certificate.settings(0)
        assert said.get("precision", "fp32") == precision
        list(certificate.certify(model, [batch], 0, done={}))
        assert seen and set(seen) == {precision == "bf16"}
        seen.clear()
    with pytest.raises(BadInputError, match="no precision 'fp8'"):
        Smoothing(precision="fp8")  # type: ignore[arg-type]
