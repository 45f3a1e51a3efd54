"""Whisper's log-mel spectrogram (Radford et al. 2022, section 2.2) of waveforms and streams.

Whisper clips values 8 (80 dB) below the loudest point of the whole recording. So a stream reads the audio twice: once
for that point and the length, once window by window. Memory does not grow with the recording.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from focusasr.audio.integrity import CutOff
from focusasr.audio.load import refuse, stream
from focusasr.audio.source import Source
from focusasr.config import SAMPLE_RATE_HZ, SHORTEST_SAMPLES, ModelConfig

FFT_SAMPLES = 400  # 25 ms
HOP_SAMPLES = 160  # 10 ms
FRAMES_PER_SECOND = SAMPLE_RATE_HZ // HOP_SAMPLES

WINDOW_SAMPLES = 30 * SAMPLE_RATE_HZ  # default, for models without a window
BLOCK_FRAMES = 1000
MOST_KEPT_BLOCKS = 6
SILENT_LOG10 = -10.0  # log10 power of digital silence
LOWEST_DB = -200.0  # level of digital silence, in dBFS
EDGE = FFT_SAMPLES // 2  # samples in a frame on each side of its center


def hz_from_mel(mel: Tensor) -> Tensor:
    """Return the frequency of each point of Slaney's mel scale: linear up to 1 kHz (mel 15), then logarithmic."""
    return torch.where(mel < 15, 200 / 3 * mel, 1000 * 6.4 ** ((mel - 15) / 27))


def mel_filters(mel_bands: int) -> Tensor:
    """Return the triangular filters of equal area (M, FFT_SAMPLES // 2 + 1) from 0 Hz to 8 kHz, in float64.

    They equal librosa's `filters.mel`, the source of Whisper's filters; torchaudio's are computed in float32 and
    differ by more than 1e-5 in the logarithm.
    """
    nyquist_hz = SAMPLE_RATE_HZ / 2
    highest = 15 + 27 * math.log(nyquist_hz / 1000) / math.log(6.4)
    edges_hz = hz_from_mel(torch.linspace(0, highest, mel_bands + 2, dtype=torch.float64))[:, None]
    bins_hz = torch.linspace(0, nyquist_hz, FFT_SAMPLES // 2 + 1, dtype=torch.float64)
    low, middle, high = edges_hz[:-2], edges_hz[1:-1], edges_hz[2:]
    triangles = torch.minimum((bins_hz - low) / (middle - low), (high - bins_hz) / (high - middle)).clamp(min=0)
    return triangles * 2 / (high - low)


@lru_cache
def _filters(mel_bands: int, device: torch.device) -> tuple[Tensor, Tensor]:
    return mel_filters(mel_bands).float().to(device), torch.hann_window(FFT_SAMPLES, device=device)


def input_mel(waveform: Tensor, config: ModelConfig) -> Tensor:
    """Return the encoder input (F, M) for a waveform (N,): its log-mel spectrogram with the tail."""
    mel = log_mel(waveform[: config.longest_samples], config.mel_bands, config.window_samples)
    return torch.nn.functional.pad(mel, (0, 0, 0, config.input_frames(len(mel)) - len(mel)))


def log_mel(waveform: Tensor, mel_bands: int = 80, window_samples: int | None = None) -> Tensor:
    """Return the log-mel spectrogram of one recording.

    `waveform` (N,) float32 at 16 kHz → (F, M) with F = N // 160. It is first padded with silence or truncated to
    `window_samples`, as Whisper's absolute positions require; without them it is padded to at least SHORTEST_SAMPLES,
    0.4 s, so that a tightly trimmed word has enough frames.
    """
    mel = log_power(_fitted(waveform, window_samples), mel_bands)
    mel = torch.maximum(mel, mel.max() - 8.0)
    return (mel + 4.0) / 4.0


def input_mels(waveforms: Tensor, samples: Tensor, config: ModelConfig) -> tuple[Tensor, Tensor]:
    """Return the encoder input for a batch: the spectrograms and lengths of `log_mels`, with tails."""
    mel, lengths = log_mels(waveforms[:, : config.longest_samples], samples, config.mel_bands, config.window_samples)
    lengths = torch.tensor([config.input_frames(length) for length in lengths.tolist()], device=mel.device)
    return torch.nn.functional.pad(mel, (0, 0, 0, int(lengths.max()) - mel.shape[1])), lengths


def _fitted(waveform: Tensor, window_samples: int | None) -> Tensor:
    """Return waveforms (..., N) padded or truncated to the window; without one, padded to SHORTEST_SAMPLES."""
    least, most = _bounds(window_samples)
    return torch.nn.functional.pad(waveform, (0, max(0, least - waveform.shape[-1])))[..., :most]


def _bounds(window_samples: int | None) -> tuple[int, int | None]:
    """Return the lowest and the highest number of input samples, padding included."""
    return (SHORTEST_SAMPLES, None) if window_samples is None else (max(window_samples, FFT_SAMPLES),) * 2


def frame_count(samples: int, window_samples: int | None = None) -> int:
    """Return the number of frames of `log_mel` for a recording of `samples` samples."""
    least, most = _bounds(window_samples)
    return (most or max(samples, least)) // HOP_SAMPLES


def log_mels(
    waveforms: Tensor, samples: Tensor, mel_bands: int = 80, window_samples: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return the log-mel spectrograms of a batch, each equal to that of `log_mel`, and their lengths.

    `waveforms` (B, N) float32, zero after each row's `samples` (B,) → (B, F, M), zero after each row's frames, and the
    numbers of frames (B,).
    """
    waveforms = _fitted(waveforms, window_samples)
    samples = samples.clamp(*_bounds(window_samples))
    lengths = samples // HOP_SAMPLES
    mel = log_power(_mirrored(waveforms, samples), mel_bands, centered=False)
    beyond = (torch.arange(mel.shape[1], device=mel.device) >= lengths[:, None])[..., None]
    loudest = mel.masked_fill(beyond, -math.inf).amax(dim=(1, 2), keepdim=True)
    mel = torch.maximum(mel, loudest - 8.0)
    return ((mel + 4.0) / 4.0).masked_fill(beyond, 0.0), lengths


def _mirrored(waveforms: Tensor, samples: Tensor) -> Tensor:
    """Return waveforms (B, N) with reflection padding at the start and at each row's own end."""
    before, behind = FFT_SAMPLES // 2, FFT_SAMPLES // 2 - HOP_SAMPLES
    padded = torch.nn.functional.pad(waveforms, (before, behind))
    padded[:, :before] = waveforms[:, 1 : before + 1].flip(1)
    distance = torch.arange(behind, device=waveforms.device)
    mirror = waveforms.gather(1, samples[:, None] - 2 - distance)
    return padded.scatter_(1, before + samples[:, None] + distance, mirror)


def log_power(waveform: Tensor, mel_bands: int, centered: bool = True) -> Tensor:
    """Return log10 of the power in each band (..., F, M), at least -10, without Whisper's clipping.

    `waveform` (..., N): if `centered`, with reflection padding, F = N // 160; else F = (N - 400) // 160 + 1.
    """
    bank, window = _filters(mel_bands, waveform.device)
    spectrum = torch.stft(
        waveform, FFT_SAMPLES, HOP_SAMPLES, window=window, center=centered, return_complex=True
    )  # (..., bins, F)
    spectrum = spectrum[..., :-1] if centered else spectrum
    power = spectrum.real.square() + spectrum.imag.square()  # several times faster than abs().square()
    return (bank @ power).clamp(min=10**SILENT_LOG10).log10().mT


def stack(mels: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Pad spectrograms (F_b, M) with zeros to one batch (B, F, M); return it with the lengths (B,) in frames."""
    lengths = torch.tensor([mel.shape[0] for mel in mels], device=mels[0].device)
    return torch.nn.utils.rnn.pad_sequence(list(mels), batch_first=True), lengths


def levels_db(samples: np.ndarray) -> np.ndarray:
    """Return the level of each whole 10 ms frame (F,), in dBFS."""
    frames = samples[: len(samples) // HOP_SAMPLES * HOP_SAMPLES].reshape(-1, HOP_SAMPLES)
    return (10 * np.log10(np.square(frames, dtype=np.float64).mean(axis=1) + 10 ** (LOWEST_DB / 10))).astype(np.float32)


class LogMelStream:
    """Log-mel frames of one recording, window by window.

    `frames` is their number, without an incomplete last hop; `levels` (frames,) are their levels in dBFS.
    AudioError, before any frame, if the recording cannot be read; `cut_off` is that of `load.stream`. `pause` is called
    after each block of the first reading, which takes long for a long recording.
    """

    def __init__(
        self,
        source: Source,
        config: ModelConfig,
        device: torch.device,
        cut_off: Callable[[CutOff], object] = refuse,
        pause: Callable[[], object] = lambda: None,
    ) -> None:
        self._cut_off, self._pause = cut_off, pause
        self._source, self._config, self._mel_bands, self._device = source, config, config.mel_bands, device
        self.samples, loudest = 0, -torch.inf
        kept: list[Tensor] | None = []  # all blocks of a short recording, so that it is decoded once
        self._levels: list[np.ndarray] = []
        for block in self._blocks(count=True):
            loudest = max(loudest, float(block.max()))
            kept = [*kept, block] if kept is not None and len(kept) < MOST_KEPT_BLOCKS else None
        self.frames = self.samples // HOP_SAMPLES
        self.levels = np.concatenate([np.zeros(0, np.float32), *self._levels])
        self._floor = loudest - 8.0
        self._kept = kept
        self._ahead = self._again()
        self._held = torch.zeros(0, config.mel_bands, device=device)
        self._first = 0  # first frame in `_held`

    def window(self, start: int, frames: int) -> Tensor:
        """Return `frames` frames (F, M) from `start`, padded for the encoder; fastest in order of time."""
        if start < self._first:
            self._ahead, self._held, self._first = self._again(), self._held[:0], 0
        while self._first + len(self._held) < start + frames and (block := next(self._ahead, None)) is not None:
            skip = min(start - self._first, len(self._held))
            self._held, self._first = torch.cat((self._held[skip:], block)), self._first + skip
        at = start - self._first
        mel = self._held[at : at + frames]
        silent = (0, 0, 0, max(0, frames - len(mel)))  # after the end of the recording
        mel = (torch.nn.functional.pad(mel, silent, value=SILENT_LOG10).clamp(min=self._floor) + 4.0) / 4.0
        return torch.nn.functional.pad(mel, (0, 0, 0, self._config.input_frames(len(mel)) - len(mel)))

    def _again(self) -> Iterator[Tensor]:
        return iter(self._kept) if self._kept is not None else self._blocks()

    def _blocks(self, count: bool = False) -> Iterator[Tensor]:
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
                yield self._log_power(held[: (BLOCK_FRAMES - 1) * HOP_SAMPLES + FFT_SAMPLES])
                held = held[BLOCK_FRAMES * HOP_SAMPLES :]
        yield self._log_power(held)

    def _sound(self, silence: np.ndarray, count: bool) -> Iterator[np.ndarray]:
        for block in stream(self._source, cut_off=self._cut_off):
            if count:
                self.samples += len(block)
                self._levels.append(levels_db(block))
                self._pause()
            yield block
        yield silence

    def _log_power(self, samples: np.ndarray) -> Tensor:
        return log_power(torch.from_numpy(samples).to(self._device), self._mel_bands, centered=False)
