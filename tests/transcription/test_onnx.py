"""Which models and options ONNX Runtime computes, and that PyTorch stays out of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import focusasr
from focusasr.decoding.onnx_decoder import OnnxWhisperDecoder
from focusasr.decoding.whisper_prompts import DecodingResult
from focusasr.transcription.loaded_model import LoadedModel, can_do
from focusasr.transcription.onnx import OnnxRecognizer
from focusasr.transcription.options import Options, sort_options
from focusasr.transcription.recognizer import ModelChoice
from tests.conftest import ROOT
from tests.helpers.tiny_whisper import write_whisper

SAMPLE = ROOT / "tests" / "data" / "sample.flac"
ALONE = """
import sys
import focusasr
recognizer = focusasr.load("default", device="cpu")
print(recognizer.transcribe(sys.argv[1]).text.strip())
for options in ({"word_timestamps": True}, {"vad_filter": True}, {"batched": True, "word_timestamps": True}):
    assert recognizer.transcribe(sys.argv[1], **options).text
assert "torch" not in sys.modules
"""


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return LoadedModel(ModelChoice("default", "cpu"))


def recognizer_of(model: LoadedModel, **options: Any) -> Any:
    return model.recognizer(Options.read(sort_options(options))).recognizer


def test_the_default_model_is_computed_without_pytorch() -> None:
    command = [sys.executable, "-c", ALONE, str(SAMPLE)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("S A R A H four one two")


@pytest.mark.parametrize(
    ("options", "onnx"),
    [
        ({}, True),
        ({"beam_size": 5}, True),
        ({"word_timestamps": True}, True),
        ({"compute_type": "int8"}, True),
        ({"prefix": "S", "hotwords": "Sarah", "initial_prompt": "Names."}, True),
        ({"compute_type": "float32"}, False),
        ({"batched": True}, True),
        ({"repetition_penalty": 1.1}, False),
        ({"no_repeat_ngram_size": 3}, False),
        ({"span_scale": 0.5}, False),
    ],
    ids=str,
)
def test_options_decide_who_computes(options: dict[str, Any], onnx: bool) -> None:
    assert can_do(Options.read(sort_options(options))) == onnx


def test_word_times_and_their_order_leave_the_text_alone(model: LoadedModel) -> None:
    recognizer = focusasr.load("default", device="cpu")
    assert isinstance(recognizer_of(model), OnnxRecognizer)
    plain = recognizer.transcribe(SAMPLE)
    timed = recognizer.transcribe(SAMPLE, word_timestamps=True)
    again = recognizer.transcribe(SAMPLE, word_timestamps=True, compute_type="float32")
    assert timed.text == plain.text and recognizer.transcribe(SAMPLE).text == plain.text
    assert [word["word"] for word in timed.words] == [word["word"] for word in again.words]
    for mine, exact in zip(timed.words, again.words, strict=True):
        assert mine["start"] == pytest.approx(exact["start"], abs=0.1)


@pytest.mark.parametrize("options", [{}, {"beam_size": 3}], ids=str)
def test_texts_of_batches_do_not_depend_on_their_size(options: dict[str, Any]) -> None:
    recognizer = focusasr.load("default", device="cpu", batched=True, max_segment_seconds=4, **options)
    speech, name = (soundfile.read(SAMPLE.with_name(one), dtype="float32")[0] for one in ("jfk.flac", "sample.flac"))
    samples = np.concatenate([name, speech, name])
    alone, together = (recognizer.transcribe(samples, batch_size=size, word_timestamps=True) for size in (1, 7))
    assert len(alone.segments) >= 4 and "your country can do for you" in alone.text
    assert together.segments == alone.segments


def test_a_chunk_is_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    recognizer = focusasr.load("default", device="cpu", batched=True)
    samples, _ = soundfile.read(SAMPLE.with_name("jfk.flac"), dtype="float32")
    tokenizer = recognizer._model.recognizer(Options.read(sort_options({}))).recognizer.tokenizer
    ruled, seen = OnnxWhisperDecoder._rule, list[tuple[bool, bool]]()  # whether a time is early, and may be the end

    def eager(self: Any, logits: Any, texts: Any, windows: Any) -> None:
        """Let the model end at the first time after text."""
        ruled(self, logits, texts, windows)
        for row, text, window in zip(logits, texts, windows, strict=True):
            if len(text) > 5 and text[-1] < tokenizer.end and "," in tokenizer.decode_exactly(text[-1:]):
                row[: tokenizer.timestamp_begin] = -np.inf
            elif len(text) > 5 and text[-1] > tokenizer.end and text[-2] > tokenizer.end:
                seen.append((text[-1] < window.until, bool(np.isfinite(row[tokenizer.end]))))
                row[tokenizer.end] += 50

    monkeypatch.setattr(OnnxWhisperDecoder, "_rule", eager)
    text = recognizer.transcribe(samples).text
    assert (True, False) in seen and all(early != may_end for early, may_end in seen)
    assert text.rstrip(".").endswith("for your country")


def test_small_models_are_left_to_pytorch(tmp_path: Path) -> None:
    model = LoadedModel(ModelChoice(str(write_whisper(tmp_path / "tiny")), "cpu"))
    assert not isinstance(recognizer_of(model), OnnxRecognizer)


@pytest.mark.real
def test_whisper_weights_of_any_form_are_computed_by_onnx(whisper_weights: Path) -> None:
    model = LoadedModel(ModelChoice(str(whisper_weights / "tiny.en"), "cpu"))
    for options in ({}, {"word_timestamps": True}):
        assert isinstance(recognizer_of(model, **options), OnnxRecognizer)


def test_a_window_that_is_silent_only_after_previous_text_is_read_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    recognizer = focusasr.load("default", device="cpu")
    speech, name = (soundfile.read(SAMPLE.with_name(one), dtype="float32")[0] for one in ("jfk.flac", "sample.flac"))
    samples = np.concatenate([speech, name, speech, name, speech])  # two windows
    alone = recognizer.transcribe(samples, condition_on_previous_text=False)
    honest, silenced = OnnxWhisperDecoder.answers, list[bool]()

    def silent(reader: Any, memory: Any, prompts: Any, *rest: Any) -> list[DecodingResult]:
        silenced.append(prompts[0][0] == reader.tokenizer.sot_prev)
        return [DecodingResult([], "", 0.0, -2.0, 1.0, 0.9)] if silenced[-1] else honest(reader, memory, prompts, *rest)

    monkeypatch.setattr(OnnxWhisperDecoder, "answers", silent)
    assert recognizer.transcribe(samples).text == alone.text and True in silenced
