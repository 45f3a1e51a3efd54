"""Greedy decoding that verifies many tokens of a draft in one pass.

The decoder reads its last token and the draft's next tokens in one pass. Draft tokens are accepted as long as they are
the decoder's own choice. At the first difference the decoder's token is taken, and the draft continues after it. The
text is that of plain greedy decoding, token for token, for any draft (Leviathan et al. 2023, section 2, for a
temperature of 0). Without drafts this is plain greedy decoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from focusasr.model.decoding_state import DecodingState
from focusasr.model.engine import Engine
from focusasr.model.transformer import EncoderOutput
from focusasr.text.tokenizer import Tokenizer

LOOK_FOR = (1, -1, 2, -2, 3)  # offsets in the draft, from the rejected token, at which the decoder's token is searched
FIRST_AFTER_DOUBT = 4  # draft tokens in a pass, when the draft agrees again


class DecoderResult(NamedTuple):
    """One text: token ids without the end, log P(tokens, end), that of the draft, and its number of passes."""

    tokens: list[int]
    score: float
    draft_score: float  # NaN if the draft was not scored: it was empty or too long
    passes: int
    ended: bool = True  # False if it is unfinished


@dataclass
class _Row:
    """One unfinished text."""

    draft: list[int]
    limit: int  # maximum number of tokens
    width: int  # draft tokens of the next pass
    at: int = 0  # position in the draft
    tokens: list[int] = field(default_factory=list)
    score: float = 0.0
    draft_score: float = float("nan")
    passes: int = 0
    done: bool = False

    def guess(self) -> list[int]:
        """Return the draft tokens to verify in the next pass."""
        return self.draft[self.at : self.at + min(self.width, self.limit - len(self.tokens))]

    def accept(self, guess: list[int], choices: list[int], scores: list[float], ends: list[float], end: int) -> int:
        """Append the accepted tokens and the decoder's next token; return how many inputs of this pass stay valid."""
        self.passes += 1
        agreed = 0
        while agreed < len(guess) and choices[agreed] == guess[agreed] != end:
            agreed += 1
        own, score = choices[agreed], scores[agreed]
        self.tokens += guess[:agreed]
        if len(self.tokens) >= self.limit and own != end:
            own, score = end, ends[agreed]
        self.score += sum(scores[:agreed]) + score
        self.done = own == end
        if not self.done:
            self.tokens.append(own)
            self._go_on(own, agreed, len(guess))
        return agreed + 1

    def _go_on(self, own: int, agreed: int, ventured: int) -> None:
        """Move the draft past the decoder's own token, and adapt the width of the next pass."""
        self.at += agreed
        fits = self.at < len(self.draft) and self.draft[self.at] == own
        if agreed == ventured and fits:
            self.at += 1
        else:
            near = [self.at + step for step in LOOK_FOR if 0 <= self.at + step < len(self.draft)]
            self.at = next((place + 1 for place in near if self.draft[place] == own), self.at)  # else not in the draft
        if agreed == ventured:
            self.width = max(FIRST_AFTER_DOUBT, 2 * self.width) if fits or ventured else 0
        elif agreed < ventured // 4:
            self.width = ventured // 4


@torch.inference_mode()
def greedy(
    engine: Engine,
    memory: EncoderOutput,
    tokenizer: Tokenizer,
    drafts: Sequence[Sequence[int]],
    most_passes: int | None = None,
) -> list[DecoderResult]:
    """Take the decoder's likeliest token until the end token, for each row of memory, with a draft for each.

    The length of a text is limited by the number of encoder steps (no CTC alignment could be longer) and by
    `text_context`. Finished rows leave the batch. After `most_passes` the remaining texts are returned unfinished.
    """
    *opening, last = tokenizer.prompt
    limits = memory.lengths().clamp(max=engine.config.text_context - len(opening) - 2).tolist()
    rows = [_Row(list(draft), limit, len(draft)) for draft, limit in zip(drafts, limits, strict=True)]
    state = engine.start(memory)
    if opening:
        engine.advance(torch.tensor([opening], device=engine.device).expand(len(rows), -1), state)
    here, passes = list(rows), 0
    while True:
        _pass(engine, state, here, (last, tokenizer.end), first=passes == 0)
        passes += 1
        active = [index for index, row in enumerate(here) if not row.done]
        if not active or passes == most_passes:
            return [DecoderResult(row.tokens, row.score, row.draft_score, row.passes, row.done) for row in rows]
        if len(active) <= 0.75 * len(here):  # each removal copies the remaining rows
            state.select(active)
            here = [here[index] for index in active]


def _pass(engine: Engine, state: DecodingState, rows: list[_Row], edges: tuple[int, int], first: bool) -> None:
    """Verify the guesses of all rows in one decoder pass; `edges` are the token before a text and the end token."""
    start, end = edges
    guesses = [[] if row.done else row.guess() for row in rows]
    length = 1 + max(map(len, guesses))
    lasts = [row.tokens[-1] if row.tokens else start for row in rows]
    padded = [guess + [end] * (length - 1 - len(guess)) for guess in guesses]
    inputs = [[last, *guess] for last, guess in zip(lasts, padded, strict=True)]
    before = list(state.lengths)
    logits = engine.advance(torch.tensor(inputs, device=engine.device), state).float()
    scores, choices = logits.max(dim=-1)
    totals = logits.logsumexp(dim=-1)
    ends = logits[..., end] - totals
    if first:
        _score_drafts(rows, guesses, logits, totals, ends)
    chosen, scored, ended = choices.tolist(), (scores - totals).tolist(), ends.tolist()
    for index, (row, guess) in enumerate(zip(rows, guesses, strict=True)):
        if not row.done:
            before[index] += row.accept(guess, chosen[index], scored[index], ended[index], end)
    furthest = max([length for length, row in zip(before, rows, strict=True) if not row.done], default=0)
    state.lengths = [furthest if row.done else length for length, row in zip(before, rows, strict=True)]


def _score_drafts(rows: list[_Row], guesses: list[list[int]], logits: Tensor, totals: Tensor, ends: Tensor) -> None:
    """Store log P(draft, end) of each draft that the first pass read completely."""
    for index, (row, guess) in enumerate(zip(rows, guesses, strict=True)):
        if guess and len(guess) == len(row.draft):
            places = torch.arange(len(guess), device=logits.device)
            chosen = logits[index, places, torch.tensor(guess, device=logits.device)] - totals[index, : len(guess)]
            row.draft_score = float(chosen.sum() + ends[index, len(guess)])
