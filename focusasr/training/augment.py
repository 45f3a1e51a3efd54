"""Augmentation: speed, noise and reverberation; SpecAugment and vocal-tract perturbation."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soxr
import torch
from numpy.random import Generator
from torch import Tensor

from focusasr.audio.load import length_seconds, load
from focusasr.audio.source import Source, find_sources
from focusasr.config import SAMPLE_RATE_HZ
from focusasr.runtime.errors import InputError, SettingError
from focusasr.training_config import TrainConfig

Waveform = np.ndarray  # (N,) float32 at 16 kHz
Recording = tuple[str, float]  # path and seconds
LONGEST_ROOM_SECONDS = 2.0  # longest impulse response


class Sounds(NamedTuple):
    """Recordings to augment with: noises and room impulse responses."""

    noises: tuple[Recording, ...] = ()
    rooms: tuple[Recording, ...] = ()


def read_sounds(config: TrainConfig) -> Sounds:
    """List the recordings in the folders of noises and rooms; InputError for an empty or unreadable one."""
    return Sounds(*(_recordings(name, getattr(config, name)) for name in ("noise_folder", "room_folder")))


def _recordings(name: str, folder: str | None) -> tuple[Recording, ...]:
    if folder is None:
        return ()
    if not Path(folder).exists():
        raise SettingError(name, folder, "a folder of recordings that is there, or none")
    found = [(source.path, seconds) for source in find_sources([folder]) if (seconds := length_seconds(source)) > 0]
    if not found:
        raise InputError(f"{folder}: holds no recordings to augment with; give another folder, or none")
    return tuple(sorted(found))


def augment_waveform(
    waveform: Waveform,
    config: TrainConfig,
    draw: Generator,
    sounds: Sounds = Sounds(),  # noqa: B008
) -> Waveform:
    """Return the waveform with sampled reverberation, channel, noise and level."""
    if draw.random() < config.reverberation:
        waveform = reverberate(waveform, draw, sounds.rooms)
    if draw.random() < config.microphone:
        waveform = through_microphone(waveform, draw)
    if draw.random() < config.noise:
        waveform = add_noise(waveform, draw, sounds.noises)
    if draw.random() < config.telephone:
        waveform = through_telephone(waveform)
    if config.gain_db:
        waveform = waveform * np.float32(10 ** (draw.uniform(-config.gain_db, config.gain_db / 2) / 20))
    return np.clip(waveform, -1.0, 1.0)


def change_speed(waveform: Waveform, config: TrainConfig, draw: Generator) -> Waveform:
    """Return the waveform at a sampled speed, which also changes pitch and formants (Ko et al. 2015)."""
    factor = draw.uniform(1 - config.speed, 1 + config.speed)
    if not config.speed or not len(waveform):
        return waveform
    return soxr.resample(waveform, factor, 1.0, quality="MQ")


def add_noise(waveform: Waveform, draw: Generator, noises: tuple[Recording, ...] = ()) -> Waveform:
    """Add noise at 5 to 35 dB below the speech: of a sampled color, white to brown, or half of the time a recording."""
    if not len(waveform):
        return waveform
    if noises and draw.random() < 0.5:
        noise = recorded_noise(len(waveform), noises, draw)
    else:
        noise = colored_noise(len(waveform), draw.uniform(0, 2), draw)
    level = np.sqrt(np.mean(waveform**2) + 1e-12) * 10 ** (-draw.uniform(5, 35) / 20)
    return (waveform + level * noise).astype(np.float32)


def recorded_noise(samples: int, noises: tuple[Recording, ...], draw: Generator) -> Waveform:
    """Return a random segment of a random noise recording, at unit power, repeated if it is too short."""
    path, seconds = noises[draw.integers(len(noises))]
    wanted = samples / SAMPLE_RATE_HZ
    start = draw.uniform(0, max(0.0, seconds - wanted))
    noise = load(Source(path, start, wanted))
    if not len(noise):
        return np.zeros(samples, np.float32)
    noise = np.resize(noise, samples)
    return (noise / (np.sqrt(np.mean(noise**2)) + 1e-9)).astype(np.float32)


def colored_noise(samples: int, exponent: float, draw: Generator) -> Waveform:
    """Return noise of unit power whose spectrum falls as 1 / frequency ** exponent."""
    if samples < 2:
        return np.zeros(samples, np.float32)
    size = quick_size(samples)
    spectrum = np.fft.rfft(np.resize(draw.standard_normal(samples, dtype=np.float32), size))
    frequencies = np.fft.rfftfreq(size, 1 / SAMPLE_RATE_HZ).astype(np.float32).clip(min=20.0)
    noise = np.fft.irfft(spectrum * frequencies ** np.float32(-exponent / 2), size)[:samples]
    return (noise / (np.sqrt(np.mean(noise**2)) + 1e-9)).astype(np.float32)


def quick_size(samples: int) -> int:
    """Return a size for a fast Fourier transform, 8 to 16 x 2^n, at least `samples` and at most an eighth more."""
    step = 1 << max(0, samples.bit_length() - 4)
    return -(-samples // step) * step


def noise_alone(samples: int, draw: Generator, noises: tuple[Recording, ...] = ()) -> Waveform:
    """Return audio without speech: noise of a sampled color at -80 to -10 dB full scale, clicks, a tone or silence.

    If there are noise recordings, half of it is recorded noise.
    """
    level = 10 ** (-draw.uniform(10, 80) / 20)
    if noises and draw.random() < 0.5:
        return level * recorded_noise(samples, noises, draw)
    kind = draw.random()
    if kind < 0.2:
        return np.zeros(samples, np.float32)
    if kind < 0.35:
        clicks = draw.random(samples) < draw.uniform(0.5, 20) / SAMPLE_RATE_HZ
        return (clicks * 10 ** (-draw.uniform(0, 40) / 20)).astype(np.float32)
    if kind < 0.45:
        frequency_hz = 10 ** draw.uniform(1.5, 3.8)
        tone = np.sin(2 * np.pi * frequency_hz * np.arange(samples) / SAMPLE_RATE_HZ)
        return (10 ** (-draw.uniform(6, 60) / 20) * tone).astype(np.float32)
    return (level * colored_noise(samples, draw.uniform(0, 2), draw)).astype(np.float32)


def reverberate(waveform: Waveform, draw: Generator, rooms: tuple[Recording, ...] = ()) -> Waveform:
    """Add the reverberation of a synthetic room, or half of the time of a recorded one, at the same level."""
    response = recorded_room(rooms, draw) if rooms and draw.random() < 0.5 else made_up_room(draw)
    size = quick_size(len(waveform) + len(response))
    wet = np.fft.irfft(np.fft.rfft(waveform, size) * np.fft.rfft(response.astype(np.float32), size), size)
    wet = wet[: len(waveform)]
    return (
        (wet * np.sqrt((waveform**2).mean() / ((wet**2).mean() + 1e-12))).astype(np.float32) if len(wet) else waveform
    )


def made_up_room(draw: Generator) -> Waveform:
    """Return an impulse response: the direct sound and an exponentially decaying noise tail of 0.1 to 0.6 s."""
    decay_seconds = draw.uniform(0.1, 0.6)
    tail = np.arange(int(decay_seconds * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    response = draw.standard_normal(len(tail)) * 10 ** (-3 * tail / decay_seconds)
    response *= draw.uniform(0.1, 0.6) / np.sqrt(np.sum(response**2))
    response[0] = 1.0
    return response


def recorded_room(rooms: tuple[Recording, ...], draw: Generator) -> Waveform:
    """Return a random impulse response from its loudest sample on, so that speech keeps its place in time."""
    path, _ = rooms[draw.integers(len(rooms))]
    response = load(path)
    start = int(np.argmax(np.abs(response))) if len(response) else 0
    response = response[start : start + int(LONGEST_ROOM_SECONDS * SAMPLE_RATE_HZ)]
    return response if len(response) and response[0] else np.ones(1, np.float32)


def through_microphone(waveform: Waveform, draw: Generator) -> Waveform:
    """Return the waveform with the coloring of a synthetic microphone: a tilt, three peaks or dips, less bass.

    Its power does not change.
    """
    if not len(waveform):
        return waveform
    size = quick_size(len(waveform))
    frequencies_hz = np.fft.rfftfreq(size, 1 / SAMPLE_RATE_HZ).astype(np.float32).clip(min=20.0)
    octaves = np.log2(frequencies_hz / 1000)
    gain_db = draw.uniform(-3, 3) * octaves
    for _ in range(3):
        gain_db += draw.uniform(-10, 10) * np.exp(-0.5 * ((octaves - draw.uniform(-3, 3)) / draw.uniform(0.2, 1)) ** 2)
    lowest_hz = 10 ** draw.uniform(1.3, 2.6)
    gain_db -= 10 * np.log10(1 + (lowest_hz / frequencies_hz) ** 4)
    spectrum = np.fft.rfft(waveform, size) * (10 ** (gain_db / 20)).astype(np.float32)
    colored = np.fft.irfft(spectrum, size)[: len(waveform)]
    return (colored * np.sqrt((waveform**2).mean() / ((colored**2).mean() + 1e-12))).astype(np.float32)


def through_telephone(waveform: Waveform) -> Waveform:
    """Return the waveform after an 8 kHz telephone line."""
    narrow = soxr.resample(waveform, SAMPLE_RATE_HZ, 8_000, quality="MQ")
    wide = soxr.resample(narrow, 8_000, SAMPLE_RATE_HZ, quality="MQ")
    return np.pad(wide, (0, max(0, len(waveform) - len(wide))))[: len(waveform)]


class Masks(NamedTuple):
    """Spectrogram masks: a warp factor (B,) of the bands, masked bands (B, K, 2) and masked frames (B, L, 2).

    A mask is its start and its width, which may be 0. One recording's masks have no B.
    """

    stretch: Tensor
    bands: Tensor
    frames: Tensor


NO_STRIPES = torch.zeros(0, 2, dtype=torch.long)
NO_MASKS = Masks(torch.tensor(1.0), NO_STRIPES, NO_STRIPES)


def draw_masks(frames: int, bands: int, config: TrainConfig, draw: Generator) -> Masks:
    """Sample a warp factor, two band masks (up to a quarter each), and frame masks (up to 30 and an eighth each)."""
    stretch = draw.uniform(1 - config.formant, 1 + config.formant) if config.formant else 1.0
    if not config.spec_augment:
        return NO_MASKS._replace(stretch=torch.tensor(stretch))
    hidden_bands = _stripes(2, bands, max(1, bands // 4), draw)
    return Masks(torch.tensor(stretch), hidden_bands, _stripes(1 + frames // 150, frames, min(30, frames // 8), draw))


def _stripes(count: int, size: int, widest: int, draw: Generator) -> Tensor:
    """Sample masks (count, 2) of a row of that size."""
    stripes = []
    for _ in range(count):
        width = int(draw.integers(0, widest + 1))
        stripes.append((int(draw.integers(0, size - width + 1)), width))
    return torch.tensor(stripes)


def stack_masks(masks: Sequence[Masks]) -> Masks:
    """Return the masks of several recordings as those of one batch, padded with masks of width 0."""
    pad = functools.partial(torch.nn.utils.rnn.pad_sequence, batch_first=True)
    stretch = torch.stack([row.stretch for row in masks])
    return Masks(stretch, pad([row.bands for row in masks]), pad([row.frames for row in masks]))


def apply_masks(mel: Tensor, lengths: Tensor, masks: Masks) -> Tensor:
    """Return mel (B, F, M) with warped bands, then masks of each row's `lengths` (B,) frames set to their mean."""
    mel = stretch_bands(mel, masks.stretch)
    frames, bands = mel.shape[1:]
    filling = mel.sum(dim=(1, 2)) / (lengths * bands)  # frames beyond a row's length stay zero
    hidden = _covered(masks.bands, bands)[:, None] | _covered(masks.frames, frames)[:, :, None]
    there = torch.arange(frames, device=mel.device) < lengths[:, None]
    return torch.where(hidden & there[..., None], filling[:, None, None], mel)


def stretch_bands(mel: Tensor, factor: Tensor) -> Tensor:
    """Return mel (B, F, M) resampled at `factor` (B,) times each band's index, by linear interpolation."""
    places = torch.arange(mel.shape[2], device=mel.device)
    position = (places * factor[:, None]).clamp(max=mel.shape[2] - 1)
    shares = (1 - (places[:, None] - position[:, None]).abs()).clamp(min=0)  # (B, M from, M to), two in each column
    return mel @ shares


def _covered(stripes: Tensor, size: int) -> Tensor:
    """Return (B, size), true inside a row's masks (B, K, 2)."""
    start, width = stripes[..., :1], stripes[..., 1:]
    place = torch.arange(size, device=stripes.device)
    return ((place >= start) & (place < start + width)).any(dim=1)
