"""The model that a newcomer meets: an ordinary sentence, spelling, silence, and what is shown."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from focusasr.config import DEFAULT_CHECKPOINT
from focusasr.evaluation.wer import score
from focusasr.model.checkpoint import load_checkpoint
from focusasr.model.checkpoint_folder import find_checkpoint

ROOT = Path(__file__).resolve().parent.parent
CLIP = ROOT / "tests" / "data" / "jfk.flac"
TEXT = "And so, my fellow Americans, ask not what your country can do for you, ask what you can do for your country."


@pytest.fixture(autouse=True)
def default_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FOCUSASR_MODEL")


def test_an_ordinary_sentence_is_read_and_printed(run) -> None:
    result = run("transcribe", CLIP)
    assert (result.status, result.err) == (0, "")
    assert score([TEXT], [result.out], "english").wer == 0
    assert result.out.strip()[0].isupper() and result.out.strip().endswith(".")
    assert list(Path().iterdir()) == []


def test_a_spelled_name_and_a_number_are_read(run, sample: Path) -> None:
    result = run("transcribe", sample)
    assert score(["s a r a h four one two six nine seven five"], [result.out], "english").wer <= 0.25


@pytest.mark.parametrize("kind", ["zeros", "hiss", "short"])
def test_silence_gives_no_words(run, kind: str) -> None:
    draw = np.random.default_rng(0)
    sound = {"zeros": np.zeros(80_000), "hiss": 1e-4 * draw.standard_normal(80_000), "short": np.zeros(4_800)}[kind]
    soundfile.write("silence.wav", sound.astype(np.float32), 16_000)
    assert run("transcribe", "silence.wav").out.strip() == ""


def test_word_times_and_subtitles_are_written(run) -> None:
    assert run("transcribe", CLIP, "-o", "out", "-f", "json,srt", "--word_timestamps", "True").status == 0
    words = [word for segment in json.loads(Path("out/jfk.json").read_text())["segments"] for word in segment["words"]]
    assert len(words) == len(TEXT.split())
    assert all(before["end"] <= after["start"] + 1e-3 for before, after in itertools.pairwise(words))
    assert 0 <= words[0]["start"] < 2 and 9 < words[-1]["end"] <= 11.0
    assert Path("out/jfk.srt").read_text().startswith("1\n00:00:")


def test_audio_keeps_its_own_length_and_weights_are_int8() -> None:
    folder = find_checkpoint(None)
    assert folder.name == DEFAULT_CHECKPOINT
    config = load_checkpoint(folder).model.config
    assert (config.window_samples, config.attention) == (None, "hybrid")
    assert config.input_frames(400) < 500
    assert sum(path.stat().st_size for path in folder.iterdir()) < 45e6


def test_environment_names_another_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOCUSASR_MODEL", "alnum")
    assert find_checkpoint(None).name == "focusasr-alnum-en"
    assert find_checkpoint("default").name == DEFAULT_CHECKPOINT
