"""Hostile and odd clips: decoded rightly or refused with a reason, in time, and never at the cost of the process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipelines.config.schema import AudioConfig, VideoConfig
from pipelines.decoding.clip import DecodedClip, DecodeError, decode_clip
from pipelines.decoding.frame_child import frame_indices, frames_by_time
from pipelines.decoding.frames import frame_process
from tests.pipelines.media import cut, ffmpeg, make_media, raw_frames

VIDEO = VideoConfig(frames=2, size=32, crop=32)
AUDIO = AudioConfig(sample_rate=8000, seconds=2.0, n_fft=512, window=400, hop=160, mels=32, fmin=50, frames=101)


def decode(path: Path, video: VideoConfig = VIDEO, timeout: float = 60.0, **kwargs: object) -> DecodedClip:
    return decode_clip(path, video, AUDIO, timeout, **kwargs)  # type: ignore[arg-type]


def reason_of(path: Path, video: VideoConfig = VIDEO, timeout: float = 60.0) -> str:
    with pytest.raises(DecodeError) as caught:
        decode(path, video, timeout)
    return caught.value.reason


def pattern(path: Path, *options: str, size: str = "66x48", rate: int = 10, seconds: float = 2) -> Path:
    """A silent test pattern."""
    ffmpeg("-f", "lavfi", "-i", f"testsrc=size={size}:rate={rate}:duration={seconds}", *options, f"file:{path}")
    return path


# ---- to the pixel


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("h264.mp4", ["-c:v", "libx264", "-pix_fmt", "yuv420p"]),
        ("hevc.mp4", ["-c:v", "libx265", "-pix_fmt", "yuv420p", "-x265-params", "log-level=none"]),
        ("vp9.webm", ["-c:v", "libvpx-vp9", "-pix_fmt", "yuv420p"]),
        ("av1.mkv", ["-c:v", "libaom-av1", "-cpu-used", "8", "-pix_fmt", "yuv420p"]),
        ("mpeg4.avi", ["-c:v", "mpeg4"]),
        ("mpeg2.mpg", ["-c:v", "mpeg2video", "-r", "25", "-q:v", "3"]),
        ("h264.ts", ["-c:v", "libx264", "-pix_fmt", "yuv420p"]),
        ("camera.m2ts", ["-c:v", "libx264", "-pix_fmt", "yuv420p"]),
        ("open.mkv", ["-c:v", "libx264", "-x264-params", "open-gop=1:keyint=20", "-pix_fmt", "yuv420p"]),
        ("b.avi", ["-c:v", "mpeg4", "-bf", "2"]),
        ("h264.avi", ["-c:v", "libx264", "-bf", "3", "-pix_fmt", "yuv420p"]),
        ("a.wmv", ["-c:v", "wmv2"]),
        ("a.ogv", ["-c:v", "libtheora", "-pix_fmt", "yuv420p"]),
        ("a.flv", ["-c:v", "flv1"]),
        ("mjpeg.mov", ["-c:v", "mjpeg", "-pix_fmt", "yuvj420p"]),
    ],
)
def test_frames_are_pyavs_to_the_pixel(tmp_path: Path, name: str, options: list[str]) -> None:
    """A square clip is stored at its own size: nothing is resized."""
    compare_to_pyav(pattern(tmp_path / name, *options, size="64x64", rate=25, seconds=4), 64)


@pytest.mark.parametrize("side", [16, 18, 24, 32, 34, 48, 50, 80, 96, 98, 112, 144, 160, 192, 288])
def test_frames_are_pyavs_at_every_padding_of_rows(tmp_path: Path, side: int) -> None:
    compare_to_pyav(pattern(tmp_path / "a.mp4", "-pix_fmt", "yuv420p", size=f"{side}x{side}", seconds=1), side)


def compare_to_pyav(path: Path, side: int) -> None:
    with av.open(str(path)) as container:
        whole = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    video = VideoConfig(frames=4, candidates=3, size=side, crop=side)
    found = decode(path, video, modalities=("video",)).frames
    assert np.array_equal(found, whole[frame_indices(len(whole), 4, 3)])


@pytest.mark.parametrize(
    ("name", "options", "size"),
    [
        ("ten.mp4", ["-c:v", "libx265", "-pix_fmt", "yuv420p10le", "-x265-params", "log-level=none"], 64),
        ("ten.mkv", ["-c:v", "libx264", "-pix_fmt", "yuv420p10le"], 64),
        ("odd.webm", ["-c:v", "libvpx-vp9", "-pix_fmt", "yuv420p"], 67),
        ("odd.mp4", ["-c:v", "libx264", "-pix_fmt", "yuv444p"], 49),
        ("full.mp4", ["-vf", "scale=out_range=full", "-pix_fmt", "yuv420p", "-color_range", "pc"], 64),
    ],
)
def test_10_bits_and_odd_sizes_are_ffmpegs_to_the_pixel(
    tmp_path: Path, name: str, options: list[str], size: int
) -> None:
    """PyAV interpolates colour otherwise there (bilinear); decord does as ffmpeg does."""
    path = pattern(tmp_path / name, *options, size=f"{size}x{size}")
    whole = raw_frames(path, size, size)
    found = decode(path, VideoConfig(frames=5, size=size, crop=size), modalities=("video",)).frames
    assert np.array_equal(found, whole[frame_indices(len(whole), 5, 1)])


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_rotated_clip_is_upright(tmp_path: Path, degrees: int) -> None:
    plain = pattern(tmp_path / "plain.mp4", "-pix_fmt", "yuv420p", size="64x64")
    turned = tmp_path / "turned.mp4"
    ffmpeg("-display_rotation", str(degrees), "-i", str(plain), "-c", "copy", str(turned))
    video = VideoConfig(frames=2, size=64, crop=64)
    upright, frames = (decode(p, video, modalities=("video",)).frames for p in (plain, turned))
    assert upright is not None and np.array_equal(frames, np.rot90(upright, degrees // 90, (1, 2)))
    assert np.abs(raw_frames(turned, 64, 64)[5].astype(int) - frames[0]).max() <= 3  # ffmpeg turns it, too


# ---- time


def test_frames_of_a_variable_rate_are_taken_by_time(tmp_path: Path) -> None:
    """30 frames in the first second, 3 in the two that follow: segments are equal in seconds, not in frames."""
    path = pattern(tmp_path / "a.mp4", "-vf", "select=lt(n\\,30)+not(mod(n\\,20))", "-fps_mode", "vfr",
                   "-pix_fmt", "yuv420p", size="64x64", rate=30, seconds=3)  # fmt: skip
    whole = raw_frames_of_stream(path, 64)
    assert len(whole) == 33
    found = decode(path, VideoConfig(frames=3, size=64, crop=64), modalities=("video",)).frames
    # 2.7 s: what is on screen at 0.45, 1.35 and 2.25 s (the last frames begin at 1.33, 2 and 2.67 s)
    assert found is not None
    for frame, index in zip(found, (13, 30, 31), strict=True):
        assert int(np.abs(whole.astype(int) - frame).sum((1, 2, 3)).argmin()) == index
    assert frame_indices(33, 3, 1).tolist() == [5, 16, 27]


def raw_frames_of_stream(path: Path, side: int) -> NDArray[np.uint8]:
    """Every stored frame once, whatever its time."""
    raw = ffmpeg("-i", str(path), "-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "pipe:1")
    return np.frombuffer(raw, np.uint8).reshape(-1, side, side, 3)


def test_even_stamps_give_the_frames_by_number() -> None:
    for length in (1, 2, 7, 30, 301):
        for jitter in (0.0, 0.3):
            starts = np.arange(length) / 25 + jitter / 25 * np.random.default_rng(length).random(length)
            stamps = np.stack([starts, starts + 1 / 25], axis=1)
            assert frames_by_time(stamps, 3, 2).tolist() == frame_indices(length, 3, 2).tolist()
    broken = np.full((5, 2), np.nan)
    assert frames_by_time(broken, 2, 1).tolist() == frame_indices(5, 2, 1).tolist()
    assert set(frames_by_time(np.zeros((4, 2)), 2, 1).tolist()) <= set(range(4))


def test_one_frame_and_a_tenth_of_a_second(tmp_path: Path) -> None:
    one = make_media(tmp_path / "one.mp4", seconds=0.1, fps=10, sample_rate=8000)
    clip = decode(one)
    assert clip.frames is not None and np.array_equal(clip.frames[0], clip.frames[1]) and clip.frames.std() > 10
    tenth = decode(make_media(tmp_path / "tenth.mp4", seconds=0.1, fps=30))
    assert tenth.frames is not None and tenth.audio is not None
    flow = decode(one, modalities=("flow",)).flow
    assert flow is not None and (flow == 128).all()


# ---- limits


def test_four_hours_declared_are_too_long(tmp_path: Path) -> None:
    path = make_media(tmp_path / "a.mp4")
    content = bytearray(path.read_bytes())
    movie = content.index(b"mvhd")
    for box, offset in ((b"mvhd", 20), (b"mdhd", 20), (b"elst", 12)):  # durations, of the whole and of every track
        place = content.find(box)
        while place > 0:
            scale = content[place + 16 : place + 20] if box == b"mdhd" else content[movie + 16 : movie + 20]
            value = 4 * 3600 * int.from_bytes(scale, "big")
            content[place + offset : place + offset + 4] = value.to_bytes(4, "big")
            place = content.find(box, place + 1)
    path.write_bytes(content)
    assert reason_of(path) == "too_long"
    assert reason_of(path, VIDEO.model_copy(update={"max_seconds": 1e6})) == "truncated"  # there are 2 s of it


def test_limits_of_frames_seconds_and_pixels(tmp_path: Path) -> None:
    path = make_media(tmp_path / "a.mp4", seconds=3, fps=10)
    assert reason_of(path, VIDEO.model_copy(update={"max_seconds": 2.0})) == "too_long"
    assert reason_of(path, VIDEO.model_copy(update={"max_frames": 29})) == "too_long"
    assert reason_of(path, VIDEO.model_copy(update={"max_pixels": 64 * 48 - 1})) == "too_large"
    limits = {"max_seconds": 4.0, "max_frames": 30, "max_pixels": 64 * 48}
    assert decode(path, VIDEO.model_copy(update=limits)).frames is not None


@pytest.mark.parametrize(("side", "reason"), [(8192, "too_large"), (16384, "failed")])
def test_a_huge_picture_is_refused_before_it_is_decoded(tmp_path: Path, side: int, reason: str) -> None:
    """A PNG as a film of one frame: a few kB that would become 200 or 800 MB. ffmpeg accepts no 16,384 × 16,384."""
    Image.new("1", (8192, 8192)).save(tmp_path / "a.png")
    path = tmp_path / "a.mov"
    ffmpeg("-i", str(tmp_path / "a.png"), "-c", "copy", str(path))
    content = path.read_bytes().replace((8192).to_bytes(2, "big") * 2, side.to_bytes(2, "big") * 2)
    header = content.index(b"IHDR")
    changed = b"IHDR" + side.to_bytes(4, "big") * 2 + content[header + 12 : header + 17]
    checked = changed + zlib.crc32(changed).to_bytes(4, "big")
    path.write_bytes(content[:header] + checked + content[header + len(checked) :])
    started = time.monotonic()
    with pytest.raises(DecodeError) as caught:
        decode(path, modalities=("video",))
    assert caught.value.reason == reason and time.monotonic() - started < 10


def test_a_strip_is_not_blown_up(tmp_path: Path) -> None:
    """8,192 × 2 pixels, the short side to 32: the whole would be 131,072 × 32."""
    path = pattern(tmp_path / "a.mkv", "-c:v", "ffv1", size="8192x2", seconds=0.3)
    clip = decode(path, modalities=("video",))
    assert clip.frames is not None and clip.frames.shape == (2, 32, 32, 3)


# ---- the child process


def child() -> int:
    return frame_process(os.getpid()).pid


def test_a_decoder_that_hangs_is_killed_in_time(tmp_path: Path) -> None:
    path = make_media(tmp_path / "a.mp4")
    decode(path)
    stopped = child()
    os.kill(stopped, signal.SIGSTOP)  # it hangs inside whatever it does
    started = time.monotonic()
    assert reason_of(path, timeout=2.0) == "timeout"
    assert time.monotonic() - started < 5
    assert decode(path).frames is not None and child() != stopped
    with pytest.raises(ProcessLookupError):
        os.kill(stopped, 0)


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL])
def test_a_decoder_that_crashes_is_one_failed_clip(tmp_path: Path, number: signal.Signals) -> None:
    path = make_media(tmp_path / "a.mp4")
    decode(path)
    process = child()
    os.kill(process, signal.SIGSTOP)
    crash = threading.Timer(1.0, lambda: (os.kill(process, number), os.kill(process, signal.SIGCONT)))
    crash.start()
    with pytest.raises(DecodeError, match=f"failed: .*{number.name}"):
        decode(path)
    crash.join()
    assert decode(path).frames is not None


def test_a_decoder_that_died_between_two_clips_is_replaced(tmp_path: Path) -> None:
    path = make_media(tmp_path / "a.mp4")
    decode(path)
    process = child()
    os.kill(process, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while Path(f"/proc/{process}/stat").read_text().split()[2] != "Z" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert decode(path).frames is not None and child() != process


def test_the_childs_memory_is_limited_and_it_serves_many_clips(tmp_path: Path) -> None:
    path = make_media(tmp_path / "a.mp4")
    decode(path)
    process = child()
    limits = Path(f"/proc/{process}/limits").read_text()
    (line,) = [line for line in limits.splitlines() if line.startswith("Max address space")]
    assert int(line.split()[3]) == 6 * 2**30
    for _ in range(5):
        decode(path)
    assert child() == process


# ---- files


def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = make_media(tmp_path / "a.mp4")
    path.chmod(0)
    if os.access(path, os.R_OK):  # root may
        assert decode(path).frames is not None
    else:
        assert reason_of(path) == "unreadable"


def test_a_pipe_and_a_device_are_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.mp4")
    assert reason_of(tmp_path / "a.mp4", timeout=5) == "unreadable"
    assert reason_of(Path("/dev/zero"), timeout=5) == "unreadable"


PLAYLISTS = {
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nfile:{good}\n#EXT-X-ENDLIST\n",
    "concat": "ffconcat version 1.0\nfile '{good}'\n",
    "dash": '<?xml version="1.0"?><MPD type="static"><Period><BaseURL>{good}</BaseURL></Period></MPD>',
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
    "svg": "<svg xmlns='http://www.w3.org/2000/svg'><image href='file://{good}'/></svg>",
}


@pytest.mark.parametrize("kind", PLAYLISTS)
def test_a_playlist_is_not_followed(tmp_path: Path, kind: str) -> None:
    good = make_media(tmp_path / "good.mp4")
    (tmp_path / "list.mp4").write_text(PLAYLISTS[kind].format(good=good))
    assert reason_of(tmp_path / "list.mp4", timeout=20) == "not_media"


def test_a_name_cannot_pretend_to_be_what_ffmpeg_says(tmp_path: Path) -> None:
    name = "a\n  Duration: 09:00:00.00, start: 0.000000\n  Stream #0:0: Video: h264, 99999x99999, .mp4"
    path = make_media(tmp_path / "a.mp4").rename(tmp_path / name)
    assert decode(path).frames is not None


def test_boxes_in_boxes_without_end_do_not_keep_us_busy(tmp_path: Path) -> None:
    """Tracks that each reach to the end of the file, in an index of 100,000 of them."""
    track = (2**20).to_bytes(4, "big") + b"trak"
    body = track * 100_000
    content = b"\0\0\0\x08ftyp" + (len(body) + 8).to_bytes(4, "big") + b"moov" + body
    (tmp_path / "a.mp4").write_bytes(content)
    started = time.monotonic()
    assert reason_of(tmp_path / "a.mp4", timeout=20) in ("failed", "not_media", "no_video", "truncated")
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.webm", "a.avi"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9])
def test_a_cut_file_is_refused(tmp_path: Path, name: str, share: float) -> None:
    codecs = {"a.webm": ("libvpx-vp9", "libopus"), "a.avi": ("mpeg4", "libmp3lame")}.get(name, ("libx264", "aac"))
    whole = make_media(tmp_path / name, seconds=4, codecs=codecs)
    decode(whole)
    assert reason_of(cut(whole, tmp_path / f"cut-{name}", share)) in ("truncated", "failed", "not_media", "no_audio")


# ---- hangs that are real: decord waits for ever for a pipe that nobody writes to


def request_for(path: Path, seconds: float) -> dict[str, object]:
    video = {"segments": 1, "candidates": 1, "size": 32, "max_pixels": 10**6, "max_frames": 100, "flow": None}
    return {"path": str(path), "start": 0.0, "wanted": ["video"], "seconds": seconds, **video}


def test_a_call_of_decord_that_never_returns_is_ended(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.mp4")
    started = time.monotonic()
    with pytest.raises(DecodeError, match="timeout"):
        frame_process(os.getpid()).ask(request_for(tmp_path / "a.mp4", 1.0), time.monotonic() + 1)
    assert time.monotonic() - started < 5


def test_a_decoder_that_hangs_outlives_a_killed_parent_by_seconds_only(tmp_path: Path) -> None:
    """Nobody is left to kill it: its own alarm does."""
    os.mkfifo(tmp_path / "a.mp4")
    command = [sys.executable, "-m", "pipelines.decoding.frame_child"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == b"{}\n"
        process.stdin.write(json.dumps(request_for(tmp_path / "a.mp4", 0.1)).encode() + b"\n")
        process.stdin.flush()
        assert process.wait(20) == -signal.SIGALRM


def test_an_idle_decoder_ends_with_its_killed_parent(tmp_path: Path) -> None:
    code = "import os; from pipelines.decoding.frames import frame_process; "
    code += "print(frame_process(os.getpid()).pid, flush=True); "
    done = subprocess.run([sys.executable, "-c", code + "os.kill(os.getpid(), 9)"], capture_output=True, text=True)
    orphan, deadline = Path("/proc") / done.stdout.strip(), time.monotonic() + 10
    assert done.returncode == -signal.SIGKILL and done.stdout.strip().isdigit()
    while orphan.exists() and "Z (zombie)" not in (orphan / "status").read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert time.monotonic() < deadline
