"""What containers hold: tracks, mirrors, late streams, no duration, no index; against ffmpeg's own frames."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from numpy.typing import NDArray

from pipelines import ingest
from pipelines.config.schema import AudioConfig, VideoConfig
from pipelines.decoding.clip import DecodedClip, DecodeError, decode_clip
from pipelines.decoding.container import open_container
from pipelines.decoding.frame_child import frame_indices
from tests.pipelines.media import ffmpeg, make_media

SIDE = 64
VIDEO = VideoConfig(frames=4, candidates=1, size=SIDE, crop=SIDE)
AUDIO = AudioConfig(sample_rate=8000, seconds=2.0, n_fft=512, window=400, hop=160, mels=32, fmin=50, frames=101)
PICTURE = ("-f", "lavfi", "-i", f"testsrc2=size={SIDE}x{SIDE}:rate=25:duration=2")
SOUND = ("-f", "lavfi", "-i", "sine=frequency=440:sample_rate=48000:duration=2")
H264 = ("-c:v", "libx264", "-pix_fmt", "yuv420p", "-c:a", "aac")


def decode(path: Path, video: VideoConfig = VIDEO, audio: AudioConfig = AUDIO, **more: object) -> DecodedClip:
    return decode_clip(path, video, audio, 120.0, **more)  # type: ignore[arg-type]


def made(path: Path, *options: str) -> Path:
    ffmpeg(*PICTURE, *SOUND, *options, f"file:{path}")
    return path


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return made(tmp_path / "plain.mp4", *H264)


def shown(path: Path, width: int = SIDE, height: int = SIDE, stream: str = "0:v:0") -> NDArray[np.int64]:
    """Every frame that ffmpeg shows, cut to its centre square."""
    options = ("-map", stream, "-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "pipe:1")
    frames = np.frombuffer(ffmpeg("-i", f"file:{path}", *options), np.uint8).reshape(-1, height, width, 3)
    size = min(width, height)
    top, left = (height - size) // 2, (width - size) // 2
    return frames[:, top : top + size, left : left + size].astype(np.int64)


def check_frames(found: NDArray[np.uint8] | None, right: NDArray[np.int64], apart: int = 0) -> None:
    assert found is not None
    assert np.abs(right[frame_indices(len(right), len(found), 1)] - found).max() <= apart


def pitch(clip: DecodedClip) -> int:
    """The loudest band; -1 in silence."""
    assert clip.audio is not None
    loud = clip.audio[0].astype(float).mean(axis=1)
    return int(loud.argmax()) if np.ptp(loud) > 0.1 else -1


# ---- tracks


def test_a_timecode_track_changes_nothing(tmp_path: Path, plain: Path) -> None:
    """A camera's; ffmpeg lists the picture inside a group of tracks then."""
    for name in ("coded.mp4", "coded.mov"):
        ffmpeg("-i", str(plain), "-c", "copy", "-timecode", "01:00:00:00", str(tmp_path / name))
        coded, right = decode(tmp_path / name), decode(plain)
        assert np.array_equal(coded.frames, right.frames) and np.array_equal(coded.audio, right.audio)
        assert coded.tracks == {}


@pytest.mark.parametrize("name", ["two.mkv", "two.mov"])
def test_of_two_sounds_the_default_one_is_taken_and_the_choice_can_be_set(
    tmp_path: Path, plain: Path, name: str
) -> None:
    path = tmp_path / name
    ffmpeg("-f", "lavfi", "-t", "2", "-i", "anullsrc=r=48000:cl=mono", "-i", str(plain), "-map", "1:v", "-map", "0:a",
           "-map", "1:a", "-c:v", "copy", "-c:a", "aac", "-disposition:a:0", "0", "-disposition:a:1", "default",
           str(path))  # fmt: skip
    clip = decode(path)
    assert pitch(clip) == pitch(decode(plain)) > 0 and clip.tracks == {"audio": "1 of 2, marked default"}
    assert pitch(decode(path, audio=AUDIO.model_copy(update={"track": 0}))) == -1
    with pytest.raises(DecodeError, match=r"no_audio: the file has 2 audio streams, and data.audio.track asks .* 2"):
        decode(path, audio=AUDIO.model_copy(update={"track": 2}))


def test_check_says_which_track_is_taken_before_anything_is_decoded(
    tmp_path: Path, plain: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that cannot be read is passed over: `ingest.py --check` decodes nothing."""
    for split in ("train", "validation", "test"):
        ffmpeg(
            "-i", str(plain), "-map", "0:v", "-map", "0:a", "-map", "0:a", "-c", "copy", str(tmp_path / f"{split}.mkv")
        )
    (tmp_path / "broken.mkv").write_bytes(b"not a clip")
    rows = [f"{name}.mkv,a,{name}" for name in ("train", "validation", "test")]
    (tmp_path / "manifest.csv").write_text("\n".join(["path,label,split", *rows, "broken.mkv,b,train"]))
    checked = ["--dataset", "manifest", "--data-root", str(tmp_path), "--check", str(tmp_path / "misfits.csv")]
    assert ingest.main([*checked, "--set", f"data.cache={tmp_path / 'cache'}"]) == 0
    assert "track taken: audio 0 of 2, marked default: 3 of 4 clips that were opened" in capsys.readouterr().out
    assert not (tmp_path / "cache").exists()


def test_of_two_pictures_the_default_one_is_taken_and_the_choice_can_be_set(tmp_path: Path, plain: Path) -> None:
    """The larger one, which players' libraries take by themselves, is not the one that is marked."""
    path = tmp_path / "two.mkv"
    ffmpeg("-f", "lavfi", "-i", "color=red:size=128x128:rate=25:duration=2", "-i", str(plain), "-map", "0:v", "-map",
           "1:v", "-map", "1:a", "-c:v", "libx264", "-pix_fmt", "yuv420p", "-c:a", "copy", "-crf", "1",
           "-disposition:v:0", "0", "-disposition:v:1", "default", str(path))  # fmt: skip
    clip = decode(path)
    check_frames(clip.frames, shown(path, stream="0:v:1"))
    assert clip.tracks == {"video": "1 of 2, marked default"}
    first = decode(path, VIDEO.model_copy(update={"track": 0})).frames
    assert first is not None and (first[..., 0] > 200).all() and (first[..., 1] < 50).all()
    with pytest.raises(DecodeError, match="no_video: the file has 2 video streams"):
        decode(path, VIDEO.model_copy(update={"track": 2}))


def test_cover_art_beside_a_picture_is_not_the_picture(tmp_path: Path, plain: Path) -> None:
    cover, path = tmp_path / "cover.png", tmp_path / "b.mp4"
    ffmpeg("-f", "lavfi", "-i", "color=red:size=256x256", "-frames:v", "1", str(cover))
    ffmpeg("-i", str(cover), "-i", str(plain), "-map", "0", "-map", "1", "-c", "copy", "-disposition:v:0",
           "attached_pic", str(path))  # fmt: skip
    clip = decode(path)
    check_frames(clip.frames, shown(plain))
    assert clip.tracks == {}


def test_words_longer_than_the_clip_do_not_make_it_short(tmp_path: Path, plain: Path) -> None:
    """The container's duration is that of its longest track, here of subtitles, and no track has a tag of its own."""
    (tmp_path / "a.srt").write_text("1\n00:00:00,000 --> 00:00:09,000\nword\n")
    for name, inputs in (("a.mkv", ("-map", "0:v")), ("b.mkv", ("-map", "0:a")), ("c.mkv", ("-map", "0"))):
        path = tmp_path / name
        ffmpeg("-i", str(plain), "-i", str(tmp_path / "a.srt"), *inputs, "-map", "1", "-c:v", "copy", "-c:a", "copy",
               str(path))  # fmt: skip
        path.write_bytes(path.read_bytes().replace(b"DURATION", b"NOTATION"))
        decode(path, modalities=("audio",) if name == "b.mkv" else ("video",))


# ---- orientation


@pytest.mark.parametrize("mirror", [(), ("-display_hflip",), ("-display_vflip",), ("-display_hflip", "-display_vflip")])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270, 45])
def test_turned_and_mirrored_clips_are_as_ffmpeg_shows_them(
    tmp_path: Path, degrees: int, mirror: tuple[str, ...]
) -> None:
    source, path = tmp_path / "source.mp4", tmp_path / "turned.mp4"
    ffmpeg("-f", "lavfi", "-i", "testsrc2=size=96x64:rate=10:duration=1", *H264, str(source))
    ffmpeg("-display_rotation", str(degrees), *mirror, "-i", str(source), "-c", "copy", str(path))
    size = (64, 96) if degrees in (90, 270) else (96, 64)
    check_frames(decode(path, modalities=("video",)).frames, shown(path, *size))


# ---- containers

CONTAINERS = {
    "a.mxf": ("-c:v", "mpeg2video", "-q:v", "3", "-c:a", "pcm_s16le"),
    "a.gif": ("-an",),
    "a.nut": H264,
    "raw.avi": ("-c:v", "rawvideo", "-pix_fmt", "bgr24", "-c:a", "pcm_s16le"),
    "h264.avi": ("-c:v", "libx264", "-bf", "3", "-pix_fmt", "yuv420p", "-c:a", "libmp3lame"),
    "a.dv": ("-s", "720x576", "-pix_fmt", "yuv420p", "-ac", "2"),
    "a.wtv": ("-c:v", "mpeg2video", "-c:a", "mp2"),
    "a.vob": ("-c:v", "mpeg2video", "-q:v", "3", "-c:a", "ac3"),
    "a.rm": ("-c:v", "rv20", "-c:a", "ac3"),
    "a.h264": ("-an", "-c:v", "libx264", "-pix_fmt", "yuv420p"),
    "a.hevc": ("-an", "-c:v", "libx265", "-pix_fmt", "yuv420p", "-x265-params", "log-level=none"),
    "a.y4m": ("-an", "-pix_fmt", "yuv420p"),
    "a.apng": ("-an",),
    "a.ivf": ("-an", "-c:v", "libvpx", "-pix_fmt", "yuv420p"),
    "fragments.mp4": (*H264, "-movflags", "frag_keyframe+empty_moov"),
    "ten.ts": ("-c:v", "libx265", "-pix_fmt", "yuv420p10le", "-x265-params", "log-level=none", "-c:a", "aac"),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_containers_that_ffmpeg_reads_are_read_to_the_pixel(tmp_path: Path, name: str) -> None:
    path = made(tmp_path / name, *CONTAINERS[name])
    width, height = (720, 576) if name == "a.dv" else (SIDE, SIDE)
    video = VideoConfig(frames=4, candidates=1, size=height, crop=SIDE)
    clip = decode(path, video, modalities=("video",) if "-an" in CONTAINERS[name] else ("video", "audio"))
    check_frames(clip.frames, shown(path, width, height))
    assert clip.audio is None or pitch(clip) > 0


@pytest.mark.parametrize("kind", ["webm", "matroska", "mpegts"])
def test_what_a_browser_or_a_pipe_writes_is_whole(tmp_path: Path, kind: str) -> None:
    """No duration, no index."""
    codecs = ("-c:v", "libvpx", "-deadline", "realtime", "-c:a", "libopus") if kind == "webm" else H264
    path = tmp_path / f"recorded.{kind}"
    path.write_bytes(ffmpeg(*PICTURE, *SOUND, *codecs, "-f", kind, "pipe:1"))
    clip = decode(path)
    check_frames(clip.frames, shown(path))
    assert pitch(clip) > 0


def test_a_live_cut_begins_at_the_first_frame_that_can_be_decoded(tmp_path: Path) -> None:
    """A transport stream from its middle: what stands before the next key frame is shown by nobody."""
    whole = made(tmp_path / "whole.ts", *H264, "-g", "10")
    content = whole.read_bytes()
    path = tmp_path / "cut.ts"
    path.write_bytes(content[len(content) // 2 // 188 * 188 + 188 * 3 :])
    right = shown(path)
    assert 5 < len(right) < 40
    found = decode(path, modalities=("video",)).frames
    assert found is not None
    apart = np.abs(right[None] - found[:, None]).max((2, 3, 4))
    assert (apart.min(1) == 0).all() and (np.diff(apart.argmin(1)) > 0).all()


@pytest.mark.parametrize("name", ["late.ogv", "late.nut", "late.avi", "late.ts", "late.mxf"])
@pytest.mark.parametrize("late", ["sound", "picture"])
def test_a_late_stream_stands_where_the_clip_has_it(tmp_path: Path, name: str, late: str) -> None:
    codecs = {
        "late.ogv": ("-c:v", "libtheora", "-pix_fmt", "yuv420p", "-c:a", "libvorbis"),
        "late.avi": ("-c:v", "mpeg4", "-c:a", "pcm_s16le"),
        "late.mxf": ("-c:v", "mpeg2video", "-c:a", "pcm_s16le"),
    }.get(name, H264)
    path, offset = tmp_path / name, ("-itsoffset", "1")
    first, second = (PICTURE, (*offset, *SOUND)) if late == "sound" else ((*offset, *PICTURE), SOUND)
    ffmpeg(*first, *second, *codecs, str(path))
    decode(path)
    samples = open_container(path, 8000, 4.0, time.monotonic() + 120).waveform
    loud = np.abs(samples[: len(samples) // 800 * 800]).reshape(-1, 800).max(1) > 0.02
    assert abs(int(loud.sum()) - 20) <= 2
    begins = int(loud.argmax())
    assert abs(begins - 10 * (late == "sound")) <= 1 or (
        name in ("late.mxf", "late.avi") and begins == 0
    )  # these say nothing


def test_times_below_zero_are_the_clips_start(tmp_path: Path, plain: Path) -> None:
    path = tmp_path / "a.mkv"
    ffmpeg("-itsoffset", "-0.7", "-i", str(plain), "-c", "copy", "-avoid_negative_ts", "disabled", "-copyts", str(path))
    clip = decode(path)
    check_frames(clip.frames, shown(path))


# ---- refusals


def test_a_refusal_names_what_is_read_and_no_temporary_file(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text("no film\n" * 100)
    with pytest.raises(DecodeError, match=r"not_media: .*MXF.*GIF"):
        decode(tmp_path / "a.mp4")
    raw = made(tmp_path / "raw.avi", *CONTAINERS["raw.avi"])
    content = raw.read_bytes()
    raw.write_bytes(content.replace(b"\x18\x00\x00\x00\x00\x00", b"\x17\x00\x00\x00\x00\x00"))  # pixels of 23 bits
    try:
        decode(raw)
    except DecodeError as error:
        assert "/tmp" not in error.detail and "crmt-" not in error.detail


def test_one_stream_that_ends_early_is_whole(tmp_path: Path) -> None:
    """No tag, and no end of its own: the other stream reaches the container's."""
    for name, seconds, sound in (("a.nut", 3, 1), ("b.nut", 1, 3), ("a.mxf", 3, 3), ("a.ts", 3, 1), ("b.ts", 1, 3)):
        codecs = ("mpeg2video", "pcm_s16le") if name.endswith("mxf") else ("libx264", "aac")
        rate = 48000 if name.endswith("mxf") else 16000
        path = make_media(
            tmp_path / name, seconds=seconds, sound_seconds=sound, fps=25, codecs=codecs, sample_rate=rate
        )
        decode(path)
        assert (
            subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", path, "-f", "null", "-"]).returncode
            == 0
        )
