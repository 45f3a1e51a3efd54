"""Greedy search, sampling and beam search with an inference engine.

Letters: B utterances, R rows (an utterance has one per candidate), L tokens, V vocabulary. The options have the meaning
of openai/whisper's. Finished rows leave the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from focusasr.decoding.beams import Beams, BeamStep, Hypothesis, score
from focusasr.decoding.logit_filters import LogitFilter, apply_rules
from focusasr.model.decoding_state import DecodingState
from focusasr.model.engine import Engine
from focusasr.whisper_config import SearchConfig

SEED = 0  # of the samples of each utterance


@dataclass(frozen=True)
class StopCriteria:
    """The logit filters, the token that ends a text, and the maximum number of tokens of each utterance."""

    rules: Sequence[LogitFilter]
    end: int
    limits: Sequence[int]


def search(
    engine: Engine,
    state: DecodingState,
    logits: Tensor,
    goal: StopCriteria,
    options: SearchConfig,
    begun: Hypothesis | None = None,
) -> list[Hypothesis]:
    """Return the best text of each utterance; `state` follows its prompt, `logits` (B, V) are those of the first token.

    Temperature 0: beam search with `beam_size` beams (None: greedy) until `beam_size * patience` texts are complete.
    Above 0: the best of `best_of` samples. Candidates are compared by log probability per token, or, with
    `length_penalty` α, by log probability divided by ((5 + tokens) / 6) ** α (Wu et al. 2016, equation 14). The result
    does not depend on the batch. `begun` is the beginning of a single greedy text, which was read.
    """
    if options.temperature == 0 and options.beam_size is not None:
        found = _beams(engine, state, logits, goal, options.beam_size, options.patience)
    else:
        found = _sampled(engine, state, logits, goal, options, begun or Hypothesis([], 0.0))
    return [max(texts, key=lambda text: score(text, options.length_penalty)) for texts in found]


def _sampled(
    engine: Engine,
    state: DecodingState,
    logits: Tensor,
    goal: StopCriteria,
    options: SearchConfig,
    begun: Hypothesis,
) -> list[list[Hypothesis]]:
    """Return `best_of` samples of each utterance, or its greedy text at temperature 0."""
    utterances, device = len(logits), logits.device
    copies = (options.best_of or 1) if options.temperature > 0 else 1
    owners = torch.arange(utterances, device=device).repeat_interleave(copies)
    if copies > 1:
        state.select(owners.tolist())
        logits = logits[owners]
    chances = [torch.Generator(device).manual_seed(SEED) for _ in range(utterances)]
    said = torch.tensor([begun.tokens] * len(owners), dtype=torch.long, device=device).reshape(len(owners), -1)
    scores = torch.full((len(owners),), begun.log_prob, device=device)
    texts: list[list[Hypothesis]] = [[] for _ in range(utterances)]
    limits = torch.tensor(goal.limits, device=device)
    for step in range(said.shape[1], int(limits.max())):
        logits = apply_rules(goal.rules, logits.float(), said)
        tokens = _choose(logits, owners, chances, options.temperature)
        scores = scores + logits.gather(1, tokens)[:, 0] - logits.logsumexp(dim=-1)
        said = torch.cat((said, tokens), dim=1)
        done = (tokens[:, 0] == goal.end) | (limits[owners] == step + 1)
        for row in done.nonzero()[:, 0].tolist():
            text = [token for token in said[row].tolist() if token != goal.end]  # a full text has no end token
            texts[owners[row]].append(Hypothesis(text, float(scores[row])))
        going = (~done).nonzero()[:, 0]
        owners, scores, said = owners[going], scores[going], said[going]
        if not len(going):
            break
        if len(going) < len(done):
            state.select(going.tolist())
        logits = engine.advance(said[:, -1:], state)[:, -1]
    return texts


def _choose(logits: Tensor, owners: Tensor, chances: list[torch.Generator], temperature: float) -> Tensor:
    """Return the next token of each row (R, 1); every utterance samples with its own generator."""
    if temperature == 0:
        return logits.argmax(dim=-1, keepdim=True)
    probabilities = (logits / temperature).softmax(dim=-1)
    present, counts = owners.unique_consecutive(return_counts=True)
    shares = probabilities.split(counts.tolist())
    draws = [
        torch.multinomial(share, 1, generator=chances[owner])
        for owner, share in zip(present.tolist(), shares, strict=True)
    ]
    return torch.cat(draws)


def _beams(
    engine: Engine, state: DecodingState, logits: Tensor, goal: StopCriteria, size: int, patience: float | None
) -> list[list[Hypothesis]]:
    """Return the complete texts that a beam search finds for each utterance."""
    device = logits.device
    every = [Beams(size, round(size * (patience or 1.0)), limit) for limit in goal.limits]
    going = every
    said = torch.zeros(len(logits), 0, dtype=torch.long, device=device)
    scores = torch.zeros(len(logits), device=device)
    for step in range(max(beams.limit for beams in every)):
        logits = apply_rules(goal.rules, logits.float(), said)
        best, tokens = logits.topk(size + 1)
        best = best - logits.logsumexp(dim=-1, keepdim=True)
        totals = scores[:, None] + best
        chosen: list[BeamStep] = []
        left: list[Beams] = []
        first = 0
        for beams in going:
            here = slice(first, first + beams.rows)
            first = here.stop
            before = said[here].tolist()
            steps = beams.extend(totals[here].tolist(), tokens[here].tolist(), before, goal.end)
            if len(beams.complete) >= beams.wanted or step + 1 == beams.limit:
                beams.close(steps, before)
            else:
                left.append(beams)
                chosen += [one._replace(row=one.row + here.start) for one in steps]
        if not left:
            break
        rows = [one.row for one in chosen]
        scores = torch.tensor([one.score for one in chosen], device=device)
        said = torch.cat((said[rows], torch.tensor([[one.token] for one in chosen], device=device)), dim=1)
        if rows != list(range(len(logits))):
            state.select(rows)
        logits = engine.advance(said[:, -1:], state)[:, -1]
        going = left
    return [beams.complete for beams in every]
