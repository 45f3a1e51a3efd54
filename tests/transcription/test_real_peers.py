"""Real Whisper weights by focusasr, openai-whisper and faster-whisper: tokens, texts and languages are the same.

A few clips by default; with FOCUSASR_PROOF=1 40 clips, a recording of 200 s and 70 clips in seven languages.
"""

from __future__ import annotations

import os
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from focusasr.audio.features import input_mel
from focusasr.audio.load import load
from focusasr.audio.source import Source
from focusasr.config import DecodingConfig
from focusasr.data.manifest import Utterance, read_manifest
from focusasr.decoding.whisper_decoder import WhisperDecoder
from focusasr.evaluation.wer import count_errors, normalize
from focusasr.model.checkpoint import load_checkpoint
from focusasr.model.engine import Engine, prepare
from focusasr.transcription.whisper import WhisperRecognizer
from focusasr.whisper_config import LongformConfig, SearchConfig
from tests.conftest import ROOT

pytest.importorskip("whisper", reason="openai-whisper is not installed")
sys.path.insert(0, str(ROOT / "scripts" / "checks"))

import whisper_peers

pytestmark = [pytest.mark.real, pytest.mark.slow]

FULL = bool(os.environ.get("FOCUSASR_PROOF"))
CPU = torch.device("cpu")
FLOAT32 = DecodingConfig(compute_type="float32")
SEARCHES = [{"beam_size": None}, {"beam_size": 5}]
ONCE = {"temperature_increment_on_fallback": None}  # other temperatures sample, each program by its own chance
LANGUAGES_EACH = 10
LEAST_RIGHT = 63 / 70 if FULL else 0.6  # as openai-whisper; base takes a Spanish and a Dutch clip of seven for others


@cache
def engine(folder: Path) -> Engine:
    return prepare(load_checkpoint(folder).model, CPU, FLOAT32)


@cache
def peer(folder: Path) -> Any:
    return whisper_peers.openai_whisper(load_checkpoint(folder))


@cache
def ours(folder: Path, clip: Path, beam_size: int | None) -> Any:
    """Return our transcript of a recording."""
    search = SearchConfig(beam_size=beam_size, **ONCE)
    recognizer = WhisperRecognizer(
        load_checkpoint(folder), CPU, FLOAT32, search, LongformConfig(language="en"), engine(folder)
    )
    (outcome,) = recognizer.transcribe([Source(str(clip))])
    assert outcome.error is None and outcome.transcript is not None
    return outcome.transcript


def theirs(folder: Path, clip: Path, beam_size: int | None) -> dict[str, Any]:
    """Return openai-whisper's transcript of a recording."""
    import whisper

    options = {"beam_size": beam_size, "temperature": 0.0, "language": "en", "fp16": False}
    return whisper.transcribe(peer(folder), load(Source(str(clip))), **options)


@pytest.fixture(scope="session")
def clips(request: pytest.FixtureRequest) -> list[Path]:
    """Return recordings of at most 30 s: of three corpora by turns, or, without real speech, the one in tests/data."""
    try:
        data = request.getfixturevalue("real_data")
    except pytest.skip.Exception:
        return [ROOT / "tests" / "data" / "jfk.flac"]
    sets = [read_manifest(data / name / "test.jsonl") for name in ("misc_en", "common_voice_en", "ljspeech")]
    turns = [one[place] for place in range(max(map(len, sets))) for one in sets if place < len(one)]
    return [one.audio for one in turns][: 40 if FULL else 2]


@pytest.mark.parametrize("search", SEARCHES, ids=str)
@pytest.mark.parametrize("name", ["tiny.en", "base"])
def test_tokens_are_those_of_openai_whisper(
    whisper_weights: Path, clips: list[Path], name: str, search: dict[str, Any]
) -> None:
    compared = clips if FULL or name == "tiny.en" else clips[:1]
    different = []
    for clip in compared:
        mine, wanted = ours(whisper_weights / name, clip, **search), theirs(whisper_weights / name, clip, **search)
        tokens = [segment.tokens for segment in mine.segments]
        if tokens != [segment["tokens"] for segment in wanted["segments"]]:
            different.append((clip.name, mine.text, wanted["text"]))
    assert not different


@pytest.mark.skipif(not FULL, reason="takes minutes; FOCUSASR_PROOF=1 runs it")
@pytest.mark.parametrize("search", SEARCHES, ids=str)
@pytest.mark.parametrize("name", ["tiny.en", "base"])
def test_tokens_of_a_long_recording_are_those_of_openai_whisper(
    whisper_weights: Path, real_data: Path, name: str, search: dict[str, Any]
) -> None:
    (one,) = read_manifest(real_data / "longform_en" / "test.jsonl")
    mine = ours(whisper_weights / name, one.audio, **search)
    wanted = theirs(whisper_weights / name, one.audio, **search)
    assert len(mine.segments) > 20
    for segment, expected in zip(mine.segments, wanted["segments"], strict=True):
        assert segment.tokens == expected["tokens"], (segment.text, expected["text"])


def test_text_is_that_of_faster_whisper(whisper_weights: Path, clips: list[Path]) -> None:
    """Its search differs in details, so that a few words may differ."""
    pytest.importorskip("faster_whisper", reason="faster-whisper is not installed")
    folder = whisper_weights / "tiny.en"
    model = whisper_peers.faster_whisper(load_checkpoint(folder), compute_type="float32", cpu_threads=1)
    wrong = words = 0
    for clip in clips:
        segments, _ = model.transcribe(load(Source(str(clip))), language="en", temperature=0.0)
        wanted = "".join(segment.text for segment in segments)
        errors = count_errors(*normalize([wanted, ours(folder, clip, beam_size=5).text], "english"))
        wrong, words = wrong + errors.count, words + errors.words
    assert words >= 20 and wrong <= MOST_OTHER_WORDS * words


MOST_OTHER_WORDS = 0.05


@pytest.fixture(scope="session")
def spoken(real_data: Path) -> list[Utterance]:
    """Return clips in seven languages, ten or one of each."""
    found: dict[str | None, list[Utterance]] = {}
    for one in read_manifest(real_data / "common_voice_multi" / "test.jsonl"):
        found.setdefault(one.language, []).append(one)
    assert len(found) == 7
    return [one for clips in found.values() for one in clips[: LANGUAGES_EACH if FULL else 1]]


def test_languages_are_those_of_openai_whisper(whisper_weights: Path, spoken: list[Utterance]) -> None:
    import whisper

    checkpoint, compared = load_checkpoint(whisper_weights / "base"), engine(whisper_weights / "base")
    decoder = WhisperDecoder(compared, checkpoint.tokenizer, SearchConfig(), LongformConfig())
    right = 0
    for number, one in enumerate(spoken):
        mel = input_mel(torch.from_numpy(load(one.source)), compared.config)
        (mine,) = decoder.language_probabilities(compared.encode([mel]))
        right += max(mine, key=mine.__getitem__) == one.language
        if FULL or number < 2:
            _, wanted = whisper.detect_language(peer(whisper_weights / "base"), mel.T)
            assert mine == pytest.approx(wanted, abs=1e-3)
    assert right >= LEAST_RIGHT * len(spoken)
