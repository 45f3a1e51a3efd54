"""Logit filters: pure functions of the logits and the tokens so far.

Letters: B rows, L tokens since the prompt, V vocabulary. Filters and their order are openai/whisper's. Repetition
penalty and n-gram blocking, which it lacks, consider only tokens after the prompt.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from focusasr.decoding.whisper_prompts import forbidden_after


class LogitFilter(ABC):
    """A rule on logits (B, V), given the tokens (B, L) since the prompt."""

    @abstractmethod
    def apply(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """Return logits (B, V) after the rule; the input may be changed in place."""


def apply_rules(rules: Iterable[LogitFilter], logits: Tensor, tokens: Tensor) -> Tensor:
    """Return logits (B, V) after all rules in order; `tokens` (B, L) are the tokens since the prompt."""
    logits = logits.clone()
    for rule in rules:
        logits = rule.apply(logits, tokens)
    return logits


@functools.lru_cache(maxsize=32)
def _index(tokens: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(tokens, dtype=torch.long, device=device)


@dataclass(frozen=True)
class Suppress(LogitFilter):
    """Suppress tokens everywhere, or only as the first token with `at_start`."""

    tokens: tuple[int, ...]
    at_start: bool = False

    def apply(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """Return logits (B, V) with -inf at the tokens."""
        if self.at_start and tokens.shape[1]:
            return logits
        return logits.index_fill_(1, _index(self.tokens, logits.device), -torch.inf)


@dataclass(frozen=True)
class Timestamps(LogitFilter):
    """Keep timestamps valid: in pairs around text, never decreasing, forced if together likelier than any text token.

    `first` is the id of <|0.00|>, with all later times after it. `end` is the end token; all ids below it are text.
    `max_initial` is the latest first timestamp as an index, None for any.
    """

    first: int
    end: int
    no_timestamps: int
    max_initial: int | None = None

    def apply(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """Return logits (B, V) with -inf for tokens that would break the order of times."""
        logits[:, self.no_timestamps] = -torch.inf
        for row, said in enumerate(tokens.tolist()):
            for start, stop in forbidden_after(said, self.first, self.end, self.max_initial):
                logits[row, start:stop] = -torch.inf
        text = logits[:, : self.first].amax(dim=-1)
        timed = logits[:, self.first :].logsumexp(dim=-1) > text  # a sum over all tokens would be on both sides
        for row in timed.nonzero()[:, 0].tolist():  # few rows: a mask would pass over all logits
            logits[row, : self.first] = -torch.inf
        return logits


@dataclass(frozen=True)
class Continued(LogitFilter):
    """Apply rules to a text whose first tokens are given in the prompt."""

    opening: tuple[int, ...]
    rules: tuple[LogitFilter, ...]

    def apply(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """Return logits (B, V) after the rules, which take the opening for the first tokens."""
        opening = _index(self.opening, tokens.device).expand(len(tokens), -1)
        return apply_rules(self.rules, logits, torch.cat((opening, tokens), dim=1))


@dataclass(frozen=True)
class RepetitionPenalty(LogitFilter):
    """Make earlier tokens less likely: positive logits divided, negative ones multiplied (Keskar et al. 2019, 4.1)."""

    penalty: float

    def apply(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """Return logits (B, V), lower for earlier tokens if the penalty is above 1."""
        scores = logits.gather(1, tokens)
        return logits.scatter(1, tokens, torch.where(scores < 0, scores * self.penalty, scores / self.penalty))


@dataclass(frozen=True)
class NoRepeatNgram(LogitFilter):
    """Prevent a second occurrence of any sequence of `size` tokens."""

    size: int

    def apply(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """Return logits (B, V) with -inf for tokens that would repeat a sequence."""
        forbidden = torch.zeros_like(logits, dtype=torch.bool)
        for row, ids in enumerate(tokens.tolist()):
            forbidden[row, self._completions(ids)] = True
        return logits.masked_fill(forbidden, -torch.inf)

    def _completions(self, tokens: list[int]) -> list[int]:
        start = tokens[len(tokens) - self.size + 1 :]
        places = range(len(tokens) - self.size + 1)
        return [tokens[at + self.size - 1] for at in places if tokens[at : at + self.size - 1] == start]
