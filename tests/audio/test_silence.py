"""Silence: zeros and faint noise are left out, soft voices never, and no result depends on how sound comes in."""

from __future__ import annotations

import numpy as np
import pytest

from focusasr.audio.load import load, rechunk
from focusasr.audio.mel_stream import LOWEST_DB, levels_db
from focusasr.audio.silence import find_silence, first_speech
from focusasr.config import SAMPLE_RATE_HZ


def noise(seconds: float, level_db: float, seed: int = 0) -> np.ndarray:
    samples = np.random.default_rng(seed).standard_normal(round(seconds * SAMPLE_RATE_HZ))
    return (samples * 10 ** (level_db / 20)).astype(np.float32)


def zeros(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * SAMPLE_RATE_HZ), np.float32)


def found(wave: np.ndarray):
    return find_silence(levels_db(wave), lambda: [wave])


def test_levels_are_decibels_of_full_scale() -> None:
    levels = levels_db(np.concatenate([noise(1.0, -20.0), zeros(0.505)]))
    assert levels.shape == (150,) and levels[100:].max() == LOWEST_DB
    assert levels[:100].mean() == pytest.approx(-20.0, abs=0.5)


@pytest.mark.parametrize("seconds", [0.02, 0.3, 5.0, 90.0])
@pytest.mark.parametrize("level_db", [None, -95.0, -65.0])
def test_a_recording_of_nothing_or_of_faint_noise_is_silent(seconds: float, level_db: float | None) -> None:
    frames = round(seconds * 100)
    silence = found(zeros(seconds) if level_db is None else noise(seconds, level_db))
    assert silence.begin(0, frames) == silence.begin(frames // 2, frames) == frames


@pytest.mark.parametrize("gap", [zeros, lambda seconds: noise(seconds, -65.0)])
def test_long_silence_at_the_edges_of_a_window_is_left_out(gap, sample) -> None:
    voice = load(sample)
    end = len(voice) // 160
    silence = found(np.concatenate([gap(10.0), voice, gap(10.0), voice]))
    frames = 2 * (1000 + end)
    assert silence.begin(0, frames) == pytest.approx(950, abs=60)
    assert silence.begin(1000 + end // 2, frames) == 1000 + end // 2
    assert silence.stop(950, 1000 + end + 500) == pytest.approx(1050 + end, abs=60)
    assert silence.stop(950, 1000 + end + 100) == 1000 + end + 100, "short pauses stay"
    assert silence.begin(1000 + end + 950, frames) == 1000 + end + 950


def test_a_soft_voice_beside_a_loud_one_is_no_silence(sample) -> None:
    voice = load(sample)
    silence = found(np.concatenate([0.01 * voice, zeros(1.0), voice]))
    assert silence.begin(0, 2 * len(voice) // 160) == 0


def test_speech_begins_where_it_does_however_sound_comes_in(sample) -> None:
    voice = load(sample)
    wave = np.concatenate([noise(40.0, -30.0), voice])
    for block in (SAMPLE_RATE_HZ, 30 * SAMPLE_RATE_HZ, 12345):
        assert first_speech(rechunk([wave], block), 0.5) == pytest.approx(4000, abs=60)
    assert first_speech([noise(5.0, -30.0)], 0.5) is None


def test_sound_is_read_only_where_levels_leave_a_doubt(sample) -> None:
    voice, asked = load(sample), []

    def silence_of(wave: np.ndarray):
        asked.clear()
        return find_silence(levels_db(wave), lambda: asked.append(len(wave)) or [wave])

    pause = noise(2.0, -65.0)
    wave = np.concatenate([voice, pause, voice])
    end, silence = len(wave) // 160, silence_of(wave)
    assert (silence.begin(0, end), silence.stop(0, end), silence.shrink(0, end)) == (0, end, (0, end)) and not asked
    assert silence.shrink(0, len(voice) // 160 + 150)[1] == pytest.approx(len(voice) // 160, abs=60) and len(asked) == 1
    assert silence.shrink(len(voice) // 160 + 50, end)[0] > len(voice) // 160 + 100 and len(asked) == 1
    wave = np.concatenate([voice, zeros(10.0)])
    assert silence_of(wave).begin(len(voice) // 160 + 20, len(wave) // 160) == len(wave) // 160 and not asked
