"""Live transcription: partial texts, final texts at pauses, and how much computing it takes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import focusasr
from focusasr.config import SAMPLE_RATE_HZ
from focusasr.runtime.errors import InputError
from focusasr.transcription.live import COMPUTING_SHARE, LiveText, LiveTranscriber
from focusasr.transcription.result import Segment, Transcript


@pytest.fixture(autouse=True)
def loud_is_speech(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take for speech what is loud, except with real speech."""
    if "sample" not in request.fixturenames:
        name = "focusasr.audio.segmentation.detector"
        monkeypatch.setattr(name, lambda threshold: lambda samples: np.abs(samples).reshape(-1, 512).max(axis=1) > 0.05)


def lengths(samples: np.ndarray, before: Transcript | None = None, last: bool = False) -> Transcript:
    """Return a transcript that shows how much was transcribed."""
    end = len(samples) / SAMPLE_RATE_HZ
    words = [{"word": "x", "start": 0.0, "end": end, "probability": 1.0}]
    segment = Segment(0, 0, 0.0, end, f"{len(samples)}", [], 0.0, 0.0, 1.0, 0.0, words, words)
    return Transcript(segment.text, [segment], "en")


def speech(*seconds: float) -> np.ndarray:
    """Return noise and silence by turns, of so many seconds."""
    rng = np.random.default_rng(0)
    parts = [
        rng.uniform(-0.5, 0.5, round(length * SAMPLE_RATE_HZ)) * (index % 2 == 0)
        for index, length in enumerate(seconds)
    ]
    return np.concatenate(parts).astype(np.float32)


def texts(live: LiveTranscriber, samples: np.ndarray, block: int) -> list[LiveText]:
    """Return all texts of samples that come in blocks."""
    found = [text for at in range(0, len(samples), block) for text in live.feed(samples[at : at + block])]
    return [*found, *live.end()]


@pytest.mark.parametrize("block", [160, 1600, 7001, 100_000])
def test_final_texts_do_not_depend_on_the_blocks(block: int) -> None:
    samples = speech(2.0, 2.0, 3.0, 1.5, 0.5)
    finals = [text for text in texts(LiveTranscriber(lengths), samples, block) if text.final]
    assert finals == [text for text in texts(LiveTranscriber(lengths), samples, 512) if text.final]
    assert [round(text.end - text.start) for text in finals] == [2, 4, 1]


def test_partial_texts_grow_until_the_final_one() -> None:
    found = texts(LiveTranscriber(lengths, clock=lambda: 0.0), speech(3.0, 2.0), 1600)
    *partial, final = found
    assert final.final and not any(text.final for text in partial)
    ends = [text.end for text in partial]
    assert ends == sorted(ends) and len(ends) >= 10
    assert max(np.diff(ends)) <= 0.3 + 1e-9


def test_end_completes_what_is_under_way() -> None:
    live = LiveTranscriber(lengths)
    samples = speech(1.03)
    assert not any(text.final for text in live.feed(samples))
    (final,) = live.end()
    assert final.text == str(len(samples)) and list(live.end()) == []


def test_times_are_those_of_the_whole_recording() -> None:
    found = [text for text in texts(LiveTranscriber(lengths), speech(1.0, 3.0, 1.0), 1600) if text.final]
    assert len(found) == 2 and found[1].start == pytest.approx(3.6, abs=0.05)
    (segment,) = found[1].segments
    assert (segment.start, segment.end) == pytest.approx((found[1].start, found[1].end), abs=1e-3)
    assert segment.seek == round(100 * found[1].start)
    for words in (segment.words, segment.subtitle_words):
        assert words is not None and words[0]["start"] == pytest.approx(found[1].start, abs=1e-3)


def test_a_quarter_of_the_time_is_computed_at_most() -> None:
    now, cost, spent = 0.0, 0.4, 0.0

    def slow(samples: np.ndarray, before: Transcript | None, last: bool) -> Transcript:
        nonlocal now, spent
        now, spent = now + cost, spent + cost
        return lengths(samples)

    live, samples, partial = LiveTranscriber(slow, clock=lambda: now), speech(20.0), 0
    for at in range(0, len(samples), 1600):
        partial += len(list(live.feed(samples[at : at + 1600])))
        now += 0.1
    assert partial >= 5
    assert spent <= COMPUTING_SHARE * now + cost


def test_a_segment_of_some_seconds_ends_at_a_shorter_pause() -> None:
    samples = speech(2.0, 0.6, 4.0, 0.6, 2.0, 2.0)
    ends = [text.end for text in texts(LiveTranscriber(lengths), samples, 1600) if text.final]
    assert ends == pytest.approx([6.8, 9.6], abs=0.07)


def test_partial_texts_continue_after_a_costly_final_text() -> None:
    now = 0.0

    def slow(samples: np.ndarray, before: Transcript | None, last: bool) -> Transcript:
        nonlocal now
        now += 1.0 if last else 0.04
        return lengths(samples)

    live, samples, seen = LiveTranscriber(slow, clock=lambda: now), speech(6.0, 0.6, 4.0), list[tuple[float, bool]]()
    for at in range(0, len(samples), 1600):
        now = max(now, (at + 1600) / SAMPLE_RATE_HZ)
        seen += [(now, text.final) for text in live.feed(samples[at : at + 1600])]
    (final,) = (when for when, last in seen if last)
    assert len([when for when, last in seen if not last and final < when < final + 2.0]) >= 4


def test_a_sentence_that_continues_after_a_pause_has_no_full_stop_within() -> None:
    def dotted(samples: np.ndarray, before: Transcript | None, last: bool) -> Transcript:
        return replace(lengths(samples), text="so it was.")

    found = texts(LiveTranscriber(dotted, clock=lambda: 0.0), speech(2.0, 0.3, 2.0, 2.0), 1600)
    assert found[-2].text == "so it was so it was."


def test_partial_text_costs_only_the_audio_after_the_last_pause() -> None:
    """Pauses within a segment settle the words before them, so that long segments stay cheap."""
    spans: list[float] = []
    drafts: list[bool] = []

    def measured(samples: np.ndarray, before: Transcript | None, last: bool) -> Transcript:
        spans.append(len(samples) / SAMPLE_RATE_HZ)
        drafts.append(before is not None)
        return lengths(samples)

    samples = speech(2.0, 0.3, 2.0, 0.3, 2.0, 0.3, 2.0, 0.3, 2.0, 2.0)
    found = texts(LiveTranscriber(measured, clock=lambda: 0.0), samples, 1600)
    *partial, final = found
    assert final.final and final.end - final.start > 11
    assert max(spans[:-1]) < 6 and max(text.end - text.start for text in partial) > 10
    assert sum(drafts) > 0.8 * len(partial)
    assert len(partial[-1].text.split()) >= 3  # settled texts before that of the rest


def test_no_partial_text_is_computed_in_a_pause() -> None:
    found = texts(LiveTranscriber(lengths, clock=lambda: 0.0), speech(2.0, 0.9, 1.0, 2.0), 1600)
    ends = np.array([text.end for text in found if not text.final])
    assert not ((ends > 2.5) & (ends < 2.9)).any() and ((ends > 2.0) & (ends < 2.5)).any()


def test_silence_gives_nothing_and_takes_no_memory() -> None:
    live = LiveTranscriber(lengths)
    for _ in range(600):
        assert list(live.feed(np.zeros(SAMPLE_RATE_HZ, np.float32))) == []
    assert len(live._cutter._waveform) < SAMPLE_RATE_HZ
    assert list(live.end()) == []


def test_final_text_is_what_transcribe_gives_for_the_segment(sample: Path) -> None:
    recognizer = focusasr.load(device="cpu")
    samples, rate = soundfile.read(sample, dtype="float32")
    assert rate == SAMPLE_RATE_HZ
    whole = np.concatenate([samples, np.zeros(2 * rate, np.float32), samples])
    finals = [text for text in texts(recognizer.live(), whole, 1600) if text.final]
    assert len(finals) == 2
    for text in finals:
        cut = whole[round(text.start * rate) : round(text.end * rate)]
        assert text.text == recognizer.transcribe(cut).text != ""


@pytest.mark.parametrize(
    "block", ["x", b"ab", np.zeros((2, 512), np.float32), np.zeros(512, np.int16), np.full(512, np.nan, np.float32)]
)
def test_unusable_samples_are_refused_and_change_nothing(block: Any) -> None:
    live, samples = LiveTranscriber(lengths), speech(3.0, 2.0)
    with pytest.raises(InputError):
        list(live.feed(block))
    found, expected = texts(live, samples.astype(np.float64), 512), texts(LiveTranscriber(lengths), samples, 512)
    assert [text for text in found if text.final] == [text for text in expected if text.final]
