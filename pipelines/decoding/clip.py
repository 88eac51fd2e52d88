"""One clip on disk to frames, flow and a spectrogram: PyAV, decord, OpenCV, ffmpeg and librosa, every failure typed.

Costs about 20 ms for a one-second clip of 32 × 32 pixels, 100 ms for ten seconds of ordinary web video, on one core.
Nothing here knows of Ray. The decoders are imported on first use: reading a finished cache does not pay for them.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.config.schema import AudioConfig, FlowConfig, VideoConfig
from pipelines.decoding.container import check_file, check_lengths, check_limits, open_container
from pipelines.decoding.errors import REASONS, DecodeError
from pipelines.decoding.frames import frame_process, read_frames
from pipelines.decoding.pictures import are_pictures, picture_files
from pipelines.decoding.sound import loudness, spectrogram

__all__ = ["REASONS", "DecodeError", "DecodedClip", "decode_clip"]

_PICTURES = ("video", "flow")


@dataclass(frozen=True, eq=False)
class DecodedClip:
    """One clip; a modality that was not asked for, or that the clip lacks and may lack, is None.

    `frames`: uint8 (F, H, W, 3), RGB, F = video.frames · video.candidates, segment by segment, H = W = video.size.
    `audio`: float16 of the shape audio.shape, not standardised over the data set.
    `flow`: uint8 (F, 2, H, W), motion to the right and down from each frame to the clip's next; 128 is none.
    `loudness`: in dBFS, of the sound that the spectrogram was made of; None where there is none, or silence.
    `tracks`: `video` and `audio` to the stream that was taken, where the file has several: `1 of 2, marked default`.
    """

    frames: NDArray[np.uint8] | None
    audio: NDArray[np.float16] | None
    flow: NDArray[np.uint8] | None = None
    tracks: dict[str, str] = field(default_factory=dict)
    loudness: float | None = None


def decode_clip(
    path: Path,
    video: VideoConfig,
    audio: AudioConfig,
    timeout: float,
    modalities: tuple[str, ...] = ("video", "audio"),
    flow: FlowConfig | None = None,
    keep_incomplete: bool = False,
) -> DecodedClip:
    """Decode one clip.

    Args:
        path: the clip; any name, also with blanks or leading dashes. Or pictures that lie in files of their own, which
            have no sound: a folder of them, or a pattern (decoding/pictures.py).
        timeout: seconds. When they are over, whichever process is at work on the clip is killed.
        modalities: which of `video`, `audio` and `flow` to decode; others may be absent from the file.
        flow: how flow is computed; its defaults when left out.
        keep_incomplete: a clip without a stream for some of `modalities`, but not for all, is no failure.

    Raises:
        DecodeError: with one of REASONS.
    """
    pictures = tuple(m for m in _PICTURES if m in modalities)
    frame_process(os.getpid()).start()  # once a process; the clip's time has not begun
    deadline = time.monotonic() + timeout
    path = Path(path).absolute()
    wants_audio = "audio" in modalities
    if are_pictures(path):
        return _decode_pictures(path, video, deadline, pictures, flow, wants_audio and not keep_incomplete)
    check_file(path)
    # This goes first, also for video alone: it tells the size, and its format list keeps decord from playlists.
    seconds = audio.seconds if wants_audio else 0.0
    container = open_container(path, audio.sample_rate, seconds, deadline, video.track, audio.track)
    check_limits(container, video)
    lacks_picture, lacks_sound = container.picture is None, container.sound is None
    partial = keep_incomplete and pictures and wants_audio and not (lacks_picture and lacks_sound)
    if pictures and lacks_picture and not partial:
        raise DecodeError("no_video", container.lacking["video"])
    if wants_audio and lacks_sound and not partial:
        raise DecodeError("no_audio", container.lacking["audio"])
    if pictures and not lacks_picture and container.pixels is None:
        raise DecodeError("failed", "the size of the picture cannot be read, or is beyond what ffmpeg accepts")
    wants_audio = wants_audio and not lacks_sound
    if wants_audio and not len(container.waveform):
        raise DecodeError("failed", f"no sound could be decoded: {container.message}")
    if not np.isfinite(container.waveform).all():
        raise DecodeError("failed", "the decoded sound has values that are not finite")
    frames, video_end = None, None
    if container.picture is not None and container.pixels is not None:
        start, track, reader = container.video_start, container.picture.index, container.reader
        frames = read_frames(path, video, flow or FlowConfig(), deadline, start, pictures, track, reader)
        video_end = frames.end
    check_lengths(path, container, video_end, audio.seconds if wants_audio else None, deadline)
    sound = spectrogram(container.waveform, audio) if wants_audio else None
    loud = loudness(container.waveform, audio.sample_rate) if wants_audio else None
    if loud is not None and audio.level is not None:
        loud = audio.level
    video_frames, flow_frames = (frames.video, frames.flow) if frames else (None, None)
    return DecodedClip(video_frames, sound, flow_frames, container.chosen_tracks, loud)


def chosen_tracks(path: Path, video: VideoConfig, audio: AudioConfig, timeout: float) -> dict[str, str]:
    """`DecodedClip.tracks` of a clip of which nothing is decoded.

    Args:
        path: the clip; a folder of pictures has no tracks.
        video: says which of several video streams is taken.
        audio: says which of several audio streams is taken.
        timeout: seconds.

    Raises:
        DecodeError: the container cannot be read.
    """
    if are_pictures(path):
        return {}
    check_file(path)
    deadline = time.monotonic() + timeout
    return open_container(path, audio.sample_rate, 0.0, deadline, video.track, audio.track).chosen_tracks


def _decode_pictures(
    path: Path,
    video: VideoConfig,
    deadline: float,
    wanted: tuple[str, ...],
    flow: FlowConfig | None,
    sound_is_needed: bool,
) -> DecodedClip:
    """A clip of pictures in files of their own."""
    if not picture_files(path):
        what = "not a plain file, and no folder with a .jpg, .jpeg or .png" if path.is_dir() else "no such picture"
        raise DecodeError("unreadable" if path.is_dir() else "missing", what)
    if sound_is_needed or not wanted:
        raise DecodeError("no_audio", "pictures in files have no sound: name its file in a column of its own")
    frames = read_frames(path, video, flow or FlowConfig(), deadline, 0.0, wanted, 0, "decord")
    return DecodedClip(frames.video, None, frames.flow)
