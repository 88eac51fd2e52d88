"""How loud the sound of a decoded set is, by split and by class; and a line where they lie far apart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

FAR_DB = 6.0
"""Splits or classes that differ by more are said: a model then learns who was recorded how loudly."""

Sums = dict[str, dict[str, list[float]]]
"""By modality and label (as text, for JSON): how many clips, and the total of their dBFS. Silence counts nowhere."""


def add_loudness(sums: Sums, label: int, loud: Mapping[str, float]) -> None:
    """Add a clip's loudness by modality to the sums of a shard."""
    for modality, level in loud.items():
        entry = sums.setdefault(modality, {}).setdefault(str(label), [0, 0.0])
        entry[0] += 1
        entry[1] += level


def mean_loudness(cards: Iterable[Mapping[str, Any]], classes: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """By modality, `splits` and `classes`: the mean dBFS of the clips of each split, and of each class in all splits.

    Args:
        cards: of the parts, each with its `split` and `loudness` (`Sums`).
        classes: by label.
    """
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    for card in cards:
        for modality, by_label in card["loudness"].items():
            of = found.setdefault(modality, {"splits": {}, "classes": {}})
            for label, (count, total) in by_label.items():
                for group, name in (("splits", card["split"]), ("classes", classes[int(label)])):
                    entry = of[group].setdefault(name, [0, 0.0])
                    entry[0] += count
                    entry[1] += total
    return {
        modality: {g: {name: round(t / n, 2) for name, (n, t) in sorted(means.items())} for g, means in of.items()}
        for modality, of in found.items()
    }


def apart(means: Mapping[str, float]) -> str:
    """How far the loudest and the quietest lie apart, in words; empty where there is one at most."""
    if len(means) < 2:
        return ""
    low, *_, high = sorted(means, key=means.__getitem__)
    return f"{means[high] - means[low]:.1f} dB apart ({high} {means[high]:.1f}, {low} {means[low]:.1f} dBFS)"


def in_words(loudness: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[tuple[str, str]]:
    """A modality and how far its splits, then its classes, lie apart."""
    return [
        (modality, f"{group} {words}")
        for modality, groups in loudness.items()
        for group, means in groups.items()
        if (words := apart(means))
    ]


def far_apart(loudness: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[str]:
    """A line a modality whose splits or classes lie more than `FAR_DB` apart."""
    lines = []
    for modality, groups in loudness.items():
        far = [
            f"the {group} lie {apart(means)}"
            for group, means in groups.items()
            if len(means) > 1 and max(means.values()) - min(means.values()) > FAR_DB
        ]
        if far:
            lines.append(
                f"{modality}: in loudness {' and '.join(far)}; --set data.audio.level=-23 brings each clip to one level"
            )
    return lines
