"""Whisper's log-mel spectrogram (Radford et al. 2022, section 2.2) of a stream, window by window, without PyTorch.

Whisper clips values 8 (80 dB) below the loudest point of the whole recording. So a stream reads the audio twice: once
for that point and the length, once window by window. Memory does not grow with the recording.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator

import numpy as np

from focusasr.audio.integrity import CutOff
from focusasr.audio.load import refuse, stream
from focusasr.audio.source import Source
from focusasr.config import SAMPLE_RATE_HZ, SHORTEST_SAMPLES, ModelConfig

FFT_SAMPLES = 400  # 25 ms
HOP_SAMPLES = 160  # 10 ms
FRAMES_PER_SECOND = SAMPLE_RATE_HZ // HOP_SAMPLES

WINDOW_SAMPLES = 30 * SAMPLE_RATE_HZ  # default, for models without a window
BLOCK_FRAMES = 1000
MOST_KEPT_BLOCKS = 60  # 10 minutes, 19 MB with 80 bands
SILENT_LOG10 = -10.0  # log10 power of digital silence
LOWEST_DB = -200.0  # level of digital silence, in dBFS
EDGE = FFT_SAMPLES // 2  # samples in a frame on each side of its center

Spectrum = Callable[[np.ndarray], np.ndarray]  # samples (N,) → log10 power (F, M), F = (N - 400) // 160 + 1


def mel_filters(mel_bands: int) -> np.ndarray:
    """Return the triangular filters of equal area (M, FFT_SAMPLES // 2 + 1) from 0 Hz to 8 kHz, in float64.

    They equal librosa's `filters.mel`, the source of Whisper's filters, with Slaney's mel scale: linear up to 1 kHz
    (mel 15), then logarithmic. torchaudio's are computed in float32 and differ by more than 1e-5 in the logarithm.
    """
    nyquist_hz = SAMPLE_RATE_HZ / 2
    mels = np.linspace(0, 15 + 27 * math.log(nyquist_hz / 1000) / math.log(6.4), mel_bands + 2)[:, None]
    edges_hz = np.where(mels < 15, 200 / 3 * mels, 1000 * 6.4 ** ((mels - 15) / 27))
    bins_hz = np.linspace(0, nyquist_hz, FFT_SAMPLES // 2 + 1)
    low, middle, high = edges_hz[:-2], edges_hz[1:-1], edges_hz[2:]
    triangles = np.minimum((bins_hz - low) / (middle - low), (high - bins_hz) / (high - middle)).clip(min=0)
    return triangles * 2 / (high - low)


@functools.cache
def _filters(mel_bands: int) -> tuple[np.ndarray, np.ndarray]:
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(FFT_SAMPLES) / FFT_SAMPLES)
    return mel_filters(mel_bands).astype(np.float32).T, window.astype(np.float32)


def log_power(samples: np.ndarray, mel_bands: int) -> np.ndarray:
    """Return log10 of the power in each band (F, M), at least -10, of whole frames of samples (N,).

    It is `features.log_power` in numpy.
    """
    bank, window = _filters(mel_bands)
    frames = np.lib.stride_tricks.sliding_window_view(samples, FFT_SAMPLES)[::HOP_SAMPLES]
    spectrum = np.fft.rfft(frames * window)
    power = (np.square(spectrum.real) + np.square(spectrum.imag)).astype(np.float32)
    bands = np.einsum("fb,bm->fm", power, bank)  # BLAS would keep threads spinning for 0.1 s
    return np.log10(np.maximum(bands, np.float32(10**SILENT_LOG10)))


def log_mel(samples: np.ndarray, mel_bands: int) -> np.ndarray:
    """Return the log-mel spectrogram (N // 160, M) of a whole recording (N,): `features.log_mel` in numpy."""
    samples = np.pad(samples, (0, max(0, SHORTEST_SAMPLES - len(samples))))
    mel = log_power(np.pad(samples, EDGE, "reflect"), mel_bands)[: len(samples) // HOP_SAMPLES]
    return (np.maximum(mel, mel.max() - np.float32(8.0)) + np.float32(4.0)) / np.float32(4.0)


def levels_db(samples: np.ndarray) -> np.ndarray:
    """Return the level of each whole 10 ms frame (F,), in dBFS."""
    frames = samples[: len(samples) // HOP_SAMPLES * HOP_SAMPLES].reshape(-1, HOP_SAMPLES)
    return (10 * np.log10(np.square(frames, dtype=np.float64).mean(axis=1) + 10 ** (LOWEST_DB / 10))).astype(np.float32)


class MelStream:
    """Log-mel frames of one recording, window by window.

    `frames` is their number, without an incomplete last hop; `levels` (frames,) are their levels in dBFS. `spectrum`
    computes their log10 power. AudioError, before any frame, if the recording cannot be read; `cut_off` is that of
    `load.stream`. `pause` is called after each block of the first reading, which takes long for a long recording.
    """

    def __init__(
        self,
        source: Source,
        config: ModelConfig,
        spectrum: Spectrum,
        cut_off: Callable[[CutOff], object] = refuse,
        pause: Callable[[], object] = lambda: None,
    ) -> None:
        self._cut_off, self._pause = cut_off, pause
        self._source, self._config, self._spectrum = source, config, spectrum
        self.samples, loudest = 0, -math.inf
        kept: list[np.ndarray] | None = []  # all blocks of a short recording, so that it is decoded once
        self._levels: list[np.ndarray] = []
        for block in self._blocks(count=True):
            loudest = max(loudest, float(block.max()))
            kept = [*kept, block] if kept is not None and len(kept) < MOST_KEPT_BLOCKS else None
        self.frames = self.samples // HOP_SAMPLES
        self.levels = np.concatenate([np.zeros(0, np.float32), *self._levels])
        self._floor = loudest - 8.0
        self._kept = kept
        self._ahead = self._again()
        self._held = np.zeros((0, config.mel_bands), np.float32)
        self._first = 0  # first frame in `_held`

    def window(self, start: int, frames: int) -> np.ndarray:
        """Return `frames` frames (F, M) from `start`, padded for the encoder; fastest in order of time."""
        if start < self._first:
            self._ahead, self._held, self._first = self._again(), self._held[:0], 0
        while self._first + len(self._held) < start + frames and (block := next(self._ahead, None)) is not None:
            skip = min(start - self._first, len(self._held))
            self._held, self._first = np.concatenate((self._held[skip:], block)), self._first + skip
        at = start - self._first
        mel = self._held[at : at + frames]
        frames = max(frames, self._config.shortest_samples // HOP_SAMPLES)
        silent = ((0, frames - len(mel)), (0, 0))  # after the end of the recording, or of a short window
        mel = np.pad(mel, silent, constant_values=SILENT_LOG10).clip(min=np.float32(self._floor))
        mel = (mel + np.float32(4.0)) / np.float32(4.0)
        return np.pad(mel, ((0, self._config.input_frames(len(mel)) - len(mel)), (0, 0)))

    def _again(self) -> Iterator[np.ndarray]:
        return iter(self._kept) if self._kept is not None else self._blocks()

    def _blocks(self, count: bool = False) -> Iterator[np.ndarray]:
        """Yield log10 power (BLOCK_FRAMES, M) of the recording and of the silence in its last frames.

        Whisper appends a whole window of silence; its frames only add the floor, which quiet frames have anyway.
        """
        silence = np.zeros(2 * FFT_SAMPLES, np.float32)
        held = np.zeros(0, np.float32)
        begun = False
        for samples in self._sound(silence, count):
            held = np.concatenate([held, samples])
            if not begun and len(held) > EDGE:  # reflection padding at the start
                held, begun = np.concatenate([held[EDGE:0:-1], held]), True
            while begun and len(held) >= BLOCK_FRAMES * HOP_SAMPLES + FFT_SAMPLES:
                yield self._spectrum(held[: (BLOCK_FRAMES - 1) * HOP_SAMPLES + FFT_SAMPLES])
                held = held[BLOCK_FRAMES * HOP_SAMPLES :]
        yield self._spectrum(held)

    def _sound(self, silence: np.ndarray, count: bool) -> Iterator[np.ndarray]:
        for block in stream(self._source, cut_off=self._cut_off):
            if count:
                self.samples += len(block)
                self._levels.append(levels_db(block))
                self._pause()
            yield block
        yield silence
