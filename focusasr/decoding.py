"""From sound to tokens: the CTC draft and guard, the decoder's reading, and the choice between them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from focusasr.alignment import Word, word_times
from focusasr.config import DecodingConfig
from focusasr.engine import Engine
from focusasr.greedy import greedy
from focusasr.joint_search import joint, joint_search
from focusasr.model import IGNORED, Memory, ctc_losses
from focusasr.tokenizer import Tokenizer


class Hypothesis(NamedTuple):
    """What was heard: token ids without start and end, mean log probability per token, CTC's P(no text), passes.

    `passes` counts the decoder's passes that this text took part in; `words`, where they were asked for, are its words
    with their times.
    """

    tokens: list[int]
    avg_logprob: float
    no_speech_prob: float
    passes: int = 0
    words: list[Word] | None = None


@torch.inference_mode()
def decode(engine: Engine, mels: Sequence[Tensor], tokenizer: Tokenizer, config: DecodingConfig) -> list[Hypothesis]:
    """Return the text of each spectrogram (F, M); the answer for one does not depend on the others.

    Models with a CTC head: where CTC's best path is empty the text is empty (guard); else the CTC text is the draft
    of the decoder's greedy text, both are scored by ctc_weight · log P_ctc + (1 - ctc_weight) · log P_decoder, and
    the better one is taken; with `beam_size` above 1 the best of a joint beam search stands beside them. Without a CTC
    head the decoder's greedy text is the answer.
    """
    memory = engine.encode(mels)
    if engine.ctc_head is None:
        reads = greedy(engine, memory, tokenizer, [[] for _ in mels])
        return [_hypothesis(read.tokens, read.score, 0.0, read.passes) for read in reads]
    log_probs = engine.ctc_log_probs(memory)
    drafts = ctc_greedy(log_probs, memory.lengths(), tokenizer.blank)
    silent = _no_speech(log_probs, memory, tokenizer.blank).tolist()
    heard = [row for row, draft in enumerate(drafts) if draft]
    answers = [Hypothesis([], 0.0, probability) for probability in silent]
    if not heard:
        return answers
    memory, log_probs = _rows(memory, heard), log_probs[heard]
    candidates, passes = _candidates(engine, memory, tokenizer, [drafts[row] for row in heard], config, log_probs)
    by_decoder = torch.tensor([scores for _, scores in candidates], device=log_probs.device)
    by_ctc = torch.stack([ctc_score(log_probs, memory, texts, tokenizer.blank) for texts, _ in candidates])
    best = joint(by_ctc, by_decoder, config.ctc_weight).argmax(dim=0).tolist()
    for place, (row, choice) in enumerate(zip(heard, best, strict=True)):
        texts, scores = candidates[choice]
        answers[row] = _hypothesis(texts[place], scores[place], silent[row], passes[place])
        if config.word_timestamps:
            steps = log_probs[place, : int(memory.lengths()[place])]
            words = word_times(steps, mels[row], texts[place], tokenizer, engine.config.step_seconds)
            answers[row] = answers[row]._replace(words=words)
    return answers


Candidates = tuple[list[list[int]], list[float]]  # a text per row, and its log probability under the decoder


def _candidates(
    engine: Engine,
    memory: Memory,
    tokenizer: Tokenizer,
    drafts: list[list[int]],
    config: DecodingConfig,
    log_probs: Tensor,
) -> tuple[list[Candidates], list[int]]:
    """Return what is chosen from, and the decoder's passes per row."""
    if config.ctc_weight == 1:
        return [(drafts, decoder_score(engine, memory, drafts, tokenizer))], [1] * len(drafts)
    reads = greedy(engine, memory, tokenizer, drafts)
    unscored = [-math.inf if math.isnan(read.draft_score) else read.draft_score for read in reads]
    candidates = [(drafts, unscored), ([read.tokens for read in reads], [read.score for read in reads])]
    if config.beam_size > 1:
        candidates.append(joint_search(engine, memory, log_probs, tokenizer, config))
    return candidates, [read.passes for read in reads]


def _hypothesis(tokens: list[int], score: float, no_speech_prob: float, passes: int) -> Hypothesis:
    return Hypothesis(tokens, score / (len(tokens) + 1), no_speech_prob, passes)


def _rows(memory: Memory, rows: list[int]) -> Memory:
    mask = None if memory.mask is None else memory.mask[rows]
    return Memory(memory.states[rows], mask, [span[rows] for span in memory.spans])


def ctc_greedy(log_probs: Tensor, lengths: Tensor, blank: int) -> list[list[int]]:
    """Return the text of CTC's best path for log_probs (B, T, V): repeats merged, blanks dropped."""
    texts = []
    for path, length in zip(log_probs.argmax(dim=-1).cpu(), lengths.tolist(), strict=True):
        merged = path[:length].unique_consecutive()
        texts.append(merged[merged != blank].tolist())
    return texts


def _no_speech(log_probs: Tensor, memory: Memory, blank: int) -> Tensor:
    """Return P(empty text) under CTC, (B,): every step blank."""
    blanks = log_probs[..., blank]
    return (blanks if memory.mask is None else blanks.masked_fill(~memory.mask, 0.0)).sum(dim=1).exp()


def decoder_score(engine: Engine, memory: Memory, texts: list[list[int]], tokenizer: Tokenizer) -> list[float]:
    """Return log P(text, end | audio) of the decoder for each text; -inf where it exceeds `text_context`."""
    fits = [len(text) < engine.config.text_context for text in texts]
    texts = [text if fit else [] for text, fit in zip(texts, fits, strict=True)]
    inputs = pad_sequence([torch.tensor([tokenizer.start, *text]) for text in texts], True, tokenizer.end)
    targets = pad_sequence([torch.tensor([*text, tokenizer.end]) for text in texts], True, IGNORED).to(engine.device)
    logits = engine.advance(inputs.to(engine.device), engine.start(memory))
    chosen = logits.float().log_softmax(dim=-1).gather(2, targets.clamp(min=0)[..., None])[..., 0]
    sums = chosen.masked_fill(targets == IGNORED, 0.0).sum(dim=1).tolist()
    return [score if fit else -math.inf for score, fit in zip(sums, fits, strict=True)]


def ctc_score(log_probs: Tensor, memory: Memory, texts: list[list[int]], blank: int) -> Tensor:
    """Return log P(text | audio) of the CTC head for each text, (B,); -inf where the audio is too short for it."""
    targets = pad_sequence([torch.tensor(text, dtype=torch.long) for text in texts], True, IGNORED)
    if targets.shape[1] == 0:
        targets = torch.full((len(texts), 1), IGNORED)
    targets = targets.to(log_probs.device)
    return -ctc_losses(log_probs, memory.lengths(), targets, blank)
