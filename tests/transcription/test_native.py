"""Transcribing with the default checkpoint: order, batches, silence, long recordings, and files that fail."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from focusasr.audio.load import load
from focusasr.audio.source import Source
from focusasr.config import SAMPLE_RATE_HZ, DecodingConfig
from focusasr.decoding.speculative import greedy
from focusasr.evaluation.wer import count_errors
from focusasr.model.checkpoint import load_checkpoint
from focusasr.model.checkpoint_folder import find_checkpoint
from focusasr.model.decoding_state import DecodingState
from focusasr.training.augment import noise_alone
from focusasr.transcription.native import Recognizer
from focusasr.transcription.result import Outcome

SAMPLE_TEXT = "s a r a h four one two six nine seven five"


def pink(n: int) -> np.ndarray:
    """Return by what a spectrum is divided so that each octave is equally loud."""
    return np.sqrt(np.maximum(1, np.arange(n // 2 + 1)) / 100)


def slow(draw: np.random.Generator, n: int) -> np.ndarray:
    """Return a loudness (n,) that comes and goes within seconds."""
    return np.interp(np.arange(n) / SAMPLE_RATE_HZ, np.arange(61), draw.random(61))


NOISES = {
    "digital silence": lambda draw, n: np.zeros(n),
    "faint hiss": lambda draw, n: 1e-4 * draw.standard_normal(n),
    "white noise": lambda draw, n: 0.1 * draw.standard_normal(n),
    "brown noise": lambda draw, n: 0.002 * np.cumsum(draw.standard_normal(n)) / np.sqrt(np.arange(1, n + 1)),
    "mains hum": lambda draw, n: 0.2 * np.sin(2 * np.pi * 50 * np.arange(n) / SAMPLE_RATE_HZ),
    "clicks": lambda draw, n: (draw.random(n) < 2e-4).astype(float),
    "pink noise": lambda draw, n: 0.05 * np.fft.irfft(np.fft.rfft(draw.standard_normal(n)) / pink(n), n),
    "a tone": lambda draw, n: 0.1 * np.sin(2 * np.pi * 1000 * np.arange(n) / SAMPLE_RATE_HZ),
    "a constant": lambda draw, n: np.full(n, 0.3),
    "wind": lambda draw, n: 0.1 * slow(draw, n) * np.convolve(draw.standard_normal(n), np.ones(40) / 40, "same"),
}


@pytest.fixture(scope="module")
def recognizer() -> Recognizer:
    return Recognizer(load_checkpoint(find_checkpoint(None)), torch.device("cpu"), DecodingConfig())


def write(name: str, waveform: np.ndarray) -> Source:
    soundfile.write(name, np.asarray(waveform, np.float32), SAMPLE_RATE_HZ, subtype="FLOAT")
    return Source(name)


def texts(outcomes: list[Outcome]) -> list[str | None]:
    return [outcome.transcript.text if outcome.transcript else None for outcome in outcomes]


def test_sample_is_read_right(recognizer: Recognizer, sample: Path) -> None:
    (outcome,) = recognizer.transcribe([Source(str(sample))])
    assert outcome.transcript is not None and outcome.transcript.text == SAMPLE_TEXT
    (segment,) = outcome.transcript.segments
    assert segment.id == 0 and segment.start == 0.0
    assert segment.end == pytest.approx(outcome.audio_seconds, abs=1e-3)
    assert segment.avg_logprob < 0 and 0 <= segment.no_speech_prob < 0.5


def test_another_answer_in_another_batch(recognizer: Recognizer, sample: Path) -> None:
    """A part of a file is heard the same alone, among others, in any order and at any batch size."""
    sources = [Source(str(sample), offset, seconds) for offset in (0.0, 0.4, 1.1, 2.2) for seconds in (0.7, 1.6, 2.4)]
    alone = [texts(list(recognizer.transcribe([source])))[0] for source in sources]
    assert len(set(alone)) > 4  # the parts do differ
    for size in (1, 5, 16):
        grouped = Recognizer(
            load_checkpoint(find_checkpoint(None)),
            torch.device("cpu"),
            DecodingConfig(batch_size=size),
        )
        assert texts(list(grouped.transcribe(sources))) == alone
        assert texts(list(grouped.transcribe(sources[::-1]))) == alone[::-1]


@pytest.mark.parametrize("compute_type", ["float32", "int8"])
def test_any_number_of_threads_hears_the_same(sample: Path, compute_type: str) -> None:
    sources = [Source(str(sample), offset, seconds) for offset in (0.0, 0.8, 1.7) for seconds in (0.6, 1.9, 2.8)]
    recognizer = Recognizer(
        load_checkpoint(find_checkpoint(None)), torch.device("cpu"), DecodingConfig(compute_type=compute_type)
    )
    heard = []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        heard.append(texts(list(recognizer.transcribe(sources))))
    assert len(set(heard[0])) > 4
    assert all(other == heard[0] for other in heard)


def test_a_broken_file_stops_no_other(recognizer: Recognizer, sample: Path, heard: str) -> None:
    Path("broken.wav").write_bytes(b"no sound here" * 100)
    sources = [Source(str(sample)), Source("broken.wav"), Source("absent.flac"), Source(str(sample), 0.0, 2.0)]
    outcomes = list(recognizer.transcribe(sources))
    assert [outcome.source for outcome in outcomes] == sources
    assert [outcome.error is not None for outcome in outcomes] == [False, True, True, False]
    assert "broken.wav" in str(outcomes[1].error) and "absent.flac" in str(outcomes[2].error)
    assert texts(outcomes)[0] == heard


@pytest.mark.parametrize("kind", NOISES)
def test_text_invented_on_silence(recognizer: Recognizer, kind: str) -> None:
    draw = np.random.default_rng(3)
    sources = [
        write(f"{n}.wav", NOISES[kind](draw, n)) for n in (SAMPLE_RATE_HZ, 5 * SAMPLE_RATE_HZ, 60 * SAMPLE_RATE_HZ)
    ]
    assert texts(list(recognizer.transcribe(sources))) == ["", "", ""]


def test_text_invented_on_brief_noise(recognizer: Recognizer) -> None:
    """Noise as brief as a word, which is heard with silence behind it, looks like one to who never met it."""
    draw = np.random.default_rng(0)
    sounds = [noise_alone(int(draw.uniform(0.05, 0.39) * SAMPLE_RATE_HZ), draw) for _ in range(200)]
    sources = [write(f"{place}.wav", sound) for place, sound in enumerate(sounds)]
    assert set(texts(list(recognizer.transcribe(sources)))) == {""}


def test_a_loop_is_cut(recognizer: Recognizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder that would say one letter for ever stops where the sound does: no more tokens than encoder steps."""
    engine, tokenizer = recognizer.engine, recognizer.tokenizer
    memory = engine.encode([torch.randn(100, engine.config.mel_bands)])
    letter, advance = tokenizer.encode("a")[0], engine.advance

    def forever(tokens: torch.Tensor, state: DecodingState) -> torch.Tensor:
        logits = torch.zeros_like(advance(tokens, state))
        logits[..., letter] = 50.0
        return logits

    monkeypatch.setattr(engine, "advance", forever)
    (text,) = greedy(engine, memory, tokenizer, [[]])
    assert text.tokens == [letter] * int(memory.lengths())


@pytest.mark.parametrize("samples", [0, 1, 2, 159, 160, 161, 399, 400, 401])
def test_hardly_any_samples(recognizer: Recognizer, samples: int) -> None:
    (outcome,) = recognizer.transcribe([write("short.wav", np.full(samples, 0.1))])
    assert outcome.error is None and outcome.transcript is not None and outcome.transcript.text == ""
    assert outcome.audio_seconds == samples / SAMPLE_RATE_HZ


def test_a_long_recording_is_the_sum_of_its_parts(recognizer: Recognizer, sample: Path) -> None:
    """Parts with pauses between them, 60 s in all: one segment each, in order, inside the time where it was said."""
    part, times = load(Source(str(sample))), 8
    pause = np.zeros(3 * SAMPLE_RATE_HZ, np.float32)
    source = write("long.wav", np.concatenate([np.concatenate([part, pause])] * times))
    (outcome,) = recognizer.transcribe([source])
    assert outcome.transcript is not None
    segments = outcome.transcript.segments
    assert [segment.id for segment in segments] == list(range(times))
    period = (len(part) + len(pause)) / SAMPLE_RATE_HZ
    for index, segment in enumerate(segments):
        assert index * period - 0.5 < segment.start < segment.end < (index + 1) * period - 2.0
    said = SAMPLE_TEXT.split()
    errors = sum(count_errors(SAMPLE_TEXT, segment.text).count for segment in segments)
    assert errors <= 0.25 * times * len(said)
    assert outcome.transcript.text == " ".join(segment.text for segment in segments)
    small = DecodingConfig(max_segment_seconds=8.0, batch_size=2)
    (again,) = Recognizer(load_checkpoint(find_checkpoint(None)), torch.device("cpu"), small).transcribe([source])
    assert again.transcript is not None and len(again.transcript.segments) == times


def test_progress_counts_all_sound(recognizer: Recognizer, sample: Path) -> None:
    told: list[float] = []
    outcomes = list(recognizer.transcribe([Source(str(sample))] * 3, told.append))
    assert sum(told) == pytest.approx(sum(outcome.audio_seconds for outcome in outcomes))


PEAKS = """
import sys, torch
from focusasr.audio.source import Source
from focusasr.model.checkpoint import load_checkpoint
from focusasr.model.checkpoint_folder import find_checkpoint
from focusasr.config import DecodingConfig
from focusasr.transcription.native import Recognizer
recognizer = Recognizer(load_checkpoint(find_checkpoint(None)), torch.device("cpu"), DecodingConfig())
for name in sys.argv[1:]:
    list(recognizer.transcribe([Source(name)]))
    print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is read from Linux's /proc")
def test_memory_does_not_grow_with_length(sample: Path) -> None:
    """Half an hour of speech and long pauses takes hardly more than a minute of speech; held whole it were 115 MB."""
    part = load(Source(str(sample)))
    soundfile.write("minute.flac", np.tile(part, 14), SAMPLE_RATE_HZ)
    with soundfile.SoundFile("half_hour.flac", "w", SAMPLE_RATE_HZ, 1) as file:
        for _ in range(30):
            file.write(np.pad(part, (0, 60 * SAMPLE_RATE_HZ - len(part))))
    command = [sys.executable, "-c", PEAKS, "minute.flac", "half_hour.flac"]
    one, thirty = map(int, subprocess.run(command, capture_output=True, text=True, timeout=300).stdout.split())
    assert thirty - one < 75_000  # kB


def test_batches_are_bounded_in_seconds_and_lose_nothing(sample: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("focusasr.transcription.native.CPU_BATCH_SECONDS", 5.0)
    monkeypatch.setattr("focusasr.transcription.native.HELD_SECONDS", 12.0)
    sources = [Source(str(sample), offset, 1.6) for offset in (0.0, 0.4, 1.1, 2.2)] * 3
    recognizer = Recognizer(load_checkpoint(find_checkpoint(None)), torch.device("cpu"), DecodingConfig())
    told: list[float] = []
    bounded = texts(list(recognizer.transcribe(sources, told.append)))
    assert told == pytest.approx([4.8, 4.8, 3.2, 4.8, 1.6])
    monkeypatch.undo()
    assert bounded == texts(list(recognizer.transcribe(sources)))
