"""Encoders of the user's own in preflight: each mistake is one line that names the field, before anything starts."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from crmt.errors import BadInputError
from pipelines.config.run_config import parse
from pipelines.sweeps.preflight import check_settings
from tests.pipelines.small import TINY, merged

NETS = """
import torch
from torch import nn
from crmt.encoders.lipschitz import LipschitzEncoder
from crmt.encoders.orthogonal_layers import orthogonal_linear

class Net(nn.Module):
    def __init__(self, modality, features, depth=1):
        super().__init__()
        self.layer = nn.Linear(torch.Size(modality.shape).numel(), features)
        self.modality = modality
    def forward(self, x):
        assert tuple(x.shape[1:]) == self.modality.shape
        return self.layer(x.flatten(1))

class Narrow(Net):
    def forward(self, x):
        return super().forward(x)[:, :-1]

class Pair(Net):
    def forward(self, x):
        return super().forward(x), 0

class Double(Net):
    def forward(self, x):
        return super().forward(x).double()

class Nothing(Net):
    def forward(self, x):
        return super().forward(x) * float("nan")

class Blind(Net):
    def forward(self, x):
        with torch.no_grad():
            return super().forward(x)

class Detached(Net):
    def forward(self, x):
        return super().forward(x.detach())

class Failing(Net):
    def forward(self, x):
        raise ValueError("no such luck")

class OnlyFloat32(Net):
    def forward(self, x):
        found = super().forward(x)
        if found.dtype != torch.float32:
            raise ValueError("a kernel of my own, in float32")
        return found

class OnlyTrained(Net):
    def forward(self, x):
        if not self.training:
            raise ValueError("in evaluation")
        return super().forward(x)

def flat(modality, features):
    trunk = nn.Sequential(nn.Flatten(), orthogonal_linear(torch.Size(modality.shape[-3:]).numel(), features))
    return LipschitzEncoder(modality, trunk)
flat.lipschitz = True

def boasting(modality, features):
    layer = nn.Linear(torch.Size(modality.shape).numel(), features)
    nn.init.constant_(layer.weight, 3.0)
    return nn.Sequential(nn.Flatten(), layer)
boasting.lipschitz = True

class Claiming(Net):
    lipschitz = True
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "own_nets.py").write_text(NETS)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("own_nets", None)


def check(video: Any, **changes: Any) -> None:
    encoders = {"video": video, "audio": "small_resnet"}
    check_settings(parse(merged(merged(TINY, {"model": {"encoders": encoders}}), changes), "a test"))


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("Narrow", r"gives \(2, 15\) for a batch of shape \(2, 2, 3, 32, 32\): it must give .*\(2, 16\) here"),
        ("Pair", "gives a tuple: it must give one tensor of features"),
        ("Double", "gives torch.float64 features of torch.float32 inputs"),
        ("Nothing", "gives NaN or infinity in training"),
        ("Blind", "no gradient reaches its input"),
        ("Detached", "no gradient reaches its input"),
        ("Failing", "fails in training on a batch of .*ValueError: no such luck .*own_nets.py, line"),
        ("OnlyTrained", "fails in evaluation on a batch"),
        ("Missing", "has no 'Missing'"),
    ],
)
def test_a_mistake_names_the_field_in_one_line(name: str, line: str) -> None:
    with pytest.raises(BadInputError, match=f"^model.encoders.video: own_nets:{name}.*{line}|{line}") as caught:
        check(f"own_nets:{name}")
    assert str(caught.value).startswith("model.encoders.video: ") and "\n" not in str(caught.value)


@pytest.mark.usefixtures("own")
def test_an_encoder_that_works_passes_in_any_width_and_draws_nothing_from_the_generator() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    check("own_nets:Net")
    assert torch.equal(torch.get_rng_state(), before)
    check_settings(
        parse(
            merged(TINY, {"model": {"encoders": {"video": {"path": "own_nets:Net", "depth": 2}}, "features": 13}}),
            "a test",
        )
    )


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    "changes", [{"train": {"precision": "bf16"}}, {"search": {"train.precision": {"choice": ["fp32", "bf16"]}}}]
)
def test_an_encoder_that_cannot_compute_in_bfloat16_is_refused_where_it_must(changes: dict[str, Any]) -> None:
    check("own_nets:OnlyFloat32")
    check("own_nets:Net", **changes)
    with pytest.raises(BadInputError, match=r"fails in training in train.precision bf16 on .*a kernel of my own"):
        check("own_nets:OnlyFloat32", **changes)


def test_compiling_without_a_compiler_is_refused_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    check("small_resnet", train={"compile": True})
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(BadInputError, match=r"train.compile needs a C\+?\+? ?.*compiler, and none of .* is installed"):
        check("small_resnet", search={"train.compile": {"choice": [False, True]}})


@pytest.mark.usefixtures("own")
def test_every_choice_of_a_search_is_built() -> None:
    search = {"model.encoders.video": {"choice": ["small_resnet", {"path": "own_nets:Net", "depth": 1}]}}
    check("small_resnet", search=search)
    search["model.encoders.video"]["choice"].append({"path": "own_nets:Net", "deep": 1})
    with pytest.raises(BadInputError, match=r"^model.encoders.video: own_nets:Net cannot be called with .*deep"):
        check("small_resnet", search=search)


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("Net", "certify.certificates: lipschitz needs encoders that are 1-Lipschitz .* is own_nets:Net"),
        ("boasting", "model.encoders.video: video.1 .Linear. has norm .*, above 1"),
        ("Claiming", "model.encoders.video: 'video' has a Claiming, which has no known Lipschitz constant"),
    ],
)
def test_what_says_that_it_is_1_lipschitz_is_verified(name: str, line: str) -> None:
    certify = {"certificates": ["lipschitz"]}
    with pytest.raises(BadInputError, match=f"^{line}"):
        check(f"own_nets:{name}", certify=certify, model={"encoders": {"video": f"own_nets:{name}"}})
    check("own_nets:flat", certify=certify, model={"encoders": {"video": "own_nets:flat"}})
