"""Segmentation of long recordings at pauses, with texts divided by Whisper transcripts."""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from focusasr.audio.features import input_mel
from focusasr.audio.load import rechunk
from focusasr.audio.mel_stream import WINDOW_SAMPLES
from focusasr.audio.segmentation import AudioSegment, split_at_pauses
from focusasr.config import SAMPLE_RATE_HZ
from focusasr.decoding.whisper_decoder import WhisperDecoder
from focusasr.model.checkpoint import Checkpoint
from focusasr.model.engine import Engine
from focusasr.text.whisper_tokenizer import WhisperTokenizer
from focusasr.whisper_config import LongformConfig, SearchConfig

BLOCK_SAMPLES = 30 * SAMPLE_RATE_HZ
BATCH_PIECES = 8
LEAST_SIMILARITY = 0.6  # of two spellings of one word
SPACELESS = (  # scripts without spaces between words: each character is aligned by itself
    *(("\u0e00", "\u0eff"), ("\u1000", "\u109f"), ("\u1780", "\u17ff")),  # Thai, Lao, Burmese, Khmer
    *(("\u3040", "\u30ff"), ("\u3400", "\u9fff"), ("\uf900", "\ufaff")),  # Japanese, Chinese
)


@dataclass(frozen=True)
class Part:
    """A segment with words: seconds from the recording's start, its text, and their agreement, 0 to 1."""

    start: float
    duration: float
    text: str
    confidence: float


@dataclass(frozen=True)
class Unit:
    """A word, or a character of a script without spaces: its position in the text, and its normalized form."""

    start: int
    key: str


class WhisperAligner:
    """Aligner that divides texts among segments with a Whisper model."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        assert isinstance(checkpoint.tokenizer, WhisperTokenizer)
        self._engine = Engine(checkpoint.model.eval(), "auto")
        self._tokenizer = checkpoint.tokenizer
        self._search = SearchConfig(beam_size=None, best_of=None, temperature_increment_on_fallback=None)

    def split_text(
        self, waveform: np.ndarray, text: str, max_seconds: float, language: str | None
    ) -> list[Part] | None:
        """Cut a waveform (N,) at pauses and return the segments with words of `text`; None if there are no words."""
        window = self._engine.config.longest_samples or WINDOW_SAMPLES
        longest = min(max_seconds, window / SAMPLE_RATE_HZ)
        pieces = list(split_at_pauses(rechunk([waveform], BLOCK_SAMPLES), longest))
        units = units_of(text)
        if not pieces or not any(unit.key for unit in units):
            return None
        return divided(pieces, self._transcribed(pieces, language), text, units)

    @torch.inference_mode()
    def _transcribed(self, pieces: Sequence[AudioSegment], language: str | None) -> list[str]:
        """Return the greedy transcript of each segment, in the given language or that of the first segments."""
        tokenizer = self._tokenizer.for_language(language)
        reader = WhisperDecoder(self._engine, tokenizer, self._search, LongformConfig())
        texts: list[str] = []
        for first in range(0, len(pieces), BATCH_PIECES):
            batch = [torch.from_numpy(piece.waveform) for piece in pieces[first : first + BATCH_PIECES]]
            memory = self._engine.encode([input_mel(wave, self._engine.config) for wave in batch])
            if not first and reader.tokenizer.policy.language is None:
                found = reader.languages(memory)
                reader.tokenizer = tokenizer.speaking(max(found, key=found.count))
            prompts = [reader.prompt(timestamps=False)] * len(batch)
            texts += [answer.text for answer in reader.answers(memory, prompts, timestamps=False)]
        return texts


def units_of(text: str) -> list[Unit]:
    """Return the units for alignment: words, or characters in scripts without spaces."""
    starts = []
    for place, char in enumerate(text):
        alone = _is_spaceless(char) and not unicodedata.category(char).startswith("M")
        after = place > 0 and (text[place - 1].isspace() or _is_spaceless(text[place - 1]))
        if not char.isspace() and (place == 0 or alone or (after and not _is_spaceless(char))):
            starts.append(place)
    ends = [*starts[1:], len(text)] if starts else []
    return [Unit(start, _key(text[start:end])) for start, end in zip(starts, ends, strict=True)]


def _is_spaceless(char: str) -> bool:
    return any(first <= char <= last for first, last in SPACELESS)


def _key(word: str) -> str:
    return "".join(char for char in unicodedata.normalize("NFKC", word).casefold() if char.isalnum())


def divided(pieces: Sequence[AudioSegment], transcripts: Sequence[str], text: str, units: Sequence[Unit]) -> list[Part]:
    """Return the segments with their parts of `text`, by aligning its units with those of the transcripts.

    The confidence of a segment is the share of letters in units that agree on both sides.
    """
    from rapidfuzz.distance import Levenshtein

    spoken = [(key, place) for place, piece in enumerate(transcripts) for unit in units_of(piece) if (key := unit.key)]
    written = [index for index, unit in enumerate(units) if unit.key]
    known: dict[int, int] = {}  # unit index → segment index
    agreed = np.zeros(len(pieces))
    for step in Levenshtein.opcodes([units[index].key for index in written], [key for key, _ in spoken]):
        if step.tag in ("equal", "replace"):
            for index, (key, place) in zip(
                written[step.src_start : step.src_end], spoken[step.dest_start :], strict=False
            ):
                known[index] = place
                similarity = Levenshtein.normalized_similarity(units[index].key, key)
                agreed[place] += len(key) * similarity if similarity >= LEAST_SIMILARITY else 0
    if not known:
        return []
    homes = np.rint(np.interp(range(len(units)), list(known), list(known.values()))).astype(int)
    letters = np.zeros((2, len(pieces)))
    for side, placed in enumerate((zip((unit.key for unit in units), homes, strict=True), spoken)):
        for key, place in placed:
            letters[side, place] += len(key)
    fit = agreed / np.maximum(letters.max(axis=0), 1)
    return _parts(pieces, text, units, homes.tolist(), fit.tolist())


def _parts(
    pieces: Sequence[AudioSegment], text: str, units: Sequence[Unit], homes: Sequence[int], fit: Sequence[float]
) -> list[Part]:
    parts = []
    for place, group in itertools.groupby(range(len(units)), lambda index: homes[index]):
        indices = list(group)
        end = units[indices[-1] + 1].start if indices[-1] + 1 < len(units) else len(text)
        words = " ".join(text[units[indices[0]].start : end].split())
        seconds = len(pieces[place].waveform) / SAMPLE_RATE_HZ
        start = round(pieces[place].start_seconds, 3)
        parts.append(Part(start, round(seconds, 3), words, round(fit[place], 4)))
    return parts
