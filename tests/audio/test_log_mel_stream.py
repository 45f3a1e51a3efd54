"""The streamed spectrogram against openai/whisper's of the whole recording."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
import whisper

from focusasr.audio.features import LogMelStream, input_mel
from focusasr.audio.integrity import AudioError
from focusasr.audio.load import load
from focusasr.audio.mel_stream import MelStream, log_power
from focusasr.audio.source import Source
from focusasr.config import ModelConfig
from tests.helpers.whisper_pairs import chirps

CPU = torch.device("cpu")
WHISPER = ModelConfig(positions="absolute", strides=(1, 2))
WINDOW_FRAMES = 3000
KINDS = [
    pytest.param(lambda source: LogMelStream(source, WHISPER, CPU), id="PyTorch"),
    pytest.param(lambda source: MelStream(source, WHISPER, lambda samples: log_power(samples, 80)), id="numpy"),
]


def write(seconds: float, name: str = "sound.wav") -> Source:
    wave = chirps(seconds).numpy()
    wave[: len(wave) // 2] *= 0.01  # the loudest point lies in the second half
    soundfile.write(name, wave, 16_000, subtype="FLOAT")
    return Source(name)


@pytest.mark.parametrize("seconds", [0.005, 0.0126, 0.5, 9.999, 30.0, 47.3])
@pytest.mark.parametrize("kind", KINDS)
def test_every_window_is_that_of_whisper(seconds: float, kind: Callable[[Source], MelStream]) -> None:
    source = write(seconds)
    expected = whisper.log_mel_spectrogram(load(source), padding=480_000)
    sound = kind(source)
    assert sound.frames == expected.shape[1] - 3000
    assert sound.samples == round(seconds * 16_000)
    for start in (0, 7, sound.frames // 2, 3, sound.frames):
        frames = min(WINDOW_FRAMES, sound.frames - start)
        wanted = whisper.pad_or_trim(expected[:, start : start + frames], 3000).T
        assert np.allclose(sound.window(start, frames), wanted, atol=2e-5)
    assert np.allclose(sound.window(0, WINDOW_FRAMES), expected[:, :3000].T, atol=2e-5)


@pytest.mark.parametrize("seconds", [0.3, 1.5, 2.5])
@pytest.mark.parametrize("kind", [LogMelStream, MelStream])
def test_a_short_window_of_an_adapted_model_continues_as_silence(kind: type[MelStream], seconds: float) -> None:
    adapted = replace(WHISPER, tail_frames=48)
    source = write(seconds)
    wave = np.pad(load(source), (0, max(0, 32_000 - round(seconds * 16_000))))
    expected = input_mel(torch.from_numpy(wave), adapted).numpy()
    spectrum = CPU if kind is LogMelStream else lambda samples: log_power(samples, 80)
    sound = kind(source, adapted, spectrum)  # type: ignore[arg-type]
    found = sound.window(0, sound.frames)
    assert found.shape == expected.shape and sound.frames == round(seconds * 100)
    end = range(sound.frames - 1, sound.frames + 2)  # frames that see the sound and what follows
    assert np.allclose(np.delete(found, end, axis=0), np.delete(expected, end, axis=0), atol=2e-5)


def test_a_recording_without_samples_has_no_frames() -> None:
    soundfile.write("empty.wav", np.zeros(0, np.float32), 16_000)
    sound = LogMelStream(Source("empty.wav"), WHISPER, CPU)
    assert (sound.frames, sound.samples) == (0, 0)


def test_what_cannot_be_read_is_refused_before_the_first_window() -> None:
    with pytest.raises(AudioError, match=r"absent\.wav"):
        LogMelStream(Source("absent.wav"), WHISPER, CPU)


def test_memory_does_not_grow_with_the_recording() -> None:
    sound = LogMelStream(write(200.0), WHISPER, CPU)
    for start in range(0, sound.frames, 2900):
        sound.window(start, min(WINDOW_FRAMES, sound.frames - start))
        assert len(sound._held) <= WINDOW_FRAMES + 2 * 1000
