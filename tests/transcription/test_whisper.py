"""Long recordings against openai/whisper's transcribe(): with the same random weights all that is written is equal."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import whisper

from focusasr.audio.features import LogMelStream
from focusasr.audio.load import load
from focusasr.audio.source import Source
from focusasr.config import DecodingConfig
from focusasr.model.checkpoint import Checkpoint
from focusasr.transcription.resume import SegmentCache
from focusasr.transcription.whisper import WhisperRecognizer
from focusasr.transcription.whisper_window import MelWindow, PromptHistory
from focusasr.transcription.writers import to_json_dict
from focusasr.whisper_config import LongformConfig, SearchConfig
from tests.helpers.whisper_pairs import ENGLISH, MULTILINGUAL, chirps, ours, peer_model

GREEDY = {"beam_size": None, "temperature_increment_on_fallback": None}


@cache
def pair(vocabulary: int) -> tuple[whisper.model.Whisper, Checkpoint]:
    peer = peer_model(3, vocabulary)
    return peer, ours(peer)


@pytest.fixture
def recording() -> Source:
    soundfile.write("chirps.wav", chirps(70.0).numpy(), 16_000, subtype="FLOAT")
    return Source("chirps.wav")


def recognize(recording: Source, vocabulary: int, **options: Any) -> dict[str, Any]:
    settings = {kind: {} for kind in (SearchConfig, LongformConfig, DecodingConfig)}
    for name, value in options.items():
        kind = next(kind for kind in settings if name in kind.__dataclass_fields__)
        settings[kind][name] = value
    search, longform, config = (kind(**given) for kind, given in settings.items())
    recognizer = WhisperRecognizer(pair(vocabulary)[1], torch.device("cpu"), config, search, longform)
    (outcome,) = recognizer.transcribe([recording])
    assert outcome.error is None and outcome.transcript is not None
    assert outcome.audio_seconds == 70.0
    return to_json_dict(outcome.transcript)


def theirs(recording: Source, vocabulary: int, **options: Any) -> dict[str, Any]:
    wanted = dict(options)
    if wanted.pop("temperature_increment_on_fallback", None) is None:
        wanted["temperature"] = options.get("temperature", 0.0)
    wave = soundfile.read(recording.path, dtype="float32")[0]
    return whisper.transcribe(pair(vocabulary)[0], wave, fp16=False, **wanted)


def check(mine: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert mine["text"] == wanted["text"]
    assert mine["language"] == wanted["language"]
    assert [list(segment) for segment in mine["segments"]] == [list(segment) for segment in wanted["segments"]]
    for segment, expected in zip(mine["segments"], wanted["segments"], strict=True):
        for name in ("id", "seek", "start", "end", "text", "tokens", "temperature", "compression_ratio"):
            assert segment[name] == expected[name], name
        for name in ("avg_logprob", "no_speech_prob"):
            assert segment[name] == pytest.approx(expected[name], abs=1e-4)
        for word, wanted_word in zip(segment.get("words", []), expected.get("words", []), strict=True):
            assert {**word, "probability": 0} == {**wanted_word, "probability": 0}
            assert word["probability"] == pytest.approx(wanted_word["probability"], rel=1e-2)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"beam_size": 2, "clip_timestamps": "30"},
        {"condition_on_previous_text": False, "clip_timestamps": "20,69", "language": "en"},
        {"initial_prompt": "Chirps", "carry_initial_prompt": True},
        {"clip_timestamps": "5,14.5,40"},
        {"no_speech_threshold": 1e-8, "logprob_threshold": -2.1},
        {"suppress_tokens": "", "language": "de", "task": "translate"},
        {"word_timestamps": True, "language": "en"},
        {"word_timestamps": True, "hallucination_silence_threshold": 0.2, "clip_timestamps": "0,4,60,62"},
    ],
    ids=str,
)
def test_whole_results_are_those_of_whisper(
    recording: Source, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for the edges of words and the end of the last segment, which are moved to the sound afterwards."""
    monkeypatch.setattr("focusasr.transcription.whisper.with_edges", lambda segments, levels: segments)
    monkeypatch.setattr("focusasr.transcription.whisper.within", lambda segment, seconds: segment)
    wanted = theirs(recording, MULTILINGUAL, **options)
    check(recognize(recording, MULTILINGUAL, **{**GREEDY, **options}), wanted)


def test_the_language_is_that_of_the_first_speech_that_is_read(
    tmp_path: Path, recording: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = pair(MULTILINGUAL)[1]
    loud = lambda threshold: lambda samples: np.abs(samples).reshape(-1, 512).max(axis=1) > 0.05  # noqa: E731
    for module in ("segmentation", "silence"):
        monkeypatch.setattr(f"focusasr.audio.{module}.detector", loud)
    soundfile.write(tmp_path / "late.wav", np.concatenate([np.zeros(40 * 16_000), load(recording)]), 16_000)
    honest = LogMelStream.window
    for vad_filter, clips, begin in ((True, "0", 3950), (False, "0", 3950), (True, "50,60", 5000)):
        settings = LongformConfig(vad_filter=vad_filter, clip_timestamps=clips)
        reader = WhisperRecognizer(checkpoint, torch.device("cpu"), DecodingConfig(), SearchConfig(**GREEDY), settings)
        seen: list[int] = []
        monkeypatch.setattr(
            LogMelStream,
            "window",
            lambda *given, seen=seen: seen.append(given[1]) or honest(*given),  # of language first
        )
        (outcome,) = reader.transcribe([Source(str(tmp_path / "late.wav"))])
        assert outcome.error is None and seen[0] == pytest.approx(begin, abs=30)


def test_overlapping_clips_are_remembered_apart(recording: Source, tmp_path: Path) -> None:
    checkpoint = pair(ENGLISH)[1]
    settings = LongformConfig(clip_timestamps="0,4,0,8")
    reader = WhisperRecognizer(checkpoint, torch.device("cpu"), DecodingConfig(), SearchConfig(**GREEDY), settings)
    first, again = (
        reader._recognized(recording, print, SegmentCache(tmp_path / "notes"), print, print) for _ in range(2)
    )
    assert first == again and first[0].text


def test_clips_behind_the_end_are_told(recording: Source) -> None:
    checkpoint = pair(ENGLISH)[1]
    reader = WhisperRecognizer(
        checkpoint, torch.device("cpu"), DecodingConfig(), SearchConfig(), LongformConfig(clip_timestamps="90,95")
    )
    (outcome,) = reader.transcribe([recording])
    assert outcome.error is not None and outcome.error.startswith("chirps.wav: --clip-timestamps 90,95 ")
    assert "70.00 s" in outcome.error


def test_the_transcript_starts_with_the_prefix(recording: Source) -> None:
    """Also its tokens and times; openai/whisper leaves the prefix out, and real models then write nothing."""
    settings = LongformConfig(prefix="Well then", language="en")
    reader = WhisperRecognizer(
        pair(ENGLISH)[1], torch.device("cpu"), DecodingConfig(), SearchConfig(**GREEDY), settings
    )
    (outcome,) = reader.transcribe([recording])
    assert outcome.transcript is not None and len(outcome.transcript.segments) > 3
    tokenizer, first = reader.tokenizer, outcome.transcript.segments[0]
    opening = [tokenizer.timestamp_begin, *tokenizer.encode_exactly(" Well then")]
    assert first.tokens[: len(opening)] == opening and first.text.startswith(" Well then")
    assert outcome.transcript.text.count(" Well then") == 1


def test_an_english_model_is_read_likewise(recording: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("focusasr.transcription.whisper.within", lambda segment, seconds: segment)
    wanted = theirs(recording, ENGLISH)
    assert wanted["language"] == "en" and len(wanted["segments"]) > 3
    check(recognize(recording, ENGLISH, **GREEDY), wanted)


@pytest.mark.parametrize("words", [False, True])
def test_text_without_timestamps_is_read_likewise(
    recording: Source, monkeypatch: pytest.MonkeyPatch, words: bool
) -> None:
    monkeypatch.setattr("focusasr.transcription.whisper.within", lambda segment, seconds: segment)
    options = {"without_timestamps": True, "word_timestamps": words}
    found, wanted = recognize(recording, MULTILINGUAL, **GREEDY, **options), theirs(recording, MULTILINGUAL, **options)
    tokens = [one["tokens"] for one in found["segments"]]
    assert tokens == [one["tokens"] for one in wanted["segments"]] and len(tokens) > 3
    assert tokens != [one["tokens"] for one in recognize(recording, MULTILINGUAL, **GREEDY)["segments"]]


@pytest.mark.parametrize("asked", [-5, 0, 1, 99])
def test_no_answer_makes_a_window_search_for_ever(asked: int) -> None:
    script, seek, windows = PromptHistory([], 223), 0, 0
    while seek < 6000:
        window = MelWindow(seek, min(3000, 6000 - seek))
        after = script.seek_after(window, seek + asked)
        assert after > seek
        seek, windows = after, windows + 1
    assert windows < 25
    assert PromptHistory([], 223).seek_after(MelWindow(100, 3000), 2600) == 2600
    assert PromptHistory([], 223).seek_after(MelWindow(100, 500), 2600) == 600, "nothing is passed over"
