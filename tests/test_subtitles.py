"""Output files byte for byte against those that the package openai-whisper writes of the same segments."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from whisper.utils import get_writer

from focusasr.output import FORMATS, Segment, Transcript, render, to_json_dict
from focusasr.whisper_config import OutputConfig

WORDS = " Well, I  don't know... -- Grüße 你好 I'm overwhelmingly supercalifragilistic \t".split(" ")
OPTIONS = [
    {},
    {"highlight_words": True},
    {"max_words_per_line": 3},
    {"max_words_per_line": 1, "highlight_words": True},
    {"max_line_width": 20},
    {"max_line_width": 14, "max_line_count": 2},
    {"max_line_width": 25, "max_line_count": 1, "highlight_words": True},
    {"max_line_count": 2},
    {"max_line_width": 5, "max_line_count": 3},
    {"max_line_width": 30, "max_words_per_line": 2},
]


def make_transcript(seed: int, timed: bool, empty: bool = True) -> Transcript:
    """Return a transcript with words at odd times, pauses among them, and now and then a segment without text."""
    chance = random.Random(seed)
    segments: list[Segment] = []
    time = chance.choice([0.0, 3599.2])
    for index in range(9):
        words: list[dict[str, Any]] = []
        for _ in range(0 if empty and index % 4 == seed % 4 else chance.randint(1, 12)):
            start = time + chance.choice([0.0, 0.0, 0.013, 4.5])
            time = start + chance.random()
            word = " " + chance.choice(WORDS) if chance.random() < 0.8 else chance.choice(WORDS)
            words.append({"word": word, "start": start, "end": time, "probability": chance.random()})
        text = "".join(word["word"] for word in words)
        span = (words[0]["start"], words[-1]["end"]) if words else (time, time)
        numbers = (chance.random() for _ in range(4))
        segments.append(Segment(index, index * 100, *span, text, [index, 7], *numbers, words=words if timed else None))
    return Transcript("".join(segment.text for segment in segments), segments, "en")


def theirs(transcript: Transcript, suffix: str, options: dict[str, Any]) -> bytes:
    get_writer(suffix, ".")(to_json_dict(transcript), "talk.wav", **options)  # type: ignore[call-arg, arg-type]
    return Path(f"talk.{suffix}").read_bytes()


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("timed", [True, False])
def test_bytes_are_those_of_the_package(suffix: str, timed: bool) -> None:
    for seed in range(8):
        transcript = make_transcript(seed, timed)
        for options in OPTIONS:
            ours = render(transcript, suffix, OutputConfig(**options)).encode()
            assert ours == theirs(transcript, suffix, options), (seed, options)
    empty = Transcript("", [], "en")
    assert render(empty, suffix).encode() == theirs(empty, suffix, {})


def test_options_make_a_difference() -> None:
    transcript = make_transcript(1, timed=True, empty=False)
    rendered = {render(transcript, "srt", OutputConfig(**options)) for options in OPTIONS}
    assert len(rendered) == len(OPTIONS) - 1  # max_line_count alone changes nothing


def test_a_word_cannot_break_its_cue() -> None:
    words = [{"word": " a\n\nb", "start": 0.0, "end": 1.0}, {"word": " -->", "start": 1.0, "end": 2.0}]
    segment = Segment(0, 0, 0.0, 2.0, " a\n\nb -->", [], 0.0, 0.0, 0.0, 0.0, words)
    assert render(Transcript("", [segment], None), "srt") == "1\n00:00:00,000 --> 00:00:02,000\na b ->\n\n"
