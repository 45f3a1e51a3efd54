"""The modules of openai-whisper that its tests import, backed by focusasr."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from whisper_normalizer import english

import focusasr
from focusasr.audio.features import log_mel
from focusasr.audio.load import load
from focusasr.config import SAMPLE_RATE_HZ, TextConfig, WhisperConfig
from focusasr.decoding.dtw_alignment import median_filter, split_characters, warp
from focusasr.model.checkpoint import load_checkpoint
from focusasr.text.whisper_tokenizer import ENGLISH_VOCABULARY, WhisperTokenizer, openai_engine

PLAIN = {"beam_size": None, "temperature_increment_on_fallback": None}  # whisper's defaults outside its command


class Tokenizer:
    """Whisper's tokenizer under the names of openai-whisper."""

    def __init__(self, ours: WhisperTokenizer) -> None:
        self._ours = ours
        self.encode, self.decode = ours.encode_exactly, ours.decode_exactly
        self.decode_with_timestamps = ours.decode_with_specials
        self.sot, self.eot, self.sot_sequence = ours.start, ours.end, tuple(ours.sot_sequence)
        self.timestamp_begin = ours.timestamp_begin
        self.all_language_codes, self.all_language_tokens = tuple(ours.languages), tuple(ours.languages.values())

    def split_tokens_on_unicode(self, tokens: list[int]) -> tuple[list[str], list[list[int]]]:
        """Return the smallest groups of tokens that decode to whole characters, and their text."""
        return split_characters(tokens, self._ours)


def get_tokenizer(multilingual: bool, *, num_languages: int = 99) -> Tokenizer:
    """Return the tokenizer of a vocabulary of OpenAI's."""
    vocabulary = ENGLISH_VOCABULARY + multilingual + num_languages - 99
    policy = TextConfig("keep", "keep", "bpe")
    return Tokenizer(WhisperTokenizer(openai_engine(vocabulary), policy, WhisperConfig(multilingual=multilingual)))


class Model:
    """A recognizer under the names of openai-whisper's model."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._recognizer = focusasr.load(str(path), "cpu", compute_type="float32")

    @cached_property
    def _tokenizer(self) -> WhisperTokenizer:
        tokenizer = load_checkpoint(self._path).tokenizer
        assert isinstance(tokenizer, WhisperTokenizer)
        return tokenizer

    @property
    def is_multilingual(self) -> bool:
        """Return whether the model knows several languages."""
        return self._tokenizer.whisper.multilingual

    @property
    def num_languages(self) -> int:
        """Return the number of languages with a token; an English model has them too."""
        return len(self._tokenizer.languages)

    def to(self, device: str) -> Model:
        """Return the model, which stays on the CPU."""
        assert device == "cpu"
        return self

    def transcribe(self, audio: str | np.ndarray, **options: Any) -> dict[str, Any]:
        """Return openai-whisper's dictionary of a recording."""
        return self._recognizer.transcribe(audio, **{**PLAIN, **options}).to_dict()


def _log_mel_spectrogram(audio: str | np.ndarray | torch.Tensor, n_mels: int = 80) -> torch.Tensor:
    wave = load(audio) if isinstance(audio, str) else audio
    return log_mel(torch.as_tensor(wave), n_mels).T


def _dtw(costs: np.ndarray) -> np.ndarray:
    return np.array(warp(costs))


def modules(models: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
    """Return the contents of each module by its name; `models` are the paths of models by their names."""
    load_model: Callable[[str], Model] = lambda name: Model(models[name])  # noqa: E731
    spelling = (english.EnglishNumberNormalizer, english.EnglishSpellingNormalizer, english.EnglishTextNormalizer)
    normalizers = {kind.__name__: kind for kind in spelling}
    return {
        "whisper": {"available_models": lambda: list(models), "load_model": load_model},
        "whisper.audio": {
            "SAMPLE_RATE": SAMPLE_RATE_HZ, "load_audio": lambda path: load(os.fspath(path)),
            "log_mel_spectrogram": _log_mel_spectrogram,
        },
        "whisper.tokenizer": {"get_tokenizer": get_tokenizer},
        "whisper.timing": {"dtw_cpu": _dtw, "dtw_cuda": None, "median_filter": median_filter},
        "whisper.normalizers": normalizers,
        "whisper.normalizers.english": normalizers,
    }  # fmt: skip
