"""Word times by dynamic time warping over the cross-attention of alignment heads.

The method is openai/whisper's (whisper/timing.py). Letters: H alignment heads, L tokens, S encoder steps.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from focusasr.model.transformer import Decoder, EncoderOutput
from focusasr.runtime.devices import to_float64
from focusasr.text.whisper_tokenizer import WhisperTokenizer

MEDIAN_STEPS = 7
STEPS_PER_SECOND = 50
SPACELESS = {"zh", "ja", "th", "lo", "my", "yue"}  # languages without spaces between words


@dataclass
class TimedWord:
    """A word, its tokens, its times in seconds from the window's start, and the mean probability of its tokens."""

    word: str
    tokens: list[int]
    start: float
    end: float
    probability: float


@torch.inference_mode()
def align_words(
    decoder: Decoder, memory: EncoderOutput, text: Sequence[int], steps: int, tokenizer: WhisperTokenizer
) -> list[TimedWord]:
    """Return the words of a window's text tokens with their times; `memory` is the window's, with `steps` of audio."""
    if not text:
        return []
    opening = tokenizer.sot_sequence
    memory = memory._replace(states=memory.states.to(decoder.token_embedding.weight.dtype))
    tokens = [*opening, tokenizer.no_timestamps, *text, tokenizer.end]
    scores: list[Tensor] = []
    logits = decoder.logits(decoder.hidden(torch.tensor([tokens], device=memory.states.device), memory, scores))
    spoken = logits[0, len(opening) : len(opening) + len(text), : tokenizer.end].float().softmax(dim=-1)
    probabilities = spoken.gather(1, torch.tensor(text, device=spoken.device)[:, None])[:, 0].tolist()
    heads = torch.stack([scores[layer][0, head] for layer, head in tokenizer.whisper.alignment_heads])  # (H, L, S)
    matrix = smoothed(heads[:, :, :steps].float())[len(opening) : -1]
    rows, columns = warp(-to_float64(matrix).cpu().numpy())
    words, groups = split_words([*text, tokenizer.end], tokenizer)
    if len(groups) <= 1:
        return []
    starts = np.diff(rows, prepend=rows[0] - 1) > 0  # at the first step of each token
    times = columns[starts] / STEPS_PER_SECOND
    edges = np.cumsum([0, *(len(group) for group in groups[:-1])])
    return [
        TimedWord(word, group, times[begin], times[end], np.mean(probabilities[begin:end]))
        for word, group, begin, end in zip(words, groups, edges[:-1], edges[1:], strict=False)
    ]


def smoothed(scores: Tensor) -> Tensor:
    """Return the attention of each token to each step (L, S), from scores (H, L, S), standardized over tokens.

    Each head's weights are smoothed over time by a median filter of 7 steps, then averaged over heads.
    """
    weights = scores.softmax(dim=-1)
    deviation, mean = torch.std_mean(weights, dim=-2, keepdim=True, unbiased=False)
    weights = ((weights - mean) / deviation).nan_to_num()  # NaN if all tokens have the same weight at a step
    weights = median_filter(weights, MEDIAN_STEPS)
    return weights.mean(dim=0)


def median_filter(values: Tensor, steps: int) -> Tensor:
    """Return the running median of values (…, S) over an odd number of steps, mirrored at the edges.

    Values too short to be mirrored are returned unchanged.
    """
    reach = steps // 2
    if values.shape[-1] <= reach:
        return values
    padded = F.pad(values.reshape(1, -1, values.shape[-1]), (reach, reach), mode="reflect")
    return padded.unfold(-1, steps, 1).median(dim=-1).values.view(values.shape)


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
