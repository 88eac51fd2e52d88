"""Does the memory of ingest grow with the number of clips, and what do 200,000 clips cost in hours and gigabytes?

    python benchmarks/ingest_scale.py [--clips 300,3000] [--seconds 10] [--out DIR]

For each number of clips it writes a folder in VGGSound's layout, whose clips are hard links to 80 real ones (320 x 240,
25 frames a second, H.264 and AAC, made here by ffmpeg; more than a part of the cache holds, which would store equal
clips once), and runs `pipelines/ingest.py --dataset vggsound` on it, with the settings of tune_configs/vggsound.yaml
and a cache and a Ray of its own. Five times a second it adds up the proportional set size of every process of that
command: driver, Ray's servers, workers and their decoders; memory that several share, such as the object store, counts
once. Prints a table and writes it to DIR/ingest_scale.md (default benchmarks/results). Every clip has the full length.

Cost: 12 minutes on 2 cores: three to make the clips, then 0.3 s of a core for each.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import imageio_ffmpeg
from rich.console import Console
from rich.table import Table

from crmt.errors import BadInputError, CRMTError
from pipelines.command import run_command
from pipelines.config.reading import CONFIG_DIR
from pipelines.config.run_config import load_config

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
EVERY = 0.2
"""Seconds between two looks at the memory."""
TARGET, CORES = 200_000, (1, 16, 64)
DISTINCT, CLASSES = 80, 4


@dataclass
class Measured:
    """What one run of ingest took."""

    clips: int
    seconds: float = 0.0
    """From the first sign of decoding to the last part of the cache."""
    stored: int = 0
    """Bytes of the cache's parts."""
    total: list[float] = field(default_factory=list)
    """MiB of all processes together, at each look."""
    driver: list[float] = field(default_factory=list)
    """MiB of the command's own process, at each look."""
    started: int = 0
    """Index of the first look after decoding had begun."""

    @property
    def rate(self) -> float:
        """Clips decoded in a second by one core."""
        return self.clips / self.seconds / (os.cpu_count() or 1)

    def row(self) -> list[str]:
        """A row of the table: the texts under `HEADER`."""
        total, driver = self.total[self.started :], self.driver[self.started :]
        return [
            f"{self.clips:,}",
            f"{max(total):,.0f}",
            f"{statistics.median(total):,.0f}",
            f"{max(driver):,.0f}",
            f"{self.seconds:.0f}",
            f"{self.rate:.1f}",
            f"{self.stored / self.clips / 1e6:.3f}",
        ]


HEADER = (
    "clips",
    "peak, MiB",
    "median, MiB",
    "peak of the driver, MiB",
    "decoding, s",
    "clips/s and core",
    "cached, MB a clip",
)


def sources(folder: Path, seconds: float, count: int = DISTINCT) -> list[Path]:
    """Make `count` clips that differ: each has a hue and noise of its own, and a tone or pink noise as sound."""
    made = []
    for number in range(count):
        path = folder / f"{number}.mp4"
        noise = f"noise=all_seed={number}:alls=8:allf=t"
        picture = f"testsrc2=size=320x240:rate=25:duration={seconds},hue=h={number * 360 // count},{noise}"
        sound = f"sine=frequency={200 + 40 * number}" if number % 2 else f"anoisesrc=color=pink:seed={number}"
        inputs = ["-f", "lavfi", "-i", picture, "-f", "lavfi", "-i", f"{sound}:sample_rate=44100:duration={seconds}"]
        codecs = ["-c:v", "libx264", "-preset", "veryfast", "-pix_fmt", "yuv420p", "-c:a", "aac"]
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-loglevel", "error", *inputs, *codecs, str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise CRMTError(f"ffmpeg could not make {path.name}: {done.stderr.strip()}")
        made.append(path)
    return made


def layout(folder: Path, clips: int, made: Sequence[Path]) -> Path:
    """Make a folder in VGGSound's layout.

    Args:
        folder: to be made.
        clips: how many clips the folder gets, as hard links; a tenth of them are test clips.
        made: the real clips that the links point to.

    Returns: the folder.
    """
    folder.mkdir()
    lines = []
    for number in range(clips):
        video = f"clip{number:07d}"
        (folder / f"{video}_000000.mp4").hardlink_to(made[number % len(made)])
        lines.append(f"{video},0,class {number % CLASSES},{'train' if number % 10 < 9 else 'test'}\n")
    (folder / "vggsound.csv").write_text("".join(lines))
    return folder


def processes(leader: int) -> list[int]:
    """The process numbers of a command's session and of all their descendants.

    Args:
        leader: the process that leads the session.
    """
    parents, found = {}, set()
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended
            pid, fields = int(entry.name), entry.joinpath("stat").read_text().rpartition(")")[2].split()
            parents[pid] = int(fields[1])
            if int(fields[3]) == leader:
                found.add(pid)
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return sorted(found)


def proportional(pid: int) -> float:
    """MiB of a process, shared pages divided among those who share them; 0 for one that has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    return 0.0


def measure(data: Path, clips: int, work: Path, console: Console) -> Measured:
    """Run ingest on a folder and watch its memory; prints the command's own progress.

    Args:
        data: the folder of clips.
        clips: how many it has.
        work: gets the cache and the log of this run.
        console: where progress goes.

    Raises:
        CRMTError: it failed.
    """
    cache, log = work / f"cache-{clips}", work / f"log-{clips}.txt"
    command = [sys.executable, str(ROOT / "pipelines" / "ingest.py"), "--dataset", "vggsound"]
    command += ["--data-root", str(data), "--set", f"data.cache={cache}"]
    own = {"RAY_ADDRESS": "local", "RAY_TMPDIR": str(work), "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
    found, begun, said = Measured(clips), 0.0, ""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env={**os.environ, **own}, start_new_session=True
        )
        while process.poll() is None:
            sizes = {pid: proportional(pid) for pid in processes(process.pid)}
            found.total.append(sum(sizes.values()))
            found.driver.append(sizes.get(process.pid, 0.0))
            if not begun and any(cache.glob("clips/*")):
                begun, found.started = time.time(), len(found.total) - 1
            lines = [line for line in log.read_text(errors="replace").splitlines() if "clips/s" in line]
            if lines and lines[-1] != said:
                said = lines[-1]
                console.print(said, highlight=False, markup=False)
            time.sleep(EVERY)
    cards = list(cache.glob("clips/*/cache.json"))
    if process.returncode or not cards:
        raise CRMTError(f"ingest of {clips} clips failed: {log.read_text().strip().splitlines()[-1:]}")
    found.seconds = cards[0].stat().st_mtime - begun
    found.stored = sum(part.stat().st_size for part in cards[0].parent.glob("part-*.parquet"))
    shutil.rmtree(cache)
    return found


def hardware() -> str:
    """This machine and the versions that matter."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU unknown")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}" for name in ("ray", "decord2", "pyarrow", "numpy")
    )
    return f"{os.cpu_count()} cores ({model}), {memory:.0f} GiB, Python {platform.python_version()}, {versions}"


def markdown(runs: Sequence[Measured], seconds: float) -> str:
    """The page: the settings, the measured table, and the time and disk that this means for `TARGET` clips."""
    data, last = load_config(CONFIG_DIR / "vggsound.yaml", []).data, runs[-1]
    hours = " | ".join(f"{TARGET / last.rate / cores / 3600:,.1f}" for cores in CORES)
    peaks = [max(run.total[run.started :]) for run in runs]
    video, audio = data.video, data.audio
    table = ["| " + " | ".join(HEADER) + " |", "|" + " ---: |" * len(HEADER)]
    return "\n".join(
        [
            "# What ingest takes: memory, time, disk",
            "",
            "`python benchmarks/ingest_scale.py`: hard links to "
            f"{DISTINCT} made clips of {seconds:g} s (320 × 240, 25 frames a second, H.264 and AAC), decoded with the "
            f"settings of tune_configs/vggsound.yaml: {video.frames} × {video.candidates} frames of {video.size} × "
            f"{video.size} as JPEG of quality {video.jpeg_quality}, {audio.front_end} of "
            f"{audio.mels} × {audio.frames} in float16. Memory is the proportional set size of all processes of the "
            "command (driver, Ray, workers, decoders; the object store once), "
            f"seen every {EVERY:g} s from the first sign of decoding to the end.",
            "",
            hardware() + ".",
            "",
            *table,
            *("| " + " | ".join(run.row()) + " |" for run in runs),
            "",
            f"Peak with {last.clips:,} clips over that with {runs[0].clips:,}: {peaks[-1] / peaks[0]:.2f}.",
            "",
            f"For {TARGET:,} clips, as the rate of the last row × the count, not measured: hours on "
            f"{', '.join(map(str, CORES))} cores",
            "",
            "| " + " | ".join(f"{cores} cores" if cores > 1 else "1 core" for cores in CORES) + " | disk, GB |",
            "|" + " ---: |" * (len(CORES) + 1),
            f"| {hours} | {TARGET * last.stored / last.clips / 1e9:,.0f} |",
            "",
            "Many cores need a disk that keeps up with them. Real pictures compress otherwise than made ones, larger "
            "frames take longer to decode.",
            "",
        ]
    )


def run(counts: Sequence[int], seconds: float, out: Path) -> int:
    """Measure each number of clips, print the table and write the page."""
    console, runs = Console(), []
    with tempfile.TemporaryDirectory(prefix="i-") as name:  # a short path: Ray's sockets lie in it
        work = Path(name)
        console.print(f"making {DISTINCT} clips of {seconds:g} s", highlight=False)
        made = sources(work, seconds)
        for count in counts:
            console.print(f"ingest of {count:,} clips", highlight=False)
            runs.append(measure(layout(work / f"data-{count}", count, made), count, work, console))
    table = Table(*HEADER, title=f"ingest of clips of {seconds:g} s", title_justify="left")
    for measured in runs:
        table.add_row(*measured.row())
    console.print(table)
    out.mkdir(parents=True, exist_ok=True)
    (out / "ingest_scale.md").write_text(markdown(runs, seconds))
    console.print(f"written: {out / 'ingest_scale.md'}", markup=False, soft_wrap=True)
    return 0


def counts_of(text: str) -> list[int]:
    """`300,3000` as numbers.

    Raises:
        BadInputError: not whole numbers, or too few clips for every split to have one.
    """
    least = 20
    if not all(part.strip().isdigit() and int(part) >= least for part in text.split(",")):
        raise BadInputError(f"--clips {text}: give whole numbers of at least {least}, with commas")
    return sorted(int(part) for part in text.split(","))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", default="300,3000", metavar="N,N", help="numbers of clips (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of a clip (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR", help="where the page is written")
    options = parser.parse_args()
    return run_command(lambda: run(counts_of(options.clips), options.seconds, options.out))


if __name__ == "__main__":
    sys.exit(main())
