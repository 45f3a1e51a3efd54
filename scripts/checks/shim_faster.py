"""The modules of faster-whisper that its tests import, backed by focusasr."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

import focusasr
from focusasr.audio.features import input_mel
from focusasr.audio.load import load
from focusasr.audio.source import Source
from focusasr.config import DecodingConfig
from focusasr.decoding.dtw_alignment import split_characters
from focusasr.decoding.whisper_decoder import WhisperDecoder
from focusasr.text.whisper_tokenizer import WhisperTokenizer
from focusasr.transcription.loaded_model import load_recognizer
from focusasr.transcription.recognizer import ModelChoice
from focusasr.transcription.whisper import WhisperRecognizer
from focusasr.whisper_config import LongformConfig, SearchConfig

LONGEST = {"max_speech_duration_s": "max_segment_seconds"}  # the only name in `vad_parameters` that differs
FLOAT32: dict[str, Any] = {"compute_type": "float32"}

Probabilities = list[tuple[str, float]]


class Tokenizer:
    """Whisper's tokenizer under the names of faster-whisper."""

    def __init__(self, tokenizer: WhisperTokenizer, multilingual: bool) -> None:
        self.ours = tokenizer

    def split_tokens_on_unicode(self, tokens: list[int]) -> tuple[list[str], list[list[int]]]:
        """Return the smallest groups of tokens that decode to whole characters, and their text."""
        return split_characters(tokens, self.ours)


def get_suppressed_tokens(tokenizer: Tokenizer, suppress_tokens: Sequence[int]) -> tuple[int, ...]:
    """Return the ids that are never written."""
    config = SearchConfig(suppress_tokens=",".join(map(str, suppress_tokens)))
    return tuple(WhisperDecoder.suppressed(SimpleNamespace(tokenizer=tokenizer.ours, config=config)))  # type: ignore[arg-type]


class Model:
    """A recognizer under the names of faster-whisper's WhisperModel."""

    def __init__(self, path: Path) -> None:
        self._recognizer = focusasr.load(str(path), "cpu", **FLOAT32)
        inner = load_recognizer(ModelChoice(str(path), "cpu"), {DecodingConfig: FLOAT32}).recognizer
        assert isinstance(inner, WhisperRecognizer)
        self._engine, self.hf_tokenizer = inner.engine, inner.tokenizer

    @property
    def supported_languages(self) -> list[str]:
        """Return the codes of the languages that the model knows."""
        return list(self.hf_tokenizer.languages) if self.hf_tokenizer.whisper.multilingual else ["en"]

    def transcribe(self, audio: Any, **options: Any) -> tuple[Iterator[SimpleNamespace], SimpleNamespace]:
        """Return the segments of a recording, and what is known about it."""
        return self.read(audio, options)

    def read(self, audio: Any, options: dict[str, Any]) -> tuple[Iterator[SimpleNamespace], SimpleNamespace]:
        """Return the segments of a recording, and what is known about it."""
        given, vad = dict(options), options.get("vad_parameters") or {}
        given |= {LONGEST.get(name, f"vad_{name}"): value for name, value in vad.items()}
        given.pop("vad_parameters", None)
        if "clip_timestamps" in given:
            clips = [[clip["start"], clip["end"]] for clip in given["clip_timestamps"]]
            given["clip_timestamps"] = ",".join(str(second) for clip in clips for second in clip)
        result = self._recognizer.transcribe(audio, **given)
        language, _, found = self.detect_language(load(audio) if isinstance(audio, str) else audio)
        language = result.language or language
        info = SimpleNamespace(
            language=language, language_probability=dict(found)[language], all_language_probs=found,
            duration=result.duration, transcription_options=SimpleNamespace(**options),
            vad_options=SimpleNamespace(**vad),
        )  # fmt: skip
        return iter([_segment(segment) for segment in result.segments]), info

    def detect_language(self, audio: np.ndarray) -> tuple[str, float, Probabilities]:
        """Return the likeliest language of the first window, its probability, and those of all languages."""
        if not self.hf_tokenizer.whisper.multilingual:
            return "en", 1.0, [("en", 1.0)]
        memory = self._engine.encode([input_mel(torch.from_numpy(audio), self._engine.config)])
        decoder = WhisperDecoder(self._engine, self.hf_tokenizer, SearchConfig(), LongformConfig())
        (found,) = decoder.language_probabilities(memory)
        ordered = sorted(found.items(), key=lambda pair: -pair[1])
        return *ordered[0], ordered


class Pipeline:
    """A recognizer under the names of faster-whisper's BatchedInferencePipeline."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def transcribe(
        self, audio: Any, batch_size: int = 8, **options: Any
    ) -> tuple[Iterator[SimpleNamespace], SimpleNamespace]:
        """Return the segments of a recording, and what is known about it; by default without timestamps, as there."""
        given = {"without_timestamps": True, **options, "batched": True, "batch_size": batch_size}
        return self._model.read(audio, given)


def _segment(segment: focusasr.Segment) -> SimpleNamespace:
    words = None if segment.words is None else [SimpleNamespace(**word) for word in segment.words]
    return SimpleNamespace(**vars(replace(segment, words=None)) | {"words": words})


def decode_audio(path: str, sampling_rate: int = 16_000, split_stereo: bool = False) -> Any:
    """Return a recording as mono samples, or its two channels."""
    if not split_stereo:
        return load(path, sampling_rate)
    return tuple(load(Source(path, channel=channel), sampling_rate) for channel in (0, 1))


def modules(models: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
    """Return the contents of each module by its name; `models` are the paths of models by their names."""

    class WhisperModel(Model):
        """A model by its name."""

        def __init__(self, name: str) -> None:
            super().__init__(models[name])

    return {
        "faster_whisper": {
            "WhisperModel": WhisperModel, "BatchedInferencePipeline": Pipeline, "decode_audio": decode_audio,
            "available_models": focusasr.available_models, "download_model": None,
        },
        "faster_whisper.tokenizer": {"Tokenizer": Tokenizer},
        "faster_whisper.transcribe": {"get_suppressed_tokens": get_suppressed_tokens},
    }  # fmt: skip
