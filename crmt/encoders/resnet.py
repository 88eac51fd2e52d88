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


class _Shortcut(nn.Conv2d):
    """A 1 × 1 convolution with a stride, as a slice and one without: oneDNN's own gradient of it writes past its buffer
    where it has fewer than 16 channels and large inputs (oneDNN issue 6035), and the process dies."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        down, right = self.stride
        return F.conv2d(input[:, :, ::down, ::right], self.weight)


class ResidualBlock(nn.Module):
    """Two 3 × 3 convolutions and a shortcut (He et al., 2016)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.norm1 = BatchNorm(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.norm2 = BatchNorm(channels_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                _Shortcut(channels_in, channels_out, 1, stride, bias=False), BatchNorm(channels_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class ConvEncoder(nn.Module):
    """A convolutional trunk and global average pooling; the frames of a video share it and are averaged."""

    def __init__(self, trunk: nn.Module) -> None:
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
        pooled = cast(Tensor, self.trunk(images.contiguous(memory_format=torch.channels_last))).mean((2, 3))
        return pooled if x.ndim == 4 else pooled.unflatten(0, x.shape[:2]).mean(1)
