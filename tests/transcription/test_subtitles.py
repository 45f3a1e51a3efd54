"""Output files byte for byte against those that the package openai-whisper writes of the same segments."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from whisper.utils import get_writer

from focusasr.audio.load import load
from focusasr.data.subtitle_files import parse_cues
from focusasr.transcription.result import Segment, Transcript
from focusasr.transcription.subtitles import split_for_reading
from focusasr.transcription.writers import FORMATS, render, to_json_dict
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


def spoken(*words: tuple[str, float, float]) -> list[dict[str, Any]]:
    return [{"word": f" {word}", "start": start, "end": end, "probability": 1.0} for word, start, end in words]


def test_long_segments_are_parted_at_pauses_into_what_can_be_read() -> None:
    steady = spoken(*((f"word{index:02}", index / 2, index / 2 + 0.5) for index in range(30)))
    for part in (parts := list(split_for_reading(steady))):
        assert 1 < part[-1]["end"] - part[0]["start"] <= 6 and len("".join(word["word"] for word in part)) <= 84
    assert [word for part in parts for word in part] == steady
    paused = spoken(("a", 0, 2), ("b", 2, 4), ("c", 4.5, 6), ("d", 6, 8))
    assert ["".join(word["word"] for word in part) for part in split_for_reading(paused)] == [" a b", " c d"]
    fast = spoken(*((f"superfluous{index}", index / 10, index / 10 + 0.1) for index in range(20)))
    assert len(list(split_for_reading(fast))) > 2
    assert list(split_for_reading(spoken(("a" * 100, 0, 60)))) == [spoken(("a" * 100, 0, 60))]


def test_subtitles_of_native_models_can_be_read_and_nothing_else_changes(run, sample: Path) -> None:
    waveform = load(sample)
    soundfile.write("talk.flac", np.concatenate([waveform] * 4), 16_000)
    assert run("transcribe", "talk.flac", "-o", "out").status == 0
    (segment,) = json.loads(Path("out/talk.json").read_text())["segments"]
    assert len(segment["text"]) > 100 and not {"words", "subtitle_words"} & segment.keys()
    assert Path("out/talk.txt").read_text() == segment["text"] + "\n"
    cues = [cue for cue in parse_cues(Path("out/talk.srt").read_text().split("\n"), Path()) if not isinstance(cue, str)]
    assert " ".join(cue.text for cue in cues) == segment["text"] and len(cues) >= 4
    assert all(cue.end - cue.begin <= 6 for cue in cues)
    assert max(map(len, Path("out/talk.vtt").read_text().split("\n"))) <= 42
    assert run("transcribe", "talk.flac", "-f", "srt").out == Path("out/talk.srt").read_text()
    asked = run("transcribe", "talk.flac", "-f", "srt", "--word-timestamps", "--max-line-width", "60").out
    assert asked.count("-->") == 1, "as it was asked for"


def test_a_count_of_lines_alone_shapes_the_usual_ones(run, sample: Path) -> None:
    waveform = load(sample)
    soundfile.write("talk.flac", np.concatenate([waveform] * 4), 16_000)
    shaped = run("transcribe", "talk.flac", "-f", "srt", "--word-timestamps", "--max-line-count", "1").out
    texts = [block.split("\n")[2:] for block in shaped.strip().split("\n\n")]
    assert len(texts) > 4 and all(len(lines) == 1 and len(lines[0]) <= 42 for lines in texts)


def test_a_word_cannot_break_its_cue() -> None:
    words = [{"word": " a\n\nb", "start": 0.0, "end": 1.0}, {"word": " -->", "start": 1.0, "end": 2.0}]
    segment = Segment(0, 0, 0.0, 2.0, " a\n\nb -->", [], 0.0, 0.0, 0.0, 0.0, words)
    assert render(Transcript("", [segment], None), "srt") == "1\n00:00:00,000 --> 00:00:02,000\na b ->\n\n"


def test_cues_without_a_blank_line_between_and_lines_of_a_space() -> None:
    lines = ["1", "00:00:00,000 --> 00:00:02,000", "Hello", "2", "00:00:02,000 --> 00:00:04,000", " ", "World", ""]
    assert [(cue.begin, cue.text) for cue in parse_cues(lines, Path("a.srt")) if not isinstance(cue, str)] == [
        (0.0, "Hello"),
        (2.0, "World"),
    ]
    lines = ["1", "00:00:00,000 --> 00:00:02,000", "we were", "7", "", "00:00:02,000 --> 00:00:04,000", "then", "8"]
    assert [cue.text for cue in parse_cues(lines, Path("a.srt")) if not isinstance(cue, str)] == ["we were 7", "then 8"]
