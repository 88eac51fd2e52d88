"""Mono sound to a spectrogram, float16 (1, bands, frames): librosa's log-mel, Kaldi's filter bank, VGGSound's own.

Ten seconds at 16 kHz cost about 10 ms on one core, whichever it is. librosa and scipy are imported on first use.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from pipelines.config.schema import VGGSOUND_SHAPE, AudioConfig

PUBLISHED_FBANK = (-4.503877, 2 * 5.141276)
"""Mean and deviation that CRMT standardises `fbank` with."""

_FBANK_WINDOW, _FBANK_SHIFT, _FBANK_PREEMPHASIS, _FBANK_LOWEST = 0.025, 0.010, 0.97, 20.0
_FBANK_FLOOR = float(np.finfo(np.float32).eps)  # Kaldi's: the power that stands for silence
_BLOCK, _SILENCE = 0.05, 1e-7  # seconds; power, of -70 dBFS
_VGGSOUND_SAMPLES, _VGGSOUND_WINDOW, _VGGSOUND_OVERLAP, _VGGSOUND_OFFSET = 160_000, 512, 353, 1e-7


def spectrogram(waveform: NDArray[np.float32], audio: AudioConfig) -> NDArray[np.float16]:
    """The input of the chosen front-end, not standardised over the data set; of the shape `audio.shape`."""
    if audio.level is not None:
        waveform = at_level(waveform, audio.sample_rate, audio.level)
    if audio.front_end == "fbank":
        values = kaldi_fbank(waveform, audio.sample_rate, audio.mels)[:, : audio.frames]
        padded = np.pad(values, ((0, 0), (0, audio.frames - values.shape[1])))  # with 0, as the reference code does
        return padded[None].astype(np.float16)
    if audio.front_end == "vggsound":
        return vggsound_spectrogram(waveform, audio.sample_rate)[None].astype(np.float16)
    return log_mel(waveform, audio)


def loudness(waveform: NDArray[np.floating], sample_rate: int) -> float | None:
    """RMS in dBFS (a full square wave has 0) of the parts that are not silent; None where all is silence.

    Blocks of 50 ms count that are above -70 dBFS and less than 10 dB below the mean of those: the two gates of EBU R
    128, without its weighting of frequencies. So pauses do not make a speaker quiet.
    """
    samples = np.asarray(waveform, np.float64)
    block = max(1, round(sample_rate * _BLOCK))
    whole = len(samples) // block * block
    pieces = [*samples[:whole].reshape(-1, block), samples[whole:]]
    powers = np.asarray([np.mean(piece**2) for piece in pieces if len(piece)])
    heard = powers[powers > _SILENCE]
    if not len(heard):
        return None
    return float(10 * np.log10(heard[heard > heard.mean() / 10].mean()))


def at_level(waveform: NDArray[np.float32], sample_rate: int, level: float) -> NDArray[np.float32]:
    """The waveform with its `loudness` at `level` dBFS; silence as it is. It is not clipped, and may exceed 1."""
    found = loudness(waveform, sample_rate)
    return waveform if found is None else waveform * np.float32(10 ** ((level - found) / 20))


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


def kaldi_fbank(waveform: NDArray[np.floating], sample_rate: int, mels: int) -> NDArray[np.float32]:
    """Kaldi's log filter bank (mels, frames) of a waveform in [-1, 1] less its mean, float32.

    Only whole windows count (a clip shorter than one has no frame). A window loses its mean, is pre-emphasised and
    weighted by a symmetric Hann window; its power spectrum, without the Nyquist bin, goes through triangles that are
    even in HTK's mel from 20 Hz to half the sample rate. No dither, no energy.
    """
    from threadpoolctl import threadpool_limits

    length, shift = int(sample_rate * _FBANK_WINDOW), int(sample_rate * _FBANK_SHIFT)
    if len(waveform) < length:
        return np.zeros((mels, 0), np.float32)
    samples = np.asarray(waveform, np.float64)
    windows = np.lib.stride_tricks.sliding_window_view(samples - samples.mean(), length)[::shift]
    windows = windows - windows.mean(axis=1, keepdims=True)
    before = np.concatenate([windows[:, :1], windows[:, :-1]], axis=1)
    weighted = (windows - _FBANK_PREEMPHASIS * before) * np.hanning(length)
    transform = 1 << (length - 1).bit_length()
    power = np.abs(np.fft.rfft(weighted, transform)[:, : transform // 2]) ** 2
    with threadpool_limits(limits=1):
        energies = power @ _mel_triangles(sample_rate, transform, mels)
    return np.log(np.maximum(energies, _FBANK_FLOOR)).T.astype(np.float32)


@functools.cache
def _mel_triangles(sample_rate: int, transform: int, mels: int) -> NDArray[np.float64]:
    """(bins, mels): triangles that rise and fall evenly in mel, not in Hz, which is where Kaldi and librosa differ."""
    lowest, highest = (1127 * np.log1p(hertz / 700) for hertz in (_FBANK_LOWEST, sample_rate / 2))
    step = (highest - lowest) / (mels + 1)
    position = (1127 * np.log1p(np.arange(transform // 2) * sample_rate / transform / 700) - lowest) / step
    return np.maximum(1 - np.abs(position[:, None] - np.arange(1, mels + 1)), 0)


def vggsound_spectrogram(waveform: NDArray[np.float32], sample_rate: int) -> NDArray[np.float32]:
    """The VGGSound authors' input (257, 1004): 160,000 samples of the repeated clip, ln(power density + 1e-7), with
    mean 0 and deviation 1 over the clip. Silence, which has no deviation, is about 0."""
    from scipy.signal import spectrogram as scipy_spectrogram

    samples = np.clip(waveform, -1, 1) if len(waveform) else np.zeros(1, np.float32)
    tiled = np.resize(samples, _VGGSOUND_SAMPLES)  # repeats it
    _, _, power = scipy_spectrogram(tiled, sample_rate, nperseg=_VGGSOUND_WINDOW, noverlap=_VGGSOUND_OVERLAP)
    values = np.log(power.astype(np.float64) + _VGGSOUND_OFFSET)
    assert values.shape == VGGSOUND_SHAPE
    return np.asarray((values - values.mean()) / (values.std() + 1e-9), np.float32)
