"""Plain PyTorch, as a competent user writes it for one pair of networks: what the benchmarks compare crmt with.

Nothing here imports crmt. Channels last, a fused optimiser, autocast and torch.compile are used as its users would.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Clips = tuple[Tensor, Tensor, Tensor]
"""Video `(B, T, 3, H, W)` in [0, 1], sound `(B, 1, mels, frames)`, labels `(B,)`."""


class Block(nn.Module):
    """Two 3 × 3 convolutions and a shortcut (He et al., 2016)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), nn.BatchNorm2d(channels_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


def resnet18(channels: int, features: int) -> nn.Sequential:
    """ResNet-18 of any width, from `(B, channels, H, W)` to `(B, features)`."""
    w1, w2, w3 = features // 8, features // 4, features // 2
    return nn.Sequential(
        nn.Conv2d(channels, w1, 7, 2, padding=3, bias=False),
        nn.BatchNorm2d(w1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, padding=1),
        *(Block(w1, w1, 1), Block(w1, w1, 1), Block(w1, w2, 2), Block(w2, w2, 1)),
        *(Block(w2, w3, 2), Block(w3, w3, 1), Block(w3, features, 2), Block(features, features, 1)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


class Pair(nn.Module):
    """Two ResNets under one linear layer; the frames of a video are averaged.

    Args:
        features: width of each network's output.
        classes: K.
        mean, std: of video and of sound, one number each.
    """

    def __init__(
        self, features: int, classes: int, mean: Sequence[float] = (0.5, 0.0), std: Sequence[float] = (0.25, 1.0)
    ) -> None:
        super().__init__()
        self.video, self.sound = resnet18(3, features), resnet18(1, features)
        self.classifier = nn.Linear(2 * features, classes)
        self.mean, self.std = tuple(mean), tuple(std)

    def forward(self, video: Tensor, sound: Tensor) -> Tensor:
        """Logits, `(B, K)`."""
        frames = ((video - self.mean[0]) / self.std[0]).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        seen = self.video(frames).unflatten(0, video.shape[:2]).mean(1)
        heard = self.sound(((sound - self.mean[1]) / self.std[1]).contiguous(memory_format=torch.channels_last))
        return cast(Tensor, self.classifier(torch.cat([seen, heard], dim=1)))


def pair(features: int, classes: int, device: torch.device, *, compiled: bool = False) -> nn.Module:
    """A network on its device, channels last, compiled where asked for."""
    model = cast(nn.Module, Pair(features, classes).to(device, memory_format=torch.channels_last))  # type: ignore[call-overload]
    return cast(nn.Module, torch.compile(model, dynamic=False)) if compiled else model


def optimiser(model: nn.Module, lr: float = 0.01) -> torch.optim.SGD:
    """SGD with momentum and weight decay; fused on a GPU."""
    parameters = list(model.parameters())
    fused = True if parameters[0].is_cuda else None
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=1e-4, fused=fused)


def autocast(device: torch.device, bf16: bool) -> AbstractContextManager[object]:
    """Autocast to bfloat16, or nothing."""
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16)


def joint_training(model: nn.Module, optimizer: torch.optim.Optimizer, batches: Iterable[Clips], *, bf16: bool) -> None:
    """One epoch of cross-entropy."""
    model.train()
    for video, sound, labels in batches:
        with autocast(video.device, bf16):
            loss = F.cross_entropy(model(video, sound), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()


def adversarial_training(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Clips],
    *,
    bf16: bool,
    epsilon: float = 0.7,
    steps: int = 5,
) -> None:
    """One epoch of cross-entropy on the last point of ℓ2 PGD over both modalities (Madry et al., 2018)."""
    for video, sound, labels in batches:
        model.eval()
        moved = pgd(model, (video, sound, labels), epsilon=epsilon, steps=steps, bf16=bf16)
        model.train()
        with autocast(video.device, bf16):
            loss = F.cross_entropy(model(*moved), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()


def pgd(model: nn.Module, clips: Clips, *, epsilon: float, steps: int, bf16: bool) -> tuple[Tensor, Tensor]:
    """The last point of PGD on the cross-entropy in the joint ℓ2 ball, from x, with steps of 2.5 ε / steps.

    Args:
        model: in evaluation mode.
        clips: a batch.
        epsilon: radius of the ball over both inputs together.
        steps: gradient steps.
        bf16: under autocast.

    Returns: video, clamped to [0, 1], and sound.
    """
    video, sound, labels = clips
    deltas = [torch.zeros_like(video), torch.zeros_like(sound)]
    for _ in range(steps):
        points = [(x + d).requires_grad_() for x, d in zip((video, sound), deltas, strict=True)]
        with autocast(video.device, bf16):
            loss = F.cross_entropy(model(*points), labels, reduction="sum")
        gradients = torch.autograd.grad(loss, points)
        length = _length(gradients)
        with torch.no_grad():
            step = 2.5 * epsilon / steps / length.clamp_min(1e-12)
            deltas = [d + g * _column(step, g) for d, g in zip(deltas, gradients, strict=True)]
            shrink = (epsilon / _length(deltas).clamp_min(1e-12)).clamp_max(1)
            deltas = [d * _column(shrink, d) for d in deltas]
            deltas[0] = (video + deltas[0]).clamp(0, 1) - video
    return video + deltas[0], sound + deltas[1]


def _length(parts: Sequence[Tensor]) -> Tensor:
    return torch.stack([p.flatten(1).square().sum(1) for p in parts]).sum(0).sqrt()


def _column(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (like.ndim - 1))
