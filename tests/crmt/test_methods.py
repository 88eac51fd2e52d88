"""Training methods: found by name, given what they have, and the losses that they claim."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from crmt.errors import BadInputError
from crmt.heads import HEADS
from crmt.losses import margin_regulariser
from crmt.methods import create, method_class, method_names
from tests.crmt.tiny import learnable, trainable


def test_the_methods_are_found() -> None:
    assert {"jt", "crmt_jt"} <= set(method_names())
    assert "base" not in method_names()


@pytest.mark.parametrize("name", method_names())
def test_each_method_trains_a_model_of_its_head(name: str) -> None:
    method = create(name)
    assert method.head in HEADS
    assert method.title
    model = trainable(method.head).train()
    batch = next(iter(learnable(model)(1)))
    terms = method.loss(model, batch.inputs, batch.labels)
    assert terms.total.shape == ()
    terms.total.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
    assert all(v.shape == () for v in terms.parts.values())
    assert terms.output.logits.shape == (len(batch.labels), 8)


def test_settings_go_to_the_methods_that_have_them() -> None:
    assert create("crmt_jt", rho=0.7, epsilon=3).rho == 0.7  # type: ignore[attr-defined]
    assert create("jt", rho=0.7) == create("jt")
    assert method_class("crmt_jt").parameters() == ("rho",)
    assert method_class("crmt_jt").step2
    assert not method_class("jt").step2


@pytest.mark.parametrize("rho", [0.0, 2.0])
def test_crmt_jt_is_cross_entropy_and_rho_times_the_margin_term(rho: float) -> None:
    model = trainable().eval()
    batch = next(iter(learnable(model)(1)))
    output = model(batch.inputs)
    entropy = F.cross_entropy(output.logits, batch.labels)
    margin = margin_regulariser(output.scores, batch.labels)
    terms = create("crmt_jt", rho=rho).loss(model, batch.inputs, batch.labels)
    torch.testing.assert_close(terms.total, entropy + rho * margin)
    torch.testing.assert_close(create("jt").loss(model, batch.inputs, batch.labels).total, entropy)


def test_an_unknown_method_is_refused_with_the_valid_ones() -> None:
    with pytest.raises(BadInputError, match=r"no training method 'crmt'. Valid: .*crmt_jt.*jt"):
        create("crmt")
    with pytest.raises(BadInputError, match=r"no training method 'base'"):
        method_class("base")
