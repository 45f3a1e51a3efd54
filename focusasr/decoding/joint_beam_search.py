"""Beam search by the joint score of decoder and CTC.

Sources: Watanabe et al. 2017, section III-D; Hori et al. 2017, section 3.

Letters: U utterances, G hypotheses each (the beam), K candidate tokens, T encoder steps, V vocabulary. The score of a
prefix h is ctc_weight · log P_ctc(texts that begin with h) + (1 - ctc_weight) · log P_decoder(h). Neither term rises as
h grows. So the search of an utterance can stop, without loss, once a finished text scores at least as high as the best
unfinished prefix.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from focusasr.config import DecodingConfig
from focusasr.decoding.speculative import DecoderResult
from focusasr.model.engine import Engine
from focusasr.model.transformer import EncoderOutput
from focusasr.runtime.devices import to_float64
from focusasr.text.tokenizer import Tokenizer

MOST_CANDIDATES = 40  # per hypothesis, by the decoder's probability; smaller vocabularies are searched whole
NEVER = -1e4  # log probability of a token after the end of the audio; finite, because differences are taken


def joint(by_ctc: Tensor, by_decoder: Tensor, ctc_weight: float) -> Tensor:
    """Mix log probabilities, which may be -inf; a weight of 0 excludes one side."""
    if ctc_weight in (0, 1):
        return by_ctc if ctc_weight else by_decoder
    return ctc_weight * by_ctc + (1 - ctc_weight) * by_decoder


class Prefix(NamedTuple):
    """CTC's forward variables of texts h, (…, T) each: log P(h by step t), with a token or a blank at step t."""

    token: Tensor
    blank: Tensor
    last: Tensor  # (…) the last token of h, -1 if h is empty


class PrefixScorer:
    """CTC prefix probabilities (Watanabe et al. 2017, algorithm 2) without a loop over time.

    The recursions over time are linear. With cumulative sums of log probabilities they become cumulative sums of
    exponentials, in float64 because differences of large sums are taken.
    """

    def __init__(self, log_probs: Tensor, lengths: Tensor, blank: int) -> None:
        steps = log_probs.shape[1]
        log_probs = to_float64(log_probs)
        inside = torch.arange(steps, device=log_probs.device) < lengths.to(log_probs.device)[:, None]
        beyond = torch.full_like(log_probs[0, 0], NEVER)
        beyond[blank] = 0.0
        self.steps = torch.where(inside[..., None], log_probs, beyond).mT.contiguous()  # (U, V, T)
        self.sums = self.steps.cumsum(dim=-1)
        self.blank = blank

    def start(self, beam: int) -> Prefix:
        """Return the empty prefix, (U, G)."""
        blanks = self.sums[:, None, self.blank].expand(-1, beam, -1)
        return Prefix(
            torch.full_like(blanks, -torch.inf), blanks, torch.full(blanks.shape[:2], -1, device=blanks.device)
        )

    def _entries(self, prefix: Prefix, tokens: Tensor) -> Tensor:
        """Return log P(h just before step t) for tokens (U, G, K) that may follow at t, (U, G, K, T)."""
        either = torch.logaddexp(prefix.token, prefix.blank)[:, :, None]
        repeated = tokens[..., None] == prefix.last[:, :, None, None]  # only a blank separates a repeated token
        before = torch.where(repeated, prefix.blank[:, :, None], either)
        first = torch.where(prefix.last < 0, 0.0, -torch.inf)[:, :, None, None].expand(*tokens.shape, 1)
        return torch.cat((first.to(before.dtype), before[..., :-1]), dim=-1)

    def _of(self, table: Tensor, tokens: Tensor) -> Tensor:
        """Return the rows (U, G, K, T) of a table (U, V, T) for tokens (U, G, K)."""
        rows = torch.arange(len(table), device=table.device)[:, None, None]
        return table[rows, tokens]

    def extensions(self, prefix: Prefix, tokens: Tensor) -> Tensor:
        """Return log P(texts that begin with h and the token), (U, G, K), for tokens (U, G, K)."""
        return (self._entries(prefix, tokens) + self._of(self.steps, tokens)).logsumexp(dim=-1)

    def whole(self, prefix: Prefix) -> Tensor:
        """Return log P(h as the whole text), (U, G)."""
        return torch.logaddexp(prefix.token[..., -1], prefix.blank[..., -1])

    def extend(self, prefix: Prefix, tokens: Tensor) -> Prefix:
        """Return the prefixes extended by one token each, (U, G)."""
        entries = self._entries(prefix, tokens[..., None])[:, :, 0]
        token = _scan(entries, self._of(self.sums, tokens[..., None])[:, :, 0])
        enters = torch.cat((torch.full_like(token[..., :1], -torch.inf), token[..., :-1]), dim=-1)
        blank = _scan(enters, self.sums[:, None, self.blank].expand_as(token))
        return Prefix(token, blank, tokens)


def _scan(entries: Tensor, sums: Tensor) -> Tensor:
    """Return r (…, T) with r(t) = log(exp r(t-1) + exp entries(t)) + p(t), where sums (…, T) accumulate p."""
    before = torch.cat((torch.zeros_like(sums[..., :1]), sums[..., :-1]), dim=-1)
    return sums + torch.logcumsumexp(entries - before, dim=-1)


class _Beam(NamedTuple):
    """The unfinished hypotheses: tokens, log P under the decoder (U, G), CTC prefixes, joint score."""

    texts: list[list[list[int]]]
    by_decoder: Tensor
    prefix: Prefix
    scores: Tensor


@torch.inference_mode()
def joint_search(
    engine: Engine, memory: EncoderOutput, log_probs: Tensor, tokenizer: Tokenizer, config: DecodingConfig
) -> list[DecoderResult]:
    """Return the best text for each utterance of memory, with its log probability under the decoder.

    log_probs (U, T, V) are the CTC head's. A text has at most as many tokens as there are encoder steps.
    """
    lengths, size = memory.lengths(), config.joint_beam_size
    limits = lengths.clamp(max=engine.config.text_context - 2).tolist()
    scorer = PrefixScorer(log_probs, lengths, tokenizer.blank)
    beam = _first_beam(scorer, len(limits), size)
    state = engine.start(memory, size)
    finished: list[tuple[float, list[int], float]] = [(-float("inf"), [], -float("inf"))] * len(limits)
    tokens = torch.full((len(limits) * size, 1), tokenizer.start, device=engine.device)
    for length in range(max(limits) + 1):
        decoder = to_float64(engine.advance(tokens, state)[:, -1]).log_softmax(dim=-1).unflatten(0, (-1, size))
        _finish(beam, finished, scorer, decoder[..., tokenizer.end], config.ctc_weight)
        full = torch.tensor([length >= limit for limit in limits], device=decoder.device)
        beam, parents = _grow(beam, scorer, decoder, tokenizer, config.ctc_weight, full)
        best = beam.scores.amax(dim=1).tolist()
        if all(done[0] >= under_way for done, under_way in zip(finished, best, strict=True)):
            break
        state.select((parents + torch.arange(len(limits), device=parents.device)[:, None] * size).flatten().tolist())
        tokens = beam.prefix.last.reshape(-1, 1).to(engine.device)
    return [DecoderResult(text, score, score, length + 1) for _, text, score in finished]


def _first_beam(scorer: PrefixScorer, utterances: int, size: int) -> _Beam:
    prefix = scorer.start(size)
    alike = torch.full_like(prefix.blank[..., 0], -torch.inf)
    alike[:, 0] = 0.0  # all hypotheses are empty: expand only one
    return _Beam([[[] for _ in range(size)] for _ in range(utterances)], alike, prefix, alike)


def _finish(beam: _Beam, finished: list, scorer: PrefixScorer, ends: Tensor, ctc_weight: float) -> None:
    """Replace a worse text by the best one that ends at this step."""
    by_decoder = beam.by_decoder + ends
    scores = joint(scorer.whole(beam.prefix), by_decoder, ctc_weight).masked_fill(by_decoder == -torch.inf, -torch.inf)
    best, where = (part.tolist() for part in scores.max(dim=1))
    for utterance, (score, place) in enumerate(zip(best, where, strict=True)):
        if score > finished[utterance][0]:
            text = beam.texts[utterance][place]
            finished[utterance] = (score, text, float(by_decoder[utterance, place]))


def _grow(
    beam: _Beam, scorer: PrefixScorer, decoder: Tensor, tokenizer: Tokenizer, ctc_weight: float, full: Tensor
) -> tuple[_Beam, Tensor]:
    """Return the best hypotheses with one more token, and the hypotheses (U, G) that they extend."""
    utterances, size, vocabulary = decoder.shape
    allowed = decoder.clone()
    allowed[..., [tokenizer.blank, tokenizer.start, tokenizer.end]] = -torch.inf
    steps, candidates = allowed.topk(min(vocabulary, MOST_CANDIDATES), dim=-1)  # (U, G, K)
    by_decoder = beam.by_decoder[..., None] + steps
    scores = joint(scorer.extensions(beam.prefix, candidates), by_decoder, ctc_weight)
    scores = scores.masked_fill((by_decoder == -torch.inf) | full[:, None, None], -torch.inf)
    best, where = scores.flatten(1).topk(size, dim=1)  # (U, G)
    parents, tokens = where // candidates.shape[2], candidates.flatten(1).gather(1, where)
    rows = torch.arange(utterances, device=where.device)[:, None]
    grown = Prefix(*(part[rows, parents] for part in beam.prefix))
    texts = [
        [[*old[parent], token] for parent, token in zip(*new, strict=True)]
        for old, new in zip(beam.texts, zip(parents.tolist(), tokens.tolist(), strict=True), strict=True)
    ]
    longer = scorer.extend(grown, tokens)
    return _Beam(texts, by_decoder.flatten(1).gather(1, where), longer, best), parents
