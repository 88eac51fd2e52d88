"""How loud a clip is, and clips brought to one level before the spectrogram."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from pipelines.config.schema import AudioConfig, VideoConfig
from pipelines.decoding.clip import decode_clip
from pipelines.decoding.sound import at_level, loudness, spectrogram
from tests.pipelines.decoding.waves import write_wave

RATE = 16000


def noise(seconds: float = 2.0, rms: float = 0.1) -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(0, rms, round(seconds * RATE)).astype(np.float32)


def test_loudness_is_the_rms_of_what_is_heard() -> None:
    t = np.arange(RATE) / RATE
    assert loudness(np.sin(2 * np.pi * 440 * t), RATE) == pytest.approx(-3.01, abs=0.01)
    assert loudness(np.ones(RATE), RATE) == pytest.approx(0, abs=1e-9)
    speech = noise()
    alone = loudness(speech, RATE)
    assert alone == pytest.approx(-20, abs=0.2)
    pauses = np.concatenate([speech, np.zeros(6 * RATE), 1e-3 * noise(6.0, 1.0)]).astype(np.float32)
    assert loudness(pauses, RATE) == pytest.approx(alone, abs=0.2)
    assert loudness(speech[:5], RATE) is not None  # shorter than a block


@pytest.mark.parametrize("gain", [0.05, 0.5, 1.0, 4.0])
def test_clips_of_any_loudness_come_to_one_level(gain: float) -> None:
    levelled = at_level(noise() * np.float32(gain), RATE, -23)
    assert levelled.dtype == np.float32 and loudness(levelled, RATE) == pytest.approx(-23, abs=0.01)
    np.testing.assert_allclose(levelled, at_level(noise(), RATE, -23), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("silence", [np.zeros(RATE), np.zeros(0), np.full(RATE, 1e-5), np.zeros(7)])
def test_silence_stays_silence(silence: NDArray[np.float64]) -> None:
    wave = silence.astype(np.float32)
    assert loudness(wave, RATE) is None and np.array_equal(at_level(wave, RATE, -23), wave)


@pytest.mark.parametrize("front_end", ["logmel", "fbank", "vggsound"])
def test_recordings_20_db_apart_give_one_spectrogram_with_a_level_and_two_without(front_end: str) -> None:
    loud, quiet = noise(), noise() * np.float32(0.1)

    def of(wave: NDArray[np.float32], **more: Any) -> NDArray[np.float64]:
        return spectrogram(wave, AudioConfig.model_validate({"front_end": front_end, **more})).astype(float)

    assert np.abs(of(loud, level=-23) - of(quiet, level=-23)).max() < 0.02
    if front_end != "vggsound":  # which brings each clip to one deviation
        assert np.abs(of(loud) - of(quiet)).max() > 1
    assert np.array_equal(of(quiet, level=None), of(quiet))


def test_a_decoded_clip_says_how_loud_it_is(tmp_path: Path) -> None:
    path = write_wave(tmp_path / "a.wav", noise(1.0), RATE)
    video = VideoConfig(frames=1, size=32, crop=32)
    as_recorded = decode_clip(path, video, AudioConfig(), 60, ("audio",))
    assert as_recorded.loudness == pytest.approx(-20, abs=0.2)
    levelled = decode_clip(path, video, AudioConfig(level=-30), 60, ("audio",))
    assert levelled.loudness == -30 and as_recorded.audio is not None and levelled.audio is not None
    assert levelled.audio.mean() < as_recorded.audio.mean()
    silent = write_wave(tmp_path / "b.wav", np.zeros(RATE), RATE)
    assert decode_clip(silent, video, AudioConfig(level=-30), 60, ("audio",)).loudness is None


@pytest.mark.parametrize("level", [1, -61, "loud"])
def test_a_level_is_a_number_of_dbfs(level: object) -> None:
    with pytest.raises(ValidationError, match="level"):
        AudioConfig.model_validate({"level": level})
