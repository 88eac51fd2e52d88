"""One clip's files to the arrays of its modalities: those that share a file are decoded together."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.clips.kinds import Kind
from pipelines.config.modality import PATH
from pipelines.config.schema import AudioConfig, DataConfig, VideoConfig
from pipelines.decoding.clip import chosen_tracks, decode_clip
from pipelines.decoding.errors import DecodeError

_LACKS = ("no_video", "no_audio", "absent")
"""Reasons that say that a clip lacks a modality, which data.missing_modality may allow."""


class ClipError(Exception):
    """A clip that cannot be used: which file, and why."""

    def __init__(self, path: str, reason: str, detail: str) -> None:
        super().__init__(path, reason, detail)
        self.path, self.reason, self.detail = path, reason, detail


@dataclass
class _File:
    """A file of a clip, and the modalities that are read from it in one pass."""

    column: str
    by_media: dict[str, Kind] = field(default_factory=dict)
    """The modalities that `decode_clip` decodes from it; empty where `alone` reads it."""
    alone: Kind | None = None

    @property
    def names(self) -> list[str]:
        return [self.alone.name] if self.alone else [kind.name for kind in self.by_media.values()]

    @property
    def video(self) -> VideoConfig | None:
        return next((kind.pictures for kind in self.by_media.values() if kind.pictures), None)

    def settings(self, data: DataConfig) -> tuple[VideoConfig, AudioConfig]:
        """How its pictures and its sound are decoded."""
        sound = next((kind.sound for kind in self.by_media.values() if kind.sound), None)
        return self.video or data.video, sound or data.audio

    def count(self, tracks: Mapping[str, str], counts: Counter[str]) -> None:
        """Count, by modality, the streams that were taken of a file with several."""
        counts.update(f"{kind.name} {tracks[media]}" for media, kind in self.by_media.items() if media in tracks)

    def takes(self, kind: Kind) -> bool:
        """Whether another modality can be decoded together with these."""
        same_frames = None in (self.video, kind.pictures) or self.video == kind.pictures
        return bool(self.by_media) and kind.column == self.column and kind.media not in self.by_media and same_frames


def read_clip(
    clip: Mapping[str, Any],
    kinds: Mapping[str, Kind],
    data: DataConfig,
    tracks: Counter[str] | None = None,
    loud: dict[str, float] | None = None,
) -> dict[str, NDArray[Any] | None]:
    """Decode one clip.

    Args:
        clip: column to file, for the columns that the kinds name.
        kinds: the modalities that are wanted.
        data: how they are decoded.
        tracks: counts, for files with several streams of a kind, which one was taken.
        loud: takes, by modality, how loud the clip's sound is, in dBFS; nothing where it is silence.

    Returns:
        By modality, the array that is stored; None for one that the clip lacks and may lack.

    Raises:
        ClipError: a file cannot be used, or none of the modalities is there.
    """
    deadline = time.monotonic() + data.decode_timeout
    files = _files_of(kinds)
    keep = data.missing_modality == "keep"
    found: dict[str, NDArray[Any] | None] = dict.fromkeys(kinds)
    first: ClipError | None = None
    for file in files:
        path = str(clip[file.column])
        left = data.decode_timeout if file is files[0] else max(deadline - time.monotonic(), 0.001)
        try:
            found |= _read(file, path, data, left, keep, tracks, loud)
        except DecodeError as error:
            where = "" if file.column == PATH else f"{', '.join(file.names)}: "
            failed = ClipError(path or str(clip[PATH]), error.reason, f"{where}{error.detail}")
            if not (keep and len(files) > 1 and error.reason in _LACKS):
                raise failed from None
            first = first or failed
    if first and all(array is None for array in found.values()):
        raise first
    return found


def tracks_taken(clips: Iterable[Mapping[Any, Any]], kinds: Mapping[str, Kind], data: DataConfig) -> Counter[str]:
    """Which stream is taken of the clips whose files have several of a kind, counted; nothing is decoded.

    A file that cannot be read is passed over.
    """
    tracks: Counter[str] = Counter()
    for clip in clips:
        for file in _files_of(kinds):
            path = str(clip[file.column])
            if file.alone or not path:
                continue
            video, audio = file.settings(data)
            with suppress(DecodeError):
                file.count(chosen_tracks(Path(path).absolute(), video, audio, data.decode_timeout), tracks)
    return tracks


def _files_of(kinds: Mapping[str, Kind]) -> list[_File]:
    files: list[_File] = []
    for kind in kinds.values():
        if kind.media is None:
            files.append(_File(kind.column, alone=kind))
            continue
        together = next((file for file in files if file.takes(kind)), None)
        if together is None:
            together = _File(kind.column)
            files.append(together)
        together.by_media[kind.media] = kind
    return files


def _read(
    file: _File,
    path: str,
    data: DataConfig,
    seconds: float,
    keep: bool,
    tracks: Counter[str] | None,
    loud: dict[str, float] | None,
) -> dict[str, NDArray[Any] | None]:
    if not path:
        raise DecodeError("absent", f"no file in column {file.column!r}")
    if file.alone:
        return {file.alone.name: _checked(file.alone, file.alone.read(path, seconds))}
    video, audio = file.settings(data)
    motion = next((kind.motion for kind in file.by_media.values() if kind.motion), None)
    decoded = decode_clip(Path(path), video, audio, seconds, tuple(file.by_media), motion, keep)
    if tracks is not None:
        file.count(decoded.tracks, tracks)
    if loud is not None and decoded.loudness is not None:
        loud |= {file.by_media["audio"].name: decoded.loudness}
    frames = None if decoded.frames is None else decoded.frames.transpose(0, 3, 1, 2)
    arrays: dict[str, NDArray[Any] | None] = {"video": frames, "audio": decoded.audio, "flow": decoded.flow}
    return {kind.name: arrays[media] for media, kind in file.by_media.items()}


def _checked(kind: Kind, array: Any) -> NDArray[Any]:
    """What a kind of the user's own gave, where it is what the kind said."""
    if not isinstance(array, np.ndarray) or array.shape != kind.shape or array.dtype != kind.dtype:
        given = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
        raise DecodeError("wrong_shape", f"kind {kind.kind} gave {given}, and said {kind.dtype} {list(kind.shape)}")
    return array
