"""What is done to the sound of an utterance before it is written, and what is measured of it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from focusasr.audio.load import to_samples
from focusasr.config import SAMPLE_RATE_HZ, PreprocessConfig
from focusasr.runtime.libraries import library

TRIM_PADDING_SECONDS = 0.2  # kept on both sides of speech: soft beginnings and ends
BLOCK_SECONDS = 0.4  # ITU-R BS.1770-4, section 5: the block of the gate
HEADROOM = 0.25
QUIETEST_LUFS = -70.0  # its absolute gate: below there is no loudness
CLIP_LEVEL = 0.99
QUIETEST_DB = -120.0  # what digital silence is said to have


@dataclass(frozen=True)
class LevelStats:
    """What was written, its samples at 16 kHz and a digest of them; and what its source was before any step.

    That is its seconds, its peak and mean power in dB of full scale, its mean value and its share of samples at full
    scale: no gain may hide that a recording is silent or clipped.
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
        """The length."""
        return self.samples / SAMPLE_RATE_HZ


class LevelMeter:
    """Measures sound that comes in blocks (n,) of int16."""

    def __init__(self) -> None:
        self.samples, self._peak, self._sum, self._power, self._clipped = 0, 0.0, 0.0, 0.0, 0
        self._digest = hashlib.sha256()

    def update(self, block: np.ndarray) -> None:
        """Take in the next samples."""
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
        """Return what was measured; `before` heard the source, where that was changed."""
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
    """Whether a step needs an utterance as a whole."""
    return config.trim_silence or config.loudness != "keep"


def changed(waveform: np.ndarray, config: PreprocessConfig) -> np.ndarray:
    """Return a waveform (N,) without the silence around speech and at the level that the configuration wants."""
    if config.trim_silence:
        waveform = trimmed(waveform)
    return waveform * gain_for(waveform, config) if config.loudness != "keep" else waveform


def trimmed(waveform: np.ndarray) -> np.ndarray:
    """Return a waveform (N,) from 0.2 s before its first speech to 0.2 s behind its last, by voice activity.

    Where no speech is found nothing is cut: silence is for the checks to name.
    """
    from focusasr.audio.vad import FRAME_SAMPLES, speech_frames

    voiced = np.flatnonzero(speech_frames(waveform))
    if not len(voiced):
        return waveform
    padding = to_samples(TRIM_PADDING_SECONDS, SAMPLE_RATE_HZ)
    begin = max(0, int(voiced[0]) * FRAME_SAMPLES - padding)
    return waveform[begin : (int(voiced[-1]) + 1) * FRAME_SAMPLES + padding]


def gain_for(waveform: np.ndarray, config: PreprocessConfig) -> float:
    """Return the factor that brings a waveform (N,) to the wanted loudness or peak; 1 for silence.

    Loudness never raises the peak above `peak_db`: what would clip stays quieter.
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

    Sound shorter than the 0.4 s of a block is repeated until it fills one; silence has -70.
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
    return found if found > QUIETEST_LUFS else QUIETEST_LUFS  # also where every block was gated away: NaN


def to_int16(waveform: np.ndarray) -> np.ndarray:
    """Return float samples as 16 bit; what came from 16 bit comes back bit for bit, what is too loud is clipped."""
    return np.clip(np.rint(waveform * 32768.0), -32768, 32767).astype(np.int16)
