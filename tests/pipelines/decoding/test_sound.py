"""The audio front-ends: against kaldi-native-fbank, the VGGSound authors' recipe in scipy, and a mel by hand."""

from __future__ import annotations

import time
from pathlib import Path

import av
import kaldi_native_fbank
import numpy as np
import pytest
import scipy.signal
from numpy.typing import NDArray
from pydantic import ValidationError

from pipelines.config.schema import AudioConfig, VideoConfig
from pipelines.decoding.clip import decode_clip
from pipelines.decoding.container import open_container
from pipelines.decoding.sound import kaldi_fbank, spectrogram, vggsound_spectrogram
from tests.pipelines.media import ffmpeg, make_media

FLOOR = np.log(np.finfo(np.float32).eps)


def signals(rate: int) -> dict[str, NDArray[np.float32]]:
    """A second of each kind of sound."""
    rng, t = np.random.default_rng(0), np.arange(rate) / rate
    syllables = (1 + np.sin(2 * np.pi * 4 * t)) / 2
    harmonics = (0.3 / k * np.sin(2 * np.pi * 120 * k * t + k) for k in range(1, 25))
    made = {
        "noise": rng.normal(0, 0.1, rate),
        "quiet noise": rng.normal(0, 1e-3, rate),
        "tone": 0.5 * np.sin(2 * np.pi * 440 * t),
        "tones": sum((0.1 * np.sin(2 * np.pi * f * t) for f in (100, 1000, 3000)), np.zeros(rate)),
        "sweep": 0.3 * np.sin(2 * np.pi * (100 * t + 800 * t * t)),
        "chirp": 0.4 * np.sin(2 * np.pi * (50 * t + (rate / 2 - 100) / 2 * t * t)),
        "full tone": 0.99 * np.sin(2 * np.pi * 1000 * t),
        "tone and hiss": 0.5 * np.sin(2 * np.pi * 440 * t) + rng.normal(0, 1e-4, rate),
        "vowel": sum(harmonics, np.zeros(rate)),
        "speech-like": np.convolve(rng.normal(0, 0.3, rate), np.hanning(30) / 15, "same") * syllables,
        "offset": 0.2 + rng.normal(0, 0.01, rate),
        "silence": np.zeros(rate),
        "0.1 s": rng.normal(0, 0.1, rate // 10),
    }
    return {name: wave.astype(np.float32) for name, wave in made.items()}


def hertz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    return 700 * np.expm1(mel / 1127)


def kaldi(wave: NDArray[np.float32], rate: int, bins: int, lowest: float = 20.0) -> NDArray[np.float32]:
    """(bins, frames) by kaldi-native-fbank, with the options that CRMT and AST use."""
    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.samp_freq = rate
    options.frame_opts.dither = 0
    options.frame_opts.window_type = "hanning"
    options.mel_opts.num_bins = bins
    options.mel_opts.low_freq = lowest
    options.use_energy = False
    options.htk_compat = True
    bank = kaldi_native_fbank.OnlineFbank(options)
    bank.accept_waveform(rate, (wave - wave.mean()).astype(np.float32).tolist())
    bank.input_finished()
    frames = [bank.get_frame(i) for i in range(bank.num_frames_ready)]
    return np.stack(frames).T if frames else np.zeros((bins, 0), np.float32)


@pytest.mark.parametrize(
    ("rate", "mels"), [(16000, 80), (16000, 40), (8000, 64), (22050, 128), (44100, 128), (48000, 80)]
)
def test_fbank_is_kaldis(rate: int, mels: int) -> None:
    for name, wave in signals(rate).items():
        compare(kaldi_fbank(wave, rate, mels), kaldi(wave, rate, mels), name)


def compare(ours: NDArray[np.float32], theirs: NDArray[np.float32], name: str) -> None:
    """Natural logarithms of power, to 1e-3 in every band up to 70 dB below its frame's loudest one (measured: 6e-4).

    Softer bands are leakage of the loud ones and what float32 makes of it: the peer transforms in float32, we in
    float64. There the two part by up to 1e-2 (measured: 9e-3, in a chirp's bands 84 dB below and softer).
    """
    assert ours.shape == theirs.shape and ours.dtype == np.float32, name
    difference, below = np.abs(ours - theirs), (theirs.max(axis=0) - theirs) * 10 / np.log(10)
    assert difference[below <= 70].max() < 1e-3 and difference.max() < 1e-2, name


def test_fbank_of_128_bands_at_16_khz_is_kaldis() -> None:
    """The peer refuses 128 bands there, as one of the lowest has no bin of the spectrum (such a one is the floor).

    The bands above it are those of a bank that begins where they do, which the peer accepts.
    """
    edges = hertz(np.linspace(*(1127 * np.log1p(np.array([20.0, 8000.0]) / 700)), 130))
    bins = np.arange(256) * 16000 / 512
    empty = [i for i in range(128) if not ((bins > edges[i]) & (bins < edges[i + 2])).any()]
    first = max(empty) + 1
    assert len(empty) == 1 and first < 10
    with pytest.raises(ValueError, match="num_mel_bins"):
        kaldi(signals(16000)["noise"], 16000, 128)
    for name, wave in signals(16000).items():
        ours = kaldi_fbank(wave, 16000, 128)
        compare(ours[first:], kaldi(wave, 16000, 128 - first, float(edges[first])), name)
        assert np.allclose(ours[empty], FLOOR)
        if name == "noise":
            assert (ours[[i for i in range(first) if i not in empty]].mean(axis=1) > FLOOR + 1).all()


@pytest.mark.parametrize("samples", [0, 1, 399])
def test_fbank_shorter_than_a_window_has_no_frame(samples: int) -> None:
    wave = np.full(samples, 0.5, np.float32)
    assert kaldi_fbank(wave, 16000, 128).shape == (128, 0)
    if samples:
        assert kaldi(wave, 16000, 40).shape == (40, 0)
    assert (spectrogram(wave, AudioConfig(front_end="fbank")) == 0).all()


def test_fbank_is_padded_with_zeros_or_cut() -> None:
    wave = np.random.default_rng(1).normal(0, 0.1, 16000 * 11).astype(np.float32)
    audio = AudioConfig(front_end="fbank")
    short, long = spectrogram(wave[:160_000], audio), spectrogram(wave, audio)
    assert short.shape == long.shape == (1, 128, 1024) and short.dtype == np.float16
    assert (short[..., 998:] == 0).all() and (short[..., :998] != 0).any(axis=1).all()  # 998 frames in 10 s
    np.testing.assert_allclose(long[0], kaldi_fbank(wave, 16000, 128)[:, :1024], atol=0.01)  # float16


@pytest.mark.parametrize("seconds", [0.3, 3.0, 10.0, 12.0])
def test_vggsound_is_the_authors_recipe(seconds: float) -> None:
    wave = np.random.default_rng(2).normal(0, 0.6, int(16000 * seconds)).astype(np.float32)
    tiled = np.clip(np.tile(wave, 160_000 // len(wave) + 1)[:160_000], -1, 1)
    _, _, power = scipy.signal.spectrogram(tiled, 16000, nperseg=512, noverlap=353)
    expected = np.log(power + 1e-7)
    expected = (expected - expected.mean()) / expected.std()
    found = vggsound_spectrogram(wave, 16000)
    assert found.shape == (257, 1004)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    stored = spectrogram(wave, AudioConfig(front_end="vggsound"))
    assert stored.shape == (1, 257, 1004) and abs(float(stored.astype(float).std()) - 1) < 1e-3


def test_vggsound_of_silence_or_of_nothing_is_finite() -> None:
    for wave in (np.zeros(16000, np.float32), np.zeros(0, np.float32)):
        assert np.abs(vggsound_spectrogram(wave, 16000)).max() < 1e-2


@pytest.mark.parametrize("front_end", ["logmel", "fbank", "vggsound"])
def test_a_clip_goes_through_every_front_end(tmp_path: Path, front_end: str) -> None:
    path = make_media(tmp_path / "a.mp4", sample_rate=44100)
    audio = AudioConfig.model_validate({"front_end": front_end})
    clip = decode_clip(path, VideoConfig(frames=1, size=32, crop=32), audio, 60, ("audio",))
    assert clip.audio is not None and clip.audio.shape == audio.shape and np.isfinite(clip.audio).all()
    band = int(clip.audio[0, :, 50].argmax())  # a sine of 440 Hz
    expected = {"logmel": 17, "fbank": 23, "vggsound": round(440 / (16000 / 512))}[front_end]
    assert abs(band - expected) <= 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"front_end": "fbank", "n_fft": 512, "window": 400}, "n_fft take no effect with front_end fbank"),
        ({"front_end": "vggsound", "mels": 64}, "mels take no effect"),
        ({"standardise": "published"}, "fbank only"),
        ({"standardise": [0.0, 0.0]}, "standardise"),
        ({"front_end": "mfcc"}, "front_end"),
    ],
)
def test_settings_without_effect_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        AudioConfig.model_validate(settings)


@pytest.mark.parametrize(
    ("name", "video", "codec", "rate", "frame", "frames"),
    [
        ("a.wav", "", "pcm_s16le", 22050, 0, 0),
        ("a.flac", "", "flac", 44100, 0, 0),
        ("a.mov", "libx264", "pcm_s16le", 44100, 0, 0),
        ("a.mp4", "libx264", "aac", 44100, 1024, 0),
        ("a.mp4", "libx264", "aac", 8000, 1024, 0),
        ("a.mkv", "libx264", "aac", 44100, 1024, 1),
        ("a.ts", "libx264", "aac", 44100, 1024, 2),
        ("a.mp3", "", "libmp3lame", 44100, 1152, 0),
        ("a.mkv", "mpeg4", "libmp3lame", 48000, 1152, 0),
        ("a.avi", "mpeg4", "libmp3lame", 44100, 1152, 2),
        ("a.mpg", "mpeg2video", "mp2", 44100, 1152, 1),
        ("a.webm", "libvpx-vp9", "libopus", 48000, 960, 0),
        ("a.mp4", "libx264", "libopus", 48000, 960, 1),
        ("a.ogv", "libtheora", "libvorbis", 44100, 0, 0),
    ],
)
def test_the_length_of_the_sound_is_right_to_a_frame_of_its_codec(
    tmp_path: Path, name: str, video: str, codec: str, rate: int, frame: int, frames: int
) -> None:
    """To the sample where sound is not coded in frames or the container says what to leave out of them.

    Else a codec's last frame is padded to the whole, and where nothing marks the encoder's lead-in either (AVI, MPEG
    transport streams), that adds up to another frame. PyAV finds the same number of samples everywhere but in MP4 with
    AAC: there it passes over the end that the edit list names, by less than a frame.
    """
    path = make_media(tmp_path / name, sample_rate=rate, seconds=2.3, picture=bool(video), codecs=(video, codec))
    found = len(open_container(path, 16000, 10.0, time.monotonic() + 60).waveform)
    one = frame * 16000 / rate
    assert 0 <= found - 2.3 * 16000 <= frames * one
    longer = pyav_samples(path, 16000) - found
    assert 0 <= longer < one if (path.suffix, codec) == (".mp4", "aac") else longer == 0


def pyav_samples(path: Path, rate: int) -> int:
    """Mono samples at `rate` that PyAV decodes."""
    with av.open(str(path)) as container:
        resampler = av.AudioResampler(format="fltp", layout="mono", rate=rate)
        frames = [piece for frame in container.decode(audio=0) for piece in resampler.resample(frame)]
        return sum(frame.samples for frame in [*frames, *resampler.resample(None)])


def test_sixteen_channels_become_one(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    ffmpeg("-f", "lavfi", "-i", "sine=frequency=440:sample_rate=8000:duration=1", "-af",
           "pan=16c|" + "|".join(f"c{i}=c0" for i in range(16)), str(path))  # fmt: skip
    with av.open(str(path)) as container:
        assert container.streams.audio[0].channels == 16
    sound = open_container(path, 16000, 10.0, time.monotonic() + 60)
    assert abs(len(sound.waveform) - 16000) <= 160 and sound.waveform.std() > 0.01
