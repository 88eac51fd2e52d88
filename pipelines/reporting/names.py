"""What methods, certificates and attacks are called in a report, in which order they stand, and how methods look.

The card of a run says what its parts are called (`words`). `names.json` has the order of our own parts, and their names
for runs that are older than such cards.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

JOINT, PRODUCT = "joint", "product"
OURS: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "names.json").read_text(encoding="utf-8"))
SYMBOLS: dict[str, str] = json.loads((Path(__file__).parent / "static/symbols.json").read_text(encoding="utf-8"))
"""Plotly's name of a marker symbol to the inside of a 14 × 14 SVG."""

# six hues that colour-blind readers tell apart (after Okabe and Ito), readable on light and dark
HUES = ("#0f79bd", "#d98c00", "#0a9d76", "#cb6ba0", "#d55e00", "#4ba9de")
MARKS = ("circle", "diamond", "square")
FOREIGN_MARKS = ("triangle-up", "triangle-down", "cross", "hexagon")
"""Marks of training methods of the user's own."""
FOREIGN_LOOK = (HUES[-1], FOREIGN_MARKS[0])


@dataclass(frozen=True)
class CertificateWords:
    """What a report says of one kind of radius; one that nobody described is not called sound."""

    title: str
    word: str
    """What such a radius is, in tables: `estimated`. No two certificates share it."""
    column: str
    """How its columns in summary.csv begin."""
    clips: str
    """What clips that have such a radius are called."""
    sound: bool = False
    """Whether one violation is a bug (or more than chance explains); "certified" is said only of these."""
    meaning: str = ""
    """A sentence for the audit; may be empty."""
    curve: str = ""
    """What its curve means, as HTML of ours; `{Word}` stands for the word. Empty for the user's own certificates."""
    by_chance: bool = False
    """Whether chance explains some violations and the classifier may abstain."""


@dataclass(frozen=True)
class Names:
    """The names of one run's parts; a part that no one has named is called by its raw name."""

    methods: Mapping[str, str]
    attacks: Mapping[str, str]
    certificates: Mapping[str, CertificateWords]
    looks: Mapping[str, tuple[str, str]]
    """method: its colour and its mark."""

    def method(self, name: Any) -> str:
        """The name that people know a method by."""
        return self.methods.get(name, name) if isinstance(name, str) else "unknown method"

    def attack(self, name: str) -> str:
        """As in tables and keys."""
        return self.attacks.get(name, name)

    def attack_short(self, name: str) -> str:
        """For narrow columns."""
        return str(OURS["short_attacks"].get(name) or self.attack(name))

    def attack_with_budget(self, name: str, epsilon: float) -> str:
        """`joint PGD with ℓ2 budget 0.5`: what follows `under`."""
        what = "the strongest of all joint attacks (auto)" if name == "auto" else f"joint {self.attack(name)}"
        return f"{what} with ℓ2 budget {epsilon:g}"

    def certificate(self, name: str) -> CertificateWords:
        """What is said of its radii."""
        return self.certificates.get(name) or CertificateWords(title=name, word=name, column=name, clips=name)

    def colour(self, method: Any) -> str:
        """The same colour for a method in every figure; hues repeat, with another mark."""
        return self.looks.get(str(method), FOREIGN_LOOK)[0]

    def mark(self, method: Any) -> str:
        """The plotly symbol that goes with `colour`: the pair is each method's own."""
        return self.looks.get(str(method), FOREIGN_LOOK)[1]

    def settings(self, settings: Mapping[str, Any], without: Iterable[str] = ("seed",)) -> str:
        """`τ̂ from 512 training clips, audited by auto, 20 steps`: what a number rests on."""
        parts = []
        for key, value in settings.items():
            if key in without:
                continue
            text = self.attack(str(value)) if key == "audit" else _plain(value)
            text = text.replace("_", "-") if key == "loss" else text
            pattern = OURS["settings"].get(key, key.replace("{", "").replace("}", "").replace("_", " ") + " {}")
            parts.append((pattern.removesuffix("s") if text == "1" else pattern).format(text))
        return ", ".join(parts)


def names_of(card: Mapping[str, Any] | None = None, methods: Iterable[str] = ()) -> Names:
    """The names of a run's parts.

    Args:
        card: the contents of run.json; its `words` go before our own, and what is not of the right type is ignored.
        methods: names of the run's methods, so that each of the user's own gets its own colour and mark.
    """
    in_card = (card or {}).get("words")
    words: dict[str, Any] = in_card if isinstance(in_card, dict) else {}
    ours = list(OURS["methods"])
    looks = {name: (HUES[i % len(HUES)], MARKS[i // len(HUES)]) for i, name in enumerate(ours)}
    for name in sorted(set(methods) - set(ours)):
        looks[name] = _foreign_look(name, looks.values())
    return Names(
        methods=OURS["methods"] | _titles(words.get("methods")),
        attacks=OURS["attacks"] | _titles(words.get("attacks")),
        certificates=_certificates(words.get("certificates")),
        looks=looks,
    )


def _titles(found: Any) -> dict[str, str]:
    return {k: v for k, v in found.items() if isinstance(v, str) and v} if isinstance(found, dict) else {}


def _certificates(found: Any) -> dict[str, CertificateWords]:
    """Ours and the card's, each with a word of its own, so that no column of a table mixes kinds of radii."""
    given = {k: v for k, v in found.items() if isinstance(v, dict)} if isinstance(found, dict) else {}
    certificates: dict[str, CertificateWords] = {}
    for name in in_order("certificates", {*OURS["certificates"], *given}):
        ours, said = OURS["certificates"].get(name, {}), given.get(name, {})
        kept = {k: said[k] for k in ("title", "word", "meaning") if isinstance(said.get(k), str)}
        kept |= {"sound": said["sound"]} if isinstance(said.get("sound"), bool) else {}
        fields = {"title": name, "word": name, "column": name} | ours | kept
        word = fields["word"].replace(" radius", "")
        if ours:  # how sure ours is follows from the settings of the radii
            word = word.partition(" (")[0] if "%" in word else word
        word += f" ({name})" if word in {other.word for other in certificates.values()} else ""
        # our sentences say our own word, so they do not fit a certificate that has another
        own = {"meaning": ours["meaning"]} if word == ours.get("word") else {"curve": "", "clips": word}
        certificates[name] = CertificateWords(**fields | own | {"word": word})
    return certificates


def _foreign_look(method: str, taken: Iterable[tuple[str, str]]) -> tuple[str, str]:
    """A colour and mark that follow from the method's name, the same in every report unless they are `taken`."""
    first = sum(method.encode())
    pairs = [(HUES[(first + i) % len(HUES)], mark) for mark in FOREIGN_MARKS for i in range(len(HUES))]
    return next((pair for pair in pairs if pair not in taken), pairs[0])


def in_order(kind: str, found: Iterable[str]) -> list[str]:
    """The order of the page: ours first, by `names.json`, then all others by name.

    Args:
        kind: `methods` (as in the specification), `attacks` (the strongest first) or `certificates` (the estimate
            first).
        found: the names to put in order.
    """
    values, ours = set(found), list(OURS[kind])
    return [name for name in ours if name in values] + sorted(values - set(ours))


def json_object(text: Any) -> dict[str, Any]:
    """A column's JSON object; empty where it is null or cannot be read."""
    try:
        found = json.loads(text) if isinstance(text, str) else {}
    except json.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{modality} {_plain(v)}" for modality, v in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)
