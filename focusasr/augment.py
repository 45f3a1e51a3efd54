"""Sound made different on purpose, in training only: speed, level, noise, rooms, telephones, throats, masks.

Every function draws from the generator it is given, so that one seed makes one training run.
"""

from __future__ import annotations

import numpy as np
import soxr
import torch
from numpy.random import Generator
from torch import Tensor

from focusasr.config import SAMPLE_RATE_HZ, TrainConfig

Waveform = np.ndarray  # (N,) float32 at 16 kHz


def augment_waveform(waveform: Waveform, config: TrainConfig, draw: Generator) -> Waveform:
    """Return the waveform in another room, through another line, with another noise and level, as the draw goes."""
    if draw.random() < config.reverberation:
        waveform = reverberate(waveform, draw)
    if draw.random() < config.noise:
        waveform = add_noise(waveform, draw)
    if draw.random() < config.telephone:
        waveform = through_telephone(waveform)
    if config.gain_db:
        waveform = waveform * np.float32(10 ** (draw.uniform(-config.gain_db, config.gain_db / 2) / 20))
    return np.clip(waveform, -1.0, 1.0)


def change_speed(waveform: Waveform, config: TrainConfig, draw: Generator) -> Waveform:
    """Return the waveform at a drawn speed, pitch and formants moving along (Ko et al. 2015)."""
    factor = draw.uniform(1 - config.speed, 1 + config.speed)
    if not config.speed or not len(waveform):
        return waveform
    return soxr.resample(waveform, factor, 1.0, quality="MQ")


def add_noise(waveform: Waveform, draw: Generator) -> Waveform:
    """Add noise of a drawn color, from white to brown, at 5 to 35 dB below the speech."""
    if not len(waveform):
        return waveform
    noise = colored_noise(len(waveform), draw.uniform(0, 2), draw)
    level = np.sqrt(np.mean(waveform**2) + 1e-12) * 10 ** (-draw.uniform(5, 35) / 20)
    return (waveform + level * noise).astype(np.float32)


def colored_noise(samples: int, exponent: float, draw: Generator) -> Waveform:
    """Return noise of unit power whose spectrum falls as 1 / frequency ** exponent."""
    if samples < 2:
        return np.zeros(samples, np.float32)
    spectrum = np.fft.rfft(draw.standard_normal(samples, dtype=np.float32))
    frequencies = np.fft.rfftfreq(samples, 1 / SAMPLE_RATE_HZ).clip(min=20.0)
    noise = np.fft.irfft(spectrum * frequencies ** (-exponent / 2), samples)
    return (noise / (np.sqrt(np.mean(noise**2)) + 1e-9)).astype(np.float32)


def noise_alone(samples: int, draw: Generator) -> Waveform:
    """Return noise of a drawn color at -80 to -10 dB full scale, or digital silence: what must give no text."""
    level = 0.0 if draw.random() < 0.2 else 10 ** (-draw.uniform(10, 80) / 20)
    return (level * colored_noise(samples, draw.uniform(0, 2), draw)).astype(np.float32)


def reverberate(waveform: Waveform, draw: Generator) -> Waveform:
    """Put the waveform into a made-up room: an exponentially decaying noise tail of 0.1 to 0.6 s, level kept."""
    decay_seconds = draw.uniform(0.1, 0.6)
    tail = np.arange(int(decay_seconds * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    response = draw.standard_normal(len(tail)) * 10 ** (-3 * tail / decay_seconds)
    response *= draw.uniform(0.1, 0.6) / np.sqrt(np.sum(response**2))
    response[0] = 1.0
    size = 1 << (len(waveform) + len(response)).bit_length()
    wet = np.fft.irfft(np.fft.rfft(waveform, size) * np.fft.rfft(response, size), size)[: len(waveform)]
    return (
        (wet * np.sqrt((waveform**2).mean() / ((wet**2).mean() + 1e-12))).astype(np.float32) if len(wet) else waveform
    )


def through_telephone(waveform: Waveform) -> Waveform:
    """Return the waveform as an 8 kHz line would carry it."""
    narrow = soxr.resample(waveform, SAMPLE_RATE_HZ, 8_000, quality="MQ")
    wide = soxr.resample(narrow, 8_000, SAMPLE_RATE_HZ, quality="MQ")
    return np.pad(wide, (0, max(0, len(waveform) - len(wide))))[: len(waveform)]


def augment_mel(mel: Tensor, config: TrainConfig, draw: Generator) -> Tensor:
    """Stretch the mel axis of mel (F, M), then mask bands and frames (SpecAugment: Park et al. 2019)."""
    if config.formant:
        mel = stretch_bands(mel, draw.uniform(1 - config.formant, 1 + config.formant))
    return mask_spectrogram(mel, draw) if config.spec_augment else mel


def stretch_bands(mel: Tensor, factor: float) -> Tensor:
    """Return mel (F, M) read at `factor` times each band's index, by linear interpolation."""
    bands = mel.shape[1]
    position = (torch.arange(bands) * factor).clamp(max=bands - 1)
    low = position.floor().long()
    high = (low + 1).clamp(max=bands - 1)
    share = position - low
    return mel[:, low] * (1 - share) + mel[:, high] * share


def mask_spectrogram(mel: Tensor, draw: Generator) -> Tensor:
    """Set two stripes of bands (up to a quarter each) and some of frames (up to 30 and an eighth each) to the mean."""
    frames, bands = mel.shape
    mel, filling = mel.clone(), mel.mean()
    for _ in range(2):
        width = int(draw.integers(0, max(1, bands // 4) + 1))
        start = int(draw.integers(0, bands - width + 1))
        mel[:, start : start + width] = filling
    for _ in range(1 + frames // 150):
        width = int(draw.integers(0, min(30, frames // 8) + 1))
        start = int(draw.integers(0, frames - width + 1))
        mel[start : start + width] = filling
    return mel
