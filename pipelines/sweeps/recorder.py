"""Tune's events ▸ rows of the `trials` table: a trial that fails or is stopped leaves a row, too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray import cloudpickle, tune

from pipelines.config.run_config import RunConfig, with_values
from pipelines.infra.metrics import show
from pipelines.infra.ray_errors import first_line
from pipelines.infra.remote import location_of
from pipelines.infra.storage import Folder, Where
from pipelines.runs.disk import give_way, is_full
from pipelines.runs.results import ResultsStore
from pipelines.runs.run_folder import now
from pipelines.runs.trial_rows import trial_row, updated_row

_STATES = {"PENDING": "waiting", "RUNNING": "running", "PAUSED": "paused", "TERMINATED": "ended", "ERROR": "failed"}
"""Tune's words for the states of trials, and those of the metric."""


class Recorder(tune.Callback):
    """Writes one row a trial as its events come.

    Holds only plain values, since Tune pickles it to resume, and no path: a run's folder may lie elsewhere by then.
    Where it lies is read from the trials, which Tune moves with it.
    """

    def __init__(self, config: RunConfig, provenance: dict[str, Any]) -> None:
        self.provenance = provenance
        self.config = config.without_search()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._forget_others(ResultsStore(_results(trial)), {t.trial_id for t in trials})
        params = dict(trial.config)  # a scheduler may have changed them since the trial began
        fresh = trial_row(trial.trial_id, with_values(self.config, params), params, self.provenance, now())
        changed = {name: fresh[name] for name in ("method", "params", "config", "seed")}
        self._write(trial, {"status": "running", "error": None, **changed})

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        row = self._row(trial)
        self._write(trial, updated_row(row, result, float(result.get("time_total_s", 0.0))))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        row = self._row(trial)
        if row["status"] != "finished":
            self._write(trial, row | {"status": "stopped"})

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        for state, word in _STATES.items() if trials else ():
            number = sum(trial.status == state for trial in trials)
            show("crmt_trials", number, run=_run(trials[0]).name, state=word)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if is_full(first_line(_error_of(trial))):  # to try again is in vain
            give_way(_run(trial))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        error = first_line(_error_of(trial))
        if is_full(error):
            give_way(_run(trial))
        self._write(trial, self._row(trial) | {"status": "failed", "error": error})

    def _forget_others(self, store: ResultsStore, known: set[str]) -> None:
        """Drop the rows of trials that a killed sweep began and Tune had not yet noted: they begin anew, renamed.

        One that had finished by then stays: its numbers are good, whatever else Tune tries.
        """
        trials = store.read("trials")
        store.forget(set(trials.trial_id[trials.status == "running"]) - known)

    def _row(self, trial: Any) -> dict[str, Any]:
        """The row as it stands, or a new one."""
        stored = ResultsStore(_results(trial)).read("trials", trial.trial_id)
        if len(stored):
            values = stored.astype(object).where(stored.notna(), None).to_dict("records")[0]
            return {str(k): v for k, v in values.items()}
        params = dict(trial.config)
        return trial_row(trial.trial_id, with_values(self.config, params), params, self.provenance, now())

    def _write(self, trial: Any, changes: dict[str, Any]) -> None:
        row = self._row(trial) | changes
        try:
            ResultsStore(_results(trial)).write("trials", trial.trial_id, [row])
        except OSError as error:
            if not is_full(error):
                raise
            give_way(_run(trial))  # a row that Tune's own state is ahead of would never be written again
            ResultsStore(_results(trial)).write("trials", trial.trial_id, [row])


def _run(trial: Any) -> Where:
    """Where the run lies that a trial is of: the trial's own folder is RUN/tune/NAME."""
    on_server = location_of(trial.storage.storage_filesystem)
    return Folder(on_server) if on_server else Path(trial.path).parents[1]


def _results(trial: Any) -> Where:
    return _run(trial) / "results"


def _error_of(trial: Any) -> BaseException | str | None:
    """The error as Tune has just written it on this machine; `trial.get_error()` reads a copy that comes later."""
    for name, read in (("pickled_error_file", cloudpickle.loads), ("error_file", bytes.decode)):
        path = getattr(trial, name)
        if path and Path(path).exists():
            found: BaseException | str = read(Path(path).read_bytes())
            return found
    return None
