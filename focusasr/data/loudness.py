"""Trimming, loudness normalization and level measurement of utterances."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from focusasr.audio.load import to_samples
from focusasr.config import SAMPLE_RATE_HZ, PreprocessConfig
from focusasr.runtime.libraries import library

TRIM_PADDING_SECONDS = 0.2  # kept on both sides of speech, for soft starts and ends
BLOCK_SECONDS = 0.4  # the gating block of ITU-R BS.1770-4, section 5
HEADROOM = 0.25
QUIETEST_LUFS = -70.0  # the absolute gate, also the value of silence
CLIP_LEVEL = 0.99
QUIETEST_DB = -120.0  # the value of digital silence


@dataclass(frozen=True)
class LevelStats:
    """Number and digest of the samples written at 16 kHz, and levels of the source before any step.

    The source has a length in seconds, peak and mean power in dB of full scale, a mean value, and a share of samples at
    full scale. So no gain can hide that a recording is silent or clipped.
    """

    samples: int
    peak_db: float
    rms_db: float
    offset: float
    clipped: float
    digest: str
    source_seconds: float

    @property
    def seconds(self) -> float:
        """The length in seconds."""
        return self.samples / SAMPLE_RATE_HZ


class LevelMeter:
    """Level measurement of audio in blocks (n,) of int16."""

    def __init__(self) -> None:
        self.samples, self._peak, self._sum, self._power, self._clipped = 0, 0.0, 0.0, 0.0, 0
        self._digest = hashlib.sha256()

    def update(self, block: np.ndarray) -> None:
        """Add the next samples."""
        if not len(block):
            return
        lowest, highest = int(block.min()), int(block.max())
        self.samples += len(block)
        self._peak = max(self._peak, highest / 32768.0, -lowest / 32768.0)
        self._sum += int(block.sum(dtype=np.int64)) / 32768.0
        self._power += float(np.square(block, dtype=np.float32).sum(dtype=np.float64)) / 32768.0**2
        if self._peak >= CLIP_LEVEL:
            level = round(CLIP_LEVEL * 32768)
            self._clipped += int(np.count_nonzero(block >= level) + np.count_nonzero(block <= -level))
        self._digest.update(block.tobytes())

    def result(self, source_seconds: float, before: LevelMeter | None = None) -> LevelStats:
        """Return the levels; `before` is the meter of the source if the audio was changed."""
        source = before or self
        count = max(1, source.samples)
        return LevelStats(
            samples=self.samples,
            peak_db=round(decibels(source._peak), 2),
            rms_db=round(decibels((source._power / count) ** 0.5), 2),
            offset=round(source._sum / count, 5),
            clipped=round(source._clipped / count, 6),
            digest=self._digest.hexdigest()[:32],
            source_seconds=round(source_seconds, 4),
        )


def decibels(amplitude: float) -> float:
    """Return an amplitude in dB of full scale."""
    return max(QUIETEST_DB, 20 * float(np.log10(max(amplitude, 1e-9))))


def changes_sound(config: PreprocessConfig) -> bool:
    """Return whether a step needs the whole utterance at once."""
    return config.trim_silence or config.loudness != "keep"


def changed(waveform: np.ndarray, config: PreprocessConfig) -> np.ndarray:
    """Return a waveform (N,) trimmed and normalized as configured."""
    if config.trim_silence:
        waveform = trimmed(waveform)
    return waveform * gain_for(waveform, config) if config.loudness != "keep" else waveform


def trimmed(waveform: np.ndarray) -> np.ndarray:
    """Return a waveform (N,) from 0.2 s before its first speech to 0.2 s after its last, by voice activity detection.

    Without speech nothing is trimmed: the checks report silence.
    """
    from focusasr.audio.vad import FRAME_SAMPLES, speech_frames

    voiced = np.flatnonzero(speech_frames(waveform))
    if not len(voiced):
        return waveform
    padding = to_samples(TRIM_PADDING_SECONDS, SAMPLE_RATE_HZ)
    begin = max(0, int(voiced[0]) * FRAME_SAMPLES - padding)
    return waveform[begin : (int(voiced[-1]) + 1) * FRAME_SAMPLES + padding]


def gain_for(waveform: np.ndarray, config: PreprocessConfig) -> float:
    """Return the factor that scales a waveform (N,) to the configured loudness or peak; 1 for silence.

    Loudness normalization never raises the peak above `peak_db`: audio that would clip stays quieter.
    """
    peak = float(np.abs(waveform).max(initial=0.0))
    if peak == 0.0:
        return 1.0
    to_peak = 10 ** (config.peak_db / 20) / peak
    if config.loudness == "peak":
        return to_peak
    lufs = integrated_loudness(waveform)
    return 1.0 if lufs <= QUIETEST_LUFS else min(to_peak, 10 ** ((config.lufs - lufs) / 20))


def integrated_loudness(waveform: np.ndarray) -> float:
    """Return the gated loudness of a waveform (N,) at 16 kHz in LUFS (EBU R128, ITU-R BS.1770-4).

    Audio shorter than a block of 0.4 s is repeated to fill one. Silence has -70.
    """
    import torch

    with library("torchaudio"):
        from torchaudio.functional import loudness

    least = to_samples(BLOCK_SECONDS, SAMPLE_RATE_HZ)
    if not len(waveform):
        return QUIETEST_LUFS
    whole = np.resize(waveform, max(len(waveform), least)).astype(np.float32)
    scale = min(1.0, HEADROOM / max(float(np.abs(whole).max()), 1e-9))  # torchaudio's filters clip at full scale
    found = float(loudness(torch.from_numpy(whole * scale)[None], SAMPLE_RATE_HZ)) - decibels(scale)
    return found if found > QUIETEST_LUFS else QUIETEST_LUFS  # NaN if every block is below the gate


def to_int16(waveform: np.ndarray) -> np.ndarray:
    """Return float samples as 16 bit, clipped; samples that came from 16 bit are restored exactly."""
    return np.clip(np.rint(waveform * 32768.0), -32768, 32767).astype(np.int16)
