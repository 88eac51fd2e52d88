"""What residual encoders share: blocks, batch normalisation over all workers, and frames that share a trunk."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from crmt.distributed import world_size


class _SumOverRanks(torch.autograd.Function):
    """All-reduce whose gradient is the all-reduce of the gradients."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:  # noqa: ARG004
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # noqa: ARG004
        return cast(Tensor, _SumOverRanks.apply(grad))  # itself, so that a loss can hold gradients


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation over the GLOBAL batch: with several workers the statistics are those of all of them.

    torch's SyncBatchNorm refuses CPU tensors; this one works on every device, so that two workers train as one
    does. The ranks' batches must be of equal size.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        if not (self.training and world_size() > 1):
            return super().forward(input)
        ranks = world_size()
        x = input.float() if input.dtype.itemsize < 4 else input  # statistics of what autocast gives
        mean = cast(Tensor, _SumOverRanks.apply(x.mean((0, 2, 3)))) / ranks
        square = (x - mean[:, None, None]).square().mean((0, 2, 3))
        var = cast(Tensor, _SumOverRanks.apply(square)) / ranks
        with torch.no_grad():
            count = input.numel() // input.shape[1] * ranks
            momentum = cast(float, self.momentum)
            cast(Tensor, self.running_mean).lerp_(mean, momentum)
            cast(Tensor, self.running_var).lerp_(var * (count / max(count - 1, 1)), momentum)
            cast(Tensor, self.num_batches_tracked).add_(1)
        scale = self.weight * torch.rsqrt(var + self.eps)
        return torch.addcmul((self.bias - mean * scale)[:, None, None], x, scale[:, None, None]).to(input.dtype)


def _first(layers: nn.Sequential, x: Tensor) -> Tensor:
    """The convolution that `layers` begin with, and its normalisation."""
    return _normalised(cast(nn.Conv2d, layers[0]), cast(nn.BatchNorm2d, layers[1]), x)


def _normalised(conv: nn.Conv2d, norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """norm(conv(x)). Where nothing is learned it is one convolution, with the normalisation in its weights.

    That is a fifth to a third of an attack's step, and differs by rounding alone: 2e-7 of the largest gradient.

    Args:
        conv: without a bias.
        norm: of its output.
        x: `(B, C, H, W)`.
    """
    learning = torch.is_grad_enabled() and (conv.weight.requires_grad or norm.weight.requires_grad)
    if norm.training or learning or norm.running_mean is None or norm.running_var is None:
        return cast(Tensor, norm(conv(x)))
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    shift = norm.bias - norm.running_mean * scale
    return conv._conv_forward(x, conv.weight * scale[:, None, None, None], shift)


class _Shortcut(nn.Conv2d):
    """A 1 × 1 convolution with a stride, as a pooling and one without: oneDNN's own gradient of it writes past its
    buffer where it has fewer than 16 channels and large inputs (oneDNN issue 6035), and the process dies."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: A002
        # a slice whose gradient is channels last; that of x[:, :, ::2, ::2] is not, and slows down all before it
        return F.conv2d(F.avg_pool2d(input, 1, cast(tuple[int, int], self.stride)), weight, bias)


class ResidualBlock(nn.Module):
    """Two 3 × 3 convolutions and a shortcut (He et al., 2016)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.norm1 = BatchNorm(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.norm2 = BatchNorm(channels_out)
        self.shortcut: nn.Identity | nn.Sequential = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                _Shortcut(channels_in, channels_out, 1, stride, bias=False), BatchNorm(channels_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(_normalised(self.conv1, self.norm1, x))
        beside = x if isinstance(self.shortcut, nn.Identity) else _first(self.shortcut, x)
        return F.relu(_normalised(self.conv2, self.norm2, y) + beside)


class ConvEncoder(nn.Module):
    """A convolutional trunk and global average pooling; the frames of a video share it and are averaged.

    Args:
        trunk: begins with a convolution and its normalisation.
    """

    def __init__(self, trunk: nn.Sequential) -> None:
        super().__init__()
        self.trunk = trunk
        for parameter in trunk.parameters():  # channels last: 1.2 times faster in training on a CPU
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, H, W)` or `(B, T, C, H, W)` to `(B, features)`."""
        images = x if x.ndim == 4 else x.flatten(0, 1)
        maps = _first(self.trunk, images.contiguous(memory_format=torch.channels_last))
        for layer in list(self.trunk)[2:]:
            maps = layer(maps)
        pooled = maps.mean((2, 3))
        return pooled if x.ndim == 4 else pooled.unflatten(0, x.shape[:2]).mean(1)
