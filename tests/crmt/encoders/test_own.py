"""Encoders of the user's own, and timm's, behind the one door."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from crmt.checkpoint import load_model, save_model
from crmt.encoders import build_encoder, declared_lipschitz, encoder_names
from crmt.errors import BadInputError
from crmt.model import build_model
from tests.crmt.tiny import IMAGE, SOUND, random_inputs, spec

MYNET = """
from torch import nn

class VideoNet(nn.Module):
    def __init__(self, modality, features, depth=1):
        super().__init__()
        size = 1
        for n in modality.shape:
            size *= n
        widths = [size, *([features] * depth)]
        self.layers = nn.Sequential(nn.Flatten(), *(nn.Linear(a, b) for a, b in zip(widths, widths[1:])))

    def forward(self, x):
        return self.layers(x)

class Started(VideoNet):
    def __init__(self, modality, features, weights=None):
        super().__init__(modality, features)
        if weights is not None:
            open(weights).close()

class Short(nn.Identity):
    lipschitz = True

def broken(modality, features):
    raise KeyError("weights")

def number(modality, features):
    return 3

constant = 7
"""
TIMM = '''
"""The parts of timm's interface that the adapter uses."""
import torch
from safetensors.torch import load_file
from torch import nn

def list_models():
    return ["net"]

def is_model(name):
    return name in list_models()

def create_model(name, pretrained=False, pretrained_cfg_overlay=None, num_classes=1000, in_chans=3, width=6):
    assert num_classes == 0
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.num_features = width
            self.conv = nn.Conv2d(in_chans, width, 3)
            self.norm = nn.BatchNorm2d(width)
        def forward(self, x):
            return self.norm(self.conv(x)).mean((2, 3))
    net = Net()
    if pretrained:
        net.load_state_dict(load_file(pretrained_cfg_overlay["file"]))
    return net
'''
TIMM_DATA = """
def resolve_model_data_config(model):
    return {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7), "input_size": (3, 224, 224)}
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with `mynet.py` and a stand-in for timm, first on the import path."""
    (tmp_path / "mynet.py").write_text(MYNET)
    (tmp_path / "timm").mkdir()
    (tmp_path / "timm" / "__init__.py").write_text(TIMM)
    (tmp_path / "timm" / "data.py").write_text(TIMM_DATA)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("mynet", "timm", "timm.data"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield tmp_path
    for name in ("mynet", "timm", "timm.data"):
        sys.modules.pop(name, None)


def test_ours_are_one_file_each() -> None:
    assert encoder_names() == ["lipschitz_conv", "mlp", "resnet18", "small_resnet"]
    assert [declared_lipschitz(name) for name in encoder_names()] == [True, False, False, False]


@pytest.mark.usefixtures("own")
def test_arguments_reach_an_encoder_of_any_width() -> None:
    encoder = build_encoder({"path": "mynet:VideoNet", "depth": 3}, IMAGE, 13)
    assert sum(isinstance(m, nn.Linear) for m in encoder.modules()) == 3
    assert encoder(torch.rand(2, *IMAGE.shape)).shape == (2, 13)
    assert declared_lipschitz("mynet:Short") and not declared_lipschitz("mynet:VideoNet")


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("mynet:VideoNte", r"has no 'VideoNte'\. Did you mean 'VideoNet'\?"),
        ({"path": "mynet:VideoNet", "deep": 3}, r"mynet:VideoNet cannot be called with \(modality, features, deep\)"),
        ({"path": "small_resnet", "depth": 3}, "small_resnet cannot be called with .*'depth'"),
        ({"depth": 3}, "give a name, or {path: package.module:Name"),
        ("mynet:broken", "mynet:broken cannot be built for 'video': KeyError: 'weights' .*mynet.py, line"),
        ("mynet:number", "gives a int for 'video': give a torch.nn.Module"),
        ("mynet:constant", "mynet:constant is a int, no encoder"),
        ("timm:nett", r"timm has no model 'nett'\. Did you mean 'net'\?"),
        ({"path": "timm:net", "pretrained": True}, "pretrained cannot be set"),
        ({"path": "timm:net", "weights": "w.safetensors"}, "weights must be a whole path"),
        ({"path": "timm:net", "weights": "/nowhere/w"}, "there is no file /nowhere/w"),
    ],
)
def test_what_cannot_be_built_is_one_line(given: str | dict[str, object], line: str) -> None:
    with pytest.raises(BadInputError, match=line) as caught:
        build_encoder(given, IMAGE, 16)
    assert "\n" not in str(caught.value)


def test_a_card_that_names_code_is_loaded_only_where_the_caller_trusts_it(own: Path, tmp_path: Path) -> None:
    chosen = replace(spec(), encoders={"audio": {"path": "mynet:VideoNet", "depth": 2}, "video": "small_resnet"})
    model = build_model(chosen, seed=1).eval()
    save_model(tmp_path / "model", model, chosen, {})
    del sys.modules["mynet"]
    with pytest.raises(BadInputError, match=r"names code by path \(mynet:VideoNet\).*trust_code=True.*--trust-code"):
        load_model(tmp_path / "model")
    assert "mynet" not in sys.modules
    loaded, found, _ = load_model(tmp_path / "model", trust_code=True)
    assert found == chosen
    inputs = random_inputs(model, 3)
    assert torch.equal(loaded(inputs).logits, model(inputs).logits)
    (own / "mynet.py").unlink()
    del sys.modules["mynet"]
    with pytest.raises(BadInputError, match=r"^mynet:VideoNet: there is no module 'mynet' here.*--with DIR"):
        load_model(tmp_path / "model", trust_code=True)


def test_a_saved_model_needs_the_file_no_more_that_it_started_from(own: Path, tmp_path: Path) -> None:
    start = tmp_path / "start"
    start.write_text("")
    chosen = replace(spec(modalities=1), encoders={"audio": {"path": "mynet:Started", "weights": str(start)}})
    save_model(tmp_path / "model", build_model(chosen), chosen, {})
    start.unlink()
    assert load_model(tmp_path / "model", trust_code=True)[1] == chosen
    with pytest.raises(BadInputError, match="FileNotFoundError"):
        build_model(chosen)


@pytest.mark.usefixtures("own")
def test_timm_gets_pictures_normalised_as_its_weights_expect_and_sound_as_it_is() -> None:
    modality = replace(IMAGE, shape=(3, 3, 8, 8))
    encoder = build_encoder("timm:net", modality, 6).eval()
    raw = torch.rand(4, *modality.shape)
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7)))
    trunk = encoder.get_submodule("trunk")
    expected = torch.stack([trunk((raw[:, t] - mean) / std) for t in range(3)]).mean(0)
    found = encoder((raw - modality.per_channel(modality.mean)) / modality.per_channel(modality.std))
    torch.testing.assert_close(found, expected)
    sound = build_encoder({"path": "timm:net", "width": 5}, SOUND, 16).eval()
    x = torch.randn(4, *SOUND.shape)
    torch.testing.assert_close(
        sound(x), sound.get_submodule("projection")(sound.get_submodule("trunk")(x)), rtol=0, atol=0
    )
    assert sound(x).shape == (4, 16)


def test_timm_starts_from_a_file_and_is_rebuilt_without_it(own: Path, tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    trunk = build_encoder("timm:net", IMAGE, 6).get_submodule("trunk")
    save_file(trunk.state_dict(), file)
    chosen = replace(
        spec(modalities=1), modalities=(IMAGE,), encoders={"video": {"path": "timm:net", "weights": str(file)}}
    )
    model = build_model(chosen, seed=9)
    for name, value in load_file(file).items():
        assert torch.equal(model.encoders["video"].get_submodule("trunk").state_dict()[name], value)
    save_model(tmp_path / "model", model, chosen, {})
    file.unlink()
    loaded, _, _ = load_model(tmp_path / "model")  # timm is a package of the environment: no code of the card's
    assert torch.equal(loaded.state_dict()["encoders.video.trunk.conv.weight"], trunk.state_dict()["conv.weight"])


def test_a_timm_that_cannot_be_imported_is_one_line(own: Path) -> None:
    (own / "timm" / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    with pytest.raises(BadInputError, match=r"timm cannot be imported .*torchvision::nms.*install the torchvision"):
        build_encoder("timm:net", IMAGE, 6)
    (own / "timm" / "__init__.py").write_text("import nothing_of_this_name")
    with pytest.raises(BadInputError, match=r"no module 'nothing_of_this_name' here: pip install 'crmt-sweep\[timm\]'"):
        build_encoder("timm:net", IMAGE, 6)
