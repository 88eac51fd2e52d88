"""`avdigits`: 1,797 handwritten digits that move over clutter, each with the telephone tone of its digit, as real MP4s.

Needs nothing: the clips are made on first use into <cache>/avdigits-<hash of the recipe>/ (clips/0000.mp4 ..., and
index.csv), in about a minute on 2 cores. Origin: the digits are scikit-learn's `load_digits` (the test part of "Optical
Recognition of Handwritten Digits", E. Alpaydin and C. Kaynak, UCI Machine Learning Repository, CC BY 4.0); sound and
clutter are drawn by this file.

A clip is one second: 8 frames of 32 × 32 pixels at 8 a second (H.264) and mono sound at 8 kHz (AAC), drawn from the
generator (seed, number of the image): a clip is the same whenever and wherever it is drawn. 1,200 images are train, 597
test. The sound's noise has a root mean square of 0.05 before a gain of ±12 dB.

Difficulty, calibrated on the decoded clips so that audio is the preferred and the more fragile modality. Plain joint
training (JT) on one modality or both, accuracy in %, mean of 3 seeds, by `python benchmarks/calibration.py`:

                 clean   PGD-20, joint ball      video's ball    audio's ball    one modality missing
                         ε .5    1     2         .5    1    2    .5    1    2    video    audio
    video alone  80.0    17.7    0.9   0.0
    audio alone  93.6    64.4   31.3   3.0
    both         95.1    66.7   30.1   2.2       80.5 57.0 18.3  76.1 47.5 11.3  63.9     33.7

Chance is 10 %. Budgets are ℓ2: video in pixels of [0, 1], audio in standardised log-mel.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from crmt.errors import CRMTError
from pipelines.config.paths import cache_root
from pipelines.config.schema import DataConfig
from pipelines.infra.files import atomic_file, write_atomically
from pipelines.sources.base import Source
from pipelines.sources.index import ClipIndex

CLASSES = tuple(str(digit) for digit in range(10))
DTMF = (
    (941, 1336),
    (697, 1209),
    (697, 1336),
    (697, 1477),
    (770, 1209),
    (770, 1336),
    (770, 1477),
    (852, 1209),
    (852, 1336),
    (852, 1477),
)
"""The frequencies in Hz of the two tones of each digit (ITU-T Q.23)."""

_PER_TASK = 32
_ENCODE_SECONDS = 60


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Every constant of the clips. Pairs are the ends of a uniform draw, once a clip; pixels are in [0, 1]."""

    version: int = 1
    seed: int = 0
    train: int = 1200
    """Number of images in the train split; the others are test."""

    side: int = 32
    digit_side: int = 24
    frames: int = 8
    fps: int = 8
    travel: float = 4.0
    """The farthest that the digit moves during the clip, in pixels, in each direction."""
    contrast: tuple[float, float] = (0.53, 1.1)
    tint: tuple[float, float] = (0.4, 1.0)
    """Brightness of the digit in each colour channel, multiplied by the contrast."""
    background: tuple[float, float] = (0.15, 0.35)
    """Brightness of the background in each colour channel."""
    clutter: float = 0.165
    """Deviation of the clutter: 8 × 8 values in each channel, enlarged; it does not move during the clip."""
    pixel_noise: float = 0.135
    """Deviation of the noise drawn for every pixel of every frame."""

    sample_rate: int = 8000
    detune: float = 0.01
    """Largest relative error of each tone."""
    onset: tuple[float, float] = (0.0, 0.6)
    """When the tone begins, in seconds."""
    duration: tuple[float, float] = (0.15, 0.4)
    """How long the tone lasts, in seconds."""
    tone_db: tuple[float, float] = (-17.0, 0.0)
    """Amplitude of each tone over the noise's root mean square, in decibels."""
    pink_share: float = 0.5
    """Share of pink noise in the noise's power; the rest is white."""
    noise_rms: float = 0.05
    gain_db: tuple[float, float] = (-12.0, 12.0)

    preset: str = "veryfast"
    crf: int = 18
    audio_bitrate: str = "32k"

    @property
    def hash(self) -> str:
        """A hash of all constants, which names the folder of the clips."""
        return hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode()).hexdigest()[:12]


RECIPE = Recipe()


def load(data: DataConfig) -> ClipIndex:
    """The clips; those that do not exist yet are made first, which needs a running Ray."""
    return generate(cache_root(data), RECIPE)


def generate(root: Path, recipe: Recipe = RECIPE, images: int | None = None, progress: bool = True) -> ClipIndex:
    """Make the clips of `recipe` that `root`/avdigits-<hash> lacks, in parallel by Ray Data, and return the index.

    Args:
        root: the folder that holds, or will hold, the folder of the clips.
        recipe: every constant of the clips.
        images: make and list only this many images, the first ones (for tests and trials of a recipe).
        progress: show how far it is.

    Raises:
        CRMTError: ffmpeg could not write a clip.
    """
    folder = Path(root) / f"avdigits-{recipe.hash}"
    table = _table(recipe)[:images]
    listing = folder / "index.csv"
    if _missing(folder, len(table)):
        _make(folder, recipe, len(table), progress)
    if images is None and not listing.exists():
        _write_listing(listing, table)
    return _index(folder, table, recipe)


def listed(data: DataConfig) -> ClipIndex:
    """The clips as `load` gives them, with none of them made."""
    return _index(cache_root(data) / f"avdigits-{RECIPE.hash}", _table(RECIPE), RECIPE)


def _index(folder: Path, table: pd.DataFrame, recipe: Recipe) -> ClipIndex:
    clips = table.assign(path=[str(folder / _clip_path(i)) for i in range(len(table))])
    clips = clips.assign(fingerprint=[f"avdigits-{recipe.hash}-{i}" for i in range(len(table))])
    return ClipIndex("avdigits", CLASSES, clips)


def make_clip(
    digit: NDArray[np.floating], label: int, rng: np.random.Generator, recipe: Recipe = RECIPE
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Draw one clip before encoding.

    Args:
        digit: (8, 8), ink from 0 to 16, as scikit-learn has it.
        label: the digit, 0 to 9, which chooses the tones.
        rng: makes every random choice.
        recipe: every constant of the clips.

    Returns:
        frames uint8 (frames, side, side, 3), and a mono waveform float32 in [-1, 1] of frames / fps seconds.
    """
    return _draw_frames(digit, rng, recipe), _draw_sound(label, rng, recipe)


def write_clip(path: Path, frames: NDArray[np.uint8], waveform: NDArray[np.float32], recipe: Recipe = RECIPE) -> None:
    """Encode as MP4 (H.264 + AAC) by one ffmpeg process; the file appears whole or not at all.

    Raises:
        CRMTError: ffmpeg failed.
    """
    import ffmpeg
    import imageio_ffmpeg

    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = frames.shape[1:3]
    with atomic_file(path) as temporary, tempfile.NamedTemporaryFile(suffix=".f32") as sound:
        waveform.astype("<f4").tofile(sound.name)
        video = ffmpeg.input("pipe:0", format="rawvideo", pix_fmt="rgb24", s=f"{width}x{height}", r=recipe.fps)
        audio = ffmpeg.input(sound.name, format="f32le", ar=recipe.sample_rate, ac=1)
        target = ffmpeg.output(
            video,
            audio,
            f"file:{temporary}",
            vcodec="libx264",
            preset=recipe.preset,
            crf=recipe.crf,
            pix_fmt="yuv420p",
            acodec="aac",
            audio_bitrate=recipe.audio_bitrate,
            threads=1,
            format="mp4",
            fflags="+bitexact",
            loglevel="error",
        )
        command = ffmpeg.compile(target, cmd=imageio_ffmpeg.get_ffmpeg_exe(), overwrite_output=True)
        try:
            done = subprocess.run(command, input=frames.tobytes(), capture_output=True, timeout=_ENCODE_SECONDS)
            if done.returncode != 0:
                message = " ".join(done.stderr.decode(errors="replace").split())
                raise CRMTError(f"ffmpeg could not write {path}: {message or f'exit code {done.returncode}'}")
        except subprocess.TimeoutExpired:
            raise CRMTError(f"ffmpeg did not finish {path} within {_ENCODE_SECONDS} s") from None


def _draw_frames(digit: NDArray[np.floating], rng: np.random.Generator, recipe: Recipe) -> NDArray[np.uint8]:
    side, room = recipe.side, recipe.side - recipe.digit_side
    start = rng.uniform(0, room, 2)
    end = np.clip(start + rng.uniform(-recipe.travel, recipe.travel, 2), 0, room)
    colour = rng.uniform(*recipe.contrast) * rng.uniform(*recipe.tint, 3)
    clutter = np.stack([_enlarged(rng.normal(0, recipe.clutter, (8, 8)), side) for _ in range(3)], -1)
    backdrop = rng.uniform(*recipe.background, 3) + clutter
    frames = np.empty((recipe.frames, side, side, 3))
    for i in range(recipe.frames):
        left, top = start + (end - start) * i / max(recipe.frames - 1, 1)
        frames[i] = backdrop + _placed(digit / 16, left, top, recipe)[..., None] * colour
    frames += rng.normal(0, recipe.pixel_noise, frames.shape)
    return (np.clip(frames, 0, 1) * 255).round().astype(np.uint8)


def _enlarged(values: NDArray[np.floating], side: int) -> NDArray[np.floating]:
    return np.asarray(Image.fromarray(values.astype(np.float32)).resize((side, side), Image.Resampling.BILINEAR))


def _placed(digit: NDArray[np.floating], left: float, top: float, recipe: Recipe) -> NDArray[np.floating]:
    """The digit enlarged to `digit_side` with its corner at (left, top), to a fraction of a pixel; 0 around it."""
    padded = Image.fromarray(np.pad(digit, 1).astype(np.float32))
    step = digit.shape[0] / recipe.digit_side
    matrix = (step, 0, 1 - left * step, 0, step, 1 - top * step)
    size = (recipe.side, recipe.side)
    return np.asarray(padded.transform(size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR))


def _draw_sound(label: int, rng: np.random.Generator, recipe: Recipe) -> NDArray[np.float32]:
    count = recipe.frames * recipe.sample_rate // recipe.fps
    seconds = np.arange(count) / recipe.sample_rate
    white, pink = rng.normal(0, 1, count), _pink(rng.normal(0, 1, count))
    noise = np.sqrt(1 - recipe.pink_share) * white + np.sqrt(recipe.pink_share) * pink
    amplitude = 10 ** (rng.uniform(*recipe.tone_db) / 20)
    onset, duration = rng.uniform(*recipe.onset), rng.uniform(*recipe.duration)
    heard = (seconds >= onset) & (seconds < onset + duration)
    for frequency in DTMF[label]:
        detuned = frequency * (1 + rng.uniform(-recipe.detune, recipe.detune))
        noise += amplitude * heard * np.sin(2 * np.pi * (detuned * seconds + rng.uniform()))
    gain = recipe.noise_rms * 10 ** (rng.uniform(*recipe.gain_db) / 20)
    return np.clip(gain * noise, -1, 1).astype(np.float32)


def _pink(white: NDArray[np.floating]) -> NDArray[np.floating]:
    """White noise made pink: its power falls as 1 / frequency; with deviation 1."""
    spectrum = np.fft.rfft(white)
    spectrum /= np.sqrt(np.maximum(np.arange(len(spectrum)), 1))
    spectrum[0] = 0
    pink = np.fft.irfft(spectrum, len(white))
    return pink / pink.std()


def _clip_path(number: int) -> str:
    return f"clips/{number:04d}.mp4"


def _table(recipe: Recipe) -> pd.DataFrame:
    """id, label, split and group of every image, in the order of scikit-learn."""
    from sklearn.datasets import load_digits

    labels = load_digits().target
    train = np.random.default_rng([recipe.seed, len(labels)]).permutation(len(labels))[: recipe.train]
    ids = [f"{i:04d}" for i in range(len(labels))]
    split = np.where(np.isin(np.arange(len(labels)), train), "train", "test")
    return pd.DataFrame({"id": ids, "label": labels.astype(int), "split": split, "group": ids})


def _write_listing(listing: Path, table: pd.DataFrame) -> None:
    write_atomically(listing, table.assign(path=[_clip_path(i) for i in range(len(table))]).to_csv(index=False))


def _missing(folder: Path, count: int) -> list[int]:
    return [i for i in range(count) if not (folder / _clip_path(i)).exists()]


def _make(folder: Path, recipe: Recipe, count: int, progress: bool) -> None:
    """Make those of the first `count` clips that are not there."""
    from pipelines.infra.tasks import Piece, only_one, run_pieces

    with only_one(folder):
        missing = _missing(folder, count)
        parts = [missing[i : i + _PER_TASK] for i in range(0, len(missing), _PER_TASK)]
        fixed = {"folder": str(folder), "recipe": dataclasses.asdict(recipe)}
        pieces = [Piece({**fixed, "numbers": part}, len(part)) for part in parts]
        run_pieces(pieces, _make_part, "Making avdigits", progress)


def _make_part(task: dict[str, Any]) -> dict[str, Any]:
    """Make the clips of one task (a Ray Data task; the recipe comes as JSON, which has lists for tuples)."""
    from sklearn.datasets import load_digits

    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in task["recipe"].items()}
    recipe, digits = Recipe(**values), load_digits()
    for number in task["numbers"]:
        rng = np.random.default_rng([recipe.seed, number])
        frames, waveform = make_clip(digits.images[number], int(digits.target[number]), rng, recipe)
        write_clip(Path(task["folder"]) / _clip_path(number), frames, waveform, recipe)
    return {}


SOURCE = Source(load, makes_clips=True, listed=listed)
