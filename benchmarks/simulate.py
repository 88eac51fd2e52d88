"""What a big sweep takes on a big cluster, and what breaks first: arithmetic on measured rates, nothing is run.

    python -m benchmarks.simulate
    python -m benchmarks.simulate --nodes 2 --gpus 4 --trials 16 --clips 50000 --train-rate 900

Every rate is an argument. The defaults say where they come from; that of training is a plain loop's on an H100, since
none of ours was measured on a GPU since it was made faster: give your own from benchmarks/gpu.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, fields

from rich.console import Console
from rich.table import Table

GIB, TIB = 2**30, 2**40


@dataclass(frozen=True, kw_only=True)
class Scale:
    """A sweep, a cluster and the rates of one machine's parts."""

    trials: int = 64
    """trials of the sweep"""
    clips: int = 200_000
    """clips of the data set, all splits (VGGSound)"""
    test_share: float = 0.08
    """share of them in the test split"""
    classes: int = 309
    """K"""
    modalities: int = 2
    """M"""
    epochs: int = 140
    """epochs of each trial (the paper's); ASHA stops most trials sooner"""
    nodes: int = 8
    """nodes with GPUs"""
    gpus: int = 8
    """GPUs of a node; each runs one trial"""
    cpus: int = 192
    """CPU cores of a node"""
    network: float = 12.5
    """GB/s that a node reads from storage at most (100 Gbit/s)"""
    node_memory: float = 2048.0
    """GiB of a node with GPUs"""
    head_memory: float = 32.0
    """GiB of the head (m5.2xlarge)"""
    ingest_rate: float = 3.2
    """clips decoded a second and core (benchmarks/results/ingest_scale.md)"""
    clip_megabytes: float = 0.28
    """MB of a clip in the cache (the same)"""
    train_rate: float = 1200.0
    """clips trained a second and GPU: a plain loop, ResNet-18 pair, fp32, one H100"""
    batch_rate: float = 140.0
    """clips made into batches a second and core, streamed, VGGSound's settings (benchmarks --rows 2: 134 and 145)"""
    measure_share: float = 0.5
    """time to measure a trial, over the time to train it (assumed: none was measured at this size)"""
    shard_clips: int = 64
    """clips of one Parquet part"""
    state_megabytes: float = 180.0
    """a ResNet-18 pair's weights and momentum"""
    listed_bytes: float = 33.0
    """bytes of a clip in a trial's list of a streamed set (measured on avdigits)"""
    radius_bytes: float = 260.0
    """bytes of a row of radii in memory (measured on the run of make demo)"""
    files: int = 20
    """files that a trial leaves in the run's folder (make demo: 19, with Tune's own logs)"""


@dataclass(frozen=True)
class Load:
    """Something that is used, and how much of it there is."""

    name: str
    used: float
    there: float
    unit: str
    mend: str
    """What to do where it is too little."""

    @property
    def share(self) -> float:
        """Used over there: above 1 it breaks, or slows all down by that factor."""
        return self.used / self.there


def loads(scale: Scale) -> list[Load]:
    """What a node and the head are asked for while all GPUs train."""
    rate = scale.gpus * scale.train_rate
    scores = 4.0 * scale.clips * scale.modalities * scale.classes
    return [
        Load(
            "cores of a node that make batches",
            rate / scale.batch_rate,
            scale.cpus - scale.gpus,
            "cores",
            "fewer GPUs a node or more cores for each; sweep.input_cpus; smaller data.video.size",
        ),
        Load(
            "reading of a node from storage",
            rate * scale.clip_megabytes / 1e3,
            scale.network,
            "GB/s",
            "the cache on a disk of each node, or a set that fits the object store (data.mode=memory)",
        ),
        Load(
            "memory of a node: scores of step 2, of all its trials",
            scale.gpus * scores / GIB,
            scale.node_memory,
            "GiB",
            "fewer GPUs a node; they stay with the one process of a trial that needs them",
        ),
        Load(
            "memory of a node: lists of clips, of all its trials",
            scale.gpus * scale.clips * scale.listed_bytes / GIB,
            scale.node_memory,
            "GiB",
            "fewer GPUs a node",
        ),
        Load(
            "memory of the head: radii of all trials in its report",
            _radii(scale) * scale.radius_bytes / GIB,
            scale.head_memory,
            "GiB",
            "a larger head, or a report of fewer trials",
        ),
    ]


def _radii(scale: Scale) -> float:
    """Rows of radii: each test clip's joint one and those by modality, after both steps."""
    return scale.trials * scale.clips * scale.test_share * (scale.modalities + 1) * 2


def totals(scale: Scale) -> list[tuple[str, str]]:
    """What the sweep takes in all."""
    train, gpus = scale.clips * (1 - scale.test_share), scale.nodes * scale.gpus
    trial = scale.epochs * train / scale.train_rate / 3600
    whole = trial * (1 + scale.measure_share)
    rounds = -(-scale.trials // gpus)
    parts = -(-scale.clips // scale.shard_clips)
    ingest = scale.clips / scale.ingest_rate / 3600
    kept = scale.trials * scale.state_megabytes * 1.5
    read = scale.trials * scale.epochs * train * scale.clip_megabytes * 1e6
    return [
        ("ingest", f"{ingest:.0f} core-hours, {ingest / (scale.nodes * scale.cpus):.2f} h on all {scale.nodes} nodes"),
        ("cache", f"{scale.clips * scale.clip_megabytes / 1e3:.0f} GB in {2 * parts:,} files"),
        ("a trial", f"{trial:.1f} h of training, {whole:.1f} h with its measuring"),
        ("the sweep", f"{rounds * whole:.1f} h; {scale.trials * whole:.0f} GPU hours, without early stopping"),
        (
            "read from the cache",
            f"{read / TIB:.0f} TiB, {scale.trials * scale.epochs * parts / 1e6:.1f} million parts",
        ),
        ("kept", f"{kept / 1e3:.0f} GB of models and states in {scale.trials * scale.files:,} files"),
        ("rows of radii", f"{_radii(scale) / 1e6:.1f} million"),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for field in fields(Scale):
        kind = int if isinstance(field.default, int) else float
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=field.default)
    scale = Scale(**vars(parser.parse_args(argv)))
    console = Console()
    table = Table(
        title=f"{scale.trials} trials x {scale.clips:,} clips on {scale.nodes} x {scale.gpus} GPUs", show_header=False
    )
    for name, text in totals(scale):
        table.add_row(name, text)
    console.print(table)
    asked = sorted(loads(scale), key=lambda load: -load.share)
    table = Table("while all GPUs train", "used", "there", "share", title="what breaks first")
    for load in asked:
        table.add_row(load.name, f"{load.used:.1f} {load.unit}", f"{load.there:.1f}", f"{load.share:.2f}")
    console.print(table)
    first = asked[0]
    if first.share > 1:
        console.print(f"{first.name}: training runs at 1/{first.share:.1f} of its rate. Mend: {first.mend}")
    else:
        console.print(
            f"nothing breaks; first would be {first.name}, at {1 / first.share:.1f} times this. Mend: {first.mend}"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
