"""Channels one by one: each text knows its channel, all are in the order of time, and a failure is reported once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from focusasr.audio.load import load
from focusasr.audio.source import Source
from focusasr.transcription.channels import by_channel
from focusasr.transcription.result import Outcome, Segment, Transcript
from focusasr.transcription.writers import render, to_json_dict


def segment(start: float, text: str, words: bool = False) -> Segment:
    named = [{"word": text, "start": start, "end": start + 1, "probability": 1.0}] if words else None
    return Segment(0, 0, start, start + 1, text, [], 0.0, 0.0, 1.0, 0.0, named)


def transcribe(sources: list[Source]) -> Iterator[Outcome]:
    """Give channel 0 texts at 0 and 4 s, channel 1 one at 2 s; what is no file fails."""
    for source in sources:
        if not Path(source.path).exists():
            yield Outcome(source, None, f"{source.name}: no such file", 0.0)
            continue
        starts = (0.0, 4.0) if source.channel == 0 else (2.0,)
        segments = [segment(start, f" at {start:.0f}") for start in starts]
        yield Outcome(source, Transcript("", segments, "en"), None, 6.0, 3, 1)


def test_segments_come_by_time_each_with_its_channel() -> None:
    soundfile.write("call.wav", np.zeros((96_000, 2)), 16_000)
    soundfile.write("mono.wav", np.zeros(96_000), 16_000)
    sources = [Source("call.wav"), Source("absent.wav"), Source("mono.wav")]
    call, absent, mono = by_channel(sources, transcribe)
    assert [outcome.source for outcome in (call, absent, mono)] == sources
    assert call.transcript and mono.transcript and absent.transcript is None
    found = [(one.id, one.channel, one.start) for one in call.transcript.segments]
    assert found == [(0, 0, 0.0), (1, 1, 2.0), (2, 0, 4.0)]
    assert (call.transcript.text, call.transcript.language) == ("at 0 at 2 at 4", "en")
    assert (call.audio_seconds, call.tokens, call.passes) == (6.0, 6, 2)
    assert absent.error and [one.channel for one in mono.transcript.segments] == [0, 0]


@pytest.mark.parametrize("words", [False, True])
def test_files_show_the_channel(words: bool) -> None:
    plain = Transcript("", [segment(0.0, " yes", words)], "en")
    both = Transcript("", [Segment(**{**vars(plain.segments[0]), "channel": 1})], "en")
    for suffix in ("txt", "srt", "vtt", "tsv"):
        assert render(both, suffix) == render(plain, suffix).replace("yes", "[1] yes")
    (written,) = to_json_dict(both)["segments"]
    assert (written["channel"], written["text"]) == (1, " yes")
    assert "channel" not in to_json_dict(plain)["segments"][0]


def test_the_command_transcribes_channels_apart(run, sample: Path, heard: str) -> None:
    voice = load(sample)
    quiet = np.zeros(len(voice) + 16_000, np.float32)
    sides = np.stack([np.concatenate([voice, quiet]), np.concatenate([quiet, voice])], axis=1)
    soundfile.write("call.wav", sides, 16_000)
    words = heard.split()
    first, second = run("transcribe", "call.wav", "--channels", "separate").out.splitlines()
    assert first.startswith("[0] ") and second.startswith("[1] ")
    assert set(words) & set(first.split()) and set(words) & set(second.split())
    result = run("transcribe", "call.wav", "--channels", "separate", "-o", "out", "-f", "json,txt", "--skip-existing")
    assert result.status == 0
    assert [one["channel"] for one in json.loads(Path("out/call.json").read_text())["segments"]] == [0, 1]
    assert Path("out/call.txt").read_text().splitlines() == [first, second]
    assert not list(Path("out").glob(".*.heard"))
    assert (
        "1 of 1"
        in run("transcribe", "call.wav", "--channels", "separate", "-o", "out", "-f", "json,txt", "--skip-existing").err
    )
    one = run("transcribe", "call.wav", "--channel", "1").out.strip()
    assert f"[1] {one}" == second


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--channel", "5"), "has no channel 5, only 1"),
        (("--audio-track", "1"), "has no audio track 1, only 1"),
    ],
)
def test_a_track_or_channel_that_is_missing_is_reported(
    run, sample: Path, options: tuple[str, ...], problem: str
) -> None:
    result = run("transcribe", sample, *options)
    assert result.status == 1 and problem in result.err and options[0] in result.err


def test_a_channel_of_separate_ones_is_refused(run, sample: Path) -> None:
    result = run("transcribe", sample, "--channel", "0", "--channels", "separate")
    result.refused(2, "--channel 0")
