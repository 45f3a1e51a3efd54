"""Augmentation: any length, finite values, the same from the same seed, and doing what it says."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from focusasr.config import SAMPLE_RATE_HZ, ModelConfig
from focusasr.runtime.errors import InputError
from focusasr.training import augment
from focusasr.training.augment import (
    Sounds,
    add_noise,
    augment_waveform,
    noise_alone,
    read_sounds,
    recorded_noise,
    recorded_room,
)
from focusasr.training.batching import PlannedExample, SpeechDataset
from focusasr.training.dataset import Findings, read_corpus
from focusasr.training_config import TrainConfig
from tests.helpers.toy_speech import letters_tokenizer, sung, write_song_book

EVERYTHING = TrainConfig(noise=1, reverberation=1, microphone=1, telephone=1, gain_db=12)
NOTHING = TrainConfig(noise=0, reverberation=0, telephone=0, gain_db=0, speed=0)
LENGTHS = [0, 1, 2, 3, 159, 400, 16_000]


def draw(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def speech(samples: int = SAMPLE_RATE_HZ, frequency_hz: float = 440.0) -> np.ndarray:
    return (0.2 * np.sin(2 * np.pi * frequency_hz * np.arange(samples) / SAMPLE_RATE_HZ)).astype(np.float32)


def power(waveform: np.ndarray) -> float:
    return float(np.mean(waveform.astype(np.float64) ** 2))


def share_above(waveform: np.ndarray, frequency_hz: float) -> float:
    spectrum = np.abs(np.fft.rfft(waveform)) ** 2
    return float(spectrum[np.fft.rfftfreq(len(waveform), 1 / SAMPLE_RATE_HZ) > frequency_hz].sum() / spectrum.sum())


KEEPING_LENGTH: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "reverberate": augment.reverberate,
    "add_noise": augment.add_noise,
    "microphone": augment.through_microphone,
    "telephone": lambda waveform, _: augment.through_telephone(waveform),
    "noise_alone": lambda waveform, d: augment.noise_alone(len(waveform), d),
    "everything": lambda waveform, d: augment.augment_waveform(waveform, EVERYTHING, d),
    "nothing": lambda waveform, d: augment.augment_waveform(waveform, NOTHING, d),
}


@pytest.mark.parametrize("name", KEEPING_LENGTH)
@pytest.mark.parametrize("samples", LENGTHS)
@pytest.mark.parametrize("loud", [True, False])
def test_any_length_stays_and_is_finite(name: str, samples: int, loud: bool) -> None:
    change = KEEPING_LENGTH[name]
    waveform = speech(samples) if loud else np.zeros(samples, np.float32)
    before = waveform.copy()
    for seed in range(5):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            changed = change(waveform, draw(seed))
        assert changed.shape == (samples,)
        assert changed.dtype == np.float32
        assert np.isfinite(changed).all()
        np.testing.assert_array_equal(change(waveform, draw(seed)), changed)
    np.testing.assert_array_equal(waveform, before)  # the input is never written to


@pytest.mark.parametrize("samples", LENGTHS)
def test_speed_changes_the_length_alone(samples: int) -> None:
    lengths = set()
    for seed in range(20):
        changed = augment.change_speed(speech(samples), EVERYTHING, draw(seed))
        np.testing.assert_array_equal(augment.change_speed(speech(samples), EVERYTHING, draw(seed)), changed)
        assert np.isfinite(changed).all()
        assert samples / 1.1 - 1 <= len(changed) <= samples / 0.9 + 1
        lengths.add(len(changed))
    assert len(lengths) > 10 or samples < 1000
    assert len(augment.change_speed(speech(samples), NOTHING, draw())) == samples


def test_faster_is_higher() -> None:
    fast = augment.change_speed(speech(frequency_hz=1000), TrainConfig(speed=0.5), draw(2))
    peak_hz = np.argmax(np.abs(np.fft.rfft(fast))) * SAMPLE_RATE_HZ / len(fast)
    assert peak_hz == pytest.approx(1000 * SAMPLE_RATE_HZ / len(fast), rel=0.01)
    assert abs(peak_hz - 1000) > 50


def test_nothing_changes_nothing() -> None:
    waveform = speech()
    np.testing.assert_array_equal(augment.augment_waveform(waveform, NOTHING, draw()), waveform)
    np.testing.assert_array_equal(augment.change_speed(waveform, NOTHING, draw()), waveform)


def test_noise_lies_5_to_35_db_below() -> None:
    for seed in range(20):
        noise = augment.add_noise(speech(), draw(seed)) - speech()
        assert -36 < 10 * np.log10(power(noise) / power(speech())) < -4


def test_noise_has_unit_power_and_the_wanted_color() -> None:
    white, brown = (augment.colored_noise(32_000, exponent, draw()) for exponent in (0.0, 2.0))
    assert power(white) == pytest.approx(1, rel=0.01)
    assert power(brown) == pytest.approx(1, rel=0.01)
    assert 0.4 < share_above(white, 4000) < 0.6
    assert share_above(brown, 4000) < 0.01


@pytest.mark.parametrize("samples", [2, 17, 1_009, 31_991, 65_537])
def test_noise_of_any_length_is_even_and_seldom_the_same(samples: int) -> None:
    """A length whose factors are large, or that is filled up for the transform, shows in no place."""
    made = np.array([augment.colored_noise(samples, 2.0, draw(seed)) for seed in range(60)])
    np.testing.assert_allclose((made**2).mean(axis=1), 1, rtol=1e-3)
    if samples > 10_000:
        edges, middle = made[:, [0, -1]], made[:, samples // 2 :][:, :2]
        assert 0.5 < (edges**2).mean() / (middle**2).mean() < 2
        assert abs(np.corrcoef(made[:, 0], made[:, samples // 2])[0, 1]) < 0.5


@given(samples=st.integers(0, 10**7))
def test_quick_sizes_are_a_little_larger_and_have_small_factors(samples: int) -> None:
    size = augment.quick_size(samples)
    assert samples <= size <= samples * 9 / 8
    for factor in (2, 3, 5, 7, 11, 13):
        while size and size % factor == 0:
            size //= factor
    assert size <= 1


def test_a_room_is_a_convolution() -> None:
    sound = speech(5_003) * draw(1).uniform(0, 1, 5_003).astype(np.float32)
    wet = np.convolve(sound, augment.made_up_room(draw(2)))[:5_003]
    expected = wet * np.sqrt(power(sound) / power(wet))
    np.testing.assert_allclose(augment.reverberate(sound, draw(2)), expected, atol=1e-5)


def test_noise_alone_is_quiet_and_sometimes_silent() -> None:
    levels = [power(augment.noise_alone(4000, draw(seed))) for seed in range(60)]
    assert 3 <= levels.count(0.0) <= 25
    assert max(levels) <= 10 ** (-10 / 10) * 1.05


def test_a_room_keeps_the_level_and_adds_a_tail() -> None:
    click = np.zeros(SAMPLE_RATE_HZ, np.float32)
    click[1000] = 0.5
    wet = augment.reverberate(click, draw())
    assert power(wet) == pytest.approx(power(click), rel=0.01)
    assert not wet[:999].round(5).any()  # nothing sounds before its cause
    early, late = power(wet[1001:2600]), power(wet[9000:10_600])
    assert early > 10 * late > 0


def test_a_microphone_colors_steady_sound_keeps_its_power_and_is_another_one_each_time() -> None:
    sound = augment.colored_noise(SAMPLE_RATE_HZ, 0.0, draw())
    before = np.abs(np.fft.rfft(sound)) ** 2
    heights_db = []
    for seed in range(30):
        heard = augment.through_microphone(sound, draw(seed))
        assert power(heard) == pytest.approx(power(sound), rel=0.01)
        after = np.abs(np.fft.rfft(heard)) ** 2
        bands = [
            10 * np.log10(after[low : 2 * low].sum() / before[low : 2 * low].sum()) for low in (125, 500, 1000, 4000)
        ]
        assert max(np.abs(bands)) < 45
        heights_db.append(bands)
    assert (np.std(heights_db, axis=0) > 2).all()


def test_telephone_cuts_above_4_khz_and_leaves_speech() -> None:
    both = speech() + speech(frequency_hz=6000)
    narrow = augment.through_telephone(both)
    assert share_above(both, 4000) > 0.4
    assert share_above(narrow, 4200) < 1e-3
    assert power(narrow) == pytest.approx(power(speech()), rel=0.05)


def test_gain_stays_in_its_range_and_nothing_clips_over() -> None:
    config = TrainConfig(noise=0, reverberation=0, telephone=0, gain_db=12)
    gains = [
        10 * np.log10(power(augment.augment_waveform(speech(), config, draw(s))) / power(speech())) for s in range(50)
    ]
    assert -12.01 < min(gains) < -8
    assert 3 < max(gains) < 6.01
    loud = augment.augment_waveform(np.full(100, 0.99, np.float32), config, draw(3))
    assert abs(loud).max() <= 1.0


# Recorded noises and rooms


def test_recorded_noise_and_rooms_stand_beside_made_up_ones(tmp_path: Path) -> None:
    for name, sound in (("noises/hum", np.sin(np.arange(8_000) / 5)), ("rooms/hall", np.r_[np.zeros(400), 1.0, 0.5])):
        path = tmp_path / f"{name}.wav"
        path.parent.mkdir()
        soundfile.write(path, 0.5 * sound, SAMPLE_RATE_HZ, "FLOAT")
    config = TrainConfig(noise_folder=str(tmp_path / "noises"), room_folder=str(tmp_path / "rooms"))
    sounds = read_sounds(config)
    assert sounds.noises == ((str(tmp_path / "noises" / "hum.wav"), 0.5),)
    noise = recorded_noise(20_000, sounds.noises, np.random.default_rng(0))
    assert noise.shape == (20_000,) and np.mean(noise**2) == pytest.approx(1, rel=1e-3)
    frequency = np.argmax(np.abs(np.fft.rfft(noise[:8_000]))) * 2
    assert frequency == pytest.approx(SAMPLE_RATE_HZ / (2 * np.pi * 5), abs=3)
    np.testing.assert_allclose(recorded_room(sounds.rooms, np.random.default_rng(0)), [0.5, 0.25])
    voice = speech(20_000)
    kinds = {recorded_of(voice, sounds, seed) for seed in range(40)}
    assert kinds == {True, False}, "half of the noise is recorded, half made up"
    one, again = (augment_waveform(voice, config, draw(3), sounds) for _ in range(2))
    np.testing.assert_array_equal(one, again)
    alone = [is_hum(noise_alone(20_000, draw(seed), sounds.noises)) for seed in range(40)]
    assert 10 < sum(alone) < 30, "half of the noise without speech is recorded too"
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no recordings in this folder"):
        read_sounds(TrainConfig(noise_folder=str(tmp_path / "empty")))
    with pytest.raises(InputError, match=r"room_folder is '.*gone'"):
        read_sounds(TrainConfig(room_folder=str(tmp_path / "gone")))


def recorded_of(voice: np.ndarray, sounds: Sounds, seed: int) -> bool:
    """Return whether the noise that was added is the recorded hum, which has one frequency."""
    return is_hum(add_noise(voice, draw(seed), sounds.noises) - voice)


def is_hum(noise: np.ndarray) -> bool:
    """Return whether nearly all power is near the hum's frequency."""
    spectrum = np.abs(np.fft.rfft(noise)) ** 2
    place = round(len(noise) / (2 * np.pi * 5))
    return bool(spectrum[place - 50 : place + 50].sum() > 0.8 * spectrum.sum())


def test_a_damaged_noise_or_room_is_named_and_the_utterance_learned_without(tmp_path: Path) -> None:
    config, tokenizer = TrainConfig(clean_epochs=0, speed=0, noise=1, reverberation=1, silence=0), letters_tokenizer()
    corpus = read_corpus(str(write_song_book(tmp_path, ["abc"])), tokenizer, ModelConfig(), 20.0, Findings())
    items = [PlannedExample(((0, 0),), 0.0, (0, 0, number), (0, 0)) for number in range(40)]
    for name in ("noise", "room"):
        soundfile.write(tmp_path / f"{name}.flac", np.random.default_rng(0).uniform(-1, 1, 80_000), SAMPLE_RATE_HZ)
    whole = (tmp_path / "noise.flac").read_bytes()
    (tmp_path / "noise.flac").write_bytes(whole[: len(whole) // 3])
    (tmp_path / "room.flac").write_bytes(whole[: len(whole) // 3])
    for sounds in (Sounds(((str(tmp_path / "noise.flac"), 5.0),)), Sounds((), ((str(tmp_path / "room.flac"), 5.0),))):
        made = SpeechDataset([corpus], config, 20, tokenizer.separator, sounds)
        found = [made[item] for item in items]
        told = [one for one in found if one.broken]
        assert 5 < len(told) < 35 and all("flac: stops decoding after" in one.broken[0] for one in told)
        assert {tuple(one.tokens) for one in found} == {tuple(tokenizer.encode("abc"))}
        assert min(len(one.waveform) for one in told) >= len(sung("abc"))
