"""A recording's log-mel spectrogram as Whisper's long form sees it: one loudness for all of it, read as a stream.

Whisper cuts what is 8 (80 dB) below the loudest point of the whole recording. So the sound is read twice: once to
find that point and the length, once window by window. Memory does not grow with the recording.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from focusasr import audio
from focusasr.audio import Source
from focusasr.config import SAMPLE_RATE_HZ
from focusasr.containers import CutOff
from focusasr.features import FFT_SAMPLES, HOP_SAMPLES, log_power

WINDOW_FRAMES = 30 * SAMPLE_RATE_HZ // HOP_SAMPLES
BLOCK_FRAMES = 1000
EDGE = FFT_SAMPLES // 2  # samples that a frame sees to each side of its middle


class Spectrogram:
    """The frames of one recording; `frames` is their number, a last piece shorter than a hop not counted.

    AudioError, before any frame, where the recording cannot be read; `cut_off` is that of `audio.stream`.
    """

    def __init__(
        self,
        source: Source,
        mel_bands: int,
        device: torch.device,
        window_frames: int = WINDOW_FRAMES,
        cut_off: Callable[[CutOff], object] = audio.refuse,
    ) -> None:
        self._cut_off = cut_off
        self._source, self._mel_bands, self._device = source, mel_bands, device
        self._window_frames = window_frames
        self.samples, loudest = 0, -torch.inf
        for block in self._blocks(count=True):
            loudest = max(loudest, float(block.max()))
        self.frames = self.samples // HOP_SAMPLES
        self._floor = loudest - 8.0
        self._ahead = self._blocks()
        self._held = torch.zeros(0, mel_bands, device=device)
        self._first = 0  # frame at which `_held` begins

    def window(self, start: int, frames: int) -> Tensor:
        """Return `frames` frames (window_frames, M) from `start` on, zeros after them; cheapest in order of time."""
        if start < self._first:
            self._ahead, self._held, self._first = self._blocks(), self._held[:0], 0
        while self._first + len(self._held) < start + frames and (block := next(self._ahead, None)) is not None:
            skip = min(start - self._first, len(self._held))
            self._held, self._first = torch.cat((self._held[skip:], block)), self._first + skip
        at = start - self._first
        mel = (self._held[at : at + frames].clamp(min=self._floor) + 4.0) / 4.0
        return torch.nn.functional.pad(mel, (0, 0, 0, self._window_frames - len(mel)))

    def _blocks(self, count: bool = False) -> Iterator[Tensor]:
        """Yield log10 power (BLOCK_FRAMES, M) of the recording and of the window of silence that Whisper adds."""
        silence = np.zeros(self._window_frames * HOP_SAMPLES, np.float32)
        held = np.zeros(0, np.float32)
        begun = False
        for samples in self._sound(silence, count):
            held = np.concatenate([held, samples])
            if not begun and len(held) > EDGE:  # the beginning is mirrored
                held, begun = np.concatenate([held[EDGE:0:-1], held]), True
            while begun and len(held) >= BLOCK_FRAMES * HOP_SAMPLES + FFT_SAMPLES:
                yield self._log_power(held[: (BLOCK_FRAMES - 1) * HOP_SAMPLES + FFT_SAMPLES])
                held = held[BLOCK_FRAMES * HOP_SAMPLES :]
        yield self._log_power(held)

    def _sound(self, silence: np.ndarray, count: bool) -> Iterator[np.ndarray]:
        for block in audio.stream(self._source, cut_off=self._cut_off):
            self.samples += len(block) if count else 0
            yield block
        yield silence

    def _log_power(self, samples: np.ndarray) -> Tensor:
        return log_power(torch.from_numpy(samples).to(self._device), self._mel_bands, centered=False)
