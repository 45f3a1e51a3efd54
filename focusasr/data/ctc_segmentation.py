"""Segmentation of long recordings at pauses, with texts divided by CTC forced alignment.

The whole text is aligned with the whole recording at once, so errors in one segment cannot shift the text of the next.
Each word goes to the segment that contains its middle.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from focusasr.audio.features import log_mel, stack
from focusasr.audio.load import known_seconds, load, rechunk, stream
from focusasr.audio.segmentation import AudioSegment, split_at_pauses
from focusasr.config import SAMPLE_RATE_HZ, PreprocessConfig
from focusasr.data.corpus import CorpusUtterance, Reject
from focusasr.data.whisper_segmentation import Part, WhisperAligner
from focusasr.decoding.ctc_alignment import Span, align
from focusasr.model.checkpoint import Checkpoint, load_checkpoint
from focusasr.model.checkpoint_folder import fingerprint_of_model
from focusasr.runtime.cache import file_state
from focusasr.runtime.errors import InputError
from focusasr.runtime.files import append_line, read_keyed
from focusasr.runtime.libraries import explain
from focusasr.text.tokenizer import Tokenizer
from focusasr.text.whisper_tokenizer import WhisperTokenizer

LONGEST_SECONDS = 1800.0  # the alignment's memory grows with the square of the length
BLOCK_SAMPLES = 30 * SAMPLE_RATE_HZ
JOURNAL = ".alignment.jsonl"


class Splitter:
    """Splitter of utterances longer than `split_seconds`; alignments are cached per checkpoint."""

    def __init__(self, folder: Path, checkpoint_folder: Path, config: PreprocessConfig) -> None:
        assert config.split_seconds is not None
        self._limit, self._config = config.split_seconds, config
        self._folder, self._checkpoint = folder, load_checkpoint(checkpoint_folder)
        is_whisper = isinstance(self._checkpoint.tokenizer, WhisperTokenizer)
        if self._checkpoint.model.ctc_head is None and not is_whisper:
            raise InputError(f"{checkpoint_folder}: has no CTC head to align with. Use another --align-with.")
        self._whisper = WhisperAligner(self._checkpoint) if is_whisper else None
        self._decided_by = f"{fingerprint_of_model(checkpoint_folder)} {self._limit}"
        self._known = read_keyed(folder / JOURNAL, names=("parts",))

    def split(self, readings: Iterable[CorpusUtterance | Reject]) -> Iterator[CorpusUtterance | Reject]:
        """Yield the items in order, long utterances as segments; segments that fit their words badly become rejects."""
        for reading in readings:
            if isinstance(reading, Reject) or not self._is_long(reading):
                yield reading
                continue
            try:
                parts = self._parts(reading)
            except (InputError, OSError) as error:
                if failure := explain(error):
                    raise failure from error
                yield reading.reject("unreadable", str(error))
                continue
            yield from self._as_readings(reading, parts)

    def _is_long(self, reading: CorpusUtterance) -> bool:
        source = reading.source(self._config.channel)
        seconds = known_seconds(source)
        if seconds is None:  # not in the header
            with contextlib.suppress(InputError):  # an unreadable file becomes a reject later
                seconds = sum(map(len, stream(source))) / SAMPLE_RATE_HZ
        return seconds is not None and seconds > self._limit

    def _parts(self, reading: CorpusUtterance) -> list[Part]:
        one, channel = reading.utterance, reading.source(self._config.channel).channel
        state = json.dumps(file_state(reading.audio), sort_keys=True)
        spoken = f" {one.language}" if self._whisper and one.language else ""
        whole = f"{self._decided_by} {channel} {state} {one.offset} {one.duration} {one.text}{spoken}"
        key = hashlib.sha256(whole.encode(errors="backslashreplace")).hexdigest()
        if key in self._known:
            return [Part(**part) for part in self._known[key]["parts"]]
        parts = self._align(reading)
        append_line(self._folder / JOURNAL, {"key": key, "parts": [vars(part) for part in parts]})
        return parts

    def _align(self, reading: CorpusUtterance) -> list[Part]:
        one = reading.utterance
        waveform = load(reading.source(self._config.channel))
        seconds = len(waveform) / SAMPLE_RATE_HZ
        if self._whisper:
            parts = self._whisper.split_text(waveform, one.text, self._limit, one.language)
        elif seconds > LONGEST_SECONDS:
            told = f"{seconds:.0f} s of audio are too long to align (at most {LONGEST_SECONDS:.0f} s)"
            raise InputError(f"{reading.where}: {told}. Cut it in two, with the text of each.")
        else:
            parts = split_text(self._checkpoint, waveform, one.text, self._limit)
        if not parts:
            problem = f"its text does not fit {seconds:.1f} s of audio: too long, or in letters unknown to the model"
            raise InputError(f"{reading.where}: {problem}. Check that it belongs to this recording.")
        return parts

    def _as_readings(self, reading: CorpusUtterance, parts: Sequence[Part]) -> Iterator[CorpusUtterance | Reject]:
        one = reading.utterance
        for part in parts:
            start = round(one.offset + part.start, 3)
            if part.confidence < self._config.min_confidence:
                seen = f"{part.confidence:.3f} is below min_confidence ({self._config.min_confidence:g})"
                reason = f"{reading.where}, at {start:.1f} s: text and audio fit badly ({seen})"
                yield Reject("poorly aligned", reason, reading.audio, part.text)
                continue
            extra = {**one.extra, "confidence": part.confidence}
            utterance = replace(one, offset=start, duration=part.duration, text=part.text, extra=extra)
            yield replace(reading, utterance=utterance, told_seconds=None)


@torch.inference_mode()
def split_text(checkpoint: Checkpoint, waveform: np.ndarray, text: str, max_seconds: float) -> list[Part] | None:
    """Cut a waveform (N,) at pauses and return the segments with words of `text`; None if the text does not fit."""
    model, tokenizer = checkpoint.model.eval(), checkpoint.tokenizer
    window = model.config.window_samples
    longest = min(max_seconds, window / SAMPLE_RATE_HZ) if window else max_seconds
    pieces = list(split_at_pauses(rechunk([waveform], BLOCK_SAMPLES), longest))
    words = text.split()
    tokens, owners = _tokens(words, tokenizer)
    emissions = []
    for piece in pieces:
        mel = log_mel(torch.from_numpy(piece.waveform), model.config.mel_bands, window)
        steps = math.ceil(len(piece.waveform) / SAMPLE_RATE_HZ / model.config.step_seconds)
        emissions.append(model.ctc_log_probs(model.encode(*stack([mel])))[0, :steps])  # (T, V), without padding
    spans = align(torch.cat(emissions), tokens, tokenizer.blank) if emissions else None
    if spans is None:
        return None
    ends = np.cumsum([len(emission) for emission in emissions])
    return _divided(pieces, ends, words, [(owner, span) for owner, span in zip(owners, spans, strict=True)])


def _tokens(words: Sequence[str], tokenizer: Tokenizer) -> tuple[list[int], list[int | None]]:
    """Return the tokens of a text and each token's word index, None for separators; unknown letters are left out."""
    tokens: list[int] = []
    owners: list[int | None] = []
    for index, word in enumerate(words):
        own = [token for token in tokenizer.encode(word) if token != tokenizer.unknown]
        between = tokenizer.separator if tokens and own else []
        tokens += [*between, *own]
        owners += [None] * len(between) + [index] * len(own)
    return tokens, owners


def _divided(
    pieces: Sequence[AudioSegment], ends: np.ndarray, words: Sequence[str], spans: Sequence[tuple[int | None, Span]]
) -> list[Part]:
    """Return the segments with their words; a word without tokens joins the previous one, or the first."""
    homes = np.full(len(words), -1)
    scores: list[list[float]] = [[] for _ in pieces]
    grouped: dict[int, list[Span]] = {}
    for owner, span in spans:
        if owner is not None:
            grouped.setdefault(owner, []).append(span)
    for index, own in grouped.items():
        homes[index] = min(np.searchsorted(ends, (own[0].start + own[-1].end) / 2, side="right"), len(pieces) - 1)
        scores[homes[index]] += [span.probability for span in own]
    homes[0] = homes[homes >= 0][0] if homes[0] < 0 else homes[0]
    homes = np.maximum.accumulate(homes)
    parts = []
    for place, piece in enumerate(pieces):
        text = " ".join(word for word, home in zip(words, homes, strict=True) if home == place)
        if text:
            confidence = round(sum(scores[place]) / max(1, len(scores[place])), 4)
            seconds = len(piece.waveform) / SAMPLE_RATE_HZ
            parts.append(Part(round(piece.start_seconds, 3), round(seconds, 3), text, confidence))
    return parts
