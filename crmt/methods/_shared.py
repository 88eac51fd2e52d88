"""Shared by several methods: checks of hyperparameters, losses with their parts, mixing, and training attacks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from crmt.attacks import Ball
from crmt.attacks.balls import moved, wide
from crmt.attacks.losses import attack_loss
from crmt.distributed import sum_over_ranks, world_size
from crmt.gradients import input_gradients
from crmt.losses import margin_regulariser
from crmt.methods.base import Forward, LossTerms, Step
from crmt.modality import Inputs
from crmt.model import MultiModalModel, Output, evaluating
from crmt.randomness import generator_on


def cross_entropy_loss(output: Output, labels: Tensor) -> LossTerms:
    """Cross-entropy, CE(h, y).

    Args:
        output: of the training forward pass.
        labels: y, `(B,)`.
    """
    entropy = F.cross_entropy(output.logits, labels)
    return LossTerms(entropy, {"cross_entropy": entropy}, output)


def margin_loss(output: Output, labels: Tensor, rho: float) -> LossTerms:
    """L1 of CRMT: CE(h, y) + ρ · log Σ_m Σ_{k≠y} exp(s_k^(m) − s_y^(m)), with the floor inside the logarithm.

    Args:
        output: of the training forward pass.
        labels: y, `(B,)`.
        rho: ρ, the weight of the margin term.
    """
    entropy = F.cross_entropy(output.logits, labels)
    margin = margin_regulariser(output.scores, labels)
    return LossTerms(entropy + rho * margin, {"cross_entropy": entropy, "margin_term": margin}, output)


def common_seed(step: Step, below: int) -> int:
    """A random number in [0, below), the same on every worker, though each worker's generator differs."""
    drawn = torch.randint(below, (1,), generator=step.generator)
    if world_size() > 1:
        drawn = sum_over_ranks(drawn.to(step.labels.device))
    return int(drawn) % below


@dataclass(frozen=True)
class Mixed:
    """A batch mixed with a permutation of itself: x = λ x_a + (1−λ) x_b in every modality."""

    inputs: Inputs
    first: Tensor
    """y_a, `(B,)`."""
    second: Tensor
    """y_b, `(B,)`."""
    mix: float
    """λ."""


def mixed(step: Step, alpha: float) -> Mixed:
    """Mix a batch with a permutation of itself.

    λ ~ Beta(α, α) is the same on every worker. The permutation is of this worker's clips, the same for every modality.

    Args:
        step: gives inputs, labels and the generator.
        alpha: α, above 0.
    """
    mix = float(np.random.default_rng(common_seed(step, 2**62)).beta(alpha, alpha))
    device = step.labels.device
    order = torch.randperm(len(step.labels), generator=generator_on(device, step.generator), device=device)
    inputs = {m: mix * x + (1 - mix) * x[order] for m, x in step.inputs.items()}
    return Mixed(inputs, step.labels, step.labels[order], mix)


def adversarial(
    model: MultiModalModel,
    inputs: Mapping[str, Tensor],
    labels: Tensor,
    ball: Ball,
    steps: int,
    forward: Forward | None = None,
) -> Inputs:
    """Training inputs that raise the cross-entropy: the last point of ℓ2 PGD from x, with steps of 2.5 ε / steps.

    This is not `crmt.attacks.pgd`, which returns the point of least margin among all that it saw; training takes the
    last one (Madry et al., ICLR 2018). The encoders are in evaluation mode, so that the statistics of batch norm come
    from training batches alone.

    Args:
        model: the model in training.
        inputs: every modality's input, `(B, *shape)`.
        labels: y, `(B,)`.
        ball: which modalities are attacked, and how far.
        steps: gradient steps.
        forward: the model as a function, such as `Step.attacked`; None: the model itself.

    Returns: all inputs, those of attacked modalities moved.
    """
    forward = model if forward is None else forward
    clean = {m: inputs[m].detach() for m in model.modalities}
    attacked = {m: wide(clean[m]) for m in ball.attacked}
    deltas = {m: torch.zeros_like(x) for m, x in attacked.items()}
    with evaluating(model):
        for _ in range(steps):
            leaves = {m: moved(clean[m], d).requires_grad_() for m, d in deltas.items()}
            with torch.enable_grad():
                # a first layer that works in place may not be given a leaf
                logits = wide(forward(clean | {m: leaf.clone() for m, leaf in leaves.items()}).logits)
                # not F.cross_entropy: on a confident model its gradient is 0 in float32, or points a wrong way
                loss = attack_loss("cross_entropy", logits, labels, None).sum()
            if logits.shape[1] < 2:  # with one class there is nothing to attack
                break
            gradients = input_gradients(model, clean, loss, leaves)
            # a norm at 0 has a NaN gradient in many models: that direction is left out
            there = ball.stepped(deltas, {m: wide(torch.nan_to_num(g)) for m, g in gradients.items()}, 2.5 / steps)
            deltas = ball.project(there, attacked, model.modalities)
    return clean | {m: moved(clean[m], d) for m, d in deltas.items()}


def joint_adversarial(step: Step, epsilon: float, steps: int) -> Inputs:
    """`adversarial` in the joint ball of radius ε over all modalities.

    Args:
        step: gives model, inputs and labels.
        epsilon: ε, in the inputs' own spaces.
        steps: gradient steps.
    """
    ball = Ball.joint(step.model.modalities, epsilon)
    return adversarial(step.model, step.inputs, step.labels, ball, steps, step.attacked)
