"""Encoders: shapes, frames that share a trunk, names; BatchNorm in one process (in two: test_fit)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from crmt.encoders import build_encoder, encoder_names
from crmt.encoders.resnet import BatchNorm, ResidualBlock
from crmt.errors import BadInputError
from crmt.modality import Modality
from crmt.model import evaluating
from tests.crmt.tiny import IMAGE, MOTION, SOUND


@pytest.mark.parametrize("name", encoder_names())
@pytest.mark.parametrize("modality", [IMAGE, SOUND, MOTION], ids=lambda m: m.name)
def test_features_have_the_asked_width(name: str, modality: object) -> None:
    chosen = {"video": IMAGE, "audio": SOUND, "flow": MOTION}[modality.name]  # type: ignore[attr-defined]
    encoder = build_encoder(name, chosen, 16).eval()
    assert encoder(torch.randn(3, *chosen.shape)).shape == (3, 16)


@pytest.mark.parametrize("width", [64, 65])
def test_the_shortcut_is_a_convolution_with_a_stride(width: int) -> None:
    block = ResidualBlock(8, 16, 2).double()
    shortcut = next(m for m in block.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1))
    x, same = (torch.randn(2, 8, 32, width, dtype=torch.float64).requires_grad_() for _ in range(2))
    same.data.copy_(x)
    ours, theirs = shortcut(x), nn.functional.conv2d(same, shortcut.weight, stride=2)
    torch.testing.assert_close(ours, theirs)
    ours.square().sum().backward()
    theirs.square().sum().backward()
    torch.testing.assert_close(x.grad, same.grad)


def test_narrow_encoders_of_large_inputs_can_be_trained() -> None:
    """With oneDNN's own strided 1 × 1 convolution the process died here, on processors with AVX-512."""
    encoder = build_encoder("small_resnet", replace(SOUND, shape=(1, 128, 512)), 16)
    encoder(torch.randn(4, 1, 128, 512)).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in encoder.parameters())


def test_frames_share_the_trunk_and_are_averaged() -> None:
    encoder = build_encoder("small_resnet", replace(IMAGE, shape=(3, 3, 8, 8)), 16).eval()
    x = torch.randn(4, 3, 3, 8, 8)
    expected = torch.stack([encoder(x[:, t]) for t in range(3)]).mean(0)
    torch.testing.assert_close(encoder(x), expected)
    torch.testing.assert_close(encoder(x.flip(1)), expected)


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 3, 8, 8), (3, 3, 5, 9)])
def test_the_lipschitz_encoder_takes_any_size_and_sums_frames_over_the_root(shape: tuple[int, ...]) -> None:
    channel_axis = len(shape) - 3
    modality = replace(IMAGE, shape=shape, channel_axis=channel_axis)
    encoder = build_encoder("lipschitz_conv", modality, 16).eval()
    x = torch.randn(4, *shape)
    if len(shape) == 3:
        assert encoder(x).shape == (4, 16)
        return
    frames = shape[0]
    single = build_encoder("lipschitz_conv", replace(modality, shape=(1, *shape[1:])), 16).eval()
    single.load_state_dict(encoder.state_dict())
    expected = torch.stack([single(x[:, t : t + 1]) for t in range(frames)]).sum(0) / frames**0.5
    torch.testing.assert_close(encoder(x), expected)


def test_the_lipschitz_encoder_undoes_the_division_by_the_deviation() -> None:
    wide = replace(IMAGE, std=(1.0, 1.0, 1.0))
    narrow = build_encoder("lipschitz_conv", IMAGE, 16)
    plain = build_encoder("lipschitz_conv", wide, 16)
    plain.load_state_dict(narrow.state_dict())
    raw = torch.randn(4, *IMAGE.shape)
    torch.testing.assert_close(narrow(raw / IMAGE.per_channel(IMAGE.std)), plain(raw))


def test_lipschitz_gradients_reach_every_parameter() -> None:
    encoder = build_encoder("lipschitz_conv", IMAGE, 16)
    encoder(torch.randn(8, *IMAGE.shape)).square().sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_batch_norm_alone_is_torchs() -> None:
    ours, theirs = BatchNorm(3), nn.BatchNorm2d(3)
    x = torch.randn(5, 3, 4, 4)
    assert torch.equal(ours(x), theirs(x))
    assert torch.equal(ours.eval()(x), theirs.eval()(x))


def test_resnet18_has_the_usual_size() -> None:
    encoder = build_encoder("resnet18", IMAGE, 512)
    assert sum(p.numel() for p in encoder.parameters()) == 11_176_512  # torchvision's, without its classifier


@pytest.mark.parametrize("name", ["resnet50", None, ""])
def test_an_unknown_encoder_is_refused_with_the_valid_ones(name: str | None) -> None:
    with pytest.raises(BadInputError, match=r"for 'video'. Valid: lipschitz_conv, mlp, resnet18, small_resnet"):
        build_encoder(name, IMAGE, 16)  # type: ignore[arg-type]


@pytest.mark.parametrize("features", [0, 4, 12, -8])
def test_features_must_be_a_multiple_of_eight(features: int) -> None:
    with pytest.raises(BadInputError, match=f"multiple of 8, not {features}"):
        build_encoder("small_resnet", IMAGE, features)


@pytest.mark.parametrize("shape", [(7,), (64, 3), (2, 3, 8, 8)])
def test_the_mlp_takes_any_shape(shape: tuple[int, ...]) -> None:
    modality = Modality(
        name="x", shape=shape, channel_axis=0, mean=(0.0,) * shape[0], std=(1.0,) * shape[0], box=None, space="units"
    )
    assert build_encoder("mlp", modality, 16)(torch.randn(5, *shape)).shape == (5, 16)
    narrow = build_encoder({"path": "mlp", "hidden": 3}, modality, 16)
    assert [tuple(p.shape) for p in narrow.parameters() if p.ndim == 2][1] == (16, 3)


@pytest.mark.parametrize("name", ["small_resnet", "resnet18"])
def test_a_normalisation_folded_into_its_convolution_changes_neither_outputs_nor_gradients(name: str) -> None:
    torch.manual_seed(0)
    encoder = build_encoder(name, IMAGE, 16).double()
    x = torch.rand(6, *IMAGE.shape, dtype=torch.float64)
    for _ in range(5):
        encoder.train()(x + torch.rand_like(x))  # statistics that are not 0 and 1
    encoder.eval()
    leaf = x.clone().requires_grad_()
    plain = encoder(leaf)  # parameters could learn: nothing is folded
    (slope,) = torch.autograd.grad(plain.square().sum(), leaf)
    with evaluating(encoder):
        folded = encoder(leaf)
        (same,) = torch.autograd.grad(folded.square().sum(), leaf)
    torch.testing.assert_close(folded, plain, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(same, slope, rtol=1e-9, atol=1e-12)
    assert all(p.requires_grad for p in encoder.parameters())
