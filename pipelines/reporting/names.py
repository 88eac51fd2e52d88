"""What methods, attacks and certificates are called in a report, and the colour and mark of each method."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cache
from math import cos, pi, sin
from typing import Any

import numpy as np

from crmt.methods import method_class, method_names

JOINT, PRODUCT = "joint", "product"

# only the order of the known ones; any other method follows them
ORDER = (
    "jt",
    "gb",
    "ogm_ge",
    "pmr",
    "msefm",
    "mmat",
    "mixup",
    "ojt",
    "crmt_step1",
    "crmt_step2",
    "crmt_jt",
    "crmt_at",
    "crmt_mix",
    "jt_log_term",
    "ojt_unimodal_ce",
    "radius_loss",
)
# six hues that colour-blind readers tell apart (after Okabe and Ito), readable on light and dark
HUES = ("#0f79bd", "#d98c00", "#0a9d76", "#cb6ba0", "#d55e00", "#4ba9de")
MARKS = ("circle", "diamond", "square")
UNKNOWN_MARK = "triangle-up"

ATTACK_NAMES = {
    "auto": "auto (strongest of all)",
    "pgd": "PGD",
    "apgd_dlr": "APGD-DLR",
    "apgd_ce": "APGD-CE",
    "minimal_norm": "minimal-norm",
    "square": "Square",
    "fgm": "FGM",
    "noise": "Gaussian noise",
}
"""In the order in which one is the headline; noise, which attacks nothing, never is."""

CERTIFICATES = ("estimate", "lipschitz", "smoothing")
SOUND = ("lipschitz", "smoothing")
COLUMN_OF = {"estimate": "estimated", "lipschitz": "certified", "smoothing": "smoothed"}


@cache
def _titles() -> dict[str, str]:
    return {name: method_class(name).title for name in method_names()}


def method_name(method: Any) -> str:
    """The name that people know a method by; its raw name where this version of crmt does not have it."""
    unknown = method is None or (isinstance(method, float) and np.isnan(method))
    return "unknown method" if unknown else _titles().get(str(method), str(method))


def methods_in_order(methods: Iterable[str]) -> list[str]:
    """The order of the page: as in the specification, others after them by name."""
    found = set(methods)
    return [m for m in ORDER if m in found] + sorted(found - set(ORDER))


def colour_of(method: Any) -> str:
    """The same colour for a method in every figure of every report; hues repeat, with another mark."""
    return HUES[_place(method) % len(HUES)]


def mark_of(method: Any) -> str:
    """The plotly symbol that goes with `colour_of`: the pair is each known method's own."""
    return MARKS[_place(method) // len(HUES)] if str(method) in ORDER else UNKNOWN_MARK


def _place(method: Any) -> int:
    return ORDER.index(str(method)) if str(method) in ORDER else sum(str(method).encode())


def attack_name(attack: str) -> str:
    """As in tables and keys."""
    return ATTACK_NAMES.get(attack, attack)


def attack_short(attack: str) -> str:
    """For narrow columns."""
    return {"auto": "auto", "minimal_norm": "min. norm", "noise": "noise"}.get(attack, attack_name(attack))


def under(attack: str, epsilon: float) -> str:
    """`joint PGD with ℓ2 budget 0.5`: what follows `under`."""
    what = "the strongest of all joint attacks (auto)" if attack == "auto" else f"joint {attack_name(attack)}"
    return f"{what} with ℓ2 budget {epsilon:g}"


def attacks_in_order(attacks: Iterable[str]) -> list[str]:
    """The strongest first."""
    found = set(attacks)
    return [a for a in ATTACK_NAMES if a in found] + sorted(found - set(ATTACK_NAMES))


def certificates_in_order(certificates: Iterable[str]) -> list[str]:
    """The estimate first."""
    found = set(certificates)
    return [c for c in CERTIFICATES if c in found] + sorted(found - set(CERTIFICATES))


def certificate_name(certificate: str, alpha: float | None = None) -> str:
    """What a radius may be called: "certified" only where it is sound."""
    if certificate == "smoothing":
        sure = f"{100 * (1 - alpha):.6g} %, " if alpha is not None else ""
        return f"certified ({sure}smoothing)"
    return {"estimate": "estimated", "lipschitz": "certified"}.get(certificate, certificate)


def json_object(text: Any) -> dict[str, Any]:
    """A column's JSON object; empty where it is null or cannot be read."""
    try:
        found = json.loads(text) if isinstance(text, str) else {}
    except json.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _by_modality(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{m} {_plain(v)}" for m, v in value.items())
    return _plain(value)


def _plain(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


_SETTING_WORDS = {
    "tau_samples": "τ̂ from {} training clips",
    "lipschitz_constants": "Lipschitz constants by construction: {}",
    "sigmas": "noise σ: {}",
    "n0": "{} noisy copies choose the class",
    "n": "{} bound its probability",
    "alpha": "α = {}",
    "audit": "audited by {}",
    "steps": "{} steps",
    "restarts": "{} restarts",
    "queries": "{} queries",
    "loss": "{} loss",
}


def settings_text(settings: Mapping[str, Any], without: Iterable[str] = ("seed",)) -> str:
    """`τ̂ from 512 training clips, audited by auto, 20 steps`: what a number rests on."""
    words = []
    for key, value in settings.items():
        if key in without:
            continue
        text = attack_name(str(value)) if key == "audit" else _by_modality(value)
        text = text.replace("_", "-") if key == "loss" else text
        word = _SETTING_WORDS.get(key, key.replace("_", " ") + " {}")
        words.append((word.removesuffix("s") if text == "1" else word).format(text))
    return ", ".join(words)


# --- marks as small pictures -------------------------------------------------------------------------

SYMBOLS = (
    *("circle", "diamond", "square", "triangle-up", "triangle-down", "cross", "star", "pentagon", "hexagon"),
    *("triangle-left", "triangle-right", "hourglass", "bowtie", "star-square", "star-diamond", "hexagram"),
)
_CORNERS = {
    "diamond": "7,1 13,7 7,13 1,7",
    "square": "2,2 12,2 12,12 2,12",
    "triangle-up": "7,2 13,12 1,12",
    "triangle-down": "7,12 13,2 1,2",
    "triangle-left": "2,7 12,1 12,13",
    "triangle-right": "12,7 2,1 2,13",
    "cross": "5,1 9,1 9,5 13,5 13,9 9,9 9,13 5,13 5,9 1,9 1,5 5,5",
    "hourglass": "2,2 12,2 2,12 12,12",
    "bowtie": "2,2 2,12 12,2 12,12",
}
_RAYS = {"star": (5, 0.42), "hexagram": (6, 0.58), "star-square": (4, 0.5), "star-diamond": (4, 0.5)}


def glyph(symbol: str) -> str:
    """A symbol of plotly as the inside of a 14 × 14 SVG."""
    if symbol in ("pentagon", "hexagon"):
        corners = _round({"pentagon": 5, "hexagon": 6}[symbol], 1.0, 0.0)
    elif symbol in _RAYS:
        rays, waist = _RAYS[symbol]
        corners = _round(rays, waist, pi / 4 if symbol == "star-square" else 0.0)
    elif symbol in _CORNERS:
        corners = _CORNERS[symbol]
    else:
        return '<circle cx="7" cy="7" r="5"/>'
    return f'<polygon points="{corners}"/>'


def _round(points: int, waist: float, turn: float) -> str:
    """A regular polygon, or a star where the waist is narrow."""
    count = points if waist == 1 else 2 * points
    radii = [6.0 if waist == 1 or i % 2 == 0 else 6.0 * waist for i in range(count)]
    angles = [turn + 2 * pi * i / count for i in range(count)]
    return " ".join(f"{7 + r * sin(a):.1f},{7 - r * cos(a):.1f}" for r, a in zip(radii, angles, strict=True))
