"""Whisper's log-mel spectrogram (Radford et al. 2022, section 2.2) of waveforms and batches, in PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from focusasr.audio.integrity import CutOff
from focusasr.audio.load import refuse
from focusasr.audio.mel_stream import FFT_SAMPLES, HOP_SAMPLES, SILENT_LOG10, MelStream, mel_filters
from focusasr.audio.source import Source
from focusasr.config import SHORTEST_SAMPLES, ModelConfig


@lru_cache
def _filters(mel_bands: int, device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(mel_filters(mel_bands)).float().to(device), torch.hann_window(FFT_SAMPLES, device=device)


def input_mel(waveform: Tensor, config: ModelConfig) -> Tensor:
    """Return the encoder input (F, M) for a waveform (N,): its log-mel spectrogram with the tail."""
    waveform = _lengthened(waveform, config.shortest_samples)
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
    waveforms, samples = _lengthened(waveforms, config.shortest_samples), samples.clamp(min=config.shortest_samples)
    mel, lengths = log_mels(waveforms[:, : config.longest_samples], samples, config.mel_bands, config.window_samples)
    lengths = torch.tensor([config.input_frames(length) for length in lengths.tolist()], device=mel.device)
    return torch.nn.functional.pad(mel, (0, 0, 0, int(lengths.max()) - mel.shape[1])), lengths


def _fitted(waveform: Tensor, window_samples: int | None) -> Tensor:
    """Return waveforms (..., N) padded or truncated to the window; without one, padded to SHORTEST_SAMPLES."""
    least, most = _bounds(window_samples)
    return _lengthened(waveform, least)[..., :most]


def _lengthened(waveform: Tensor, least: int) -> Tensor:
    """Return waveforms (..., N) with at least `least` samples: shorter ones continue as silence."""
    return torch.nn.functional.pad(waveform, (0, max(0, least - waveform.shape[-1])))


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
    # (..., bins, F)
    spectrum = torch.stft(waveform, FFT_SAMPLES, HOP_SAMPLES, window=window, center=centered, return_complex=True)
    spectrum = spectrum[..., :-1] if centered else spectrum
    power = spectrum.real.square() + spectrum.imag.square()  # several times faster than abs().square()
    return (bank @ power).clamp(min=10**SILENT_LOG10).log10().mT


def stack(mels: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Pad spectrograms (F_b, M) with zeros to one batch (B, F, M); return it with the lengths (B,) in frames."""
    lengths = torch.tensor([mel.shape[0] for mel in mels], device=mels[0].device)
    return torch.nn.utils.rnn.pad_sequence(list(mels), batch_first=True), lengths


class LogMelStream(MelStream):
    """Log-mel frames of one recording, computed by PyTorch on a device."""

    def __init__(
        self,
        source: Source,
        config: ModelConfig,
        device: torch.device,
        cut_off: Callable[[CutOff], object] = refuse,
        pause: Callable[[], object] = lambda: None,
    ) -> None:
        def spectrum(samples: np.ndarray) -> np.ndarray:
            power = log_power(torch.from_numpy(samples).to(device), config.mel_bands, centered=False)
            return power.cpu().numpy()

        super().__init__(source, config, spectrum, cut_off, pause)
