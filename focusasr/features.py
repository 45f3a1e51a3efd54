"""Sound as the model sees it: Whisper's log-mel spectrogram (Radford et al. 2022, section 2.2)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torchaudio.functional import melscale_fbanks

from focusasr.config import SAMPLE_RATE_HZ

FFT_SAMPLES = 400  # 25 ms
HOP_SAMPLES = 160  # 10 ms
FRAMES_PER_SECOND = SAMPLE_RATE_HZ // HOP_SAMPLES


@lru_cache
def _filters(mel_bands: int, device: torch.device) -> tuple[Tensor, Tensor]:
    bank = melscale_fbanks(
        n_freqs=FFT_SAMPLES // 2 + 1, f_min=0.0, f_max=SAMPLE_RATE_HZ / 2, n_mels=mel_bands,
        sample_rate=SAMPLE_RATE_HZ, norm="slaney", mel_scale="slaney",
    )  # fmt: skip
    return bank.T.contiguous().to(device), torch.hann_window(FFT_SAMPLES, device=device)


def log_mel(waveform: Tensor, mel_bands: int = 80) -> Tensor:
    """Return the log-mel spectrogram of one recording.

    `waveform` (N,) float32 at 16 kHz → (F, M) with F = N // 160. Fewer than 400 samples are first padded with
    zeros to 400, the window of one frame, so that a recording of any length has frames.
    """
    if waveform.shape[-1] < FFT_SAMPLES:
        waveform = torch.nn.functional.pad(waveform, (0, FFT_SAMPLES - waveform.shape[-1]))
    bank, window = _filters(mel_bands, waveform.device)
    spectrum = torch.stft(waveform, FFT_SAMPLES, HOP_SAMPLES, window=window, return_complex=True)
    power = spectrum[..., :-1].abs().square()
    mel = (bank @ power).clamp(min=1e-10).log10()
    mel = torch.maximum(mel, mel.max() - 8.0)
    return ((mel + 4.0) / 4.0).T


def stack(mels: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Pad spectrograms (F_b, M) with zeros to one batch (B, F, M); return it with the lengths (B,) in frames."""
    lengths = torch.tensor([mel.shape[0] for mel in mels], device=mels[0].device)
    return torch.nn.utils.rnn.pad_sequence(list(mels), batch_first=True), lengths
