"""Training methods: found by name, given what they have, and strict about it; one new file is a new method."""

from __future__ import annotations

import importlib
import sys
import warnings
from dataclasses import fields
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest
import torch

import crmt.methods
from crmt.errors import BadInputError, CRMTWarning
from crmt.fit import FitSettings, fit
from crmt.heads import HEADS
from crmt.methods import create, method_class, method_names, parameters_of_all
from tests.crmt.tiny import learnable, one_step, trainable

TITLES = {
    "jt": "JT",
    "gb": "GB",
    "ogm_ge": "OGM-GE",
    "pmr": "PMR",
    "msefm": "MSEFM",
    "mmat": "MMAT",
    "mixup": "Mixup",
    "ojt": "OJT",
    "crmt_step1": "CRMT-step-1",
    "crmt_step2": "CRMT-step-2",
    "crmt_jt": "CRMT-JT",
    "crmt_at": "CRMT-AT",
    "crmt_mix": "CRMT-Mix",
    "crmt_gradient": "CRMT-gradient",
    "jt_log_term": "JT + log term",
    "ojt_unimodal_ce": "OJT + uni-modal CE",
}


def test_all_methods_are_found_under_their_titles() -> None:
    assert {name: method_class(name).title for name in TITLES} == TITLES
    assert set(TITLES) <= set(method_names())
    assert not any(name == "base" or name.startswith("_") for name in method_names())
    with_step2 = {"crmt_step2", "crmt_jt", "crmt_at", "crmt_mix", "crmt_gradient"}
    orthogonal = with_step2 | {"ojt", "crmt_step1", "ojt_unimodal_ce"}
    assert {n for n in TITLES if method_class(n).head == "orthogonal"} == orthogonal
    assert {n for n in TITLES if method_class(n).step2} == with_step2


@pytest.mark.parametrize("name", method_names())
def test_a_step_of_each_method_gives_every_parameter_a_finite_gradient(name: str, modalities: int) -> None:
    method = create(name)
    assert method.head in HEADS
    assert method.title
    model = trainable(method.head, modalities).train()
    batch = next(iter(learnable(model)(1)))
    step = one_step(model, batch, method)
    terms = method.loss(step)
    assert terms.total.shape == ()
    terms.total.backward()
    method.after_backward(step, terms)
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for _, p in trained)
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in step.companion.parameters())
    assert all(v.shape == () and bool(v.isfinite()) for v in terms.parts.values())
    assert terms.output.logits.shape == (len(batch.labels), 8)
    assert model.training
    assert all(m.training for m in model.modules())


def test_settings_go_to_the_methods_that_have_them() -> None:
    with pytest.warns(CRMTWarning, match=r"crmt_jt takes no epsilon: left out. Settings of CRMT-JT: rho"):
        assert create("crmt_jt", rho=0.7, epsilon=3).rho == 0.7  # type: ignore[attr-defined]
    with pytest.warns(CRMTWarning, match=r"jt takes no rho: left out. Settings of JT: none"):
        assert create("jt", rho=0.7) == create("jt")
    assert create("crmt_jt", rho=None) == create("crmt_jt")
    assert method_class("crmt_jt").parameters() == ("rho",)
    assert parameters_of_all()["epsilon"] == ["CRMT-AT", "CRMT-gradient", "MMAT", "MSEFM"]
    assert parameters_of_all()["mixup_alpha"] == ["CRMT-Mix", "Mixup"]


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("crmt_at", {"eps": 0.5}, r"no training method has a setting 'eps'. Did you mean 'epsilon'\? Settings of CR"),
        ("crmt_at", {"eps": None}, r"'eps'. Did you mean 'epsilon'"),
        ("jt", {"eps": 0.5}, r"'eps'. Did you mean 'epsilon'\? Settings of JT: none"),
        ("crmt_jt", {"Rho": 1.0}, r"'Rho'. Did you mean 'rho'"),
        ("gb", {"super_epoch": 2}, r"'super_epoch'. Did you mean 'gb_super_epoch'"),
        ("crmt_at", {"quux": 1}, r"no training method has a setting 'quux'. Settings of CRMT-AT: rho, epsilon, attack"),
        ("crmt_at", {"epsilon": "0.5"}, r"epsilon must be a number, not a str"),
        ("crmt_at", {"epsilon": [0.5]}, r"epsilon must be a number, not a list"),
        ("crmt_at", {"attack_steps": 2.5}, r"attack_steps must be a whole number, not a float \(2.5\)"),
    ],
)
def test_a_setting_that_no_method_has_is_refused(name: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        create(name, **given)


@pytest.mark.parametrize("name", method_names())
def test_settings_that_are_not_given_are_silent(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert create(name, **dict.fromkeys(parameters_of_all())) == create(name)


def test_a_hyperparameter_has_one_default_in_all_methods() -> None:
    """`train.<name>` is one setting of a configuration, so it must not mean different things."""
    defaults: dict[str, set[object]] = {}
    for name in TITLES:
        for f in fields(method_class(name)):
            defaults.setdefault(f.name, set()).add(f.default)
    assert all(len(values) == 1 for values in defaults.values()), defaults


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        ("rho", -1.0),
        ("rho", nan),
        ("epsilon", 0.0),
        ("epsilon", -0.1),
        ("epsilon", inf),
        ("attack_steps", 0),
        ("mixup_alpha", 0.0),
        ("unimodal_weight", -1.0),
        ("msefm_weight", -1.0),
        ("ogm_alpha", -0.1),
        ("pmr_alpha", -0.1),
        ("pmr_momentum", 1.0),
        ("pmr_momentum", -0.1),
        ("pmr_entropy", -1.0),
        ("pmr_entropy_epochs", -1),
        ("gb_super_epoch", 0),
    ],
)
def test_a_hyperparameter_out_of_range_is_refused_by_every_method_that_has_it(field: str, bad: float) -> None:
    having = [n for n in TITLES if field in method_class(n).parameters()]
    assert having
    for name in having:
        with pytest.raises(
            BadInputError, match=rf"^{field} must be a finite number .*, not {bad}: change train.{field}$"
        ):
            create(name, **{field: bad})


def test_every_hyperparameter_is_checked() -> None:
    for name in TITLES:
        for field in method_class(name).parameters():
            with pytest.raises(BadInputError, match=field):
                create(name, **{field: nan})


def test_an_unknown_method_is_refused_with_the_valid_ones() -> None:
    with pytest.raises(BadInputError, match=r"no training method 'crmt'. Valid: .*crmt_jt.*jt"):
        create("crmt")
    for hidden in ("base", "_shared"):
        with pytest.raises(BadInputError, match=rf"no training method '{hidden}'"):
            method_class(hidden)


NEW_METHOD = '''
"""Label smoothing, as somebody might add it."""

from dataclasses import dataclass

from torch.nn import functional as F

from crmt.methods.base import LossTerms, Method


@dataclass(frozen=True, kw_only=True)
class LabelSmoothing(Method):
    title = "Label smoothing"
    head = "concat"

    smoothing: float = 0.1

    def loss(self, step):
        output = step.forward(step.inputs)
        entropy = F.cross_entropy(output.logits, step.labels, label_smoothing=self.smoothing)
        return LossTerms(entropy, {"cross_entropy": entropy}, output)


METHOD = LabelSmoothing
'''


def test_one_new_file_is_a_new_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "label_smoothing.py").write_text(NEW_METHOD)
    monkeypatch.delitem(sys.modules, "crmt.methods.label_smoothing", raising=False)
    monkeypatch.setattr(crmt.methods, "__path__", [*crmt.methods.__path__, str(tmp_path)])
    importlib.invalidate_caches()
    assert "label_smoothing" in method_names()
    assert parameters_of_all()["smoothing"] == ["Label smoothing"]
    method = create("label_smoothing", smoothing=0.2, rho=1.0)
    model = trainable(method.head)
    results = list(fit(model, method, learnable(model), FitSettings(epochs=2, lr=0.05)))
    assert results[1].metrics["loss"] < results[0].metrics["loss"]
    entropy = torch.nn.functional.cross_entropy
    batch = next(iter(learnable(model)(1)))
    model.eval()
    expected = entropy(model(batch.inputs).logits, batch.labels, label_smoothing=0.2)
    torch.testing.assert_close(method.loss(one_step(model, batch, method)).total, expected)
