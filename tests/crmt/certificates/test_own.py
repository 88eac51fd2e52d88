"""Certificates are parts: ours by file, a user's own by path; what each of them declares is what decides."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from crmt.attacks.curves import AttackPlan
from crmt.certificates import certificate_names, create, for_step2
from crmt.certificates.audit import AuditPlan
from crmt.certification import Host
from crmt.errors import BadInputError
from crmt.evaluation import EvaluationPlan, evaluate
from crmt.heads import ConcatHead, OddOneOutHead
from tests.crmt.own_parts import installed
from tests.crmt.tiny import in_batches, linear_model, mostly_right, random_inputs


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    return installed(tmp_path, monkeypatch, "own_certificates")


class Remembered:
    """A store in memory."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str, str], dict[str, dict[str, Any]]] = {}

    def done(self, certificate: str, digest: str, settings: str) -> Mapping[str, dict[str, Any]]:
        return self.kept.get((certificate, digest, settings), {})

    def save(self, certificate: str, digest: str, settings: str, results: Mapping[str, dict[str, Any]]) -> None:
        self.kept[certificate, digest, settings] = dict(results)


def test_ours_say_what_they_are() -> None:
    assert certificate_names() == ["estimate", "lipschitz", "smoothing"]
    estimate, lipschitz, smoothing = (create(name) for name in certificate_names())
    assert [c.sound for c in (estimate, lipschitz, smoothing)] == [False, True, True]
    words = [c.said_word() for c in (estimate, lipschitz, smoothing)]
    assert words == ["estimated radius", "certified radius", "certified radius (99.9 %)"]
    assert smoothing.final_only and not estimate.final_only and lipschitz.exact_arithmetic


def test_a_certificate_checks_what_it_needs() -> None:
    lipschitz, smoothing = create("lipschitz"), create("smoothing", sigmas={"video": 0.5}, n=1000)
    lipschitz.check_head(ConcatHead, "jt")
    with pytest.raises(BadInputError, match="lipschitz cannot certify msefm"):
        lipschitz.check_head(OddOneOutHead, "msefm")
    with pytest.raises(BadInputError, match=r"1-Lipschitz.*model.encoders.video is resnet18"):
        lipschitz.check_encoder("video", "resnet18", False)
    smoothing.check_modalities(["video"])
    with pytest.raises(BadInputError, match="give one for audio, too"):
        smoothing.check_modalities(["video", "audio"])
    with pytest.raises(BadInputError, match="the model has no 'video'"):
        create("smoothing", sigmas={"audio": 0.5, "video": 0.5}).check_modalities(["audio"])
    with pytest.raises(BadInputError, match=r"9 copies certify nothing at alpha 0.001"):
        create("smoothing", sigmas={"video": 0.5}, n=9).check_modalities(["video"])
    create("smoothing", sigmas={"video": 0.5}, n=10).check_modalities(["video"])


def test_settings_are_the_certificates_own() -> None:
    with pytest.raises(BadInputError, match="smoothing has no setting sigma; it takes sigmas, n0, n, alpha, samples"):
        create("smoothing", sigma=0.5)
    with pytest.raises(BadInputError, match="alpha must be between 0 and 1"):
        create("smoothing", alpha=2.0)
    with pytest.raises(BadInputError, match=r"no certificate 'estimat'.*Did you mean 'estimate'"):
        create("estimat")


def test_step_2_maximises_a_sound_radius_where_it_can() -> None:
    model, tau = linear_model("orthogonal", 2, dtype=torch.float64), torch.ones(2, 4)
    for certificates in ([], [create("smoothing", sigmas={"video": 1.0})], [create("estimate")]):
        chosen, constants = for_step2(certificates, model, tau)
        assert chosen.name == "estimate" and constants.pair == "sum" and torch.equal(constants.tau, tau)


def test_certificates_of_ones_own_run_like_ours(own: str) -> None:
    model = linear_model("concat", 2, dtype=torch.float32)
    inputs = random_inputs(model, 20)
    labels = mostly_right(model, inputs)
    batches = in_batches(inputs, labels, 6)
    share = create(f"{own}:Share", share=0.002)
    plan = EvaluationPlan(
        attacks=AttackPlan(names=("fgm",), epsilons=(0.5,)),
        certificates=(share, create(f"{own}:Fixed")),
        audit=AuditPlan(attack="pgd", samples=7),
    )
    by_score, by_clip = evaluate(model, batches, plan).certified
    with torch.no_grad():
        right = model(inputs).logits.argmax(1) == labels
    assert torch.equal(by_score.radii.joint > 0, right) and torch.equal(by_clip.radii.joint > 0, right)
    assert by_score.settings["share"] == 0.002 and by_score.settings["audit"] == "pgd"
    assert len(by_score.audits["joint"]) == len(by_clip.audits["joint"]) == 7
    rows = evaluate(model, batches, plan).rows()
    assert {r["certificate"] for r in rows["radii"]} == {"margin_share", "fixed"}
    assert {r["clip_id"] for r in rows["radii"]} == {f"clip-{i}" for i in range(20)}
    names = {(r["certificate"], r["name"]) for r in rows["metrics"] if "certificate" in r}
    assert {(c, "mean_radius") for c in ("margin_share", "fixed")} <= names


def test_what_a_certificate_found_is_not_looked_for_again(own: str) -> None:
    model = linear_model("concat", 2, dtype=torch.float32)
    inputs = random_inputs(model, 10)
    batches = in_batches(inputs, mostly_right(model, inputs), 4)
    store, fixed = Remembered(), create(f"{own}:Fixed")
    looked_at = importlib.import_module(own).LOOKED_AT
    looked_at.clear()
    plan = EvaluationPlan(
        attacks=AttackPlan(names=("fgm",), epsilons=(0.5,)), certificates=(fixed,), audit=AuditPlan(samples=0)
    )
    first = evaluate(model, batches, plan, host=Host(store=store))
    assert len(looked_at) == 10
    ((key, kept),) = store.kept.items()
    store.kept[key] = dict(list(kept.items())[:6])  # as if it had been stopped
    second = evaluate(model, batches, plan, host=Host(store=store))
    assert len(looked_at) == 14 and first.rows()["radii"] == second.rows()["radii"]
    with torch.no_grad():
        next(model.parameters()).add_(0.01)  # another model
    evaluate(model, batches, plan, host=Host(store=store))
    assert len(looked_at) == 24


def test_what_is_no_certificate_is_refused(own: str) -> None:
    with pytest.raises(BadInputError, match="is no certificate: make it a class that derives from"):
        create(f"{own}:Twice")
    with pytest.raises(BadInputError, match="has no setting depth; it takes share"):
        create(f"{own}:Share", depth=3)
    with pytest.raises(BadInputError, match="two certificates are called 'margin_share'"):
        EvaluationPlan(certificates=(create(f"{own}:Share"), create(f"{own}:Share", share=0.5)))
