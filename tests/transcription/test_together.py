"""Several threads that transcribe at the same time: every bit is as alone."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import focusasr
from focusasr.decoding.onnx_decoder import OnnxWhisperDecoder
from focusasr.decoding.whisper_decoder import WhisperDecoder
from tests.helpers.tiny_whisper import write_whisper

JFK = Path(__file__).resolve().parents[1] / "data" / "jfk.flac"


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the numbers of windows that are decoded together."""
    found: list[int] = []
    searched, tried = WhisperDecoder._searched, OnnxWhisperDecoder._first_tries

    def counted_too(self: OnnxWhisperDecoder, memory: Any, windows: Any) -> Any:
        found.append(len(windows))
        return tried(self, memory, windows)

    monkeypatch.setattr(OnnxWhisperDecoder, "_first_tries", counted_too)

    def counted(self: WhisperDecoder, memory: Any, prompt: Any, *rest: Any) -> Any:
        found.append(len(prompt))
        return searched(self, memory, prompt, *rest)

    monkeypatch.setattr(WhisperDecoder, "_searched", counted)
    return found


def at_once(recognizer: focusasr.Recognizer, clips: list[np.ndarray], options: list[dict[str, Any]]) -> list[Any]:
    """Return the segments of clips, transcribed by as many threads; or the error of a thread."""
    results: list[Any] = [None] * len(clips)

    def run(index: int) -> None:
        try:
            results[index] = recognizer.transcribe(clips[index], **options[index]).segments
        except Exception as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(clips))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.parametrize("torch", [False, True], ids=["ONNX Runtime", "PyTorch"])
def test_texts_of_the_default_model_are_those_of_each_clip_alone(sizes: list[int], torch: bool) -> None:
    recognizer = focusasr.load(
        "default", device="cpu", **({"no_repeat_ngram_size": 40, "beam_size": None} if torch else {})
    )
    samples, rate = soundfile.read(JFK, dtype="float32")
    bounds = [
        (0, 2),
        (0, 3.3),
        (1, 4),
        (3, 5.2),
        (5, 8),
        (8, 11),
        (2, 9),
        (0, 11),
        (7, 8),
        (0, 0.3),
        (4, 10.5),
        (6, 6.9),
    ]
    clips = [samples[round(start * rate) : round(end * rate)] for start, end in bounds]
    options: list[dict[str, Any]] = [{"word_timestamps": index % 3 == 0} for index in range(len(clips))]
    alone = [recognizer.transcribe(clip, **given).segments for clip, given in zip(clips, options, strict=True)]
    assert max(sizes, default=1) == 1 and sum(bool(segments) for segments in alone) >= 9
    sizes.clear()
    if torch and not recognizer._model.recognizer(recognizer._options({})).recognizer.engine.keeps_rows_apart:
        pytest.skip("this CPU has no exact 8 bit products, so that clips are transcribed alone")
    assert at_once(recognizer, clips, options) == alone
    assert max(sizes) >= 4


def test_other_models_transcribe_alone(sizes: list[int], tmp_path: Path) -> None:
    """Sums of floats depend on the shape of a batch, so that their windows are not decoded together."""
    options: list[dict[str, Any]] = [{"temperature_increment_on_fallback": None}] * 4
    recognizer = focusasr.load(str(write_whisper(tmp_path / "tiny")), device="cpu", beam_size=None, language="en")
    clips = [np.random.default_rng(seed).uniform(-0.3, 0.3, 16_000).astype(np.float32) for seed in range(4)]
    alone = [recognizer.transcribe(clip, **options[0]).segments for clip in clips]
    assert at_once(recognizer, clips, options) == alone
    assert max(sizes) == 1


def test_failing_clip_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FOCUSASR_MODEL")
    recognizer = focusasr.load(device="cpu")
    samples, _ = soundfile.read(JFK, dtype="float32")
    clips = [samples[:48_000], np.full(48_000, np.nan, np.float32), samples[:48_000]]
    first, second, third = at_once(recognizer, clips, [{}] * 3)
    assert isinstance(second, focusasr.AudioError) and first == third != []


@pytest.mark.parametrize("model", ["alnum", "default"])
def test_short_clip_does_not_wait_for_a_long_recording(model: str) -> None:
    recognizer = focusasr.load(model, device="cpu")
    samples, _ = soundfile.read(JFK, dtype="float32")
    begun, enough, parts = threading.Event(), threading.Event(), list[float]()

    def progress(seconds: float) -> None:
        begun.set()
        parts.append(seconds)
        if enough.is_set():
            raise KeyError

    def run() -> None:
        with pytest.raises(KeyError):
            recognizer.transcribe(np.tile(samples, 40), progress=progress, batch_size=1)

    thread = threading.Thread(target=run)
    thread.start()
    assert begun.wait(60)
    before = len(parts)
    recognizer.transcribe(samples[:32_000])
    after = len(parts)
    enough.set()
    thread.join(60)
    assert not thread.is_alive() and after - before <= 3
