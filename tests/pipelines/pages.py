"""A report as a browser would see it."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any


class Page(HTMLParser):
    """What a browser would make of a page: its tags with attributes, its visible text, its script texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.plots: dict[str, dict[str, Any]] = {}
        self._plot: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.open.append(tag)
        self._plot = dict(attrs).get("data-plot")

    def handle_endtag(self, tag: str) -> None:
        self.open.append("/" + tag)
        self._plot = None

    def handle_data(self, data: str) -> None:
        last = self.open[-1] if self.open else ""
        if self._plot:
            self.plots[self._plot] = json.loads(data)
        elif last not in ("script", "style"):
            self.text += data + " "


def read(path: Path) -> Page:
    """A page that was written."""
    return Page(path.read_text(encoding="utf-8"))
