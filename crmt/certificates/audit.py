"""The audit: an attack tries to change each prediction strictly inside its radius. One success breaks a certificate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from crmt.arguments import check_batches, check_kind, check_model, check_tensors, check_whole
from crmt.attacks import attack as run_attack
from crmt.attacks.balls import Ball
from crmt.attacks.base import DEFAULT_SETTINGS, AttackSettings
from crmt.attacks.registry import find_attack
from crmt.certificates.radius import Radii
from crmt.errors import BadInputError
from crmt.modality import Batch, check_batch_kind, check_inputs
from crmt.model import MultiModalModel
from crmt.progress import Progress, silent

INSIDE = 0.99
"""The share of a radius at which it is attacked."""
FAR = 100.0
"""A radius is audited up to this many times (1 + the length of the input), so that an infinite one is tested, too."""


@dataclass(frozen=True, kw_only=True)
class AuditPlan:
    """Which attack tries to break the radii of a certificate, on how many clips."""

    attack: str = "auto"
    """By name, or `package.module:Name` of the user's own code."""
    settings: AttackSettings = field(default_factory=lambda: AttackSettings(restarts=2))
    samples: int = 128
    """The first clips of a fixed order; 0 leaves the audit out, and the result says so."""
    seed: int = 0

    def settings_said(self, attack: str | None = None) -> dict[str, Any]:
        """The audit's settings, as they are stored beside the radii.

        Args:
            attack: the certificate's own, in words, which takes steps and restarts; None: the one of the plan.
        """
        if not self.samples:
            return {"audit": None}
        takes = ("steps", "restarts")
        said: dict[str, Any] = {"audit": attack or self.attack, **self.settings.chosen(takes), "seed": self.seed}
        return said if attack else said | {k: getattr(self.settings, k) for k in ("queries", "targets")}


class Audit(NamedTuple):
    """What the audit of N inputs found in one ball."""

    audited: Tensor
    """`(N,)`, bool: the radius is positive, so there was something to attack."""
    violated: Tensor
    """`(N,)`, bool: the prediction changed at 0.99 of the radius, or of FAR (1 + ‖x‖) where that is less."""


def audit(
    model: MultiModalModel,
    inputs: Mapping[str, Tensor],
    labels: Tensor,
    radii: Radii,
    *,
    attack: str = "auto",
    settings: AttackSettings = DEFAULT_SETTINGS,
    generator: torch.Generator | None = None,
    progress: Progress = silent,
) -> dict[str, Audit]:
    """Attack at 0.99 r jointly and at 0.99 r^(m) each modality alone, in ℓ2: ball name to `Audit`.

    Args:
        model: in any mode; it is measured in evaluation mode and left as it was.
        inputs: x, `(N, *shape)` of every modality, in its space and inside its box.
        labels: y, `(N,)`, int64.
        radii: of these inputs, in their order.
        attack: by name, or `package.module:Name` of the user's own; `auto` is the strongest there is.
        settings: how hard it tries.
        generator: for the attack's random starts.
        progress: called after each ball, with its share of the inputs.

    Returns: audits on the inputs' device.

    Raises:
        BadInputError: not as many radii as inputs, radii of a smoothed classifier, an unknown attack, and as any
            attack.
    """
    check_model(model)
    check_kind("radii", radii, Radii, "what estimated_radii or lipschitz_radii gave")
    check_inputs(model.modalities, inputs)
    check_tensors(labels=labels)
    if radii.smoothed:
        raise BadInputError("these radii are of the smoothed classifier, not of the model: use audit_smoothing")
    if len(radii.joint) != len(labels):
        raise BadInputError(f"{len(radii.joint)} radii for {len(labels)} inputs: give the radii of these very inputs")
    find_attack(attack)  # also where no radius is positive
    device = next(iter(inputs.values())).device
    labels = labels.to(device)
    budgets = {"joint": radii.joint} | {m: radii.unimodal[:, i] for i, m in enumerate(radii.modalities)}
    result = {}
    for number, (name, given) in enumerate(budgets.items(), 1):
        attacked = tuple(radii.modalities) if name == "joint" else (name,)
        radius, audited = given.to(device), (given > 0).to(device)
        radius = torch.minimum(radius, FAR * (1 + _lengths(inputs, attacked).to(radius)))
        violated = torch.zeros_like(audited)
        chosen = audited.nonzero().squeeze(1)
        if len(chosen):
            found = run_attack(
                attack,
                model,
                {m: x[chosen] for m, x in inputs.items()},
                labels[chosen],
                Ball.joint(attacked, INSIDE * radius[chosen]),
                settings=settings,
                generator=generator,
            )
            violated[chosen] = found.broken
        result[name] = Audit(audited, violated)
        progress(len(labels) * number // len(budgets) - len(labels) * (number - 1) // len(budgets))
    return result


def _lengths(inputs: Mapping[str, Tensor], modalities: tuple[str, ...]) -> Tensor:
    """‖x‖ over these modalities together, `(N,)`."""
    return torch.stack([inputs[m].flatten(1).norm(dim=1) for m in modalities]).norm(dim=0)


def audit_batches(
    model: MultiModalModel,
    batches: Iterable[Batch],
    radii: Radii,
    *,
    attack: str = "auto",
    settings: AttackSettings = DEFAULT_SETTINGS,
    seed: int = 0,
    progress: Progress = silent,
) -> dict[str, Audit]:
    """`audit` over batches.

    Args:
        model: in any mode; it is measured in evaluation mode and left as it was.
        batches: labelled inputs, in the order of `radii`.
        radii: of all these inputs.
        attack: as in `audit`.
        settings: as in `audit`.
        seed: fixes the attack's random starts; each batch has its own.
        progress: called after each batch and ball, with its share of the inputs.

    Raises:
        BadInputError: as `audit`, or more or fewer radii than inputs.
    """
    check_kind("radii", radii, Radii, "what estimated_radii or lipschitz_radii gave")
    check_batches(batches)
    check_whole("seed", seed)
    parts: list[dict[str, Audit]] = []
    done = 0
    for number, batch in enumerate(batches):
        check_batch_kind(batch)
        generator = torch.Generator(batch.labels.device).manual_seed(seed + number)
        here = slice(done, done + len(batch.labels))
        parts.append(
            audit(
                model,
                batch.inputs,
                batch.labels,
                _part(radii, here),
                attack=attack,
                settings=settings,
                generator=generator,
                progress=progress,
            )
        )
        done += len(batch.labels)
    if done != len(radii.joint):
        raise BadInputError(f"{len(radii.joint)} radii for {done} inputs: give the radii of these very inputs")
    names: Mapping[str, Audit] = parts[0] if parts else {}
    return {
        name: Audit(
            torch.cat([p[name].audited.cpu() for p in parts]),
            torch.cat([p[name].violated.cpu() for p in parts]),
        )
        for name in names
    }


def _part(radii: Radii, here: slice) -> Radii:
    return replace(radii, joint=radii.joint[here], unimodal=radii.unimodal[here], indicator=radii.indicator[here])
