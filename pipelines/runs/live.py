"""The live table of a sweep: what every trial is doing, from the results store and the trials' heartbeats."""

from __future__ import annotations

import fnmatch
import json
import logging
import threading
import time
from types import TracebackType
from typing import Any

import pandas as pd
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from crmt.errors import CRMTError
from pipelines.infra.storage import Folder, Where, folder_at
from pipelines.runs.results import joined

_TERMINAL_SECONDS, _PLAIN_SECONDS, _REMOTE_SECONDS = 1.0, 2.0, 10.0
"""How often the table looks; on a server each look costs two requests, and four for every file that changed."""
_QUIET_SECONDS = 20.0
_LOG = logging.getLogger(__name__)
_TELLING_SECONDS = 3.0
STYLES = {"finished": "green", "stopped": "yellow", "failed": "red", "running": "cyan"}


class LiveTable:
    """Shows the table while the `with` block runs: redrawn on a terminal, a line a change elsewhere."""

    def __init__(self, run: Where, trials: int | None, console: Console) -> None:
        self._trials, self._console = trials, console
        folder = folder_at(run)
        self._stored, self._beats = _Watched(folder / "results" / "trials"), _Watched(folder / "live")
        self._pause = None if folder.local else _REMOTE_SECONDS
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._terminal if console.is_terminal else self._plain, daemon=True)
        self._started = time.monotonic()

    def __enter__(self) -> LiveTable:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _terminal(self) -> None:
        with Live(self._table(), console=self._console, refresh_per_second=2, transient=True) as live:
            while not self._stop.wait(self._pause or _TERMINAL_SECONDS):
                live.update(self._table())

    def _plain(self) -> None:
        seen: dict[str, tuple[Any, ...]] = {}
        spoken = time.monotonic()
        ended = False
        while not ended:
            ended = self._stop.wait(self._pause or _PLAIN_SECONDS)  # then one last look: how the trials ended
            rows = self._rows()
            for row in rows:
                state = (row["status"], row["phase"], row["epochs"])
                if seen.get(row["trial_id"]) != state:
                    seen[row["trial_id"]] = state
                    spoken = time.monotonic()
                    self._console.print(_sentence(row), highlight=False, markup=False, soft_wrap=True)
            if time.monotonic() - spoken > _QUIET_SECONDS and rows:
                spoken = time.monotonic()
                self._console.print(self._title(rows), highlight=False, markup=False)

    def _rows(self) -> list[dict[str, Any]]:
        stored, beats = self._stored.contents("*.parquet"), self._beats.contents("*.json")
        said = {name.removesuffix(".json"): _read(text) for name, text in beats.items()}
        rows = []
        for trial in _records(joined("trials", stored.values())):
            report = said.get(f"{trial['trial_id']}.report", {})
            rows.append(_row(_now(trial, report), said.get(trial["trial_id"], {})))
        return rows

    def _title(self, rows: list[dict[str, Any]]) -> str:
        done = sum(r["status"] != "running" for r in rows)
        of = f" of {self._trials}" if self._trials else ""
        elapsed = time.monotonic() - self._started
        running = ", ".join(f"{r['trial_id']} {r['progress']}" for r in rows if r["status"] == "running")
        return f"{done}{of} trials done, {elapsed:.0f} s" + (f"; running: {running}" if running else "")

    def _table(self) -> Table:
        rows = self._rows()
        table = Table(title=self._title(rows), title_justify="left")
        for heading in ("trial", "method", "parameters", "status", "phase", "epoch"):
            table.add_column(heading)
        table.add_column("validation", justify="right")
        for row in rows:
            style = STYLES.get(row["status"], "")
            status = f"[{style}]{row['status']}[/]" if style else row["status"]
            cells = (row["trial_id"], row["method"], escape(row["params"]), status, row["progress"], str(row["epochs"]))
            table.add_row(*cells, row["selected"])
        return table


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(k): v for k, v in row.items()} for row in table.to_dict("records")]


class _Watched:
    """The files of a folder as they were last seen; on a server only those that changed are read again."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._seen: dict[str, tuple[float | None, bytes]] = {}
        """Name ▸ the stamp under which its content is settled, and the content. A server's stamps are whole seconds:
        what is read under a stamp for the first time may change under it."""
        self._before: dict[str, float] = {}
        """The stamps of the last look."""

    def contents(self, pattern: str) -> dict[str, bytes]:
        """Name ▸ content of every file that matches; while a server is away, what was seen last."""
        if self._folder.local is not None:
            names = self._folder.names(pattern)
            return {name: content for name in names if (content := self._content(name)) is not None}
        try:
            written = self._folder.stamps()
            for name, stamp in written.items():
                settled = name in self._seen and self._seen[name][0] == stamp
                if not settled and (content := self._content(name)) is not None:
                    self._seen[name] = (stamp if self._before.get(name) == stamp else None, content)
            self._before = written
        except CRMTError as error:
            _LOG.warning("the table shows what was seen last: %s", error)
        return {n: self._seen[n][1] for n in sorted(fnmatch.filter(self._before, pattern)) if n in self._seen}

    def _content(self, name: str) -> bytes | None:
        try:
            return self._folder.read(name)
        except OSError:  # gone since it was listed
            return None


def _now(trial: dict[str, Any], report: dict[str, Any]) -> dict[str, Any]:
    """A row that nobody updates while it runs (train.py's) with what the trial itself reported."""
    if trial["status"] != "running" or trial["epochs"]:
        return trial
    return trial | {"epochs": report.get("epoch", 0), "selected_value": report.get("selected")}


def _read(text: bytes) -> dict[str, Any]:
    try:
        return dict(json.loads(text))
    except ValueError:
        return {}


def _left(beat: dict[str, Any]) -> str:
    """How long the phase may still take, at its pace until now; nothing in its first seconds."""
    fraction, spent = beat["fraction"], beat["time"] - beat.get("began", beat["time"])
    if not 0 < fraction < 1 or spent < _TELLING_SECONDS:
        return ""
    left = max(1.0, spent * (1 - fraction) / fraction - (time.time() - beat["time"]))
    return f", {left:.0f} s left" if left < 120 else f", {left / 60:.0f} min left"


def _row(trial: dict[str, Any], beat: dict[str, Any]) -> dict[str, Any]:
    phase = progress = ""
    if trial["status"] == "running" and beat:
        phase, progress = beat["phase"], f"{beat['phase']} {100 * beat['fraction']:.0f} %{_left(beat)}"
    params = json.loads(trial["params"] or "{}")
    shown = {k.rpartition(".")[2]: v for k, v in params.items() if k != "train.method" and v is not None}
    value = trial["selected_value"]
    return {
        "trial_id": trial["trial_id"],
        "method": trial["method"],
        "params": ", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in shown.items()),
        "status": trial["status"],
        "phase": phase,
        "progress": progress,
        "epochs": trial["epochs"],
        "selected": "" if pd.isna(value) else f"{100 * value:.1f} %",
        "error": trial["error"] if isinstance(trial["error"], str) else "",
    }


def _sentence(row: dict[str, Any]) -> str:
    text = f"{row['trial_id']}  {row['method']}  {row['params']}  {row['status']}"
    if row["status"] == "running":
        text += f"  {row['progress']}" if row["progress"] else ""
    elif row["error"]:
        text += f": {row['error']}"
    return text + f"  epoch {row['epochs']}" + (f"  validation {row['selected']}" if row["selected"] else "")
