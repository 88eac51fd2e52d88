"""Feeds mutated clips to the decoder. Each must be decoded or refused with a reason. None may crash or hang it, none
that ffmpeg decodes in full may be refused as something it is not.

    python benchmarks/fuzz_decode.py [--files 1000] [--seed 0] [--out FILE.json]

Cost: under a minute for 1,000 files on one core (benchmarks/results/fuzz_decode.json). A file is a small clip of one of
fifteen containers with flipped bits, a cut end, zeroed or moved blocks, the end of another file, a changed header, or a
container whose tracks, flags, matrices, durations or order of boxes are others. The same seed gives the same files.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
from rich.console import Console
from rich.table import Table

from pipelines.config.schema import AudioConfig, VideoConfig
from pipelines.decoding.clip import REASONS, DecodeError, decode_clip
from pipelines.decoding.limits import run_limited

VIDEO = VideoConfig(frames=3, size=64, crop=64, max_pixels=1920 * 1080, max_seconds=600)
AUDIO = AudioConfig(seconds=2.0, frames=200)
MODALITIES = ("video", "audio", "flow")
HANG_SECONDS = 30.0
"""decode_timeout is 10 s; a file that took longer than this was not ended in time."""
START_SECONDS = 120.0
"""More, for the first file of a process: it starts, and its decoder, too."""
TIMEOUT = 10.0
BAD = ("crash", "hang")
DENIALS = ("not_media", "no_video", "no_audio", "failed")
"""Reasons that deny what a file is; a file that ffmpeg decodes without a word must not get one."""

_SECOND_SOUND = ("-disposition:a:0", "0", "-disposition:a:1", "default")
CONTAINERS = {
    "h264.mp4": ("libx264", "aac", ["-pix_fmt", "yuv420p", "-movflags", "+faststart"]),
    "end.mp4": ("libx264", "aac", ["-pix_fmt", "yuv420p"]),
    "fragments.mp4": ("libx264", "aac", ["-pix_fmt", "yuv420p", "-movflags", "frag_keyframe+empty_moov"]),
    "hevc.mkv": ("libx265", "libopus", ["-pix_fmt", "yuv420p", "-x265-params", "log-level=none"]),
    "vp9.webm": ("libvpx-vp9", "libopus", ["-pix_fmt", "yuv420p"]),
    "mpeg4.avi": ("mpeg4", "libmp3lame", []),
    "flv.flv": ("flv1", "libmp3lame", ["-ar", "22050"]),
    "wmv.asf": ("wmv2", "wmav2", []),
    "timecode.mp4": ("libx264", "aac", ["-pix_fmt", "yuv420p", "-timecode", "01:00:00:00"]),
    "live.webm": ("libvpx", "libopus", ["-live", "1"]),
    "raw.avi": ("rawvideo", "pcm_s16le", ["-pix_fmt", "bgr24"]),
    "camera.mxf": ("mpeg2video", "pcm_s16le", ["-r", "25", "-ar", "48000"]),
    "stream.ts": ("libx264", "aac", ["-pix_fmt", "yuv420p"]),
    "a.nut": ("libx264", "aac", ["-pix_fmt", "yuv420p"]),
    "two.mkv": ("libx264", "aac", ["-pix_fmt", "yuv420p", "-map", "0", "-map", "1", "-map", "1", *_SECOND_SOUND]),
}

Mutation = Callable[[np.random.Generator, bytearray, bytes], bytearray]


def flip_bits(rng: np.random.Generator, content: bytearray, other: bytes) -> bytearray:
    del other
    for place in rng.integers(0, len(content), int(rng.integers(1, 100))):
        content[place] ^= 1 << int(rng.integers(8))
    return content


def cut(rng: np.random.Generator, content: bytearray, other: bytes) -> bytearray:
    del other
    return content[: int(rng.integers(0, len(content)))]


def splice(rng: np.random.Generator, content: bytearray, other: bytes) -> bytearray:
    """The beginning of one file, and the end of another."""
    return content[: int(rng.integers(1, len(content)))] + other[int(rng.integers(0, len(other))) :]


def zero(rng: np.random.Generator, content: bytearray, other: bytes) -> bytearray:
    del other
    start, length = int(rng.integers(0, len(content))), int(rng.integers(1, len(content) // 3))
    content[start : start + length] = bytes(len(content[start : start + length]))
    return content


def repeat(rng: np.random.Generator, content: bytearray, other: bytes) -> bytearray:
    """A block of the file once more, somewhere else."""
    del other
    start, to = (int(p) for p in rng.integers(0, len(content), 2))
    return content[:to] + content[start : start + int(rng.integers(1, 5000))] + content[to:]


def edit_header(rng: np.random.Generator, content: bytearray, other: bytes) -> bytearray:
    """Numbers in the first or last kilobyte (an MP4's index stands at either end) become extreme."""
    del other
    kilobyte = min(1024, len(content) - 8)
    first = 0 if rng.random() < 0.5 else len(content) - 8 - kilobyte
    for place in first + rng.integers(0, kilobyte, int(rng.integers(1, 6))):
        width = int(rng.choice([1, 2, 4, 8]))
        extremes = (0, 1, 2 ** (8 * width - 1), 2 ** (8 * width) - 1, 16384 % 2 ** (8 * width))
        value = extremes[int(rng.integers(len(extremes)))]
        content[place : place + width] = value.to_bytes(width, "big")
    return content


FIELDS = {
    # MP4: after the name of a box, where numbers of 4 bytes stand
    b"tkhd": (0, 12, 20, *range(40, 76, 4)),
    b"mdhd": (12, 16),
    b"mvhd": (12, 16, *range(36, 72, 4)),
    b"elst": (4, 8, 12, 16),
    b"hdlr": (8,),
    b"stsd": (4, 12),
    # AVI
    b"avih": (4, 20, 28),
    b"strh": (4, 24, 28, 36),
    b"strf": (8, 12, 16, 20),
    # Matroska: elements of one byte, and the duration
    **{bytes([element, 0x81]): (-3,) for element in (0x83, 0x88, 0xD7, 0xB9)},
    b"\x44\x89\x88": (0, 4),
}
MATRICES = [(a, b, c, d) for a in (-1, 0, 1) for b in (-1, 0, 1) for c in (-1, 0, 1) for d in (-1, 0, 1)]


def edit_container(rng: np.random.Generator, content: bytearray, other: bytes) -> bytearray:
    """What a container says of itself becomes something else: tracks' kinds, numbers, flags and durations, matrices."""
    del other
    found = [(tag, place) for tag in FIELDS for place in _places(content, tag)]
    for _ in range(int(rng.integers(1, 4)) if found else 0):
        tag, place = found[int(rng.integers(len(found)))]
        if tag == b"tkhd" and rng.random() < 0.5:  # one of the forms of a display matrix, or none that can be
            for index, value in zip((0, 4, 12, 16), MATRICES[int(rng.integers(len(MATRICES)))], strict=True):
                start = place + 44 + index
                content[start : start + 4] = (value << 16).to_bytes(4, "big", signed=True)
            continue
        start = place + len(tag) + int(rng.choice(FIELDS[tag]))
        values = (0, 1, 2, 3, 1 << 16, 2**31 - 1, 2**32 - 1, int(rng.integers(2**32)))
        content[start : start + 4] = values[int(rng.integers(len(values)))].to_bytes(4, "big")
        if tag == b"hdlr":
            kinds = (b"vide", b"soun", b"tmcd", b"text", b"meta")
            content[start : start + 4] = kinds[int(rng.integers(len(kinds)))]
    return content


def _places(content: bytearray, tag: bytes) -> list[int]:
    places, place = [], content.find(tag)
    while place >= 0 and len(places) < 20:
        places.append(place)
        place = content.find(tag, place + 1)
    return places


def reorder(rng: np.random.Generator, content: bytearray, other: bytes) -> bytearray:
    """The boxes of an MP4's index in another order, and now and then one of them lost; else two blocks change places.

    No byte of the media moves: without a loss ffmpeg decodes the file in full.
    """
    del other
    start = content.find(b"moov") - 4
    if start < 0:
        first, second = sorted(int(p) // 2 for p in rng.integers(0, len(content), 2))
        second += len(content) // 2
        a, b = content[first : first + 64], content[second : second + 64]
        content[first : first + len(b)], content[second : second + len(a)] = b, a
        return content
    end, place, boxes = start + int.from_bytes(content[start : start + 4], "big"), start + 8, []
    while place + 8 <= end and (size := int.from_bytes(content[place : place + 4], "big")) >= 8:
        boxes.append(content[place : place + size])
        place += size
    order = [0, *(1 + rng.permutation(len(boxes) - 1))] if boxes else []  # first the clock that the others count by
    if rng.random() < 0.3 and len(boxes) > 1:
        boxes[order[-1]][4:8] = b"free"
    return content[: start + 8] + b"".join(boxes[i] for i in order) + content[place:]


MUTATIONS: tuple[Mutation, ...] = (flip_bits, cut, splice, zero, repeat, edit_header, edit_container, reorder)


def decoded_in_full(path: Path) -> bool:
    """Whether ffmpeg decodes a picture and a sound of a file without a word of complaint."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-v", "warning", "-xerror", "-i", f"file:{path}"]
    command += ["-map", "0:V:0", "-map", "0:a:0", "-f", "null", "-"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=HANG_SECONDS)
    except subprocess.TimeoutExpired:
        return False
    return not done.returncode and not done.stderr


def make_sources(folder: Path) -> dict[str, bytes]:
    """One small clip of each container."""
    contents = {}
    for name, (video, audio, more) in CONTAINERS.items():
        inputs = ["-f", "lavfi", "-i", "testsrc=size=96x64:rate=10:duration=2"]
        inputs += ["-f", "lavfi", "-i", "sine=frequency=440:sample_rate=44100:duration=2"]
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-loglevel", "error", *inputs]
        run_limited([*command, "-c:v", video, "-c:a", audio, *more, f"file:{folder / name}"], time.monotonic() + 60)
        contents[name] = (folder / name).read_bytes()
    return contents


def mutated(rng: np.random.Generator, sources: dict[str, bytes]) -> tuple[str, str, bytes]:
    """A mutated file: the name of its source, the kind of mutation, its bytes."""
    name, other = (str(n) for n in rng.choice(list(sources), 2))
    mutation = MUTATIONS[int(rng.integers(len(MUTATIONS)))]
    return name, mutation.__name__, bytes(mutation(rng, bytearray(sources[name]), sources[other]))


def serve(pipe: Connection) -> None:
    """Runs in the process under test: ingest's own decoding, file by file. Any error but a refusal ends the process."""
    while (path := pipe.recv()) is not None:
        try:
            decode_clip(path, VIDEO, AUDIO, TIMEOUT, MODALITIES)
            pipe.send(("decoded", ""))
        except DecodeError as error:
            pipe.send((error.reason, error.detail))


class Decoder:
    """A process that decodes; replaced when it crashed or hung."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._process: BaseProcess | None = None

    def outcome(self, path: Path) -> tuple[str, str]:
        """What became of a file (`decoded`, a reason, `crash` or `hang`), and the detail."""
        seconds = HANG_SECONDS
        if self._process is None:
            seconds += START_SECONDS
            self._pipe, theirs = self._context.Pipe()
            self._process = self._context.Process(target=serve, args=(theirs,))
            self._process.start()
            theirs.close()
        self._pipe.send(path)
        try:
            if self._pipe.poll(seconds):
                result, detail = self._pipe.recv()
                return str(result), str(detail)
            found = ("hang", f"no answer for {seconds:g} s")
        except (EOFError, ConnectionError):
            found = ("crash", "the process ended")
        self.end()
        return found

    def end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = None


def fuzz(files: int, seed: int, console: Console) -> dict[str, Any]:
    """Mutate and decode files; returns how many had which outcome, in all, by container and by mutation."""
    results: list[tuple[str, str, str]] = []
    slowest, contained, denied, decoder = 0.0, 0, 0, Decoder()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        sources = make_sources(folder)
        for name in sources:
            if (found := decoder.outcome(folder / name))[0] != "decoded":
                raise SystemExit(f"{name}, as it was made, is refused: {found}")
        for number in range(files):
            name, mutation, content = mutated(np.random.default_rng([seed, number]), sources)
            path = folder / f"mutated-{number}{Path(name).suffix}"
            path.write_bytes(content)
            started = time.monotonic()
            result, detail = decoder.outcome(path)
            slowest, contained = max(slowest, time.monotonic() - started), contained + ("crashed" in detail)
            results.append((result, name, mutation))
            if result in BAD:
                console.print(f"{result}: file {number} of seed {seed} ({name}, {mutation}): {detail}", highlight=False)
            if result in DENIALS and decoded_in_full(path):
                denied += 1
                what = f"{result}, and ffmpeg decodes it in full: file {number} of seed {seed} ({name}, {mutation})"
                console.print(f"{what}: {detail}", highlight=False)
            path.unlink()
            if (number + 1) % 100 == 0:
                console.print(f"{number + 1} of {files} files, slowest {slowest:.1f} s", highlight=False)
        decoder.end()
    outcomes = Counter(result for result, _, _ in results)
    return {
        "files": files,
        "seed": seed,
        "accounted": sum(outcomes[r] for r in ("decoded", *REASONS, *BAD)),
        "crashes": outcomes["crash"],
        "hangs": outcomes["hang"],
        "decoder_crashes_contained": contained,
        "denied": denied,
        "slowest_seconds": round(slowest, 2),
        "outcomes": dict(outcomes.most_common()),
        "by_container": _crossed(results, 1),
        "by_mutation": _crossed(results, 2),
    }


def _crossed(results: list[tuple[str, str, str]], column: int) -> dict[str, dict[str, int]]:
    groups = sorted({row[column] for row in results})
    return {g: dict(Counter(row[0] for row in results if row[column] == g).most_common()) for g in groups}


def main() -> int:
    """The command. Exit code 1: a crash, a hang, a file refused as something it is not, or one without an outcome."""
    parser = argparse.ArgumentParser(description="Decode mutated clips; count what becomes of them.")
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the counts here, as JSON")
    options = parser.parse_args()
    console = Console()
    counts = fuzz(options.files, options.seed, console)
    table = Table("outcome", "files", "meaning")
    for reason, count in counts["outcomes"].items():
        table.add_row(reason, str(count), REASONS.get(reason, ""))
    console.print(table)
    console.print(
        f"{counts['accounted']} of {counts['files']} files accounted for: {counts['crashes']} crashes, "
        f"{counts['hangs']} hangs, {counts['decoder_crashes_contained']} crashes of a decoder contained, "
        f"{counts['denied']} refused as something they are not, "
        f"slowest {counts['slowest_seconds']} s"
    )
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(counts, indent=1) + "\n")
    bad = counts["crashes"] + counts["hangs"] + counts["denied"]
    return 0 if not bad and counts["accounted"] == counts["files"] else 1


if __name__ == "__main__":
    sys.exit(main())
