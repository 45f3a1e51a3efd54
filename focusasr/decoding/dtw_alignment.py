"""Word times by dynamic time warping over the cross-attention of alignment heads.

The method is openai/whisper's (whisper/timing.py). Letters: H alignment heads, L tokens, S encoder steps.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from focusasr.text.whisper_tokenizer import WhisperTokenizer

MEDIAN_STEPS = 7
STEPS_PER_SECOND = 50
SPACELESS = {"zh", "ja", "th", "lo", "my", "yue"}  # languages without spaces between words

# A model's decoder over a window: tokens (L,) → logits (L, V) of the next tokens, and the scores (H, L, S) of alignment
# heads before softmax.
Attend = Callable[[list[int]], tuple[np.ndarray, np.ndarray]]


@dataclass
class TimedWord:
    """A word, its tokens, its times in seconds from the window's start, and the mean probability of its tokens."""

    word: str
    tokens: list[int]
    start: float
    end: float
    probability: float


def align_words(attend: Attend, text: Sequence[int], steps: int, tokenizer: WhisperTokenizer) -> list[TimedWord]:
    """Return the words of a window's text tokens with their times; the window has `steps` of audio."""
    if not text:
        return []
    opening = tokenizer.sot_sequence
    logits, scores = attend([*opening, tokenizer.no_timestamps, *text, tokenizer.end])
    spoken = _softmax(logits[len(opening) : len(opening) + len(text), : tokenizer.end])
    probabilities = spoken[np.arange(len(text)), text]
    rows, columns = warp(-smoothed(scores[:, :, :steps])[len(opening) : -1].astype(np.float64))
    words, groups = split_words([*text, tokenizer.end], tokenizer)
    if len(groups) <= 1:
        return []
    starts = np.diff(rows, prepend=rows[0] - 1) > 0  # at the first step of each token
    times = columns[starts] / STEPS_PER_SECOND
    edges = np.cumsum([0, *(len(group) for group in groups[:-1])])
    return [
        TimedWord(word, group, times[begin], times[end], float(np.mean(probabilities[begin:end])))
        for word, group, begin, end in zip(words, groups, edges[:-1], edges[1:], strict=False)
    ]


def _softmax(scores: np.ndarray) -> np.ndarray:
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def smoothed(scores: np.ndarray) -> np.ndarray:
    """Return the attention of each token to each step (L, S), from scores (H, L, S), standardized over tokens.

    Each head's weights are smoothed over time by a median filter of 7 steps, then averaged over heads.
    """
    weights = _softmax(scores)
    with np.errstate(divide="ignore", invalid="ignore"):
        weights = (weights - weights.mean(axis=-2, keepdims=True)) / weights.std(axis=-2, keepdims=True)
    weights = np.nan_to_num(weights)  # NaN if all tokens have the same weight at a step
    return median_filter(weights, MEDIAN_STEPS).mean(axis=0)


def median_filter(values: np.ndarray, steps: int) -> np.ndarray:
    """Return the running median of values (…, S) over an odd number of steps, mirrored at the edges.

    Values too short to be mirrored are returned unchanged.
    """
    reach = steps // 2
    if values.shape[-1] <= reach:
        return values
    padded = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(reach, reach)], mode="reflect")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, steps, axis=-1), axis=-1)


def warp(costs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the cheapest path through costs (L, S) as rows and columns; each move is down, right, or both.

    Sums are float32 and ties are broken as in openai/whisper. Each diagonal is computed at once.
    """
    height, width = costs.shape
    total = np.full((height + 1, width + 1), np.inf, np.float32)
    total[0, 0] = 0
    moves = np.full((height + 1, width + 1), 2, np.int8)  # 0: both, 1: down, 2: right
    moves[:, 0] = 1
    moves[0, :] = 2
    for diagonal in range(2, height + width + 1):
        row = np.arange(max(1, diagonal - width), min(height, diagonal - 1) + 1)
        column = diagonal - row
        both, down, right = total[row - 1, column - 1], total[row - 1, column], total[row, column - 1]
        diagonally, downward = (both < down) & (both < right), (down < both) & (down < right)
        best = np.where(diagonally, both, np.where(downward, down, right))
        moves[row, column] = np.where(diagonally, 0, np.where(downward, 1, 2))
        total[row, column] = costs[row - 1, column - 1] + best
    return _path(moves)


def _path(moves: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    row, column = moves.shape[0] - 1, moves.shape[1] - 1
    path = []
    while row > 0 or column > 0:
        path.append((row - 1, column - 1))
        move = moves[row, column]
        row, column = row - (move != 2), column - (move != 1)
    rows, columns = np.array(path[::-1]).T
    return rows, columns


def split_words(tokens: Sequence[int], tokenizer: WhisperTokenizer) -> tuple[list[str], list[list[int]]]:
    """Return words and their tokens, split at spaces and marks, or at each character in languages without spaces."""
    pieces, groups = split_characters(tokens, tokenizer)
    if tokenizer.policy.language in SPACELESS:
        return pieces, groups
    words: list[str] = []
    word_groups: list[list[int]] = []
    for piece, group in zip(pieces, groups, strict=True):
        begins = group[0] >= tokenizer.end or piece.startswith(" ") or piece.strip() in string.punctuation
        if begins or not words:
            words.append(piece)
            word_groups.append(list(group))
        else:
            words[-1] += piece
            word_groups[-1] += group
    return words, word_groups


def split_characters(tokens: Sequence[int], tokenizer: WhisperTokenizer) -> tuple[list[str], list[list[int]]]:
    """Return the smallest groups of tokens that decode to whole characters, and their text."""
    whole = tokenizer.decode_with_specials(tokens)
    pieces: list[str] = []
    groups: list[list[int]] = []
    held: list[int] = []
    place = 0
    for token in tokens:
        held.append(token)
        piece = tokenizer.decode_with_specials(held)
        broken = piece.find("\ufffd")
        if broken < 0 or whole[place + broken : place + broken + 1] == "\ufffd":
            pieces.append(piece)
            groups.append(held)
            held = []
            place += len(piece)
    return pieces, groups
