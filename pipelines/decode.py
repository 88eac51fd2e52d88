"""One clip on disk to frames and a log-mel: decord for frames, ffmpeg and librosa for sound, every failure typed.

Costs about 15 ms for a one-second clip of 32 × 32 pixels, 100 ms for ten seconds of ordinary web video, on one core.
Nothing here knows of Ray. The decoders are imported on first use: reading a finished cache does not pay for them.
"""

from __future__ import annotations

import functools
import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from crmt.errors import CRMTError
from pipelines.mp4 import boxes, is_mp4, track_seconds
from pipelines.schema import AudioConfig, VideoConfig

REASONS = {
    "missing": "there is no such file",
    "unreadable": "the file cannot be opened: permissions, or not a plain file",
    "empty": "the file has no bytes",
    "not_media": "no known media container, whatever its name says",
    "no_video": "no video stream, and video is wanted",
    "no_audio": "no audio stream, and audio is wanted",
    "truncated": "the file, its video or its sound ends before its own declared end, so part of the clip is missing",
    "too_large": "more pixels a frame than data.video.max_pixels",
    "timeout": "took longer than data.decode_timeout",
    "failed": "the decoder gave up; the detail is its own message",
}
"""Why a clip can be refused. The set is fixed: quarantine lists and reports count by these names."""

# Real containers only: playlists and subtitle-like formats could name other files and are never followed.
_FORMATS = "mov,matroska,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,rm,wav,mp3,flac,aac"
_BOXES_WITH_MEDIA = (b"moov", b"moof", b"mdat")
_SHORTFALL_SECONDS, _SHORTFALL_SHARE = 0.25, 0.05

_CLOCK = r"(\d+):(\d\d):(\d\d(?:\.\d+)?)"
_DURATION = re.compile(rf"^  Duration: {_CLOCK}(?:, start: (-?[\d.]+))?", re.MULTILINE)
_GUESSED = "Estimating duration from bitrate"
_STREAM = re.compile(r"^  (?=Stream #0:)", re.MULTILINE)
_VIDEO_STREAM = re.compile(r"Stream #0:\S+ Video: (?!.*\(attached pic\)).*?, (\d+)x(\d+)[ ,]?")
_AUDIO_STREAM = re.compile(r"Stream #0:\S+ Audio: ")
_STREAM_START = re.compile(r"^Stream .*, start (-?[\d.]+)")
_STREAM_END = re.compile(rf"^ +DURATION\S* *: {_CLOCK}", re.MULTILINE)  # a tag of Matroska's writers
_PROGRESS = re.compile(rf"time={_CLOCK}")


class DecodeError(CRMTError):
    """A clip that cannot be used. `reason` is a key of REASONS, `detail` says what was seen."""

    def __init__(self, reason: str, detail: str) -> None:
        if reason not in REASONS:
            raise KeyError(reason)
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[DecodeError], tuple[str, str]]:
        return DecodeError, (self.reason, self.detail)  # crosses process borders under Ray


@dataclass(frozen=True, eq=False)
class DecodedClip:
    """One clip; a modality that was not asked for is None.

    `frames`: uint8 (F, H, W, 3), RGB, F = video.frames · video.candidates, segment by segment, H = W = video.size.
    `audio`: float16 (1, mels, frames), ln(mel power + offset), not standardised.
    """

    frames: NDArray[np.uint8] | None
    audio: NDArray[np.float16] | None


@dataclass(frozen=True, eq=False)
class _Container:
    """What ffmpeg says about a file before anything is decoded, and the samples of its sound.

    `seconds` is the declared duration of the longest stream, `video_end` and `sound_end` are each stream's own declared
    end; None where the container does not say. `video_start`: when the picture sets in. `read_end`: where the sound
    that could be read ends. All count from the clip's start.
    """

    seconds: float | None
    pixels: tuple[int, int] | None
    has_audio: bool
    video_start: float
    video_end: float | None
    sound_end: float | None
    read_end: float
    waveform: NDArray[np.float32]
    message: str


def decode_clip(
    path: Path,
    video: VideoConfig,
    audio: AudioConfig,
    timeout: float,
    modalities: tuple[str, ...] = ("video", "audio"),
) -> DecodedClip:
    """Decode one clip.

    Args:
        path: the clip; any name, also with blanks or leading dashes.
        timeout: seconds. ffmpeg is killed when they are over; between two frames decord is stopped likewise.
        modalities: which of `video` and `audio` to decode; the other one may be absent from the file.

    Raises:
        DecodeError: with one of REASONS.
    """
    deadline = time.monotonic() + timeout
    path = Path(path).absolute()
    _check_file(path)
    wants_audio = "audio" in modalities
    # ffmpeg goes first, also for video alone: it declares the size, and its format list keeps decord from playlists.
    container = _open(path, audio.sample_rate, audio.seconds if wants_audio else 0.001, deadline)
    if "video" in modalities and container.pixels is None:
        raise DecodeError("no_video", "the file has no video stream")
    if wants_audio and not container.has_audio:
        raise DecodeError("no_audio", "the file has no audio stream")
    if wants_audio and not len(container.waveform):
        raise DecodeError("failed", f"no sound could be decoded: {container.message}")
    if not np.isfinite(container.waveform).all():
        raise DecodeError("failed", "the decoded sound has values that are not finite")
    frames, video_end = None, None
    if container.pixels is not None:
        _check_pixels(container.pixels, video)
        frames, video_end = _read_frames(path, video, deadline, container.video_start, decode="video" in modalities)
    _check_lengths(path, container, video_end, audio.seconds if wants_audio else None, deadline)
    return DecodedClip(frames, log_mel(container.waveform, audio) if wants_audio else None)


def frame_indices(length: int, segments: int, candidates: int) -> NDArray[np.int64]:
    """Frames to take of `length`: the middles of `candidates` equal parts of each of `segments` equal segments."""
    count = segments * candidates
    return ((np.arange(count) + 0.5) * length / count).astype(np.int64)


def log_mel(waveform: NDArray[np.float32], audio: AudioConfig) -> NDArray[np.float16]:
    """ln(mel power + offset) of a mono waveform, float16 (1, mels, frames), padded with the value of silence."""
    import librosa
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    short = audio.n_fft - len(waveform)
    if short > 0:  # shorter than one transform: librosa would warn
        waveform = np.pad(waveform, (0, short))
    with threadpool_limits(limits=1):  # several BLAS threads make so small a product 4 times slower
        power = librosa.feature.melspectrogram(
            y=waveform,
            sr=audio.sample_rate,
            n_fft=audio.n_fft,
            win_length=audio.window,
            hop_length=audio.hop,
            window="hann",
            center=True,
            power=2.0,
            n_mels=audio.mels,
            fmin=audio.fmin,
            fmax=audio.fmax,
        )
    values = np.log(power[:, : audio.frames] + audio.offset)
    padding = audio.frames - values.shape[1]
    padded = np.pad(values, ((0, 0), (0, padding)), constant_values=np.log(audio.offset))
    return padded[None].astype(np.float16)


def _check_file(path: Path) -> None:
    try:
        if not path.is_file():
            kind = "unreadable" if path.exists() else "missing"
            raise DecodeError(kind, "not a plain file" if path.exists() else "no such file")
        if path.stat().st_size == 0:
            raise DecodeError("empty", "0 bytes")
        _check_boxes(path)
    except OSError as error:
        raise DecodeError("unreadable", error.strerror or str(error)) from None


def _check_boxes(path: Path) -> None:
    """Refuse an MP4/MOV whose top-level boxes run past the end of the file, or that lost its index.

    A file cut inside `mdat` decodes short without any error when its index stands in front, so this is read from
    the container itself (ISO/IEC 14496-12, 4.2).
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        if not is_mp4(file):
            return
        indexed = False
        for kind, _, end in boxes(file, 0, size):
            indexed = indexed or kind == b"moov"
            if end > size and kind in _BOXES_WITH_MEDIA:  # anything else is trailing rubbish, which players ignore
                raise DecodeError("truncated", f"the file ends {end - size} bytes before its {kind.decode()} box")
    if not indexed:
        raise DecodeError("truncated", "the file ends before its index (moov box)")


def _check_pixels(pixels: tuple[int, int], video: VideoConfig) -> None:
    width, height = pixels
    if width * height > video.max_pixels:
        raise DecodeError("too_large", f"{width} × {height} pixels, limit {video.max_pixels}")


def _check_lengths(
    path: Path, container: _Container, video_end: float | None, sound_limit: float | None, deadline: float
) -> None:
    """Refuse a clip of which a stream clearly ends before that stream's own declared end.

    `video_end`: where the readable frames end (None: no video). `sound_limit`: to where sound was read (None: not).
    """
    declared_video, declared_sound = container.video_end, container.sound_end
    if declared_video is None and declared_sound is None:
        if video_end is not None and container.has_audio:
            _check_either(path, container, video_end, deadline)
            return
        declared_video = declared_sound = container.seconds  # of the only stream
    if video_end is not None and declared_video is not None:
        _check_length("video", video_end, declared_video)
    if sound_limit is not None and declared_sound is not None:
        _check_length("sound", container.read_end, min(declared_sound, sound_limit))


def _check_either(path: Path, container: _Container, video_end: float, deadline: float) -> None:
    """Where only the longest stream's duration is declared (AVI, FLV ...), one of video and sound must reach it."""
    if container.seconds is not None and _is_short(video_end, container.seconds):
        longest = max(video_end, _sound_end(path, deadline))
        _check_length("the longer of video and sound", longest, container.seconds)


def _check_length(what: str, seconds: float, declared: float) -> None:
    if _is_short(seconds, declared):
        raise DecodeError("truncated", f"{what}: {seconds:.2f} s could be read of {declared:.2f} s declared")


def _is_short(seconds: float, declared: float) -> bool:
    return declared - seconds > max(_SHORTFALL_SECONDS, _SHORTFALL_SHARE * declared)


def _open(path: Path, sample_rate: int, seconds: float, deadline: float) -> _Container:
    """Read the container's header and the first `seconds` of its sound as mono float32, in one ffmpeg process."""
    import ffmpeg

    # The prefix `file:` makes the name a name: it can be neither an option nor another protocol.
    source = ffmpeg.input(f"file:{path}", protocol_whitelist="file,pipe", format_whitelist=_FORMATS)
    sound = source.output("pipe:1", map="0:a:0?", format="f32le", ac=1, ar=sample_rate, t=seconds, threads=1)
    command = sound.global_args("-nostdin", "-hide_banner").compile(cmd=_ffmpeg())
    samples, log = _run(command, deadline)
    text = log.decode(errors="replace")
    header = text.partition("\nStream mapping:")[0].partition("\nOutput #0")[0]
    message = " ".join(text.strip().rpartition("\n")[2].split())[:200]
    if "\nInput #0, " not in f"\n{header}":
        raise DecodeError("not_media", message or "no known container")
    duration = None if _GUESSED in header else _DURATION.search(header)
    longest = _seconds(duration) if duration else None
    streams = _STREAM.split(header)[1:]
    picture = next((s for s in streams if _VIDEO_STREAM.match(s)), None)
    heard = next((s for s in streams if _AUDIO_STREAM.match(s)), None)
    pixels = _VIDEO_STREAM.match(picture) if picture else None
    waveform = np.frombuffer(samples[: len(samples) // 4 * 4], np.float32)
    origin = float((duration and duration[4]) or 0)
    video_start, sound_start = (max(_start(s) - origin, 0.0) if s else 0.0 for s in (picture, heard))
    tracks = track_seconds(path)
    video_end, sound_end = _tagged_end(picture, longest, origin), _tagged_end(heard, longest, origin)
    read_end = sound_start + len(waveform) / sample_rate
    if sound_end is not None:  # Matroska: where a late sound sets in is not always in the header
        read_end = max(read_end, _progress(log))
    return _Container(
        seconds=longest,
        pixels=(int(pixels[1]), int(pixels[2])) if pixels else None,
        has_audio=heard is not None,
        video_start=video_start,
        video_end=video_start + tracks[b"vide"] if b"vide" in tracks else video_end,
        sound_end=sound_start + tracks[b"soun"] if b"soun" in tracks else sound_end,
        read_end=read_end,
        waveform=waveform,
        message=message,
    )


def _run(command: list[str], deadline: float) -> tuple[bytes, bytes]:
    """What ffmpeg writes to stdout and stderr; it is stopped at the deadline."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            samples, log = process.communicate(timeout=max(deadline - time.monotonic(), 0.001))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise DecodeError("timeout", "ffmpeg did not finish in time and was stopped") from None
        except BaseException:
            process.kill()  # Ctrl-C must not leave a decoder behind
            raise
    return samples, log


def _seconds(match: re.Match[str]) -> float:
    return int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3])


def _tagged_end(stream: str | None, longest: float | None, origin: float) -> float | None:
    """End of a stream by its own tag, which does not count from the clip's start (`origin`) but from 0."""
    end = _STREAM_END.search(stream) if stream else None
    return min(_seconds(end), longest) - origin if end and longest is not None else None


def _start(stream: str) -> float:
    start = _STREAM_START.match(stream)
    return float(start[1]) if start else 0.0


def _sound_end(path: Path, deadline: float) -> float:
    """Seconds at which the last packet of the sound ends, without decoding it."""
    import ffmpeg

    source = ffmpeg.input(f"file:{path}", protocol_whitelist="file,pipe", format_whitelist=_FORMATS)
    packets = source.output("pipe:1", map="0:a:0", c="copy", f="null")
    _, log = _run(packets.global_args("-nostdin", "-hide_banner").compile(cmd=_ffmpeg()), deadline)
    return _progress(log)


def _progress(log: bytes) -> float:
    """Seconds to which ffmpeg says that it came."""
    times = list(_PROGRESS.finditer(log.decode(errors="replace")))
    return _seconds(times[-1]) if times else 0.0


@functools.cache
def _ffmpeg() -> str:
    import imageio_ffmpeg

    return str(imageio_ffmpeg.get_ffmpeg_exe())


def _read_frames(
    path: Path, video: VideoConfig, deadline: float, start: float, decode: bool
) -> tuple[NDArray[np.uint8] | None, float]:
    """Frames resized and cut to (F, size, size, 3), and the second at which the last one ends."""
    import decord
    from decord.base import DECORDError  # is not a RuntimeError

    decord.logging.set_level(decord.logging.QUIET)
    try:
        reader = decord.VideoReader(str(path), num_threads=1)
        length = len(reader)
        end = _end(reader.get_frame_timestamp(0), reader.get_frame_timestamp(length - 1), length, start)
        if not decode:
            return None, end
        squares: dict[int, NDArray[np.uint8]] = {}
        indices = frame_indices(length, video.frames, video.candidates).tolist()
        for index in indices:
            if time.monotonic() > deadline:
                raise DecodeError("timeout", f"{len(squares)} of {len(indices)} frames were decoded in time")
            if index not in squares:
                squares[index] = _square(_unpadded(reader[index].asnumpy()), video.size)
        return np.stack([squares[index] for index in indices]), end
    except (DECORDError, RuntimeError, AssertionError, IndexError, StopIteration, ValueError) as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise DecodeError("failed", " ".join(lines[0].split())[:200] if lines else repr(error)) from None


def _end(first: NDArray[np.floating], last: NDArray[np.floating], count: int, start: float) -> float:
    """Seconds at which the last frame ends, in a clip whose picture sets in at `start`.

    decord counts from the picture's start where it knows that, else from the clip's. FLV gives the last frame no
    duration: it lasts as long as the mean one.
    """
    span = max(float(last[1] - first[0]), float(last[0] - first[0]) * count / max(count - 1, 1))
    return max(float(first[0]), start) + span


def _unpadded(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W, 3) of a frame of decord.

    decord2 3.4.0 takes a row's padded length for its number of channels where the first is a multiple of the
    width (32, 48, 96, 144 ... pixels): 32 × 32 arrives as (32, 32, 6), padding and all. (get_batch raises there.)
    """
    height, width, channels = frame.shape
    if channels == 3:
        return frame
    return frame.reshape(height, width * channels)[:, : width * 3].reshape(height, width, 3)


def _square(frame: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resize the short side to `size` (bilinear, antialiased) and cut the centre."""
    height, width = frame.shape[:2]
    if (height, width) == (size, size):
        return frame
    scale = size / min(height, width)
    new_width, new_height = max(size, round(width * scale)), max(size, round(height * scale))
    resized = Image.fromarray(frame).resize((new_width, new_height), Image.Resampling.BILINEAR)
    left, top = (new_width - size) // 2, (new_height - size) // 2
    return np.asarray(resized)[top : top + size, left : left + size]
