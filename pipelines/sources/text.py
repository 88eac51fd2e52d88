"""Text that people write in several forms: what is one text, and labels that only look different to a computer."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

_ZERO_WIDTH = dict.fromkeys(map(ord, "\u200b\u200c\u200d\u2060\ufeff\u00ad"))


def one_text(text: str) -> str:
    """The text in Unicode's composed form (NFC; names from macOS are often decomposed), without what has no width."""
    if text.isascii():
        return text
    return unicodedata.normalize("NFC", text.translate(_ZERO_WIDTH))


def alike(classes: Iterable[str]) -> list[str]:
    """A line for each set of classes whose names differ in case alone."""
    by_fold: dict[str, list[str]] = {}
    for name in classes:
        by_fold.setdefault(one_text(name).casefold(), []).append(name)
    return [
        f"labels {' and '.join(map(repr, names))} differ in case alone: they are {len(names)} classes"
        for names in by_fold.values()
        if len(names) > 1
    ]
