"""Long recordings cut by what a Whisper model transcribes: every word of the text keeps its place."""

from __future__ import annotations

import json

import numpy as np
import pytest
import soundfile

from focusasr.audio.load import load
from focusasr.audio.segmentation import AudioSegment
from focusasr.config import PreprocessConfig
from focusasr.data.preprocess import preprocess
from focusasr.data.whisper_segmentation import divided, units_of
from tests.helpers.tiny_whisper import write_whisper

RATE_HZ = 16_000


def pieces(count: int) -> list[AudioSegment]:
    return [AudioSegment(2.0 * place, np.zeros(RATE_HZ, np.float32)) for place in range(count)]


def split(text: str, *heard: str) -> list[tuple[float, str, float]]:
    parts = divided(pieces(len(heard)), heard, text, units_of(text))
    return [(part.start, part.text, part.confidence) for part in parts]


def test_units_are_words_or_characters_of_scripts_without_spaces() -> None:
    assert [unit.key for unit in units_of("Don't STOP – ok!")] == ["dont", "stop", "", "ok"]
    assert [unit.key for unit in units_of("你好，world 天")] == ["你", "好", "world", "天"]
    assert len(units_of("ที่")) == 1 and len(units_of("กา")) == 2  # a vowel sign goes with its letter


@pytest.mark.parametrize(
    ("text", "heard", "parts"),
    [
        ("One two, three four.", ("one two", "three four"), ["One two,", "three four."]),
        ("One two, three four.", ("won two", "tree four"), ["One two,", "three four."]),
        ("One two three four five six", ("one two", "", "five six"), ["One two", "three four", "five six"]),
        ("Wort eins – und zwei", ("wort eins", "und zwei"), ["Wort eins –", "und zwei"]),
        ("你好世界。再见朋友", ("你好世界", "再见朋友"), ["你好世界。", "再见朋友"]),
        ("one two", ("one two", "noise here"), ["one two"]),
    ],
)
def test_each_piece_gets_its_words(text: str, heard: tuple[str, ...], parts: list[str]) -> None:
    found = split(text, *heard)
    assert [part for _, part, _ in found] == parts
    assert "".join(part for _, part, _ in found).replace(" ", "") == text.replace(" ", "")  # none is lost


def test_confidence_is_the_share_that_agrees() -> None:
    ((_, _, whole), (_, _, half)) = split("one two three four", "one two", "three xxxx")
    assert whole == 1.0 and half == pytest.approx(5 / 9, abs=1e-4)
    ((_, _, little),) = split("a story of fish", "quite another thing of")
    assert little == pytest.approx(2 / 19, abs=1e-4)


def test_a_model_that_transcribes_nothing_fitting_makes_rejects(tmp_path, sample) -> None:
    speech, pause = load(str(sample)), np.zeros(2 * RATE_HZ, np.float32)
    (tmp_path / "in").mkdir()
    soundfile.write(tmp_path / "in" / "long.wav", np.concatenate([speech, pause, speech]), RATE_HZ)
    (tmp_path / "in" / "long.txt").write_text("words that no random model writes")
    config = PreprocessConfig(split_seconds=6.0, align_with=str(write_whisper(tmp_path / "tiny")))
    report = preprocess([tmp_path / "in"], tmp_path / "out", config)
    assert report.kept == 0 and set(report.rejects) <= {"poorly aligned", "unreadable"}


@pytest.mark.real
def test_a_real_whisper_cuts_a_recording_with_its_text(tmp_path, real_data, whisper_weights) -> None:
    rows = [json.loads(line) for line in (real_data / "ljspeech" / "test.jsonl").read_text().splitlines()[:6]]
    pause = np.zeros(RATE_HZ * 3 // 2, np.float32)
    waves = [wave for row in rows for wave in (load(real_data / "ljspeech" / row["audio_filepath"]), pause)]
    (tmp_path / "in").mkdir()
    soundfile.write(tmp_path / "in" / "long.wav", np.concatenate(waves), RATE_HZ)
    texts = [row["text"] for row in rows]
    (tmp_path / "in" / "long.txt").write_text(" ".join(texts))
    config = PreprocessConfig(split_seconds=15.0, align_with=str(whisper_weights / "tiny.en"))
    report = preprocess([tmp_path / "in"], tmp_path / "out", config)
    parts = [json.loads(line) for line in report.manifest.read_text().splitlines()]
    assert " ".join(part["text"] for part in parts) == " ".join(" ".join(texts).split()) and not report.rejects
    assert sum(part["text"] in texts for part in parts) >= 4
