"""One clip to arrays: against ffmpeg's own decode, against a mel computed by hand, and every reason for refusal."""

from __future__ import annotations

import pickle
import time
from pathlib import Path

import librosa
import numpy as np
import pytest

from crmt.errors import CRMTError
from pipelines.config.schema import AudioConfig, VideoConfig
from pipelines.decoding.clip import REASONS, DecodeError, decode_clip
from pipelines.decoding.container import open_container
from pipelines.decoding.frame_child import frame_indices
from pipelines.decoding.sound import log_mel
from tests.pipelines.media import bad_files, cut, ffmpeg, lose_end, make_media, raw_frames

VIDEO = VideoConfig(frames=2, size=32, crop=32)
AUDIO = AudioConfig(sample_rate=8000, seconds=2.0, n_fft=512, window=400, hop=160, mels=32, fmin=50, frames=101)


def reason_of(path: Path, video: VideoConfig = VIDEO, **kwargs: tuple[str, ...]) -> str:
    with pytest.raises(DecodeError) as caught:
        decode_clip(path, video, AUDIO, 30, **kwargs)
    return caught.value.reason


@pytest.mark.parametrize("width", [32, 48, 64, 66, 96, 102, 144])
def test_frames_equal_ffmpegs_own_decode(tmp_path: Path, width: int) -> None:
    """Also at the widths (32, 48, 96, 144) where decord2 hands out padded rows."""
    path = make_media(tmp_path / "clip.mp4", width=width, height=32, fps=10, seconds=2)
    clip = decode_clip(path, VideoConfig(frames=3, candidates=3, size=32, crop=32), AUDIO, 30)
    left = (width - 32) // 2
    expected = raw_frames(path, width, 32)[frame_indices(20, 3, 3)][:, :, left : left + 32]
    assert clip.frames is not None and clip.frames.shape == (9, 32, 32, 3) and clip.frames.dtype == np.uint8
    assert np.abs(clip.frames.astype(int) - expected).max() <= 3  # two versions of one colour conversion


def test_frame_indices_are_the_middles_of_segments() -> None:
    assert frame_indices(8, 2, 1).tolist() == [2, 6]
    assert frame_indices(30, 3, 1).tolist() == [5, 15, 25]
    assert frame_indices(30, 3, 3).tolist() == [1, 5, 8, 11, 15, 18, 21, 25, 28]
    assert frame_indices(1, 3, 2).tolist() == [0] * 6


@pytest.mark.parametrize(("width", "height"), [(101, 67), (67, 101), (16, 16), (33, 33)])
def test_any_size_becomes_the_stored_square(tmp_path: Path, width: int, height: int) -> None:
    path = make_media(tmp_path / "clip.mp4", width=width, height=height)
    clip = decode_clip(path, VIDEO, AUDIO, 30)
    assert clip.frames is not None and clip.frames.shape == (2, 32, 32, 3)
    assert clip.frames.std() > 10


def test_log_mel_equals_a_direct_computation(tmp_path: Path) -> None:
    path = make_media(tmp_path / "clip.mp4")
    raw = ffmpeg("-i", str(path), "-f", "f32le", "-ac", "1", "-ar", "8000", "-t", "2", "pipe:1")
    wave = np.frombuffer(raw, np.float32)
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(wave, 256), 512)[::160]
    window = np.zeros(512)
    window[56:456] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    power = np.abs(np.fft.rfft(frames * window)) ** 2
    bank = librosa.filters.mel(sr=8000, n_fft=512, n_mels=32, fmin=50, fmax=None)
    expected = np.log(bank @ power.T + AUDIO.offset)
    clip = decode_clip(path, VIDEO, AUDIO, 30)
    assert clip.audio is not None and clip.audio.shape == (1, 32, 101) and clip.audio.dtype == np.float16
    np.testing.assert_allclose(clip.audio[0], expected[:, :101], atol=0.02)


@pytest.mark.parametrize("samples", [0, 10, 300, 4000])
def test_short_sound_is_padded_with_silence(samples: int) -> None:
    wave = np.full(samples, 0.1, np.float32)
    mel = log_mel(wave, AUDIO)
    assert mel.shape == (1, 32, 101)
    assert np.all(mel[0, :, samples // 160 + 5 :] == np.float16(np.log(AUDIO.offset)))


def test_sound_is_read_up_to_the_limit_and_cut(tmp_path: Path) -> None:
    path = make_media(tmp_path / "clip.mp4", seconds=4)
    clip = decode_clip(path, VIDEO, AUDIO.model_copy(update={"frames": 50}), 30)
    assert clip.audio is not None and clip.audio.shape == (1, 32, 50)


@pytest.mark.parametrize("reason", ["truncated", "no_audio", "empty", "not_media"])
def test_broken_clips_get_their_reason(tmp_path: Path, reason: str) -> None:
    assert reason_of(bad_files(tmp_path)[reason]) == reason


@pytest.mark.parametrize(("name", "faststart"), [("a.mp4", True), ("a.mp4", False), ("a.mkv", False)])
@pytest.mark.parametrize("share", [0.5, 0.75])
def test_truncation_is_found_though_the_decoders_do_not_complain(
    tmp_path: Path, name: str, faststart: bool, share: float
) -> None:
    whole = make_media(tmp_path / name, seconds=4, faststart=faststart)
    decode_clip(whole, VIDEO, AUDIO, 30)
    for modalities in [("video", "audio"), ("video",), ("audio",)]:
        assert reason_of(cut(whole, tmp_path / f"cut{whole.suffix}", share), modalities=modalities) == "truncated"


LIMITED = AUDIO.model_copy(update={"seconds": 5.0})
BOTH, VIDEO_ONLY, AUDIO_ONLY = ("video", "audio"), ("video",), ("audio",)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi", "a.flv"])
@pytest.mark.parametrize(("seconds", "sound_seconds"), [(8, 9), (2, 8), (8, 2)])
def test_streams_of_unequal_length_are_whole(tmp_path: Path, name: str, seconds: float, sound_seconds: float) -> None:
    codecs = ("flv1" if name == "a.flv" else "mpeg4", "aac")
    path = make_media(tmp_path / name, seconds=seconds, sound_seconds=sound_seconds, codecs=codecs)
    for modalities in (BOTH, VIDEO_ONLY, AUDIO_ONLY):
        decode_clip(path, VIDEO, LIMITED, 30, modalities)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.webm"])
def test_a_late_stream_is_whole(tmp_path: Path, name: str) -> None:
    codecs = ("libvpx", "libopus") if name == "a.webm" else ("libx264", "aac")
    late_sound = make_media(tmp_path / name, seconds=8, sound_seconds=6, sound_start=2, codecs=codecs)
    late_video = tmp_path / f"video-{name}"
    ffmpeg("-itsoffset", "3", "-i", str(late_sound), "-i", str(late_sound), "-map", "0:v", "-map", "1:a",
           "-c", "copy", str(late_video))  # fmt: skip
    for path in (late_sound, late_video):
        for modalities in (BOTH, VIDEO_ONLY, AUDIO_ONLY):
            decode_clip(path, VIDEO, LIMITED, 30, modalities)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.webm", "a.ts", "a.mpg"])
def test_sound_stands_where_the_clip_has_it(tmp_path: Path, name: str) -> None:
    """Silence where it sets in late, and where its packets between 4 and 5 s are gone."""
    codecs = {"a.webm": ("libvpx", "libopus"), "a.mpg": ("mpeg2video", "mp2")}.get(name, ("libx264", "aac"))
    late = make_media(tmp_path / name, seconds=8, sound_seconds=6, sound_start=2, codecs=codecs)
    gap = tmp_path / f"gap-{name}"
    ffmpeg("-i", str(late), "-c", "copy", "-bsf:a", "noise=drop='between(pts*tb,4,5)'", str(gap))
    for path, seconds, silent in ((late, 1.0, [(0, 1)]), (late, 8.0, [(0, 2)]), (gap, 8.0, [(0, 2), (4, 5)])):
        sound = open_container(path, 8000, seconds, time.monotonic() + 30).waveform
        assert abs(len(sound) - 8000 * seconds) < 800
        loud = np.abs(sound[: len(sound) // 800 * 800]).reshape(-1, 800).max(1) > 0.02  # of each tenth of a second
        expected = np.ones(len(loud), bool)
        for start, end in silent:
            expected[10 * start : 10 * end] = False
        assert (loud != expected).sum() <= 2 * len(silent)  # a packet at each end
    limited = AUDIO.model_copy(update={"seconds": 1.0, "frames": 51})
    assert decode_clip(late, VIDEO, limited, 30).audio is not None  # silence, and no failure
    decode_clip(gap, VIDEO, AUDIO.model_copy(update={"seconds": 8.0, "frames": 401}), 30)  # whole: no byte is missing


@pytest.mark.parametrize("name", ["a.wav", "a.mp3", "a.ogg", "a.m4a"])
def test_long_sound_alone_is_read_to_the_limit(tmp_path: Path, name: str) -> None:
    codec = {"a.wav": "pcm_s16le", "a.mp3": "libmp3lame", "a.ogg": "libvorbis", "a.m4a": "aac"}[name]
    whole = make_media(tmp_path / name, seconds=20, picture=False, codecs=("", codec))
    decode_clip(whole, VIDEO, LIMITED, 30, AUDIO_ONLY)


def test_a_clip_copied_from_the_middle_of_another_is_whole(tmp_path: Path) -> None:
    """Its edit lists leave out what stands before the cut."""
    source = make_media(tmp_path / "source.mp4", seconds=8)
    path = tmp_path / "middle.mp4"
    ffmpeg("-ss", "3.3", "-t", "3", "-i", str(source), "-c", "copy", str(path))
    decode_clip(path, VIDEO, LIMITED, 30)


def test_few_frames_a_second_are_whole(tmp_path: Path) -> None:
    for name, codec in [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.flv", "flv1")]:
        path = make_media(tmp_path / name, seconds=6, fps=1, tone=None, codecs=(codec, ""))
        decode_clip(path, VIDEO, LIMITED, 30, VIDEO_ONLY)


@pytest.mark.parametrize("faststart", [True, False])
@pytest.mark.parametrize(("seconds", "sound_seconds"), [(8, 2), (2, 8), (8, 9)])
def test_cut_files_are_found_also_with_unequal_streams(
    tmp_path: Path, faststart: bool, seconds: float, sound_seconds: float
) -> None:
    whole = make_media(tmp_path / "a.mp4", seconds=seconds, sound_seconds=sound_seconds, faststart=faststart)
    for share in (0.5, 0.9):
        for modalities in (BOTH, VIDEO_ONLY, AUDIO_ONLY):
            assert reason_of(cut(whole, tmp_path / "cut.mp4", share), modalities=modalities) == "truncated"


@pytest.mark.parametrize(("seconds", "sound_seconds", "stream"), [(1, 4, "sound"), (8, 1, "video")])
def test_a_stream_short_of_its_own_end_is_found_beside_a_whole_one(
    tmp_path: Path, seconds: float, sound_seconds: float, stream: str
) -> None:
    whole = make_media(tmp_path / "a.mp4", seconds=seconds, sound_seconds=sound_seconds, faststart=True)
    with pytest.raises(DecodeError, match=f"truncated: {stream}"):
        decode_clip(lose_end(whole, tmp_path / "cut.mp4", 0.7), VIDEO, LIMITED, 30)


def test_short_sound_beside_a_longer_whole_video_is_found(tmp_path: Path) -> None:
    """The sound's track says 4 s and holds 2: that the video reaches the end of the clip says nothing of it."""
    path = make_media(tmp_path / "a.mp4", seconds=4, sound_seconds=2)
    decode_clip(path, VIDEO, LIMITED, 30)
    content = bytearray(path.read_bytes())
    for box, offset in ((b"mdhd", 20), (b"elst", 12)):  # of the second track: its duration, and its only edit's
        field = slice(content.rindex(box) + offset, content.rindex(box) + offset + 4)
        content[field] = (2 * int.from_bytes(content[field], "big")).to_bytes(4, "big")
    path.write_bytes(content)
    with pytest.raises(DecodeError, match="truncated: sound"):
        decode_clip(path, VIDEO, LIMITED, 30)


@pytest.mark.parametrize("name", ["a.avi", "a.flv", "a.mkv"])
def test_cut_files_of_other_containers_are_found(tmp_path: Path, name: str) -> None:
    codecs = ("flv1" if name == "a.flv" else "mpeg4", "aac")
    whole = make_media(tmp_path / name, seconds=8, sound_seconds=7, codecs=codecs)
    for modalities in (BOTH, VIDEO_ONLY):
        assert reason_of(cut(whole, tmp_path / f"cut{whole.suffix}", 0.5), modalities=modalities) == "truncated"
    with pytest.raises(DecodeError, match="truncated"):
        alone = make_media(tmp_path / "b.mp3", seconds=8, picture=False, codecs=("", "libmp3lame"))
        decode_clip(cut(alone, tmp_path / "cut.mp3", 0.4), VIDEO, LIMITED, 30, AUDIO_ONLY)


def test_the_picture_of_an_album_is_no_video(tmp_path: Path) -> None:
    sound = make_media(tmp_path / "a.m4a", picture=False, codecs=("", "aac"))
    ffmpeg("-f", "lavfi", "-i", "testsrc=size=64x64", "-frames:v", "1", str(tmp_path / "cover.png"))
    path = tmp_path / "b.m4a"
    ffmpeg("-i", str(sound), "-i", str(tmp_path / "cover.png"), "-map", "0", "-map", "1", "-c", "copy",
           "-disposition:v", "attached_pic", str(path))  # fmt: skip
    decode_clip(path, VIDEO, AUDIO, 30, AUDIO_ONLY)
    assert reason_of(path) == "no_video"


def test_other_reasons(tmp_path: Path) -> None:
    good = make_media(tmp_path / "good.mp4")
    assert reason_of(tmp_path / "nowhere.mp4") == "missing"
    assert reason_of(tmp_path) == "unreadable"
    assert reason_of(make_media(tmp_path / "sound.mp4", picture=False)) == "no_video"
    assert reason_of(good, VideoConfig(frames=2, size=32, crop=32, max_pixels=64 * 48 - 1)) == "too_large"
    (tmp_path / "list.mp4").write_text(f"#EXTM3U\n#EXTINF:2,\n{good}\n#EXT-X-ENDLIST\n")
    assert reason_of(tmp_path / "list.mp4") == "not_media"
    (tmp_path / "concat.mp4").write_text("ffconcat version 1.0\nfile good.mp4\n")
    assert reason_of(tmp_path / "concat.mp4") == "not_media"


def test_rubbish_in_the_middle_is_refused_or_decoded_but_never_crashes(tmp_path: Path) -> None:
    content = make_media(tmp_path / "good.mp4").read_bytes()
    rng = np.random.default_rng(0)
    for trial in range(15):
        broken = bytearray(content)
        for position in rng.integers(0, len(content), 200):
            broken[position] = rng.integers(256)
        (tmp_path / "bad.mp4").write_bytes(broken)
        try:
            decode_clip(tmp_path / "bad.mp4", VIDEO, AUDIO, 30)
        except DecodeError as error:
            assert error.reason in REASONS, trial


def test_one_modality_alone_needs_only_its_stream(tmp_path: Path) -> None:
    silent = decode_clip(make_media(tmp_path / "silent.mp4", tone=None), VIDEO, AUDIO, 30, ("video",))
    assert silent.audio is None and silent.frames is not None
    sound = decode_clip(
        make_media(tmp_path / "sound.wav", picture=False, codecs=("", "pcm_s16le")), VIDEO, AUDIO, 30, ("audio",)
    )
    assert sound.frames is None and sound.audio is not None


@pytest.mark.parametrize("name", ["-i.mp4", "a b 'c' \"d\".mp4", "new\nline.mp4", "http:x.mp4", "ünï %d.mp4"])
def test_odd_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (make_media(tmp_path / "plain.mp4")).rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert decode_clip(Path(name), VIDEO, AUDIO, 30).frames is not None


def test_time_limit_ends_ffmpeg(tmp_path: Path) -> None:
    path = make_media(tmp_path / "clip.mp4")
    started = time.monotonic()
    with pytest.raises(DecodeError) as caught:
        decode_clip(path, VIDEO, AUDIO, 0.001)
    assert caught.value.reason == "timeout" and time.monotonic() - started < 5


def test_the_error_is_ours_and_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(DecodeError("empty", "0 bytes")))
    assert isinstance(error, CRMTError) and error.reason == "empty" and str(error) == "empty: 0 bytes"
