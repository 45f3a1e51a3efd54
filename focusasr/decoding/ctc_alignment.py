"""When each word was said: CTC forced alignment finds its middle, the loudness of the sound its edges.

CTC's tokens are spikes: they tell where a word is, but hardly where it begins and ends. So a word reaches from its
first spike back, and from its last one on, as far as the sound stays loud, and at most to its neighbor's spikes.
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

from focusasr.audio.features import FRAMES_PER_SECOND
from focusasr.runtime.libraries import library
from focusasr.text.tokenizer import Tokenizer

# Chosen on joined clips of FSDD's and AN4's dev speakers, clean and in noise.
LOUD = 0.2  # of the way, in decibels, from the quietest frame around a word to its loudest: above it there is sound
DEEPEST_DB = 60.0  # quiet further below a word than this is no quieter
DIP_FRAMES = 4  # quiet as short as this lies inside a word: the closure before a p, t or k
INWARD_FRAMES = 12  # how far from a spike that stands in silence its word is looked for, inside the word


class Span(NamedTuple):
    """Where CTC's best path for a text says a token: encoder steps from `start` up to `end`, mean probability."""

    start: int
    end: int
    probability: float


class Word(NamedTuple):
    """A word, when it was said in seconds, and the mean probability of its tokens."""

    text: str
    start: float
    end: float
    probability: float


def align(log_probs: Tensor, tokens: Sequence[int], blank: int) -> list[Span] | None:
    """Return the span of each token on the best CTC path for `tokens`, log_probs (T, V).

    None where there is no such path: the sound is too short for the tokens, or `blank` is among them.
    """
    repeats = sum(before == after for before, after in itertools.pairwise(tokens))
    if not tokens or blank in tokens or len(tokens) + repeats > len(log_probs):
        return None
    forced_align, merge_tokens = load_aligner()
    path, scores = forced_align(log_probs[None].float().cpu(), torch.tensor([list(tokens)]), blank=blank)
    merged = merge_tokens(path[0], scores[0].exp(), blank=blank)
    return [Span(one.start, one.end, float(one.score)) for one in merged]


def load_aligner() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return torchaudio's `forced_align` and `merge_tokens`; LibraryError if they do not load."""
    with library("torchaudio"):  # a tenth of a second, for those who ask for times
        from torchaudio.functional import forced_align, merge_tokens
    return forced_align, merge_tokens


def word_times(
    log_probs: Tensor, mel: Tensor, tokens: Sequence[int], tokenizer: Tokenizer, step_seconds: float
) -> list[Word]:
    """Return the words of `tokens` and when they were said, in order and without overlap.

    log_probs (T, V), a row per encoder step, and mel (F, M) are of the same sound. Where it is too short for so many
    tokens, the words share it by their length, with probability 0.
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
    """Return which word each token writes to; None for spaces and whatever else leaves no trace in the text."""
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
    """Return the power of each frame (F,) of a log-mel spectrogram (F, M) in decibels; only differences count."""
    nepers = 4 * math.log(10) * mel.float().cpu()  # of power; 4 undoes the scale of `log_mel`
    return (10 / math.log(10) * nepers.logsumexp(dim=1)).numpy()


def _edges(levels_db: np.ndarray, cores: np.ndarray) -> np.ndarray:
    """Return start and end of each word (n, 2), in frames, for the frames from its first to its last spike (n, 2)."""
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
    """Return how many frames the sound goes on behind the first `core` ones, to the neighbor at most; it may be < 0."""
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
    """Return the middle of the quietest three frames from `start` to `end`, where two words touch."""
    if start == end:
        return start
    threes = np.convolve(levels_db[start - 1 : end + 1], np.ones(3), mode="valid")
    return start + 0.5 + int(np.argmin(threes))
