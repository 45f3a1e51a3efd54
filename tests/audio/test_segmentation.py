"""Long recordings are cut at pauses, whatever the blocks they come in, and no speech is lost."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from focusasr.audio import segmentation
from focusasr.audio.load import load, stream
from focusasr.audio.segmentation import AudioSegment, split_at_pauses
from focusasr.audio.vad import FRAME_SAMPLES, SileroDetector
from focusasr.config import VadConfig
from tests.helpers.energy_detector import EnergyDetector

RATE_HZ = 16_000


def noise(seconds: float, level: float = 0.1, seed: int = 0) -> np.ndarray:
    samples = round(seconds * RATE_HZ)
    return (level * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


def in_pieces_of(waveform: np.ndarray, size: int) -> Iterator[np.ndarray]:
    return (waveform[start : start + size] for start in range(0, len(waveform), size))


def spans(pieces: list[AudioSegment]) -> list[tuple[int, int]]:
    """Return each piece's first sample and the one behind its last."""
    starts = [round(piece.start_seconds * RATE_HZ) for piece in pieces]
    assert all(piece.start_seconds == start / RATE_HZ for start, piece in zip(starts, pieces, strict=True))
    return [(start, start + len(piece.waveform)) for start, piece in zip(starts, pieces, strict=True)]


def check(pieces: list[AudioSegment], waveform: np.ndarray, max_seconds: float) -> np.ndarray:
    """Check what holds for all pieces; return which samples are in one."""
    kept = np.zeros(len(waveform), bool)
    for (start, stop), piece in zip(spans(pieces), pieces, strict=True):
        assert 0 < stop - start <= max_seconds * RATE_HZ
        assert not kept[start:].any(), "out of order or overlapping"
        assert np.array_equal(piece.waveform, waveform[start:stop])
        kept[start:stop] = True
    return kept


@pytest.fixture
def by_energy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segmentation, "detector", lambda threshold: EnergyDetector())


@pytest.fixture(scope="module")
def say(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], np.ndarray]:
    """A voice: text → waveform."""
    if shutil.which("espeak-ng") is None:
        pytest.skip("espeak-ng is not installed")

    def speak(text: str) -> np.ndarray:
        path = tmp_path_factory.mktemp("speech") / "a.wav"
        subprocess.run(["espeak-ng", "-w", str(path), text], check=True)
        return load(path)

    return speak


# Short recordings


@pytest.mark.parametrize("samples", [1, 511, 16_000, 20 * RATE_HZ])
def test_a_short_recording_is_one_whole_piece_without_detector(monkeypatch: pytest.MonkeyPatch, samples: int) -> None:
    monkeypatch.delattr(segmentation, "detector")
    waveform = noise(samples / RATE_HZ)
    (piece,) = split_at_pauses(in_pieces_of(waveform, 7000))
    assert piece.start_seconds == 0 and np.array_equal(piece.waveform, waveform)


@pytest.mark.parametrize("blocks", [[], [np.zeros(0, np.float32)]])
def test_no_samples_are_no_piece(blocks: list[np.ndarray]) -> None:
    assert list(split_at_pauses(blocks)) == []


def test_one_sample_too_many_is_cut(by_energy: None) -> None:
    waveform = noise(20 + 1 / RATE_HZ)
    pieces = list(split_at_pauses([waveform]))
    assert len(pieces) == 2 and check(pieces, waveform, 20).all()


def test_a_full_window_may_end_with_half_a_frame(by_energy: None) -> None:
    for samples in range(80 * FRAME_SAMPLES, 81 * FRAME_SAMPLES + 2, 100):  # the window ends with frame 80
        waveform = np.concatenate([np.zeros(RATE_HZ, np.float32), noise(samples / RATE_HZ - 1)])
        assert check(list(split_at_pauses([waveform], 2)), waveform, 2)[RATE_HZ:].all()


def test_a_limit_below_a_second_is_refused() -> None:
    with pytest.raises(ValueError, match=r"max_seconds is 0\.5"):
        next(split_at_pauses([noise(3)], 0.5))


# Where the cuts fall


def test_cuts_lie_in_pauses(by_energy: None) -> None:
    """Bursts of 3 s, every third pause 0.6 s, the others 0.3 s: with 12 s at most, the cuts take the long ones."""
    parts, long_pauses, at = [], [], 0
    for number in range(1, 16):
        pause = 0.6 if number % 3 == 0 else 0.3
        parts += [noise(3, seed=number), np.zeros(round(pause * RATE_HZ), np.float32)]
        at += sum(map(len, parts[-2:]))
        if pause == 0.6:
            long_pauses.append(at - len(parts[-1]) // 2)
    waveform = np.concatenate(parts)
    pieces = list(split_at_pauses([waveform], 12))
    assert check(pieces, waveform, 12)[waveform != 0].all()
    ends = [stop for _, stop in spans(pieces)]
    np.testing.assert_allclose(ends[:-1], long_pauses[:-1], atol=2 * FRAME_SAMPLES)


def test_without_a_pause_the_cut_is_at_the_quietest_point(by_energy: None) -> None:
    waveform = noise(24)
    waveform[: 16_000 * 2] *= 0.2  # quieter still, but too early
    quiet = slice(round(17.5 * RATE_HZ), round(17.8 * RATE_HZ))
    waveform[quiet] *= 0.6
    pieces = list(split_at_pauses([waveform]))
    assert check(pieces, waveform, 20).all()
    assert quiet.start < spans(pieces)[0][1] < quiet.stop


def test_a_steady_tone_is_cut_though_nothing_tells_where(by_energy: None) -> None:
    waveform = (0.3 * np.sin(np.arange(50 * RATE_HZ) * 0.2)).astype(np.float32)
    pieces = list(split_at_pauses([waveform]))
    kept = check(pieces, waveform, 20)
    assert len(pieces) >= 2 and kept[: 35 * RATE_HZ].all()  # after that it is background to the energy detector


def test_long_silence_is_left_out_up_to_the_padding(by_energy: None) -> None:
    burst, silence = noise(2), np.zeros(30 * RATE_HZ, np.float32)
    waveform = np.concatenate([silence, burst, silence, burst, silence])
    pieces = list(split_at_pauses([waveform]))
    assert check(pieces, waveform, 20)[waveform != 0].all()
    assert len(pieces) == 2 and all(2 < len(piece.waveform) / RATE_HZ < 2.9 for piece in pieces)


def test_lengths_of_speech_and_silence_decide_what_is_kept(by_energy: None) -> None:
    """Bursts of 2 s, 0.3 s and 2 s with 0.8 s of silence between."""
    silence = np.zeros(round(0.8 * RATE_HZ), np.float32)
    waveform = np.concatenate([silence, noise(2), silence, noise(0.3), silence, noise(2), silence])

    def seconds(**lengths: int) -> list[tuple[float, float]]:
        vad = VadConfig(**{f"vad_{name}_ms": value for name, value in lengths.items()})
        found = spans(list(split_at_pauses([waveform], vad=vad, whole=False)))
        return [(start / RATE_HZ, stop / RATE_HZ) for start, stop in found]

    near = 2.5 * FRAME_SAMPLES / RATE_HZ
    for lengths, wanted in (
        ({}, [(0.4, 7.1)]),
        ({"min_silence_duration": 500}, [(0.55, 3.05), (3.35, 4.15), (4.45, 6.95)]),
        ({"min_silence_duration": 500, "speech_pad": 100}, [(0.7, 2.9), (3.5, 4.0), (4.6, 6.8)]),
        ({"min_silence_duration": 500, "speech_pad": 100, "min_speech_duration": 700}, [(0.7, 2.9), (4.6, 6.8)]),
    ):
        np.testing.assert_allclose(seconds(**lengths), wanted, atol=near)


@pytest.mark.parametrize("level", [0.0, 0.05])
def test_nothing_but_silence_or_noise_is_no_piece(level: float) -> None:
    pytest.importorskip("silero_vad")
    assert list(split_at_pauses([noise(60, level)])) == []


@settings(max_examples=60, deadline=None)
@given(
    runs=st.lists(st.tuples(st.booleans(), st.integers(1, 90)), min_size=1, max_size=30),
    rest=st.integers(0, FRAME_SAMPLES - 1),
    block=st.integers(1, 40_000),
    lengths=st.tuples(st.integers(0, 3000), st.integers(0, 3000)),
)
@example([(True, 90), (False, 40), (True, 90)], 0, 40_000, (1000, 400))
def test_any_pattern_of_speech_is_kept_in_order_within_the_limit(
    runs: list[tuple[bool, int]], rest: int, block: int, lengths: tuple[int, int]
) -> None:
    """Frames that are to be heard as speech hold 1, the others 0; every sample of them must be in a piece."""
    frames = np.repeat([float(spoken) for spoken, _ in runs], [length for _, length in runs])
    waveform = np.append(np.repeat(frames, FRAME_SAMPLES), np.full(rest, frames[-1])).astype(np.float32)

    def heard(samples: np.ndarray) -> np.ndarray:
        return samples.reshape(-1, FRAME_SAMPLES).max(axis=1) > 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segmentation, "detector", lambda threshold: heard)
        vad = VadConfig(vad_min_silence_duration_ms=lengths[0], vad_speech_pad_ms=lengths[1])
        pieces = list(split_at_pauses(in_pieces_of(waveform, block), 2.0, vad))
    kept = check(pieces, waveform, 2.0)
    assert kept[waveform > 0].all()
    if len(waveform) > 2 * RATE_HZ:
        assert all(piece.waveform.any() for piece in pieces)
    else:
        assert kept.all()


# Blocks, memory, state


@pytest.mark.parametrize("size", [333, 512, 16_000, 10**9])
def test_the_result_does_not_depend_on_the_blocks(by_energy: None, size: int) -> None:
    gaps = np.repeat(np.random.default_rng(1).uniform(size=80) < 0.7, RATE_HZ // 2)
    waveform = noise(40) * gaps + noise(40, 1e-3, 1)
    wanted, found = list(split_at_pauses([waveform])), list(split_at_pauses(in_pieces_of(waveform, size)))
    assert spans(found) == spans(wanted)
    check(found, waveform, 20)


@pytest.mark.parametrize("size", [4000, 16_000 * 30])
def test_speech_is_judged_alike_in_any_blocks(say: Callable[[str], np.ndarray], size: int) -> None:
    line = say("Call me at five five five, one two three four, before noon. " * 6)
    waveform = np.concatenate([line, np.zeros(40_000, np.float32), line])
    assert spans(list(split_at_pauses(in_pieces_of(waveform, size), 10))) == spans(
        list(split_at_pauses([waveform], 10))
    )


def test_pieces_come_before_the_recording_has_ended(by_energy: None) -> None:
    heard = 0

    def endless() -> Iterator[np.ndarray]:
        nonlocal heard
        while True:
            heard += 1
            yield noise(0.7, seed=heard) if heard % 5 else np.zeros(RATE_HZ // 2, np.float32)

    pieces = split_at_pauses(endless(), 20)
    latest = 0.0
    for _ in range(5):
        piece = next(pieces)
        latest = piece.start_seconds + len(piece.waveform) / RATE_HZ
        assert heard * 0.7 < latest + 22
    assert latest > 50


def test_endless_silence_is_not_held(by_energy: None) -> None:
    import tracemalloc

    blocks = (np.zeros(RATE_HZ, np.float32) for _ in range(1200))
    tracemalloc.start()
    assert list(split_at_pauses(blocks)) == []
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 6e6  # 20 s are 1.3 MB, the whole is 77 MB


# Detectors


def test_speech_is_kept_and_silence_is_not(say: Callable[[str], np.ndarray]) -> None:
    pytest.importorskip("silero_vad")
    lines = [say(text) for text in ("My name is spelled A, N, N, A.", "Seven o'clock.", "Stop the music, please.")]
    silence = noise(12, 1e-4)
    waveform = np.concatenate([silence, *(np.concatenate([line, silence]) for line in lines)])
    pieces = list(split_at_pauses([waveform]))
    kept = check(pieces, waveform, 20)
    assert len(pieces) == 3 and kept.mean() < 0.4
    assert np.square(waveform[~kept]).sum() < 1e-3 * np.square(waveform).sum()


def test_silero_gives_what_its_own_model_gives(say: Callable[[str], np.ndarray]) -> None:
    silero_vad = pytest.importorskip("silero_vad")
    import torch

    waveform = np.concatenate([say("One, two, three."), noise(2, 0.02), say("Hello there.")])
    waveform = waveform[: len(waveform) // 16_384 * 16_384]
    model = silero_vad.load_silero_vad()
    with torch.inference_mode():
        wanted = [model(torch.from_numpy(frame), RATE_HZ).item() for frame in in_pieces_of(waveform, FRAME_SAMPLES)]
    detector = SileroDetector(0.5)
    found = np.concatenate([detector.probabilities(group) for group in in_pieces_of(waveform, 16_384)])
    assert max(wanted) > 0.9 and min(wanted) < 0.1
    np.testing.assert_allclose(found, wanted, atol=1e-4)


@pytest.mark.parametrize("level", [0.1, 0.003])
def test_soft_speech_is_kept_as_loud_speech_is(say: Callable[[str], np.ndarray], level: float) -> None:
    pytest.importorskip("silero_vad")
    line = say("My name is spelled A, N, N, A.")
    waveform = np.concatenate([line, np.zeros(6 * RATE_HZ, np.float32)] * 3)
    soft, loud = (spans(list(split_at_pauses([waveform * np.float32(factor)]))) for factor in (level, 1.0))
    assert len(soft) == len(loud) == 3
    np.testing.assert_allclose(soft, loud, atol=0.2 * RATE_HZ)


def test_a_higher_threshold_hears_less(say: Callable[[str], np.ndarray]) -> None:
    pytest.importorskip("silero_vad")
    waveform = np.concatenate([say("One, two, three. Four five six."), noise(3, 0.05)])
    waveform = waveform[: len(waveform) // FRAME_SAMPLES * FRAME_SAMPLES]
    heard = [int(SileroDetector(threshold)(waveform).sum()) for threshold in (0.05, 0.5, 0.99)]
    assert heard[0] > heard[1] > heard[2]


def test_the_detector_leaves_the_number_of_threads_alone() -> None:
    pytest.importorskip("silero_vad")
    code = """
import torch
torch.set_num_threads(2)
import numpy as np
from focusasr.audio.segmentation import split_at_pauses
list(split_at_pauses([np.zeros(21 * 16000, np.float32)]))
print(torch.get_num_threads())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "2\n"


@pytest.mark.real
@pytest.mark.parametrize("manifest", ["ljspeech/longform.jsonl", "longform_en/test.jsonl"])
def test_real_long_recordings_are_cut_where_it_is_quiet(real_data: Path, manifest: str) -> None:
    line = json.loads((real_data / manifest).read_text(encoding="utf-8").splitlines()[0])
    path = (real_data / manifest).parent / line["audio_filepath"]
    waveform = load(path)
    pieces = list(split_at_pauses(stream(path)))
    kept = check(pieces, waveform, 20)
    assert np.square(waveform[~kept]).sum() < 0.01 * np.square(waveform).sum()
    ends = [np.square(piece.waveform[-FRAME_SAMPLES:]).mean() for piece in pieces]
    assert max(ends) < 0.03 * np.square(waveform).mean()
