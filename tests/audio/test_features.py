"""The spectrogram equals Whisper's, and a batch of them says how long each is."""

from __future__ import annotations

import librosa
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from focusasr.audio.features import frame_count, input_mel, input_mels, log_mel, log_mels, stack
from focusasr.audio.mel_stream import FRAMES_PER_SECOND
from focusasr.config import ModelConfig

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


@pytest.mark.parametrize("samples", [6_400, 6_401, 6_559, 6_560, 15_999, 16_001, 48_123])
def test_any_length_has_a_frame_for_every_160_samples(samples: int) -> None:
    mel = log_mel(torch.from_numpy(hiss(samples)))
    assert mel.shape == (samples // 160, 80)
    np.testing.assert_allclose(mel.numpy(), exact(hiss(samples), 80), rtol=0, atol=1e-5)


@pytest.mark.parametrize("samples", [0, 1, 159, 160, 399, 400, 401, 1_600, 2_304, 6_399])
def test_less_than_the_shortest_sound_is_padded_with_silence_to_it(samples: int) -> None:
    wave = hiss(samples)
    mel = log_mel(torch.from_numpy(wave))
    assert mel.shape == (40, 80) and mel.isfinite().all()
    expected = exact(np.pad(wave, (0, 6_400 - samples)), 80)
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


# A batch at once

LENGTHS = [
    0,
    1,
    160,
    200,
    400,
    6_199,
    6_200,
    6_201,
    6_240,
    6_399,
    6_400,
    6_401,
    6_439,
    6_440,
    6_441,
    6_559,
    6_560,
    6_561,
    7_919,
    16_001,
]


def padded(waves: list[np.ndarray], more: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return waveforms (B, N) with zeros behind each, `more` than the longest needs, and their samples (B,)."""
    size = max(map(len, waves)) + more
    rows = [np.pad(wave, (0, size - len(wave))) for wave in waves]
    return torch.from_numpy(np.stack(rows)), torch.tensor([len(wave) for wave in waves])


def assert_rows_as_alone(waves: list[np.ndarray], mel_bands: int, window: int | None) -> None:
    mel, lengths = log_mels(*padded(waves), mel_bands, window)
    expected, frames = stack([log_mel(torch.from_numpy(wave), mel_bands, window) for wave in waves])
    assert mel.dtype == torch.float32
    assert lengths.tolist() == frames.tolist() == [frame_count(len(wave), window) for wave in waves]
    torch.testing.assert_close(mel, expected, rtol=0, atol=TOLERANCE)
    for row, length in zip(mel, lengths, strict=True):
        assert not row[length:].any()


@settings(deadline=None, max_examples=80)
@given(
    samples=st.lists(st.one_of(st.sampled_from(LENGTHS), st.integers(0, 20_000)), min_size=1, max_size=5),
    levels=st.lists(st.sampled_from([0.0, 1e-4, 0.1, 1.0]), min_size=5, max_size=5),
    mel_bands=st.sampled_from([80, 128]),
    window=st.sampled_from([None, None, 399, 560, 8_000]),
    seed=st.integers(0, 10**6),
)
def test_a_batch_has_the_spectrograms_of_its_rows(
    samples: list[int], levels: list[float], mel_bands: int, window: int | None, seed: int
) -> None:
    draw = np.random.default_rng(seed)
    pairs = zip(samples, levels, strict=False)
    waves = [(level * draw.standard_normal(count)).astype(np.float32) for count, level in pairs]
    assert_rows_as_alone(waves, mel_bands, window)


@pytest.mark.parametrize("mel_bands", [80, 128])
def test_every_length_and_sound_in_one_batch(mel_bands: int) -> None:
    assert_rows_as_alone([hiss(samples, 0.1 + samples) for samples in LENGTHS], mel_bands, None)
    clear = [sound for name, sound in SOUNDS.items() if "tone" not in name or "noise" in name]
    assert_rows_as_alone(clear, mel_bands, None)
    assert_rows_as_alone(clear, mel_bands, 7_000)


def test_wider_padding_changes_nothing() -> None:
    waves = [hiss(3_000), hiss(1_234)]
    mel, lengths = log_mels(*padded(waves))
    wider, same = log_mels(*padded(waves, 5_000))
    assert torch.equal(lengths, same)
    torch.testing.assert_close(wider[:, : mel.shape[1]], mel, rtol=0, atol=1e-6)
    assert not wider[:, mel.shape[1] :].any()


@pytest.mark.parametrize("samples", [1, 6_400, 31_999, 32_000, 40_000])
def test_audio_for_an_adapted_model_continues_as_silence_to_two_seconds(samples: int) -> None:
    adapted = ModelConfig(positions="absolute", tail_frames=48, strides=(1, 2))
    wave = torch.from_numpy(hiss(samples))
    longer = torch.nn.functional.pad(wave, (0, max(0, 32_000 - samples)))
    expected = log_mel(longer, adapted.mel_bands)
    found = input_mel(wave, adapted)
    assert torch.equal(found[: len(expected)], expected)
    assert len(found) == len(expected) + 48 + len(expected) % 2
    assert not found[len(expected) :].any()
    batch, lengths = input_mels(torch.nn.functional.pad(wave, (0, 100))[None], torch.tensor([samples]), adapted)
    assert lengths.tolist() == [len(found)]
    assert torch.allclose(batch[0, : len(found)], found, atol=TOLERANCE)


def test_audio_for_a_padded_model_does_not_continue_as_silence() -> None:
    padded = ModelConfig(positions="absolute", strides=(1, 2))
    assert padded.shortest_samples == 0 and ModelConfig().shortest_samples == 0
