"""The live table of a sweep: what every trial is doing, from the results store and the trials' heartbeats."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import pandas as pd
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from pipelines.runs.heartbeat import heartbeat_path, last_report
from pipelines.runs.results import ResultsStore

_TERMINAL_SECONDS, _PLAIN_SECONDS = 1.0, 2.0
_QUIET_SECONDS = 20.0
_TELLING_SECONDS = 3.0
STYLES = {"finished": "green", "stopped": "yellow", "failed": "red", "running": "cyan"}


class LiveTable:
    """Shows the table while the `with` block runs: redrawn on a terminal, a line a change elsewhere."""

    def __init__(self, run: Path, trials: int | None, console: Console) -> None:
        self._run, self._trials, self._console = run, trials, console
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
            while not self._stop.wait(_TERMINAL_SECONDS):
                live.update(self._table())

    def _plain(self) -> None:
        seen: dict[str, tuple[Any, ...]] = {}
        spoken = time.monotonic()
        ended = False
        while not ended:
            ended = self._stop.wait(_PLAIN_SECONDS)  # then one last look: how the trials ended
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
        trials = ResultsStore(self._run / "results").read("trials")
        return [_row(self._now(trial), _heartbeat(self._run, trial["trial_id"])) for trial in _records(trials)]

    def _now(self, trial: dict[str, Any]) -> dict[str, Any]:
        """A row that nobody updates while it runs (train.py's) with what the trial itself reported."""
        if trial["status"] != "running" or trial["epochs"]:
            return trial
        report = last_report(self._run, trial["trial_id"])
        return trial | {"epochs": report.get("epoch", 0), "selected_value": report.get("selected")}

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


def _heartbeat(run: Path, trial_id: str) -> dict[str, Any]:
    try:
        return dict(json.loads(heartbeat_path(run, trial_id).read_text()))
    except (OSError, ValueError):
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
