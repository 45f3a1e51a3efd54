"""The spectrogram equals Whisper's, and a batch of them says how long each is."""

from __future__ import annotations

import librosa
import numpy as np
import pytest
import torch

from focusasr.features import FRAMES_PER_SECOND, log_mel, stack

RATE_HZ = 16_000
TOLERANCE = 1e-5


def compressed(mel: np.ndarray) -> np.ndarray:
    """Return Whisper's scale: log10, at most 8 below the loudest, then (x + 4) / 4."""
    logs = np.log10(np.maximum(mel, 1e-10))
    return (np.maximum(logs, logs.max() - 8.0) + 4.0) / 4.0


def exact(wave: np.ndarray, mel_bands: int) -> np.ndarray:
    """Return the log-mel spectrogram by its definition, every step in float64."""
    padded = np.pad(wave.astype(np.float64), 200, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    frames = np.stack([padded[160 * i : 160 * i + 400] * window for i in range(len(wave) // 160)])
    power = np.abs(np.fft.rfft(frames)) ** 2
    bank = librosa.filters.mel(sr=RATE_HZ, n_fft=400, n_mels=mel_bands, dtype=np.float64)
    return compressed(power @ bank.T)


def in_single_precision(wave: np.ndarray, mel_bands: int) -> np.ndarray:
    """Return the log-mel spectrogram as Whisper computes it: librosa's bank and the transform in float32."""
    spectrum = torch.stft(torch.from_numpy(wave), 400, 160, window=torch.hann_window(400), return_complex=True)
    bank = librosa.filters.mel(sr=RATE_HZ, n_fft=400, n_mels=mel_bands)
    return compressed((bank @ spectrum[:, :-1].abs().numpy() ** 2).T)


def tone(hz: float, samples: int = RATE_HZ, level: float = 0.5) -> np.ndarray:
    return (level * np.sin(2 * np.pi * hz * np.arange(samples) / RATE_HZ)).astype(np.float32)


def hiss(samples: int = RATE_HZ, level: float = 0.1) -> np.ndarray:
    return (level * np.random.default_rng(3).standard_normal(samples)).astype(np.float32)


SOUNDS = {
    "noise": hiss(),
    "quiet noise": hiss(level=1e-3),
    "silence": np.zeros(RATE_HZ, np.float32),
    "noise after silence": np.concatenate((np.zeros(8_000, np.float32), hiss(8_000))),
    "click": np.eye(1, RATE_HZ, 7_777, dtype=np.float32)[0],
    "low tone": tone(60.0),
    "middle tone": tone(1234.5),
    "high tone": tone(7_000.0),
    "tone in noise": tone(440.0) + hiss(level=1e-3),
}


@pytest.mark.parametrize("mel_bands", [80, 128])
@pytest.mark.parametrize("name", SOUNDS)
def test_equals_whispers_arithmetic(name: str, mel_bands: int) -> None:
    ours = log_mel(torch.from_numpy(SOUNDS[name]), mel_bands).numpy()
    np.testing.assert_allclose(ours, in_single_precision(SOUNDS[name], mel_bands), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("mel_bands", [80, 128])
@pytest.mark.parametrize("name", SOUNDS)
def test_equals_the_definition_in_double_precision(name: str, mel_bands: int) -> None:
    """Tones leave bands 80 dB below the loudest, where float32's transform, Whisper's too, is exact to 1e-4 only."""
    ours = log_mel(torch.from_numpy(SOUNDS[name]), mel_bands).numpy()
    reference = exact(SOUNDS[name], mel_bands)
    tolerance = 2e-4 if "tone" in name else TOLERANCE
    assert ours.dtype == np.float32 and ours.shape == reference.shape
    np.testing.assert_allclose(ours, reference, rtol=0, atol=tolerance)


@pytest.mark.parametrize("samples", [400, 401, 479, 480, 481, 559, 1_600, 15_999, 16_001, 48_123])
def test_any_length_has_a_frame_for_every_160_samples(samples: int) -> None:
    mel = log_mel(torch.from_numpy(hiss(samples)))
    assert mel.shape == (samples // 160, 80)
    np.testing.assert_allclose(mel.numpy(), exact(hiss(samples), 80), rtol=0, atol=1e-5)


@pytest.mark.parametrize("samples", [0, 1, 159, 160, 399])
def test_less_than_a_window_is_padded_with_silence_to_one(samples: int) -> None:
    wave = hiss(samples)
    mel = log_mel(torch.from_numpy(wave))
    assert mel.shape == (2, 80) and mel.isfinite().all()
    expected = exact(np.pad(wave, (0, 400 - samples)), 80)
    np.testing.assert_allclose(mel.numpy(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("samples", [1_600, 16_000, 20_000])
def test_a_window_is_filled_with_silence_or_cut(samples: int) -> None:
    wave = hiss(samples)
    mel = log_mel(torch.from_numpy(wave), window_samples=16_000)
    assert mel.shape == (100, 80)
    held = np.pad(wave, (0, max(0, 16_000 - samples)))[:16_000]
    assert torch.equal(mel, log_mel(torch.from_numpy(held)))


def test_scale_is_whispers() -> None:
    assert FRAMES_PER_SECOND == 100
    silent = log_mel(torch.zeros(RATE_HZ))
    assert torch.equal(silent, torch.full_like(silent, (-10 + 4) / 4))
    loud = log_mel(torch.from_numpy(tone(1_000.0)))
    assert loud.max() - loud.min() == pytest.approx(8 / 4, abs=1e-6)
    assert int(loud.mean(dim=0).argmax()) == int(exact(tone(1_000.0), 80).mean(axis=0).argmax())


def test_stack_pads_with_zeros_and_gives_lengths() -> None:
    mels = [torch.randn(frames, 80) for frames in (3, 7, 1)]
    batch, lengths = stack(mels)
    assert batch.shape == (3, 7, 80) and lengths.tolist() == [3, 7, 1]
    for row, mel in zip(batch, mels, strict=True):
        assert torch.equal(row[: len(mel)], mel)
        assert not row[len(mel) :].any()
