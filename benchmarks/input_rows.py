"""Rows 1 and 2 of the benchmarks: clips in a second of one core, from files to Parquet and from Parquet to batches.

    python -m benchmarks.input_rows [--rounds 3]

At the settings of tune_configs/vggsound.yaml, with clips of 10 s that are made here (320 x 240, 25 frames a second,
H.264 and AAC). What counts is processor time, of this process and of all that it started, Ray's servers and workers
with them: so others on the machine disturb less. Every round runs both sides, in alternating order.

Row 1, ingest: `pipelines.clips.ingest` as a sweep runs it, against a bare loop (decord's frames, PyAV's sound, the
filter bank, JPEGs and arrays to files) and against what the released preprocessing of such sets does: ffmpeg at one
frame a second to JPEGs, ffmpeg to a WAV, filter bank, .npy. Row 2, batches: an epoch in memory and streamed, against
the path before (input_before.py) and against torch's DataLoader over JPEG and .npy files.

Cost: 8 minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shutil
import subprocess
import sys
import tempfile
import wave
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import av
import decord
import imageio_ffmpeg
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks import ingest_scale, input_before
from benchmarks.pairs import Bench, Row, RowFunction, table
from pipelines.clips.batches import ClipTable, MemoryClips
from pipelines.clips.ingest import ingest
from pipelines.clips.kinds import Kind, kinds_of
from pipelines.clips.placement import CPU
from pipelines.clips.rows import decode_rows, encode_row, present_column, schema_of, statistics
from pipelines.clips.streaming import StreamClips, StreamIndex
from pipelines.clips.transform import Transform
from pipelines.config.reading import CONFIG_DIR
from pipelines.config.run_config import load_config
from pipelines.config.schema import DataConfig
from pipelines.decoding.sound import PUBLISHED_FBANK, kaldi_fbank
from pipelines.infra.storage import folder_at
from pipelines.sources import load

NAMES = ("video", "audio")
MADE, INGESTED, EPOCH, PART, BATCH = 16, 32, 1024, 64, 64
"""Clips that are made, ingested in a run, in an epoch, in a Parquet part, and in a batch."""
SECONDS = 10.0
_TICKS = os.sysconf("SC_CLK_TCK")


class Spent(NamedTuple):
    """Processor time of two functions, in seconds, and the median ratio over rounds: above 1, ours takes less."""

    ratio: float
    ours: float
    theirs: float

    def note(self, clips: int) -> str:
        """Both as rates."""
        return f"{clips / self.ours:.3g} against {clips / self.theirs:.3g} clips/s a core"


def spent(ours: Callable[[int], object], theirs: Callable[[int], object], rounds: int) -> Spent:
    """Run two functions in turn, in alternating order, each with the number of the round; the first is not counted."""
    times: list[tuple[float, float]] = []
    for turn in range(rounds + 1):
        found = {}
        for run in (ours, theirs) if turn % 2 else (theirs, ours):
            before = processor_seconds()
            run(turn)
            found[run] = processor_seconds() - before
        times.append((found[ours], found[theirs]))
    mine, other = zip(*times[1:], strict=True)
    return Spent(median(b / a for a, b in times[1:]), median(mine), median(other))


def processor_seconds() -> float:
    """Seconds that this process, its descendants and those of them that have ended have computed."""
    parents: dict[int, int] = {}
    seconds: dict[int, float] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended
            fields = entry.joinpath("stat").read_text().rpartition(")")[2].split()
            parents[int(entry.name)] = int(fields[1])
            seconds[int(entry.name)] = sum(map(int, fields[11:15])) / _TICKS
    found = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return sum(seconds[pid] for pid in found)


# ---- row 1


def ingest_rows(bench: Bench) -> Iterator[Row]:
    """Ingest against a bare loop and against the released preprocessing's way."""
    data = load_config(CONFIG_DIR / "vggsound.yaml", []).data
    with workplace() as work:
        made = _make(work)
        files = [work / f"{number}.mp4" for number in range(INGESTED)]
        for number, file in enumerate(files):  # copies: links from two splits to one file would be found to overlap
            shutil.copyfile(made[number % len(made)], file)
        root = ingest_scale.layout(work / "set", INGESTED, files)

        def ours(turn: int) -> None:
            own = data.model_copy(update={"root": root, "cache": str(work / f"cache-{turn}")})
            cache = ingest(load(own), own, NAMES, progress=False)
            assert sum(cache.counts.values()) == INGESTED
            shutil.rmtree(work / f"cache-{turn}")

        for what, run, target in (
            ("a bare loop over decord, PyAV, filter bank and JPEG", _bare, 0.9),
            ("ffmpeg at 1 fps to JPEG + filter bank + .npy", _released, 2.5),
        ):

            def theirs(turn: int, run: Any = run) -> None:
                for number, file in enumerate(files):
                    run(file, work / "files" / f"{turn}-{number}", data)
                shutil.rmtree(work / "files")

            found = spent(ours, theirs, bench.rounds)
            yield Row(1, "ingest", what, found.ratio, target, note=found.note(INGESTED))


def _bare(file: Path, out: Path, data: DataConfig) -> None:
    """One clip by the shortest code that gives what ingest stores."""
    out.mkdir(parents=True)
    video, audio = data.video, data.audio
    reader = decord.VideoReader(str(file), num_threads=1)
    count = video.frames * video.candidates
    indices = ((np.arange(count) + 0.5) * len(reader) / count).astype(int)
    for number, frame in enumerate(reader.get_batch(indices).asnumpy()):
        image = Image.fromarray(frame)
        scale = video.size / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)
        left, top = (image.width - video.size) // 2, (image.height - video.size) // 2
        square = image.crop((left, top, left + video.size, top + video.size))
        square.save(out / f"{number}.jpg", quality=video.jpeg_quality)
    with av.open(str(file)) as media:
        resampler = av.AudioResampler(format="flt", layout="mono", rate=audio.sample_rate)
        pieces = [p.to_ndarray()[0] for frame in media.decode(audio=0) for p in resampler.resample(frame)]
    _save_sound(np.concatenate(pieces), out, data)


def _released(file: Path, out: Path, data: DataConfig) -> None:
    """One clip by two runs of ffmpeg, as scripts around such data sets do it."""
    out.mkdir(parents=True)
    ffmpeg = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-loglevel", "error", "-threads", "1", "-i", str(file)]
    subprocess.run([*ffmpeg, "-vf", "fps=1", "-threads", "1", "-q:v", "2", str(out / "%02d.jpg")], check=True)
    sound = out / "sound.wav"
    subprocess.run([*ffmpeg, "-vn", "-ac", "1", "-ar", str(data.audio.sample_rate), str(sound)], check=True)
    with wave.open(str(sound)) as opened:
        samples = np.frombuffer(opened.readframes(opened.getnframes()), np.int16)
    _save_sound(samples.astype(np.float32) / 2**15, out, data)


def _save_sound(samples: np.ndarray, out: Path, data: DataConfig) -> None:
    audio = data.audio
    values = kaldi_fbank(samples[: int(audio.seconds * audio.sample_rate)], audio.sample_rate, audio.mels)
    padded = np.pad(values[:, : audio.frames], ((0, 0), (0, max(0, audio.frames - values.shape[1]))))
    np.save(out / "sound.npy", padded.astype(np.float16))


# ---- row 2


def batch_rows(bench: Bench) -> Iterator[Row]:
    """An epoch's batches, in memory and streamed, against the path before and a DataLoader over files."""
    data = load_config(CONFIG_DIR / "vggsound.yaml", []).data
    with workplace() as work:
        epoch = _decoded_set(work, data)
        loader = DataLoader(
            _Files(work / "files", epoch.table.labels, data), batch_size=BATCH, shuffle=True, num_workers=1,
            drop_last=True,
        )  # fmt: skip
        stream = StreamClips(epoch.index, epoch.transform)
        memory = MemoryClips(epoch.table, epoch.transform)
        shapes = {name: meta.shape for name, meta in epoch.index.metas.items()}
        ways: dict[str, tuple[Callable[[int], object], Callable[[int], object]]] = {
            "in memory": (
                lambda turn: _drain(memory.training(turn, BATCH, 0)),
                lambda turn: _drain(input_before.memory_epoch(epoch.table, epoch.transform, BATCH, turn)),
            ),
            "streamed": (
                lambda turn: _drain(stream.training(turn, BATCH, 0)),
                lambda turn: _drain(
                    input_before.streamed_epoch(epoch.index.paths, shapes, epoch.transform, BATCH, turn)
                ),
            ),
        }
        for way, (ours, before) in ways.items():
            for what, theirs, target in (
                ("the path before", before, 5.0),
                ("a DataLoader over JPEG files", lambda _: _drain(loader), 1.5),
            ):
                found = spent(ours, theirs, bench.rounds)
                yield Row(2, f"an epoch's batches, {way}", what, found.ratio, target, note=found.note(EPOCH))


def _drain(batches: Iterable[Any]) -> None:
    assert sum(1 for _ in batches) == EPOCH // BATCH


@dataclass(frozen=True)
class _Set:
    """The same decoded clips in every form that is compared."""

    table: ClipTable
    index: StreamIndex
    transform: Transform


def _decoded_set(work: Path, data: DataConfig) -> _Set:
    """`EPOCH` clips that all differ, made of the frames and sounds of a few: shifted, and brighter or darker."""
    kinds = {name: kind for name, kind in kinds_of(data).items() if name in NAMES}
    rng = np.random.default_rng(0)
    seeds = [_read(file, kinds, data) for file in _make(work, 8)]
    metas = {name: kind.with_constants(statistics(kind, [])) for name, kind in kinds.items()}
    folder, paths, tables = work / "parts", [], []
    folder.mkdir()
    for part in range(EPOCH // PART):
        rows = []
        for number in range(part * PART, (part + 1) * PART):
            clip = seeds[number % len(seeds)]
            frames = np.roll(clip["video"], tuple(rng.integers(0, 256, 2)), (2, 3)).astype(int) + rng.integers(-9, 10)
            sound = np.roll(clip["audio"], rng.integers(0, 1024), 2) + np.float16(rng.normal())
            arrays = {"video": frames.clip(0, 255).astype(np.uint8), "audio": sound}
            row = {"id": f"{number:05d}", "label": number % 309, "split": "train", "group": str(number)}
            rows.append({**row, **encode_row(arrays, kinds)})
            _write_files(work / "files" / f"{number}", rows[-1], arrays["audio"])
        tables.append(pa.Table.from_pylist(rows, schema=schema_of(kinds)))
        paths.append(str(folder / f"part-{part:05d}.parquet"))
        pq.write_table(tables[-1], paths[-1], compression="zstd")
    arrays = [decode_rows(t, metas) for t in tables]
    whole = {key: np.concatenate([a[key] for a in arrays]) for key in arrays[0]}
    ids, splits = whole["id"].astype(str), np.array(["train"] * EPOCH)
    rows_of = pd.DataFrame({"id": ids, "split": splits, "part": np.arange(EPOCH) // PART})
    kept = {key: whole[key] for key in (*NAMES, *map(present_column, NAMES))}
    return _Set(
        ClipTable(ids, whole["label"], splits, kept),
        StreamIndex(folder_at(str(folder)), tuple(paths), metas, rows_of),
        Transform(data, {"audio": PUBLISHED_FBANK}),
    )


def _read(file: Path, kinds: dict[str, Kind], data: DataConfig) -> dict[str, np.ndarray]:
    from pipelines.clips.reading import read_clip

    return {name: np.asarray(array) for name, array in read_clip({"path": str(file)}, kinds, data).items()}


def _write_files(folder: Path, row: dict[str, Any], sound: np.ndarray) -> None:
    """A clip as the released preprocessing leaves it: JPEGs and an array of float32."""
    folder.mkdir(parents=True)
    for number, jpeg in enumerate(row["video"]):
        (folder / f"{number}.jpg").write_bytes(jpeg)
    np.save(folder / "sound.npy", sound.astype(np.float32))


class _Files(Dataset[tuple[Tensor, Tensor, int]]):
    """A random frame of each segment from its JPEG, randomly cut and resized by Pillow, and the sound: as torchvision's
    `RandomResizedCrop`, `RandomHorizontalFlip` and `ToTensor` do it."""

    def __init__(self, folder: Path, labels: np.ndarray, data: DataConfig) -> None:
        self.folder, self.labels, self.data = folder, labels, data

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, clip: int) -> tuple[Tensor, Tensor, int]:
        video, augment = self.data.video, self.data.augment
        assert augment.scale is not None
        area, turn = np.random.uniform(*augment.scale) * video.size**2, np.random.rand() < 0.5
        ratio = np.exp(np.random.uniform(*np.log(augment.ratio)))
        width, height = (min(round(side), video.size) for side in (np.sqrt(area * ratio), np.sqrt(area / ratio)))
        left, top = (np.random.randint(video.size - side + 1) for side in (width, height))
        frames = []
        for segment in range(video.frames):
            number = segment * video.candidates + np.random.randint(video.candidates)
            image: Image.Image = Image.open(self.folder / f"{clip}" / f"{number}.jpg")
            image = image.crop((left, top, left + width, top + height))
            image = image.resize((video.crop, video.crop), Image.Resampling.BILINEAR)
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if turn else image
            frames.append(torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255))
        mean, deviation = PUBLISHED_FBANK
        sound = torch.from_numpy(np.load(self.folder / f"{clip}" / "sound.npy")).sub_(mean).div_(deviation)
        return torch.stack(frames), sound, int(self.labels[clip])


# ---- both


@contextlib.contextmanager
def workplace() -> Iterator[Path]:
    """A folder and a Ray of one's own."""
    import ray

    own = not ray.is_initialized()
    with tempfile.TemporaryDirectory(prefix="i-") as name, contextlib.redirect_stderr(io.StringIO()):
        if own:
            ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
        try:
            yield Path(name)
        finally:
            if own:
                ray.shutdown()


def _make(work: Path, count: int = MADE) -> list[Path]:
    folder = work / "made"
    folder.mkdir()
    return ingest_scale.sources(folder, SECONDS, count)


ROWS: dict[int, RowFunction] = {1: ingest_rows, 2: batch_rows}
"""Number in the table of targets to what measures it."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="pairs of runs behind a ratio (default: %(default)s)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    bench = Bench(CPU, full=False, rounds=options.rounds)
    print(table([row for rows in (ingest_rows, batch_rows) for row in rows(bench)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
