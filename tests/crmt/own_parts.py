"""An attack and two certificates as a user writes them, in a folder outside the project."""

from __future__ import annotations

from pathlib import Path

import pytest

SOURCE = '''
from dataclasses import dataclass

import torch

from crmt.attacks import Attack, AttackResult, pgd
from crmt.certificates import ClipCertificate, ScoreCertificate
from crmt.certificates.base import Basis
from crmt.certificates.radius import Radii


class Twice(Attack):
    """PGD with twice the steps."""

    title = "PGD, twice as long"
    settings = ("steps",)

    def run(self, call):
        found = pgd(*call.target, steps=2 * call.settings.steps, start=call.start)
        return AttackResult(found.inputs, found.margin)


@dataclass(frozen=True, kw_only=True)
class Share(ScoreCertificate):
    """A share of the margin, per unit of a constant that is given."""

    name = "margin_share"
    title = "share of the margin"
    word = "claimed radius"
    sound = False
    meaning = "a share of the margin: claims nothing"

    share: float = 0.001

    def basis(self, model, tau):
        return Basis(self.share, {"share": self.share})

    def radii(self, model, scores, labels, basis):
        with torch.no_grad():
            logits = model.head.logits(scores.to(model.head.bias.device)).cpu()
        own = logits.gather(1, labels[:, None]).squeeze(1)
        others = logits.scatter(1, labels[:, None], float("-inf")).amax(1)
        radius = basis.constants * (own - others).clamp_min(0)
        modalities = tuple(model.modalities)
        return Radii(self.name, modalities, radius, radius[:, None].expand(-1, len(modalities)),
                     torch.ones(len(labels), len(modalities)))


@dataclass(frozen=True)
class Seen:
    id: str
    label: int
    predicted: int
    radius: float


LOOKED_AT = []


@dataclass(frozen=True, kw_only=True)
class Fixed(ClipCertificate):
    """The same radius for every clip that is predicted right."""

    name = "fixed"
    title = "fixed"
    word = "claimed radius"
    sound = False
    meaning = "the same radius everywhere: claims nothing"
    result = Seen

    radius: float = 1e-6
    samples: int | None = None

    def settings(self, seed):
        return {"radius": self.radius}

    def certify(self, model, batches, seed, *, done, progress=lambda count: None):
        number = 0
        for batch in batches:
            with torch.no_grad():
                predicted = model.eval()(batch.inputs).logits.argmax(1)
            for row, label in enumerate(batch.labels.tolist()):
                name = batch.ids[row] if batch.ids else str(number)
                number += 1
                if name in done:
                    yield done[name]
                else:
                    LOOKED_AT.append(name)
                    guess = int(predicted[row])
                    yield Seen(name, label, guess, self.radius if guess == label else 0.0)
                progress(1)

    def radii(self, model, results):
        radius = torch.tensor([r.radius for r in results], dtype=torch.float64)
        modalities = tuple(model.modalities)
        return Radii(self.name, modalities, radius, radius[:, None].expand(-1, len(modalities)),
                     torch.ones(len(results), len(modalities)))


class NotAnAttack:
    title = "not one"


class Unfinished(Attack):
    title = "no run"
'''


def installed(folder: Path, monkeypatch: pytest.MonkeyPatch, module: str) -> str:
    """Write the parts as `module` into a folder that imports find; returns the module's name."""
    (folder / f"{module}.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(folder))
    return module
