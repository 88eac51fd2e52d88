"""How fast is training, beside a plain PyTorch loop on the same machine? Rows 3 to 12 of the table of targets.

    python benchmarks/gpu.py [--rows 3,4] [--rounds 5] [--small] [--save]

On a GPU: the paper's sizes (3 frames of 224 × 224, log-mel 128 × 1024, batch 64, ResNet-18 for both), inputs on the
card, in fp32 (TF32 convolutions), bf16, and bf16 compiled. On a CPU, or with --small: tiny inputs, so that everything
runs; its ratios say little of a card. Needs torch and numpy; no Ray, no data. Every ratio is of two runs side by side
in one process, in alternating order. --save writes benchmarks/results/gpu-<device>.json with date, commit and hardware.

Cost: under 5 minutes on one card.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a checkout needs no installation

import torch  # noqa: E402

from benchmarks import reference  # noqa: E402
from benchmarks.pairs import Bench, Paired, Row, RowFunction, paired, table  # noqa: E402
from crmt.fit import FitSettings, fit  # noqa: E402
from crmt.methods import create, method_class  # noqa: E402
from crmt.modality import Batch, Modality  # noqa: E402
from crmt.model import ModelSpec, build_model  # noqa: E402
from crmt.precision import Precision  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
EPSILON, ATTACK_STEPS = 0.7, 5


@dataclass(frozen=True)
class Problem:
    """Random clips of one size, and how they are trained on."""

    device: torch.device
    frames: int
    side: int
    sound: tuple[int, int]
    batch: int
    features: int
    steps: int
    """Steps of one timed run."""
    classes: int = 31
    precision: Precision = "fp32"
    compiled: bool = False

    @staticmethod
    def of(bench: Bench) -> Problem:
        """The paper's sizes, or tiny ones."""
        if bench.full:
            return Problem(bench.device, 3, 224, (128, 1024), 64, 512, 10)
        return Problem(bench.device, 2, 32, (32, 48), 16, 64, 4)

    @property
    def how(self) -> str:
        """Precision and compilation, for tables."""
        return self.precision + ", compiled" * self.compiled

    @property
    def modalities(self) -> tuple[Modality, Modality]:
        """Video in [0, 1] and standardised sound."""
        video = Modality(
            name="video",
            shape=(self.frames, 3, self.side, self.side),
            channel_axis=1,
            mean=(0.5,) * 3,
            std=(0.25,) * 3,
            box=(0.0, 1.0),
            space="pixels in [0, 1]",
        )
        sound = Modality(
            name="audio",
            shape=(1, *self.sound),
            channel_axis=0,
            mean=(0.0,),
            std=(1.0,),
            box=None,
            space="standardised log-mel",
        )
        return video, sound

    def clips(self) -> list[reference.Clips]:
        """Two batches on the device, gone through in turn."""
        draw = torch.Generator(self.device).manual_seed(0)
        found = []
        for _ in range(2):
            video = torch.rand(self.batch, *self.modalities[0].shape, generator=draw, device=self.device)
            sound = torch.randn(self.batch, *self.modalities[1].shape, generator=draw, device=self.device)
            labels = torch.randint(self.classes, (self.batch,), generator=draw, device=self.device)
            found.append((video, sound, labels))
        return [found[i % 2] for i in range(self.steps)]

    def ours(self, name: str, *, noise: bool = False) -> Callable[[], object]:
        """An epoch of `fit`: every call goes on with the same training."""
        shared = {"epsilon": EPSILON, "attack_steps": ATTACK_STEPS}
        own = method_class(name).parameters()
        method = create(name, **{k: v for k, v in shared.items() if k in own})
        spec = ModelSpec(
            modalities=self.modalities,
            encoders={"video": "resnet18", "audio": "resnet18"},
            features=self.features,
            head=method.head,
            classes=tuple(map(str, range(self.classes))),
        )
        model = build_model(spec).to(self.device)
        batches = [Batch({"video": v, "audio": a}, labels) for v, a, labels in self.clips()]
        settings = FitSettings(
            epochs=10**6,
            lr=0.01,
            schedule="step",
            noise={"video": 0.25, "audio": 0.5} if noise else {},
            precision=self.precision,
            compile=self.compiled,
        )
        epochs = fit(model, method, lambda _: batches, settings)
        return lambda: next(epochs)

    def plain(self, *, attacked: bool = False) -> Callable[[], object]:
        """An epoch of the reference's loop."""
        model = reference.pair(self.features, self.classes, self.device, compiled=self.compiled)
        optimizer = reference.optimiser(model)
        clips, bf16 = self.clips(), self.precision == "bf16"
        if not attacked:
            return lambda: reference.joint_training(model, optimizer, clips, bf16=bf16)
        return lambda: reference.adversarial_training(
            model, optimizer, clips, bf16=bf16, epsilon=EPSILON, steps=ATTACK_STEPS
        )

    def compared(self, bench: Bench, ours: Callable[[], object], theirs: Callable[[], object]) -> tuple[Paired, str]:
        """The ratio of two epochs, and what it says in samples a second."""
        found = paired(ours, theirs, bench.rounds, warm_up=2)
        clips = self.batch * self.steps
        note = f"{self.how}: {clips / found.ours:,.0f} against {clips / found.theirs:,.0f} clips/s"
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            if self.compiled:
                torch.compiler.reset()
        return found, note


def variants(bench: Bench, *, compiled: bool = True) -> Iterator[Problem]:
    """The same clips in each precision; compiled on a GPU alone, since a CPU's compiler takes minutes."""
    problem = Problem.of(bench)
    yield problem
    yield replace(problem, precision="bf16")
    if compiled and bench.device.type == "cuda":
        yield replace(problem, precision="bf16", compiled=True)


def joint_training(bench: Bench) -> Iterator[Row]:
    """Row 3."""
    for problem in variants(bench):
        found, note = problem.compared(bench, problem.ours("jt"), problem.plain())
        yield Row(3, "training, JT", "plain loop", found.ratio, 0.97, note=note)


def orthogonal_head(bench: Bench) -> Iterator[Row]:
    """Row 4: what the orthogonal head and the margin regulariser cost."""
    for classes in (31, 309) if bench.full else (8, 31):
        for problem in variants(bench, compiled=classes == 309):
            problem = replace(problem, classes=classes)
            found, note = problem.compared(bench, problem.ours("crmt_jt"), problem.ours("jt"))
            yield Row(4, f"CRMT-JT, K = {classes}", "our JT", found.ratio, 0.95, note=note)


def training_noise(bench: Bench) -> Iterator[Row]:
    """Row 5."""
    for problem in variants(bench, compiled=False):
        found, note = problem.compared(bench, problem.ours("jt", noise=True), problem.ours("jt"))
        yield Row(5, "training with noise", "without", found.ratio, 0.97, note=note)


def gradient_penalty(bench: Bench) -> Iterator[Row]:
    """Row 6."""
    for problem in variants(bench, compiled=False):
        found, note = problem.compared(bench, problem.ours("crmt_gradient"), problem.ours("jt"))
        yield Row(6, "CRMT-gradient", "our JT", found.ratio, 0.33, note=note)


def adversarial_training(bench: Bench) -> Iterator[Row]:
    """Row 7."""
    for problem in variants(bench, compiled=False):
        for name in ("mmat", "crmt_at"):
            found, note = problem.compared(bench, problem.ours(name), problem.plain(attacked=True))
            yield Row(7, method_class(name).title, "plain adversarial loop", found.ratio, 1.0, note=note)


ROWS: dict[int, RowFunction] = {
    3: joint_training,
    4: orthogonal_head,
    5: training_noise,
    6: gradient_penalty,
    7: adversarial_training,
}
"""Number in the table of targets to what measures it."""


def all_rows() -> dict[int, RowFunction]:
    """Ours, and those of `evaluation_rows` (its `ROWS`, of the same form) where that is there."""
    found = dict(ROWS)
    if importlib.util.find_spec("benchmarks.evaluation_rows"):
        found |= importlib.import_module("benchmarks.evaluation_rows").ROWS
    return dict(sorted(found.items()))


def hardware(device: torch.device) -> dict[str, str]:
    """What the numbers were measured on."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit.stdout.strip() or "unknown",
        "device": name,
        "threads": str(torch.get_num_threads()),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }


def main(
    argv: Sequence[str] | None = None,
    functions: Mapping[int, RowFunction] | None = None,
    name: str = "gpu",
    about: str | None = __doc__,
) -> int:
    """The command.

    Args:
        argv: its arguments; None: the process's own.
        functions: numbers of rows to what measures them, in the order of measuring; None: those that need no Ray.
        name: how the file of --save begins.
        about: its help.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", help="numbers of rows, such as 3,4; default: all")
    parser.add_argument("--rounds", type=int, default=5, help="pairs of runs behind each ratio")
    parser.add_argument("--small", action="store_true", help="tiny sizes on a GPU, too")
    parser.add_argument("--save", nargs="?", const=RESULTS, type=Path, metavar="DIR", help="write the rows as JSON")
    given = parser.parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bench = Bench(device, full=device.type == "cuda" and not given.small, rounds=given.rounds)
    functions = all_rows() if functions is None else functions
    wanted = [int(n) for n in given.rows.split(",")] if given.rows else list(functions)
    if unknown := [n for n in wanted if n not in functions]:
        parser.error(f"no row {unknown[0]}; there are {', '.join(map(str, sorted(functions)))}")
    machine, started, rows = hardware(device), time.perf_counter(), []
    print(", ".join(f"{k} {v}" for k, v in machine.items()) + ("" if bench.full else "; tiny sizes"), flush=True)
    for number in wanted:
        for row in functions[number](bench):
            print(f"{row.number:>2} {row.what}: {row.ratio:.2f} ({row.note})", flush=True)
            rows.append(row)
    rows.sort(key=lambda row: row.number)
    print(f"\n{table(rows)}\n\n{time.perf_counter() - started:.0f} s")
    if given.save:
        given.save.mkdir(parents=True, exist_ok=True)
        path = given.save / f"{name}-{machine['device'].lower().replace(' ', '-')}.json"
        content = {**machine, "full": bench.full, "rounds": bench.rounds, "rows": [row.to_json() for row in rows]}
        path.write_text(json.dumps(content, indent=1) + "\n")
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
