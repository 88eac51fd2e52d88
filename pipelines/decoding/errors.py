"""Why a clip can be refused: a fixed set of reasons, which quarantine lists and reports count by."""

from __future__ import annotations

from crmt.errors import CRMTError

REASONS = {
    "missing": "there is no such file",
    "unreadable": "the file cannot be opened: permissions, or not a plain file",
    "empty": "the file has no bytes",
    "not_media": "no known media container, whatever its name says",
    "no_video": "no video stream, and video is wanted",
    "no_audio": "no audio stream, and audio is wanted",
    "truncated": "the file, its video or its sound ends before its own declared end, so part of the clip is missing",
    "too_large": "more pixels a frame than data.video.max_pixels",
    "too_long": "longer than data.video.max_seconds, or more frames than data.video.max_frames",
    "timeout": "took longer than data.decode_timeout",
    "absent": "the list of clips names no file for a modality that is wanted",
    "not_array": "no .npy or .npz file, or no such array of numbers in it",
    "wrong_shape": "an array of another shape than the configuration says",
    "bad_values": "an array with NaN or infinity, or with values outside the box that the configuration gives",
    "failed": "the decoder gave up or crashed; the detail is its own message",
}


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
