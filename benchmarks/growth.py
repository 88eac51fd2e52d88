"""How do time and memory grow with clips, classes and trials, and what do 200,000 clips x 64 trials cost?

    python -m benchmarks.growth [--run DIR] [--parts list,report] [--out DIR]

Each measurement runs in a process of its own, which says its seconds and its peak memory. A power law is fitted to each
part; the page benchmarks/results/growth.md says what it gives at VGGSound's size. The part `report` copies the rows of
a finished run (--run; default: the newest under runs/, which `make demo` makes) under new names. How ingest grows is
measured by ingest_scale.py, whose rates the page takes over.

Cost: about 10 minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
CLIPS, CLASSES, TRIALS = (3_000, 30_000, 200_000), (10, 31, 309), (1, 4, 16)
TARGET = {"clips": 200_000, "classes": 309, "trials": 64}


@dataclass(frozen=True)
class Part:
    """Something whose cost grows with one number."""

    name: str
    grows_with: str
    sizes: tuple[int, ...]
    what: str
    run: Callable[[int, Path], float]
    """Does it at a size, with the finished run's folder at hand; returns the seconds that count."""


@dataclass(frozen=True)
class Measured:
    """One part at one size."""

    part: str
    size: int
    seconds: float
    mebibytes: float
    """Peak of the process, with what it imported."""


def _seconds(work: Callable[[], object], least: float = 0.0) -> float:
    """The time of one call; the mean of several where one is shorter than `least`."""
    started, calls = time.perf_counter(), 0
    while not calls or time.perf_counter() - started < least:
        work()
        calls += 1
    return (time.perf_counter() - started) / calls


def _list(clips: int, _: Path) -> float:
    """A list in VGGSound's layout with its files (empty), to the index and the cache's key."""
    from pipelines import sources
    from pipelines.clips.contents import made_of
    from pipelines.config.schema import DataConfig

    with TemporaryDirectory() as name:
        folder = Path(name)
        lines = []
        for number in range(clips):
            video = f"clip{number:07d}"
            (folder / f"{video}_000000.mp4").touch()
            lines.append(f"{video},0,class {number % 309},{'train' if number % 10 < 9 else 'test'}\n")
        (folder / "vggsound.csv").write_text("".join(lines))
        data = DataConfig.model_validate({"dataset": "vggsound", "root": name, "cache": f"{name}/cache"})
        return _seconds(lambda: made_of(sources.load(data), data, ("video", "audio")).key)


def _problem(classes: int) -> tuple[Any, list[Any]]:
    """A CRMT model of the demo's size, but wide enough for the classes, and random clips."""
    from benchmarks.gpu import Problem
    from crmt.modality import Batch
    from crmt.model import ModelSpec, build_model

    torch.set_num_threads(1)
    modalities = Problem(torch.device("cpu"), 2, 32, (32, 48), 64, 512, 1).modalities
    spec = ModelSpec(
        modalities=modalities,
        encoders={"video": "small_resnet", "audio": "small_resnet"},
        features=512,
        head="orthogonal",
        classes=tuple(map(str, range(classes))),
    )
    draw = torch.Generator().manual_seed(0)
    inputs = {m.name: torch.rand(64, *m.shape, generator=draw) for m in modalities}
    return build_model(spec), [Batch(inputs, torch.randint(classes, (64,), generator=draw))]


def _training(classes: int, _: Path) -> float:
    from crmt.fit import FitSettings, fit
    from crmt.methods import create

    model, batches = _problem(classes)
    epochs = fit(model, create("crmt_jt"), lambda _: batches, FitSettings(epochs=10**6, lr=0.01, schedule="step"))
    next(epochs)
    return _seconds(lambda: next(epochs), least=5.0)


def _constants(classes: int, _: Path) -> float:
    from crmt.certificates.estimate import gradient_constants

    model, batches = _problem(classes)
    return _seconds(lambda: gradient_constants(model, batches))


def _step2_of(clips: int, classes: int) -> float:
    from crmt.integration import optimise_integration

    torch.set_num_threads(1)
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (clips,), generator=draw)
    scores = torch.randn(clips, 2, classes, generator=draw)
    scores[torch.arange(clips), :, labels] += 4
    tau, start = torch.rand(2, classes, generator=draw) + 0.5, torch.ones(2, classes)
    return _seconds(lambda: optimise_integration(scores, labels, torch.zeros(classes), tau, start))


def _step2(classes: int, _: Path) -> float:
    return _step2_of(5_000, classes)


def _step2_clips(clips: int, _: Path) -> float:
    return _step2_of(clips, 309)


def _grown(run: Path, to: Path, trials: int, clips: int | None) -> None:
    """A run of this many trials (and test clips), with rows copied under new names from a finished one."""
    import shutil

    import pandas as pd

    from pipelines.runs.results import TABLES, ResultsStore

    (to / "results").mkdir(parents=True)
    shutil.copy(run / "run.json", to / "run.json")
    store, new = ResultsStore(run / "results"), ResultsStore(to / "results")
    all_trials = store.read("trials")
    whole = all_trials.trial_id[all_trials.status == "finished"].tolist()
    for number in range(trials):
        old, name = whole[number % len(whole)], f"t{number:04d}"
        for table in TABLES:
            rows = store.read(table, old)
            if rows.empty:
                continue
            rows["trial_id"] = name
            if table == "radii" and clips is not None:
                copies = math.ceil(clips / rows.clip_id.nunique())
                rows = pd.concat([rows.assign(clip_id=rows.clip_id + f"-{i}") for i in range(copies)])
            new.write(table, name, rows)


def _report_of(run: Path, trials: int, clips: int | None) -> float:
    from pipelines.reporting.build import build_report

    with TemporaryDirectory() as name:
        folder = Path(name) / "run"
        _grown(run, folder, trials, clips)
        return _seconds(lambda: build_report(folder))


def _report_trials(trials: int, run: Path) -> float:
    return _report_of(run, trials, None)


def _report_clips(clips: int, run: Path) -> float:
    return _report_of(run, 4, clips)


def _sweep(trials: int, _: Path) -> float:
    from benchmarks.command_rows import demo, prepared
    from pipelines.infra.cluster import start_ray
    from pipelines.sweeps.tuner import tuner_of

    start_ray(dashboard=False)
    rates = [0.01 + 0.01 * number for number in range(trials)]
    config = demo(search={"train.lr": {"choice": rates}}, train__epochs=1, select__every=1)
    with prepared(config, "sweep") as run:
        return _seconds(tuner_of(run, resume=False).fit)


PARTS = (
    Part("list", "clips", CLIPS, "reading a list, finding its files, the cache's key", _list),
    Part("training", "classes", CLASSES, "a step of CRMT-JT, 64 clips", _training),
    Part("tau", "classes", CLASSES, "τ over 64 clips", _constants),
    Part("step 2", "classes", CLASSES, "step 2, 5,000 clips", _step2),
    Part("step 2, clips", "clips", (2_000, 20_000, 200_000), "step 2 at 309 classes", _step2_clips),
    Part("report, clips", "clips", (1_000, 5_000, 20_000), "the report of 4 trials, by test clips", _report_clips),
    Part("report, trials", "trials", (4, 16, 64), "the report, 200 test clips", _report_trials),
    Part("sweep", "trials", TRIALS, "a sweep of one-epoch trials, without start and report", _sweep),
)


def exponent(sizes: Sequence[int], values: Sequence[float]) -> float:
    """The slope of the least-squares line through the logarithms."""
    x, y = [math.log(v) for v in sizes], [math.log(max(v, 1e-9)) for v in values]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)


def measure(part: Part, size: int, run: Path) -> Measured:
    """One part at one size, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.growth", "--one", part.name, "--size", str(size), "--run", str(run)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{part.name} at {size} failed: {done.stderr[-800:]}")
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def _one(name: str, size: int, run: Path) -> Measured:
    part = next(part for part in PARTS if part.name == name)
    seconds = part.run(size, run)
    return Measured(name, size, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)


def markdown(found: Sequence[Measured]) -> str:
    """The page: each part at its sizes, its exponents, and its cost at VGGSound's size."""
    from benchmarks.ingest_scale import hardware

    lines = [
        "# How cost grows",
        "",
        "`python -m benchmarks.growth`; each number is of a process of its own. The exponent e is of a power law "
        "size^e fitted to the seconds; memory is the peak of the process with its imports (about 400 MiB). The last "
        "columns take the fitted law to 200,000 clips, 309 classes, 64 trials: an extrapolation where that size is "
        "beyond the measured ones.",
        "",
        hardware() + ".",
        "",
        "| what | grows with | sizes | seconds | e | peak, MiB | more for each | at VGGSound's size |",
        "| --- | --- | --- | --- | ---: | --- | ---: | --- |",
    ]
    for part in PARTS:
        mine = [m for m in found if m.part == part.name]
        if not mine:
            continue
        sizes, times = [m.size for m in mine], [m.seconds for m in mine]
        slope, target = exponent(sizes, times), TARGET[part.grows_with]
        at_target = times[-1] * (target / sizes[-1]) ** slope
        peaks = [m.mebibytes for m in mine]
        growth = (peaks[-1] - peaks[0]) / (sizes[-1] - sizes[0])
        peak = peaks[-1] + growth * max(target - sizes[-1], 0)
        lines.append(
            f"| {part.what} | {part.grows_with} | {', '.join(f'{s:,}' for s in sizes)} | "
            f"{', '.join(f'{t:.3g}' for t in times)} | {slope:.2f} | {', '.join(f'{p:,.0f}' for p in peaks)} | "
            f"{growth * 1024:.3g} KiB each | {at_target:,.3g} s, {peak:,.0f} MiB |"
        )
    return "\n".join([*lines, ""])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a finished run, whose rows the report's part copies")
    parser.add_argument("--parts", help=f"some of: {', '.join(part.name for part in PARTS)}; default: all")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR", help="where the page is written")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run is None:
        from pipelines.runs.run_folder import latest_run

        options.run = latest_run()
    if options.one:
        print(json.dumps(asdict(_one(options.one, options.size, options.run))))
        return 0
    wanted = options.parts.split(",") if options.parts else [part.name for part in PARTS]
    found = []
    for part in PARTS:
        for size in part.sizes if part.name in wanted else ():
            found.append(measure(part, size, options.run))
            print(f"{part.name}, {size:,} {part.grows_with}: {found[-1].seconds:.3g} s", flush=True)
    (options.out / "growth.md").write_text(markdown(found))
    print(f"written: {options.out / 'growth.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
