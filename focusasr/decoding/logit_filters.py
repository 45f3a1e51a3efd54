"""What a decoder may not say next: rules on logits, each a pure function of the logits and of the tokens so far.

Letters: B rows, L tokens since the prompt, V vocabulary. The rules and their order are those of openai/whisper's
decoding; repetition penalty and n-grams, which it lacks, look at these tokens, never at the prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

LogitFilter = Callable[[Tensor, Tensor], Tensor]  # logits (B, V) and the tokens (B, L) → logits (B, V)


def apply_rules(rules: Iterable[LogitFilter], logits: Tensor, tokens: Tensor) -> Tensor:
    """Return logits (B, V) after all rules, one after the other; `tokens` (B, L) are the tokens since the prompt."""
    for rule in rules:
        logits = rule(logits, tokens)
    return logits


@dataclass(frozen=True)
class Suppress:
    """Some tokens never come; with `at_start` they only never come first."""

    tokens: tuple[int, ...]
    at_start: bool = False

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """Return logits (B, V) with -inf at the tokens."""
        if self.at_start and tokens.shape[1]:
            return logits
        return logits.index_fill(1, torch.tensor(self.tokens, dtype=torch.long, device=logits.device), -torch.inf)


@dataclass(frozen=True)
class Timestamps:
    """Timestamps come in pairs around text, never go back, and come first where together they outweigh any text.

    `first` is the id of <|0.00|>, with all later times after it; `end` that of the end token, below which all tokens
    are text; `max_initial` is the latest first timestamp, counted in timestamps, None for any.
    """

    first: int
    end: int
    no_timestamps: int
    max_initial: int | None = None

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """Return logits (B, V) with -inf where a token would break the order of time."""
        logits = logits.masked_fill(self._forbidden(tokens, logits.shape[1]), -torch.inf)
        log_probs = logits.float().log_softmax(dim=-1)
        timed = log_probs[:, self.first :].logsumexp(dim=-1) > log_probs[:, : self.first].max(dim=-1).values
        text = torch.arange(logits.shape[1], device=logits.device) < self.first
        return logits.masked_fill(timed[:, None] & text, -torch.inf)

    def _forbidden(self, tokens: Tensor, vocabulary: int) -> Tensor:
        """Return which tokens (B, V) may not follow."""
        ids = torch.arange(vocabulary, device=tokens.device)
        times = ids >= self.first
        forbidden = (ids == self.no_timestamps).expand(len(tokens), -1)
        if tokens.shape[1] == 0:
            late = ids > (vocabulary if self.max_initial is None else self.first + self.max_initial)
            return forbidden | ~times | late
        was_time = tokens >= self.first
        last = was_time[:, -1:]
        before = was_time[:, -2:-1] if tokens.shape[1] > 1 else torch.ones_like(last)
        forbidden = forbidden | (last & before & times) | (last & ~before & (ids < self.end))
        places = torch.arange(1, tokens.shape[1] + 1, device=tokens.device) * was_time
        latest = tokens.gather(1, places.argmax(dim=1, keepdim=True))  # of rows with a timestamp
        earliest = torch.where(last & ~before, latest, latest + 1)  # the end of a stretch may start the next one
        return forbidden | (was_time.any(dim=1, keepdim=True) & times & (ids < earliest))


@dataclass(frozen=True)
class RepetitionPenalty:
    """Earlier tokens become less likely: logits divided, negative ones multiplied (Keskar et al. 2019, 4.1)."""

    penalty: float

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """Return logits (B, V), lower at these tokens where the penalty is above 1."""
        if tokens.shape[1] == 0:
            return logits
        scores = logits.gather(1, tokens)
        return logits.scatter(1, tokens, torch.where(scores < 0, scores * self.penalty, scores / self.penalty))


@dataclass(frozen=True)
class NoRepeatNgram:
    """No sequence of `size` tokens comes twice."""

    size: int

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """Return logits (B, V) with -inf at tokens that would complete a sequence for the second time."""
        forbidden = torch.zeros_like(logits, dtype=torch.bool)
        for row, ids in enumerate(tokens.tolist()):
            forbidden[row, self._completions(ids)] = True
        return logits.masked_fill(forbidden, -torch.inf)

    def _completions(self, tokens: list[int]) -> list[int]:
        if len(tokens) < self.size:
            return []
        start = tokens[len(tokens) - self.size + 1 :]
        places = range(len(tokens) - self.size + 1)
        return [tokens[at + self.size - 1] for at in places if tokens[at : at + self.size - 1] == start]
