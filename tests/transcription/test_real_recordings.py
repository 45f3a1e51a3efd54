"""Real Whisper weights on recordings that went wrong once; each stands for its kind."""

from __future__ import annotations

import json
import re
import time
from difflib import SequenceMatcher
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from focusasr.transcription.whisper import WhisperRecognizer
from focusasr.whisper_config import LongformConfig

pytestmark = [pytest.mark.real, pytest.mark.slow]

FIFTEEN_THOUSAND = "of these were issued in Middlesex alone which at that time was reckoned as only a"
CANAL = "Valley Canal reached its southern term"  # -inus; float32 writes "terms", coarse integers "Velikanel"


@cache
def checkpoint(folder: Path) -> Any:
    from focusasr.model.checkpoint import load_checkpoint

    return load_checkpoint(folder)


def transcribed(folder: Path, recording: Path, **options: Any) -> Any:
    """Return the transcript of a recording by the weights in a folder."""
    import torch

    from focusasr.audio.source import Source
    from focusasr.config import DecodingConfig
    from focusasr.transcription.whisper_batched import BatchedWhisperRecognizer
    from focusasr.whisper_config import SearchConfig

    source = Source(str(recording), channel=options.pop("channel", None), track=options.pop("track", None))
    settings: dict[type, dict[str, Any]] = {SearchConfig: {}, LongformConfig: {}, DecodingConfig: {}}
    for name, value in options.items():
        next(given for kind, given in settings.items() if name in kind.__dataclass_fields__)[name] = value
    search, longform, config = (kind(**given) for kind, given in settings.items())
    kind = BatchedWhisperRecognizer if longform.batched else WhisperRecognizer
    (outcome,) = kind(checkpoint(folder), torch.device("cpu"), config, search, longform).transcribe([source])
    assert outcome.error is None and outcome.transcript is not None
    assert all(segment.end <= outcome.audio_seconds for segment in outcome.transcript.segments)
    return outcome.transcript


def plain(text: str) -> str:
    return " ".join(re.sub(r"[^\w\s]", " ", text.lower()).split())


@pytest.mark.parametrize("compute_type", ["int8", "float32"])
def test_a_digit_is_written_without_another_word(whisper_weights: Path, sound_cases: Path, compute_type: str) -> None:
    found = transcribed(
        whisper_weights / "tiny.en", sound_cases / "digit.wav", language="en", compute_type=compute_type
    )
    assert plain(found.text) == "zero"


def test_int8_writes_what_float32_writes(whisper_weights: Path, sound_cases: Path) -> None:
    texts = [
        plain(
            transcribed(
                whisper_weights / "tiny.en", sound_cases / "call_stereo.flac", language="en", compute_type=kind
            ).text
        )
        for kind in ("int8", "float32")
    ]
    words = [text.split() for text in texts]
    assert SequenceMatcher(None, *words, autojunk=False).ratio() > 0.95
    assert plain(CANAL) in texts[0]


@pytest.mark.parametrize("name", ["sil03.wav", "sil5.wav"])
@pytest.mark.parametrize(
    "options", [{}, {"hotwords": "Zyxwel Kubernetix"}, {"batched": True}, {"word_timestamps": True}]
)
def test_silence_gives_no_text(whisper_weights: Path, sound_cases: Path, name: str, options: dict[str, Any]) -> None:
    for model in ("tiny.en", "base"):
        assert transcribed(whisper_weights / model, sound_cases / name, **options).text == ""


def test_silence_behind_speech_gives_no_text(whisper_weights: Path, sound_cases: Path) -> None:
    found = transcribed(whisper_weights / "tiny.en", sound_cases / "speech_then_sil90.flac", language="en")
    assert found.text.count("15,000") == 1 and found.text.count("7,020") == 1
    assert found.text.rstrip().endswith("Middlesex.") and found.segments[-1].end < 18


@pytest.mark.parametrize(
    "options", [{}, {"word_timestamps": True, "hallucination_silence_threshold": 2.0}, {"batched": True}], ids=str
)
def test_a_minute_of_hiss_between_sentences_gives_no_text(
    whisper_weights: Path, sound_cases: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    windows: list[int] = []
    honest = WhisperRecognizer._read
    monkeypatch.setattr(WhisperRecognizer, "_read", lambda *given: windows.append(given[3].seek) or honest(*given))
    began = time.process_time()
    found = transcribed(whisper_weights / "tiny.en", sound_cases / "pause60.flac", language="en", **options)
    assert time.process_time() - began < 60 and len(windows) < 8
    assert not [one for one in found.segments if 9 < one.start < 66 or 78 < one.start < 101]
    assert FIFTEEN_THOUSAND.lower() in plain(found.text) and "arrests" in found.text


def test_a_silence_threshold_ends_where_silence_is_unknown(
    whisper_weights: Path, sound_cases: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of noise that is too loud to be left out: windows move on all the same."""
    import numpy as np

    from focusasr.audio.silence import Silence

    nowhere = lambda levels, blocks: Silence(np.zeros(len(levels), bool))  # noqa: E731
    monkeypatch.setattr("focusasr.transcription.whisper.find_silence", nowhere)
    windows: list[int] = []
    honest = WhisperRecognizer._read
    monkeypatch.setattr(WhisperRecognizer, "_read", lambda *given: windows.append(given[3].seek) or honest(*given))
    options = {"word_timestamps": True, "hallucination_silence_threshold": 2.0, "beam_size": None, "best_of": 1}
    transcribed(whisper_weights / "tiny.en", sound_cases / "pause60.flac", language="en", **options)
    assert len(windows) < 20 and windows == sorted(set(windows))


@pytest.mark.parametrize("batched", [False, True])
def test_the_language_is_that_of_the_speech(whisper_weights: Path, sound_cases: Path, batched: bool) -> None:
    found = transcribed(whisper_weights / "base", sound_cases / "sil35_then_de.flac", batched=batched, beam_size=None)
    assert found.language == "de" and "geboren" in found.text
    assert found.segments[0].start > 34


@pytest.mark.parametrize("batched", [False, True])
def test_a_recording_in_two_languages_keeps_both(
    whisper_weights: Path, sound_cases: Path, sample: Path, batched: bool
) -> None:
    import numpy as np
    import soundfile

    from focusasr.audio.load import load

    english, german = load(sample.with_name("jfk.flac")), load(sound_cases / "sil35_then_de.flac")
    german = german[35 * 16_000 : 50 * 16_000]
    soundfile.write("both.wav", np.concatenate([english, np.zeros(25 * 16_000, np.float32), german]), 16_000)
    options: dict[str, Any] = {"batched": batched, "beam_size": None, "without_timestamps": True}
    found = transcribed(whisper_weights / "base", Path("both.wav"), multilingual=True, **options)
    assert found.language == "en" and "ask what you can do for your country" in found.text and "geboren" in found.text
    assert len(found.segments) == 2 and not [one for segment in found.segments for one in segment.tokens if one > 50363]
    assert "geboren" not in transcribed(whisper_weights / "base", Path("both.wav"), **options).text


@pytest.mark.parametrize("options", [{}, {"vad_filter": True}, {"batched": True}], ids=str)
def test_words_end_where_speech_ends(whisper_weights: Path, sound_cases: Path, options: dict[str, Any]) -> None:
    found = transcribed(
        whisper_weights / "tiny.en", sound_cases / "cvjoin2.flac", language="en", word_timestamps=True, **options
    )
    truth = json.loads((sound_cases / "cvjoin2.truth.json").read_text())
    said = [(plain(word), turn) for turn, one in enumerate(truth) for word in one["text"].split()]
    words = [word for segment in found.segments for word in segment.words]
    matcher = SequenceMatcher(None, [word for word, _ in said], [plain(word["word"]) for word in words], autojunk=False)
    blocks = [block for block in matcher.get_matching_blocks() if block.size > 1]  # one word may be found by chance
    at = {a + k: words[b + k] for a, b, size in blocks for k in range(size)}
    starts, ends = [], []
    for turn, one in enumerate(truth):
        places = [place for place, (_, owner) in enumerate(said) if owner == turn]
        starts += [abs(at[places[0]]["start"] - one["start"])] if places[0] in at else []
        ends += [abs(at[places[-1]]["end"] - one["end"])] if places[-1] in at else []
    assert len(ends) >= 10 and median(ends) <= 0.2 and sum(error > 1 for error in ends) <= 1
    assert median(starts) <= 0.2 and max(starts) < 1.5


@pytest.mark.parametrize(
    ("name", "track", "language"),
    [("two_tracks.mkv", None, "en"), ("default_second.mkv", None, "fr"), ("default_second.mkv", 0, "en")],
)
def test_the_default_track_or_the_one_asked_for_is_read(
    whisper_weights: Path, sound_cases: Path, name: str, track: int | None, language: str
) -> None:
    found = transcribed(whisper_weights / "base", sound_cases / name, track=track, beam_size=None)
    assert found.language == language and found.text


def test_times_are_those_of_the_picture(whisper_weights: Path, sound_cases: Path) -> None:
    found = transcribed(whisper_weights / "tiny.en", sound_cases / "offset5.mkv", language="en")
    assert found.segments[0].start == pytest.approx(4.94, abs=0.3)


def test_channels_that_cancel_each_other_give_text(whisper_weights: Path, sound_cases: Path) -> None:
    found = transcribed(whisper_weights / "tiny.en", sound_cases / "antiphase.wav", language="en")
    assert FIFTEEN_THOUSAND.lower() in plain(found.text)


def test_each_channel_of_a_call_has_its_own_text(whisper_weights: Path, sound_cases: Path) -> None:
    truth = json.loads((sound_cases / "call.truth.json").read_text())
    for channel, side in enumerate("LR"):
        found = transcribed(
            whisper_weights / "tiny.en", sound_cases / "call_stereo.flac", channel=channel, language="en"
        )
        said, other = (
            plain(" ".join(text for owner, _, text in truth if (owner == side) is own)).split() for own in (True, False)
        )
        words = plain(found.text).split()
        share = [SequenceMatcher(None, words, one, autojunk=False).ratio() for one in (said, other)]
        assert share[0] > 0.8 and share[1] < 0.4


@pytest.mark.parametrize(
    "given", [{"initial_prompt": "Zyxwel, Kubernetix"}, {"hotwords": "Zyxwel Kubernetix"}], ids=str
)
def test_rare_names_are_written_as_given(whisper_weights: Path, sound_cases: Path, given: dict[str, str]) -> None:
    found = transcribed(whisper_weights / "tiny.en", sound_cases / "name.wav", language="en", **given)
    assert "Zyxwel" in found.text and "Kubernetix" in found.text


def test_clips_in_batches_give_their_text(whisper_weights: Path, sound_cases: Path) -> None:
    found = transcribed(
        whisper_weights / "tiny.en",
        sound_cases / "cvjoin2.flac",
        language="en",
        batched=True,
        clip_timestamps="17,23,48,54",
    )
    assert "languages" in found.text and "corpse" in found.text and "Academy" not in found.text
    assert all(17 <= one.start < one.end <= 23 or 48 <= one.start < one.end <= 54 for one in found.segments)
