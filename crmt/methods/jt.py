"""JT, joint training: cross-entropy on the plain joint classifier. The baseline of every comparison."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from crmt.methods.base import Forward, LossTerms, Method


@dataclass(frozen=True, kw_only=True)
class JT(Method):
    """L = CE(h(x), y) on a ConcatHead."""

    title = "JT"
    head = "concat"

    def loss(self, forward: Forward, inputs: Mapping[str, Tensor], labels: Tensor) -> LossTerms:
        output = forward(inputs)
        entropy = F.cross_entropy(output.logits, labels)
        return LossTerms(entropy, {"cross_entropy": entropy}, output)


METHOD = JT
