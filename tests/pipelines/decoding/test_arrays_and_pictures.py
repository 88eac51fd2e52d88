"""Arrays in .npy and .npz files, and pictures in files of their own: what is read, and every reason for refusal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipelines.config.schema import AudioConfig, FlowConfig, VideoConfig
from pipelines.decoding.arrays import array_shape, read_array
from pipelines.decoding.clip import decode_clip
from pipelines.decoding.errors import DecodeError
from pipelines.decoding.frame_child import frame_indices
from pipelines.decoding.pictures import picture_files

SHAPE = (4, 3)
VIDEO = VideoConfig(frames=2, candidates=3, size=32, crop=32)
AUDIO = AudioConfig(sample_rate=8000, seconds=1.0, n_fft=512, hop=160, mels=16, frames=40)


def values(dtype: str = "<f4") -> np.ndarray:
    return np.arange(12).reshape(SHAPE).astype(dtype)


@pytest.mark.parametrize("dtype", ["<f4", ">f8", "<f2", "|u1", "<i8", "|b1"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_any_numbers_are_read_as_they_are(tmp_path: Path, dtype: str, order: Any) -> None:
    np.save(tmp_path / "a.npy", np.asarray(values(dtype), order=order))
    found = read_array(tmp_path / "a.npy", SHAPE)
    assert found.dtype == np.float32 and np.array_equal(found, values(dtype))
    assert array_shape(tmp_path / "a.npy") == SHAPE


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_archive_of_one_array_or_with_a_key(tmp_path: Path, save: Any) -> None:
    save(tmp_path / "one.npz", points=values())
    save(tmp_path / "two.npz", points=values(), colours=values() + 1)
    assert np.array_equal(read_array(tmp_path / "one.npz", SHAPE), values())
    assert np.array_equal(read_array(tmp_path / "two.npz", SHAPE, "colours"), values() + 1)
    for key, message in ((None, "holds points, colours: say which with `key`"), ("odour", "has no 'odour'")):
        with pytest.raises(DecodeError, match=message) as caught:
            read_array(tmp_path / "two.npz", SHAPE, key)
        assert caught.value.reason == "not_array"


def test_every_reason_for_refusing_an_array(tmp_path: Path) -> None:
    def refused(content: Any, reason: str, detail: str, **options: Any) -> None:
        path = tmp_path / "a.npy"
        path.unlink(missing_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content is not None:
            np.save(path, content, allow_pickle=True)
        with pytest.raises(DecodeError, match=detail) as caught:
            read_array(path, SHAPE, **options)
        assert caught.value.reason == reason

    refused(None, "missing", "no such file")
    refused(b"", "empty", "0 bytes")
    refused(b"this is no array at all", "not_array", r"no \.npy array")
    refused(b"PK\x05\x06" + bytes(18), "not_array", "no array")
    refused(values().astype(object), "not_array", "no real numbers")  # and nothing is unpickled
    refused(values().astype(complex), "not_array", "no real numbers")
    refused(values()[:2], "wrong_shape", r"\[2, 3\], not \[4, 3\]")
    refused(np.full(SHAPE, np.nan), "bad_values", "NaN")
    refused(np.full(SHAPE, 1e300), "bad_values", "infinity")
    refused(values(), "bad_values", r"from 0 to 11 leave the box", box=(0.0, 10.0))
    refused(values(), "not_array", "no .npz file", key="points")
    np.save(tmp_path / "whole.npy", values())
    refused((tmp_path / "whole.npy").read_bytes()[:-8], "truncated", "40 of 48 bytes")
    with pytest.raises(DecodeError, match="not a plain file"):
        read_array(tmp_path, SHAPE)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_damaged_array_is_refused_or_read_and_nothing_else(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.npy"
    np.save(path, values()) if data.draw(st.booleans()) else np.savez(path.open("wb"), values())
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        assert read_array(path, SHAPE).shape == SHAPE
    except DecodeError as error:
        assert error.detail


def write_pictures(folder: Path, count: int, suffix: str = ".png", size: tuple[int, int] = (48, 32)) -> Path:
    """Pictures of one grey each, 20 times their number; numbered without leading zeros."""
    folder.mkdir(parents=True)
    for i in range(count):
        Image.new("RGB", size, (20 * i, 20 * i, 20 * i)).save(folder / f"frame_{i}{suffix}")
    return folder


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".JPEG"])
def test_a_folder_of_pictures_is_a_clip(tmp_path: Path, suffix: str) -> None:
    folder = write_pictures(tmp_path / "clip", 12, suffix)
    (folder / "notes.txt").write_text("no picture")
    (folder / "._frame_0.png").write_bytes(b"no picture either")
    assert [Path(f).stem for f in picture_files(folder)] == [f"frame_{i}" for i in range(12)]  # 2 before 10
    clip = decode_clip(folder, VIDEO, AUDIO, 60, ("video",))
    assert clip.frames is not None and clip.frames.shape == (6, 32, 32, 3) and clip.audio is None
    greys = clip.frames.mean((1, 2, 3))
    np.testing.assert_allclose(greys, 20 * frame_indices(12, 2, 3), atol=1)


def test_pictures_of_one_clip_in_many_folders(tmp_path: Path) -> None:
    """CAV-MAE's: a folder a second, with a picture of every clip."""
    for i in range(11):
        (tmp_path / f"frame_{i}").mkdir()
        for k, name in enumerate(("a[1]", "b")):
            Image.new("RGB", (32, 32), (20 * i, 0, 200 * k)).save(tmp_path / f"frame_{i}" / f"{name}.png")
    for k, name in enumerate(("a[1]", "b")):
        clip = decode_clip(tmp_path / "frame_*" / f"{name}.png", VIDEO, AUDIO, 60, ("video",))
        assert clip.frames is not None
        assert clip.frames[:, 0, 0, 0].tolist() == (20 * frame_indices(11, 2, 3)).tolist()
        assert (clip.frames[..., 2] == 200 * k).all()
    with pytest.raises(DecodeError, match="missing"):
        decode_clip(tmp_path / "frame_*" / "c.png", VIDEO, AUDIO, 60, ("video",))


def test_flow_between_pictures(tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    folder.mkdir()
    texture = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    still = np.asarray(Image.fromarray(texture).resize((64, 64), Image.Resampling.BICUBIC))
    for i in range(4):
        Image.fromarray(np.roll(still, 2 * i, axis=1)).save(folder / f"{i}.png")
    video = VideoConfig(frames=2, size=64, crop=64)
    clip = decode_clip(folder, video, AUDIO, 60, ("video", "flow"), FlowConfig(bound=4.0))
    assert clip.flow is not None and clip.flow.shape == (2, 2, 64, 64)
    across = (clip.flow[:, 0, 16:48, 16:48].astype(float) - 128) * 4 / 127
    assert abs(np.median(across) - 2) < 0.3  # two pixels to the right


def test_every_reason_for_refusing_pictures(tmp_path: Path) -> None:
    def refused(folder: Path, reason: str, modalities: tuple[str, ...] = ("video",), **limits: Any) -> None:
        with pytest.raises(DecodeError) as caught:
            decode_clip(folder, VIDEO.model_copy(update=limits), AUDIO, 60, modalities)
        assert caught.value.reason == reason, caught.value

    whole = write_pictures(tmp_path / "whole", 3)
    refused(whole, "no_audio", ("audio",))
    refused(whole, "no_audio", ("video", "audio"))
    refused(whole, "too_large", max_pixels=1000)
    refused(whole, "too_long", max_frames=2)
    (tmp_path / "none").mkdir()
    refused(tmp_path / "none", "unreadable")
    broken = write_pictures(tmp_path / "broken", 1)
    (broken / "frame_0.png").write_bytes((broken / "frame_0.png").read_bytes()[:60])
    refused(broken, "failed")
    kept = decode_clip(whole, VIDEO, AUDIO, 60, ("video", "audio"), keep_incomplete=True)
    assert kept.frames is not None and kept.audio is None
