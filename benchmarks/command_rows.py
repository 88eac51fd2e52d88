"""What the commands cost beside what they run: rows 13 to 15 of the benchmarks. Needs Ray and the embedded data set."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from rich.console import Console

from benchmarks.pairs import Bench, Row, RowFunction, paired
from crmt.fit import FitSettings, fit
from crmt.model import ModelSpec, build_model
from pipelines.clips.batches import Clips, ClipTable, MemoryClips, Placement, Transform, modalities_of
from pipelines.clips.ingest import decoded_before
from pipelines.clips.prepare import ClipSource
from pipelines.clips.rows import decode_rows
from pipelines.config.reading import CONFIG_DIR
from pipelines.config.run_config import RunConfig, load_config, parse, with_values
from pipelines.infra.cluster import start_ray
from pipelines.runs.heartbeat import heartbeat_path
from pipelines.runs.run_folder import TrialInput
from pipelines.sweeps.prepare import PreparedRun, RunRequest, prepare_run
from pipelines.sweeps.single import TRAINING
from pipelines.sweeps.tuner import tuner_of
from pipelines.trials.launch import run_on_workers
from pipelines.trials.sessions import LocalSession, Session
from pipelines.trials.trial import run_trial

ROOT = Path(__file__).resolve().parents[1]
DEMO = CONFIG_DIR / "avdigits.yaml"
TRIALS = 4
RATES = [0.02, 0.05, 0.1, 0.2]
LIGHT: dict[str, Any] = {
    "search": {"train.lr": {"choice": RATES}},
    "sweep.algorithm": "grid",
    "sweep.scheduler": "none",
    "sweep.start_with": [],
    "attack.names": ["pgd"],
    "attack.balls": ["joint"],
    "attack.epsilons": [0.5],
    "attack.samples": 64,
    "certify.audit_samples": 0,
}
"""Four trials of CRMT-JT that measure little."""
START_UP = "import torch, ray; ray.init('local', include_dashboard=False, log_to_driver=False, logging_level='ERROR')"


def demo(**changes: Any) -> RunConfig:
    """The demo's configuration with the light trials of these benchmarks."""
    return with_values(load_config(DEMO), LIGHT | {path.replace("__", "."): value for path, value in changes.items()})


@contextmanager
def prepared(config: RunConfig, kind: str) -> Iterator[PreparedRun]:
    """A run that is ready to start, in a folder that is gone afterwards."""
    with TemporaryDirectory() as folder, ExitStack() as held:
        request = RunRequest(kind, Path(folder) / "run")
        found = prepare_run(config, request, Console(quiet=True), held)
        assert found is not None
        yield found


def overhead_of_a_trial(bench: Bench) -> Iterable[Row]:
    """Row 13 with one worker: the sweep's Tuner against a plain Tune function that calls the same trials."""
    from ray import tune

    config = demo(train__epochs=2, select__every=2)

    def ours() -> None:
        with prepared(config, "sweep") as run:
            took.append(_timed(tuner_of(run, resume=False).fit))

    def plain() -> None:
        with prepared(config, "sweep") as run:
            function = tune.with_parameters(
                _plain_function,
                base=config.without_search().model_dump(mode="json"),
                given=run.given,
                source=run.source,
            )
            tuner = tune.Tuner(
                tune.with_resources(function, {"CPU": config.sweep.cpus_per_worker}),
                param_space={"train.lr": tune.grid_search(RATES)},
                tune_config=tune.TuneConfig(max_concurrent_trials=run.plan.concurrent),
                run_config=tune.RunConfig(name="plain", storage_path=str(run.folder), verbose=0),
            )
            took.append(_timed(tuner.fit))

    took: list[float] = []
    found = _paired_inside(ours, plain, took, bench.rounds)
    yield Row(
        13, f"overhead of a trial, {TRIALS} trials of 1 worker", "Tune's function", *found[:1], 1.2, False, found[1]
    )


def _plain_function(params: dict[str, Any], *, base: dict[str, Any], given: TrialInput, source: ClipSource) -> None:
    from ray import tune

    config = with_values(parse(base, "a benchmark"), params)
    name = f"plain{tune.get_context().get_trial_id()}"
    tune.report(run_trial(config, given, source.open(Placement()), LocalSession(name, given.run)))


def overhead_of_workers(bench: Bench) -> Iterable[Row]:
    """Row 13 with two workers: a trial's launch against TorchTrainer alone, both around the same training."""
    from ray import train
    from ray.train.torch import TorchTrainer

    config = demo(search={}, train__method="jt", train__epochs=4, sweep__workers=2, sweep__cpus_per_worker=0.5)

    def ours() -> None:
        with prepared(config, "train") as run:
            call = lambda: run_on_workers(run.config, run.given, run.source, TRAINING, work=_only_train)  # noqa: E731
            took.append(_timed(call))

    def alone() -> None:
        with prepared(config, "train") as run:
            trainer = TorchTrainer(
                _plain_worker,
                train_loop_config={
                    "config": run.config.model_dump(mode="json"),
                    "given": run.given,
                    "source": run.source,
                },
                scaling_config=train.ScalingConfig(num_workers=2, resources_per_worker={"CPU": 0.5}),
                run_config=train.RunConfig(name="plain", storage_path=str(run.folder / "plain")),
            )
            took.append(_timed(trainer.fit))

    took: list[float] = []
    found = _paired_inside(ours, alone, took, bench.rounds)
    yield Row(
        13, "overhead of a trial of 2 workers", "TorchTrainer alone", found[0], 1.1, at_least=False, note=found[1]
    )


def _only_train(config: RunConfig, given: TrialInput, clips: Clips, session: Session) -> dict[str, Any]:
    """Step 1 alone, with a report and a state after every epoch."""
    report: dict[str, Any] = {}
    for result in _training(config, given, clips, session.wrap):
        report = {"epoch": result.epoch, **result.metrics}
        session.report(report, result.state())
    return report


def _plain_worker(settings: dict[str, Any]) -> None:
    import torch
    from ray import train
    from ray.train.torch import prepare_model

    context, config = train.get_context(), parse(settings["config"], "a benchmark")
    place = Placement(context.get_world_rank(), context.get_world_size())
    for result in _training(config, settings["given"], settings["source"].open(place), prepare_model):
        with TemporaryDirectory() as folder:
            torch.save(result.state(), Path(folder) / "state.pt")
            checkpoint = train.Checkpoint.from_directory(folder) if place.rank == 0 else None
            train.report({"epoch": result.epoch, **result.metrics}, checkpoint=checkpoint)


def _training(config: RunConfig, given: TrialInput, clips: Clips, wrap: Callable[[Any], Any]) -> Iterator[Any]:
    spec = ModelSpec(given.modalities, dict(config.model.encoders), config.model.features, "concat", given.classes)
    settings = FitSettings(epochs=config.train.epochs, lr=config.train.lr)
    batches = lambda epoch: clips.training(epoch, config.train.batch_size, config.train.seed)  # noqa: E731
    return fit(build_model(spec), config.training_method(), batches, settings, wrap=wrap)


def sweep_against_a_script(bench: Bench) -> Iterable[Row]:
    """Row 14: the sweep, from its command to its report, against its trials by a plain script, one after the other."""
    changes = {**LIGHT, "train.epochs": 10, "select.every": 5, "attack.epsilons": [0.25, 0.5, 1.0]}
    changes["certify.audit_samples"] = 10
    with TemporaryDirectory() as folder:
        file = Path(folder) / "config.json"
        file.write_text(json.dumps(with_values(load_config(DEMO), changes).model_dump(mode="json")))
        turn = iter(range(100))

        def ours() -> None:
            out = str(Path(folder) / f"run-{next(turn)}")
            _command("pipelines/sweep.py", "--dataset", "avdigits", "--config", str(file), "--out", out)

        found = paired(ours, lambda: _command("-m", "benchmarks.command_rows", str(file)), min(bench.rounds, 2), 0)
    yield Row(14, f"a sweep of the demo's kind, {TRIALS} trials", "a plain script", found.ratio, 1.5, note=str(found))


def trials_one_after_the_other(config: RunConfig) -> None:
    """A plain script: clips from Parquet into memory, then each trial with all cores; no Ray."""
    cache = decoded_before(config.data, list(config.model.encoders))
    if cache is None:
        raise SystemExit("run `make demo` first: the embedded clips are not decoded yet")
    names = list(config.model.encoders)
    metas = {name: cache.modalities[name] for name in names}
    parts = []
    for path in cache.parts:
        table = pq.read_table(path)
        parts.append(decode_rows(table, metas) | {"split": np.asarray(table["split"].to_pylist())})
    whole = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    arrays = {key: values for key, values in whole.items() if key not in ("id", "label", "split")}
    table = ClipTable(whole["id"].astype(str), whole["label"], whole["split"], arrays)
    clips = MemoryClips(table, Transform.of(cache, config.data))
    with TemporaryDirectory() as folder:
        given = TrialInput(Path(folder), modalities_of(cache, config.data, names), cache.classes, {})
        for number, rate in enumerate(next(iter(config.search["train.lr"].values()))):
            trial = with_values(config.without_search(), {"train.lr": rate})
            run_trial(trial, given, clips, LocalSession(f"t{number}", given.run))


def first_epoch(bench: Bench) -> Iterable[Row]:
    """Row 15: the time from the command to the first epoch, everything decoded, against Python, torch and Ray alone."""

    def ours() -> None:
        with TemporaryDirectory() as folder:
            out = Path(folder) / "run"
            beat, started = heartbeat_path(out, TRAINING), time.monotonic()
            process = _started(
                "pipelines/train.py", "--dataset", "avdigits", "--set", "train.epochs=40", "--out", str(out)
            )
            while not beat.exists():
                if process.poll() is not None:
                    raise SystemExit("train.py ended before its first epoch: run `make demo` and see what it says")
                time.sleep(0.05)
            took.append(time.monotonic() - started)
            process.terminate()
            process.wait()

    def alone() -> None:
        took.append(_timed(lambda: _command("-c", START_UP)))

    took: list[float] = []
    found = _paired_inside(ours, alone, took, bench.rounds)
    yield Row(15, "command to first epoch", "python, torch and ray.init", found[0], 1.5, at_least=False, note=found[1])


def _paired_inside(
    ours: Callable[[], None], theirs: Callable[[], None], took: list[float], rounds: int
) -> tuple[float, str]:
    """How many times the baseline's time ours takes, where only a part of each call counts, noted in `took`.

    The first round warms up.
    """
    times: list[tuple[float, float]] = []
    for turn in range(rounds + 1):
        pair = (ours, theirs) if turn % 2 else (theirs, ours)
        took.clear()
        for call in pair:
            call()
        times.append((took[0], took[1]) if turn % 2 else (took[1], took[0]))
    kept = times[1:]
    ratio = float(np.median([a / b for a, b in kept]))
    mine, other = (float(np.median(side)) for side in zip(*kept, strict=True))
    return ratio, f"{mine:.1f} s against {other:.1f} s"


def _timed(call: Callable[[], object]) -> float:
    started = time.monotonic()
    call()
    return time.monotonic() - started


def _started(*arguments: str) -> subprocess.Popen[bytes]:
    environment = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "OMP_NUM_THREADS")}
    environment |= {"PYTHONPATH": str(ROOT)}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, *arguments], cwd=ROOT, env=environment, **quiet)  # type: ignore[call-overload, no-any-return]


def _command(*arguments: str) -> None:
    """Run Python, and fail with what it said if it fails."""
    process = _started(*arguments)
    _, said = process.communicate()
    if process.returncode:
        raise SystemExit(f"{' '.join(arguments)} ended with {process.returncode}: {said.decode()[-500:]}")


def overheads(bench: Bench) -> Iterator[Row]:
    """Row 13, with a Ray that is started here and ended again."""
    import ray

    start_ray(dashboard=False)
    try:
        yield from overhead_of_a_trial(bench)
        yield from overhead_of_workers(bench)
    finally:
        ray.shutdown()


ROWS: dict[int, RowFunction] = {15: first_epoch, 14: sweep_against_a_script, 13: overheads}
"""Number in the table of targets to what measures it; first what is to find no Ray running."""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="The plain script of row 14.")
    parser.add_argument("config", type=Path)
    trials_one_after_the_other(load_config(parser.parse_args().config))
