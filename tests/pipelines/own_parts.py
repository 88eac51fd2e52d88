"""One of everything that a person can add, as that person writes it, in a folder outside the project."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

PARTS = '''
"""A modality kind, three encoders, a training method, an attack, a certificate, a data set, a search, a scheduler and
a logger. `datasets` is a file of this folder."""
from dataclasses import dataclass

import datasets
import numpy as np
import torch
from ray import tune
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher
from torch import nn
from torch.nn import functional as F

from crmt.attacks import Attack, AttackResult, pgd
from crmt.certificates import ScoreCertificate
from crmt.certificates.base import Basis
from crmt.certificates.radius import Radii
from crmt.methods.base import LossTerms, Method
from crmt.modality import Modality
from pipelines.clips.kinds import Kind
from pipelines.config.schema import Section
from pipelines.sources import manifest


class Frames(nn.Module):
    def __init__(self, modality, features, width=4):
        super().__init__()
        channels = modality.shape[modality.channel_axis]
        self.net = nn.Sequential(
            nn.Conv2d(channels, width, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
            nn.Linear(4 * width, features),
        )

    def forward(self, x):
        return self.net(x.flatten(0, 1)).unflatten(0, x.shape[:2]).mean(1)


def sound(modality, features):
    channels = modality.shape[0]
    return nn.Sequential(
        nn.Conv2d(channels, datasets.WIDTH, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(4 * datasets.WIDTH, features),
    )


def words(modality, features):
    return nn.Linear(modality.shape[0], features)


class WordSettings(Section):
    vocabulary: list[str]


class WordCounts(Kind):
    Settings = WordSettings

    @property
    def shape(self):
        return (len(self.settings.vocabulary),)

    @property
    def dtype(self):
        return np.dtype(np.float32)

    def read(self, file, seconds):
        text = open(file).read().split()
        return np.array([text.count(word) for word in self.settings.vocabulary], np.float32)

    def modality(self, meta):
        count = len(self.settings.vocabulary)
        return Modality(name=self.name, shape=self.shape, channel_axis=0, mean=meta.mean * count,
                        std=meta.std * count, box=None, space="words")

    def transform(self, stored, constants, choices):
        return stored.float()


@dataclass(frozen=True, kw_only=True)
class Smooth(Method):
    title = "Label smoothing"
    head = "concat"

    smoothing: float = 0.1

    def loss(self, step):
        output = step.forward(step.inputs)
        entropy = F.cross_entropy(output.logits, step.labels, label_smoothing=self.smoothing)
        return LossTerms(entropy, {"cross_entropy": entropy}, output)


class LongPGD(Attack):
    title = "long PGD"
    settings = ("steps",)

    def run(self, call):
        found = pgd(*call.target, steps=2 * call.settings.steps, start=call.start)
        return AttackResult(found.inputs, found.margin)


@dataclass(frozen=True, kw_only=True)
class MarginShare(ScoreCertificate):
    name = "margin_share"
    title = "share of the margin"
    word = "claimed radius"
    sound = False
    meaning = "a share of the margin: claims nothing"

    share: float = 0.01

    def basis(self, model, tau):
        return Basis(self.share, {"share": self.share})

    def radii(self, model, scores, labels, basis):
        with torch.no_grad():
            logits = model.head.logits(scores.to(model.head.bias.device)).cpu()
        own = logits.gather(1, labels[:, None]).squeeze(1)
        others = logits.scatter(1, labels[:, None], float("-inf")).amax(1)
        radius = basis.constants * (own - others).clamp_min(0)
        names = tuple(model.modalities)
        each = radius[:, None].expand(-1, len(names))
        return Radii(self.name, names, radius, each, torch.ones(len(labels), len(names)))


class Clips:
    """The manifest of a folder."""

    def load(self, data):
        return manifest.load(data)


class Halving(Searcher):
    def __init__(self, start, metric=None, mode=None):
        super().__init__(metric, mode)
        self.value = start

    def set_search_properties(self, metric, mode, config, **spec):
        return True

    def suggest(self, trial_id):
        self.value /= 2
        return {"train.options.smoothing": self.value}

    def on_trial_complete(self, trial_id, result=None, error=False):
        pass

    def save(self, path):
        pass

    def restore(self, path):
        pass


class Patient(FIFOScheduler):
    pass


class Diary(tune.Callback):
    def __init__(self, file):
        self.file = file

    def on_trial_result(self, iteration, trials, trial, result, **info):
        with open(self.file, "a") as out:
            out.write(f"{trial.trial_id} {result['epoch']}\\n")
'''


def write_parts(folder: Path, manifest: Path) -> None:
    """`myparts.py`, a `datasets.py` beside it, and a manifest with a text file for every clip of another one.

    Args:
        folder: made here; outside the project.
        manifest: the CSV of clips that are used.
    """
    (folder / "clips").mkdir(parents=True)
    (folder / "myparts.py").write_text(PARTS)
    (folder / "datasets.py").write_text("WIDTH = 5\n")
    clips = pd.read_csv(manifest)
    clips["path"] = [str(manifest.parent / path) for path in clips.path]
    clips["text"] = [f"{i}.txt" for i in range(len(clips))]
    for name, label in zip(clips.text, clips.label, strict=True):
        (folder / "clips" / name).write_text(" ".join([str(label).rpartition(" ")[2]] * 3 + ["0", "1"]))
    clips.to_csv(folder / "clips" / "manifest.csv", index=False)
