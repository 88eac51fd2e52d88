"""One protocol over a set of inputs: predictions, accuracy under attack over a grid of budgets, radii and their audit.

Everything is per sample, so that the parts that several workers computed only need to be put one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from crmt.attacks import Ball, fgm, pgd
from crmt.certificates.audit import Audit, audit
from crmt.certificates.radius import Radii
from crmt.errors import BadInputError
from crmt.fit import Batch
from crmt.heads import Head
from crmt.model import MultiModalModel, evaluating

Progress = Callable[[int], None]


def _silent(_: int) -> None:
    return None


@dataclass(frozen=True)
class Predictions:
    """Clean outputs of N inputs, on the CPU."""

    ids: tuple[str, ...]
    labels: Tensor
    """`(N,)`."""
    scores: Tensor
    """s, `(N, M, K)`."""
    missing: Tensor
    """Class predicted with one modality replaced by its mean, `(N, M)`."""

    @staticmethod
    def concatenated(parts: Sequence[Predictions]) -> Predictions:
        """Those of several workers, one after the other."""
        return Predictions(
            tuple(i for p in parts for i in p.ids),
            torch.cat([p.labels for p in parts]),
            torch.cat([p.scores for p in parts]),
            torch.cat([p.missing for p in parts]),
        )

    def logits(self, head: Head) -> Tensor:
        """h, `(N, K)`, with the head's integration weights as they are now."""
        with torch.no_grad():
            return head.logits(self.scores.to(head.bias.device)).cpu()

    def mean_contributions(self, head: Head) -> Tensor:
        """Mean of a · s over the N inputs, `(M, K)`: what each modality adds to the logits on average."""
        with torch.no_grad():
            return (head.integration.cpu() * self.scores).mean(0)

    def unimodal(self, head: Head, reference: Tensor) -> Tensor:
        """Class predicted from one modality, `(N, M)`, with the other modalities' contributions at `reference`.

        Scores alone would not do: training fixes only the sum over modalities of their constant offsets.

        Args:
            reference: `mean_contributions` of training inputs, `(M, K)`.
        """
        with torch.no_grad():
            own = head.integration.cpu() * self.scores
            others = reference.sum(0) - reference
            return (own + others + head.bias.cpu()).argmax(2)


def predict(
    model: MultiModalModel, batches: Iterable[Batch], progress: Progress = _silent, *, missing: bool = True
) -> Predictions:
    """Scores and predictions, in evaluation mode. Progress counts inputs.

    Args:
        missing: also predict with each modality left out; otherwise `Predictions.missing` is `(N, 0)`.
    """
    ids: list[str] = []
    labels, scores, absent = [], [], []
    with evaluating(model), torch.no_grad():
        for batch in batches:
            output = model(batch.inputs)
            ids += batch.ids
            labels.append(batch.labels.cpu())
            scores.append(output.scores.cpu())
            without = [
                model({**batch.inputs, m: modality.missing(batch.inputs[m])}).logits.argmax(1)
                for m, modality in (model.modalities.items() if missing else ())
            ]
            absent.append(torch.stack(without, 1).cpu() if missing else torch.empty(len(batch.labels), 0))
            progress(len(batch.labels))
    if not labels:
        raise BadInputError("nothing to evaluate: the split is empty")
    return Predictions(tuple(ids), torch.cat(labels), torch.cat(scores), torch.cat(absent))


@dataclass(frozen=True, kw_only=True)
class AttackPlan:
    """Which attacks run, in which balls, with which budgets."""

    names: tuple[Literal["fgm", "pgd"], ...] = ("fgm", "pgd")
    balls: tuple[str, ...] = ("joint", "each")
    """`joint`, `each` (every modality alone), or modalities' names."""
    epsilons: tuple[float, ...] = (0.1, 0.4, 0.7, 1, 1.5, 2, 2.5, 3, 3.5, 4)
    norm: Literal["l2", "linf"] = "l2"
    loss: str = "margin"
    steps: int = 20
    restarts: int = 1
    seed: int = 0

    def attacked(self, modalities: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """Ball name to the modalities that it attacks. With one modality, `joint` and `each` are the same ball.

        Raises:
            BadInputError: a ball that is neither `joint`, `each` nor a modality of the model.
        """
        balls: dict[str, tuple[str, ...]] = {}
        for ball in self.balls:
            if ball == "joint":
                balls["joint"] = tuple(modalities)
            elif ball == "each":
                balls |= {m: (m,) for m in modalities}
            elif ball in modalities:
                balls[ball] = (ball,)
            else:
                raise BadInputError(f"attack.balls: {ball!r} is not joint, each or one of {', '.join(modalities)}")
        return balls


@dataclass(frozen=True)
class Robustness:
    """Whether each of N predictions withstood an attack."""

    attack: str
    ball: str
    epsilons: tuple[float, ...]
    robust: Tensor
    """`(N, E)`, bool."""


def attack_curves(
    model: MultiModalModel, batches: Iterable[Batch], plan: AttackPlan, progress: Progress = _silent
) -> list[Robustness]:
    """Attack every input in every ball at every budget. Progress counts inputs × balls.

    PGD drops an input once it is broken, and starts a larger budget from the smaller one's result, so its accuracy
    never rises with the budget. FGM is one step at each budget by itself.
    """
    epsilons = tuple(sorted(plan.epsilons))
    found: dict[tuple[str, str], list[Tensor]] = {}
    for number, batch in enumerate(batches):
        generator = torch.Generator().manual_seed(plan.seed + number)
        for name, attacked in plan.attacked(list(model.modalities)).items():
            for attack in plan.names:
                if attack not in GRIDS:
                    raise BadInputError(f"no attack {attack!r}. Valid: {', '.join(GRIDS)}")
                robust = GRIDS[attack](model, batch, attacked, epsilons, plan, generator)
                found.setdefault((attack, name), []).append(robust.cpu())
            progress(len(batch.labels))
    return [Robustness(attack, name, epsilons, torch.cat(parts)) for (attack, name), parts in found.items()]


def _fgm_grid(
    model: MultiModalModel,
    batch: Batch,
    attacked: tuple[str, ...],
    epsilons: tuple[float, ...],
    plan: AttackPlan,
    generator: torch.Generator,  # noqa: ARG001
) -> Tensor:
    results = (
        fgm(model, batch.inputs, batch.labels, Ball.joint(attacked, e, plan.norm), loss=plan.loss) for e in epsilons
    )
    return torch.stack([~r.broken for r in results], dim=1)


def _pgd_grid(
    model: MultiModalModel,
    batch: Batch,
    attacked: tuple[str, ...],
    epsilons: tuple[float, ...],
    plan: AttackPlan,
    generator: torch.Generator,
) -> Tensor:
    robust = torch.zeros(len(batch.labels), len(epsilons), dtype=torch.bool)
    standing = torch.arange(len(batch.labels), device=batch.labels.device)
    inputs, start = batch.inputs, batch.inputs
    for column, epsilon in enumerate(epsilons):
        if len(standing) == 0:
            break
        result = pgd(
            model,
            inputs,
            batch.labels[standing],
            Ball.joint(attacked, epsilon, plan.norm),
            steps=plan.steps,
            restarts=plan.restarts,
            loss=plan.loss,
            start=start,
            generator=generator,
        )
        kept = (~result.broken).nonzero().squeeze(1)
        standing = standing[kept]
        inputs = {m: x[kept] for m, x in inputs.items()}
        start = {m: x[kept] for m, x in result.inputs.items()}
        robust[standing.cpu(), column] = True
    return robust


GRIDS = {"fgm": _fgm_grid, "pgd": _pgd_grid}
"""Attack by name: which of a batch's inputs withstand it at each budget, `(B, E)`."""


def audit_batches(
    model: MultiModalModel,
    batches: Iterable[Batch],
    radii: Radii,
    *,
    steps: int,
    restarts: int = 1,
    seed: int = 0,
    progress: Progress = _silent,
) -> dict[str, Audit]:
    """`audit` over batches whose inputs are, in order, those of `radii`. Progress counts inputs."""
    parts: list[dict[str, Audit]] = []
    done = 0
    for number, batch in enumerate(batches):
        device, here = batch.labels.device, slice(done, done + len(batch.labels))
        part = Radii(
            radii.certificate,
            radii.modalities,
            radii.joint[here].to(device),
            radii.unimodal[here].to(device),
            radii.indicator[here].to(device),
        )
        generator = torch.Generator().manual_seed(seed + number)
        parts.append(
            audit(model, batch.inputs, batch.labels, part, steps=steps, restarts=restarts, generator=generator)
        )
        done += len(batch.labels)
        progress(len(batch.labels))
    names: Mapping[str, Audit] = parts[0] if parts else {}
    return {
        name: Audit(
            torch.cat([p[name].audited.cpu() for p in parts]),
            torch.cat([p[name].violated.cpu() for p in parts]),
        )
        for name in names
    }
