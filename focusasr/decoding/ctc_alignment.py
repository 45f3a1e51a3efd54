"""Word times by CTC forced alignment, with word edges from loudness.

CTC's tokens are spikes: they locate a word, but hardly its start and end. So a word extends before its first spike and
after its last one as long as the audio stays loud, at most to its neighbor's spikes.

Letters: T encoder steps, V vocabulary, F mel frames, M mel bands, L tokens.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from focusasr.audio.mel_stream import FRAMES_PER_SECOND
from focusasr.runtime.libraries import library
from focusasr.text.tokenizer import Tokenizer

# Chosen on joined clips of FSDD's and AN4's dev speakers, clean and in noise.
LOUD = 0.2  # share of the decibels between the quietest and the loudest frame around a word: louder frames are sound
DEEPEST_DB = 60.0  # largest depth of quiet below a word
DIP_FRAMES = 4  # shorter quiet is part of a word: the closure before a p, t or k
INWARD_FRAMES = 12  # search range inside a word for its sound, from a spike in silence


class Span(NamedTuple):
    """A token on CTC's best path for a text: encoder steps from `start` up to `end`, mean probability."""

    start: int
    end: int
    probability: float


class Word(NamedTuple):
    """A word, its start and end in seconds, and the mean probability of its tokens."""

    text: str
    start: float
    end: float
    probability: float


def align(log_probs: Tensor, tokens: Sequence[int], blank: int) -> list[Span] | None:
    """Return the span of each token on the best CTC path for `tokens`, log_probs (T, V).

    None if there is no such path: the audio is too short for the tokens, or `blank` is among them.
    """
    repeats = sum(before == after for before, after in itertools.pairwise(tokens))
    if not tokens or blank in tokens or len(tokens) + repeats > len(log_probs):
        return None
    forced_align, merge_tokens = load_aligner()
    path, scores = forced_align(log_probs[None].float().cpu(), torch.tensor([list(tokens)]), blank=blank)
    merged = merge_tokens(path[0], scores[0].exp(), blank=blank)
    return [Span(one.start, one.end, float(one.score)) for one in merged]


def load_aligner() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return torchaudio's `forced_align` and `merge_tokens`; LibraryError if they cannot be imported."""
    with library("torchaudio"):  # takes 0.1 s, so only if word times are requested
        from torchaudio.functional import forced_align, merge_tokens
    return forced_align, merge_tokens


def word_times(
    log_probs: Tensor, mel: Tensor, tokens: Sequence[int], tokenizer: Tokenizer, step_seconds: float
) -> list[Word]:
    """Return the words of `tokens` with their times, in order and without overlap.

    log_probs (T, V), one row per encoder step, and mel (F, M) are of the same audio. If it is too short for so many
    tokens, the words share it in proportion to their lengths, with probability 0.
    """
    words = tokenizer.decode(tokens).split()
    if not words:
        return []
    spans = align(log_probs, tokens, tokenizer.blank)
    if spans is None:
        return _shared_out(words, len(mel))
    members: list[list[Span]] = [[] for _ in words]
    for word, span in zip(_words_of_tokens(tokens, tokenizer), spans, strict=True):
        if word is not None:
            members[word].append(span)
    step_frames = round(step_seconds * FRAMES_PER_SECOND)
    cores = np.array([(own[0].start * step_frames, min(own[-1].end * step_frames, len(mel))) for own in members])
    edges = _edges(loudness_db(mel), cores) / FRAMES_PER_SECOND
    return [
        Word(text, float(start), float(end), float(np.mean([span.probability for span in own])))
        for text, (start, end), own in zip(words, edges, members, strict=True)
    ]


def _words_of_tokens(tokens: Sequence[int], tokenizer: Tokenizer) -> list[int | None]:
    """Return the index of the word that each token belongs to; None for tokens without text, such as spaces."""
    places: list[int | None] = []
    before = ""
    for count in range(1, len(tokens) + 1):
        text = tokenizer.decode(tokens[:count])
        places.append(len(text.split()) - 1 if text != before else None)
        before = text
    return places


def _shared_out(words: list[str], frames: int) -> list[Word]:
    ends = np.cumsum([len(word) for word in words])
    ends = ends / ends[-1] * frames / FRAMES_PER_SECOND
    return [
        Word(word, float(start), float(end), 0.0)
        for word, start, end in zip(words, [0.0, *ends[:-1]], ends, strict=True)
    ]


def loudness_db(mel: Tensor) -> np.ndarray:
    """Return the power of each frame (F,) of a log-mel spectrogram (F, M) in decibels, up to a constant."""
    nepers = 4 * math.log(10) * mel.float().cpu()  # of power; 4 reverts the scale of `log_mel`
    return (10 / math.log(10) * nepers.logsumexp(dim=1)).numpy()


def _edges(levels_db: np.ndarray, cores: np.ndarray) -> np.ndarray:
    """Return start and end of each word (n, 2), in frames, from the frames of its first and last spike (n, 2)."""
    edges = cores.astype(float)
    for index, (start, end) in enumerate(cores):
        before = cores[index - 1, 1] if index else 0
        after = cores[index + 1, 0] if index + 1 < len(cores) else len(levels_db)
        edges[index, 0] -= _reach(levels_db[before:end][::-1], end - start)
        edges[index, 1] += _reach(levels_db[start:after], end - start)
    for index in range(len(cores) - 1):
        if edges[index, 1] > edges[index + 1, 0]:
            edges[index, 1] = edges[index + 1, 0] = _quietest(levels_db, cores[index, 1], cores[index + 1, 0])
    return edges


def _reach(levels_db: np.ndarray, core: int) -> int:
    """Return how many frames the sound continues after the first `core` ones, at most to the neighbor; may be < 0."""
    peak = levels_db[:core].max()
    floor = max(levels_db[core - 1 :].min(), peak - DEEPEST_DB)
    loud = levels_db >= floor + LOUD * (peak - floor)
    inside = np.flatnonzero(loud[max(0, core - INWARD_FRAMES) : core])
    if not len(inside):
        return 0
    end = max(0, core - INWARD_FRAMES) + int(inside[-1]) + 1
    for frame in end + np.flatnonzero(loud[end:]):
        if frame - end >= DIP_FRAMES:
            break
        end = int(frame) + 1
    return end - core


def _quietest(levels_db: np.ndarray, start: int, end: int) -> float:
    """Return the middle of the quietest three frames from `start` to `end`, the border of two adjacent words."""
    if start == end:
        return start
    threes = np.convolve(levels_db[start - 1 : end + 1], np.ones(3), mode="valid")
    return start + 0.5 + int(np.argmin(threes))
