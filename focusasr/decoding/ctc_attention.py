"""Decoding with CTC and attention: CTC draft, decoder pass and joint score."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from focusasr.config import DecodingConfig
from focusasr.decoding.ctc_alignment import Word, word_times
from focusasr.decoding.joint_beam_search import joint, joint_search
from focusasr.decoding.speculative import DecoderResult, greedy
from focusasr.model.engine import Engine
from focusasr.model.losses import IGNORED, ctc_losses
from focusasr.model.transformer import EncoderOutput
from focusasr.text.tokenizer import Tokenizer


class Hypothesis(NamedTuple):
    """Token ids without start and end, mean log probability per token, CTC's P(no text), passes and words.

    `passes` counts the decoder passes that this text took part in. `words` are its words with their times, if
    requested.
    """

    tokens: list[int]
    avg_logprob: float
    no_speech_prob: float
    passes: int = 0
    words: list[Word] | None = None


@torch.inference_mode()
def decode(engine: Engine, mels: Sequence[Tensor], tokenizer: Tokenizer, config: DecodingConfig) -> list[Hypothesis]:
    """Return the text of each spectrogram (F, M); no text depends on the other spectrograms.

    With a CTC head: if CTC's best path is empty, the text is empty (guard). Otherwise that path is the draft for the
    decoder. If the decoder confirms it, it is the text, after one pass. If not, the draft and a second hypothesis are
    scored by ctc_weight · log P_ctc + (1 - ctc_weight) · log P_decoder, and the better one is the text. The second
    hypothesis comes from the joint beam search, or is the decoder's greedy text if `joint_beam_size` is 1.

    Without a CTC head the text is the decoder's greedy text.
    """
    with engine.threads(sum(len(mel) for mel in mels)):
        return _decode(engine, mels, tokenizer, config)


def _decode(engine: Engine, mels: Sequence[Tensor], tokenizer: Tokenizer, config: DecodingConfig) -> list[Hypothesis]:
    memory = engine.encode(mels)
    if engine.ctc_head is None:
        reads = greedy(engine, memory, tokenizer, [[] for _ in mels])
        return [_hypothesis(read, 0.0) for read in reads]
    log_probs = engine.ctc_log_probs(memory)
    drafts = ctc_greedy(log_probs, memory.lengths(), tokenizer.blank)
    silent = _no_speech(log_probs, memory, tokenizer.blank).tolist()
    heard = [row for row, draft in enumerate(drafts) if draft]
    answers = [Hypothesis([], 0.0, probability) for probability in silent]
    if heard:
        spoken = _Spoken(memory.select(heard), log_probs[heard], [drafts[row] for row in heard])
        for row, read in zip(heard, _read(engine, spoken, tokenizer, config), strict=True):
            answers[row] = _hypothesis(read, silent[row])
    if not config.word_timestamps:
        return answers
    timed = []
    for answer, steps, length, mel in zip(answers, log_probs, memory.lengths().tolist(), mels, strict=True):
        words = word_times(steps[:length], mel, answer.tokens, tokenizer, engine.config.step_seconds)
        timed.append(answer._replace(words=words))
    return timed


class _Spoken(NamedTuple):
    """Utterances with a non-empty CTC path: memory, CTC's log probabilities (B, T, V), texts of its best paths."""

    memory: EncoderOutput
    log_probs: Tensor
    drafts: list[list[int]]

    def rows(self, rows: list[int]) -> _Spoken:
        return _Spoken(self.memory.select(rows), self.log_probs[rows], [self.drafts[row] for row in rows])


def _read(engine: Engine, spoken: _Spoken, tokenizer: Tokenizer, config: DecodingConfig) -> list[DecoderResult]:
    """Return the text of each utterance, with the decoder's score.

    If a draft is longer than the decoder's limit, it is the text, with CTC's score.
    """
    drafts, room = spoken.drafts, engine.config.text_context - 2
    fitting = [row for row, draft in enumerate(drafts) if len(draft) <= room]
    if len(fitting) == len(drafts):
        return _read_fitting(engine, spoken, tokenizer, config)
    scores = ctc_score(spoken.log_probs, spoken.memory, drafts, tokenizer.blank).tolist()
    reads = [DecoderResult(draft, score, score, 0) for draft, score in zip(drafts, scores, strict=True)]
    if fitting:
        found = _read_fitting(engine, spoken.rows(fitting), tokenizer, config)
        for row, read in zip(fitting, found, strict=True):
            reads[row] = read
    return reads


def _read_fitting(engine: Engine, spoken: _Spoken, tokenizer: Tokenizer, config: DecodingConfig) -> list[DecoderResult]:
    memory, drafts = spoken.memory, spoken.drafts
    once = config.joint_beam_size > 1 or config.ctc_weight == 1
    reads = greedy(engine, memory, tokenizer, drafts, most_passes=1 if once else None)
    if config.ctc_weight == 1:
        return [read._replace(tokens=draft, score=read.draft_score) for read, draft in zip(reads, drafts, strict=True)]
    open_rows = [row for row, read in enumerate(reads) if not read.ended or read.tokens != drafts[row]]
    if not open_rows:
        return reads
    doubtful = spoken.rows(open_rows)
    drafted = [reads[row]._replace(tokens=drafts[row], score=_known(reads[row].draft_score)) for row in open_rows]
    other = [reads[row] for row in open_rows]
    if config.joint_beam_size > 1:
        found = joint_search(engine, doubtful.memory, doubtful.log_probs, tokenizer, config)
        other = [read._replace(passes=read.passes + 1) for read in found]
    for row, read in zip(open_rows, _better(doubtful, drafted, other, tokenizer.blank, config.ctc_weight), strict=True):
        reads[row] = read
    return reads


def _known(score: float) -> float:
    return -math.inf if math.isnan(score) else score


def _better(
    spoken: _Spoken, drafted: list[DecoderResult], other: list[DecoderResult], blank: int, ctc_weight: float
) -> list[DecoderResult]:
    """Return the hypothesis of each pair with the better joint score, with the passes of the second one."""
    scores = []
    for reads in (drafted, other):
        by_decoder = torch.tensor([read.score for read in reads], device=spoken.log_probs.device)
        by_ctc = ctc_score(spoken.log_probs, spoken.memory, [read.tokens for read in reads], blank)
        scores.append(joint(by_ctc, by_decoder, ctc_weight))
    takes_other = (scores[1] > scores[0]).tolist()
    return [
        (theirs if takes else ours)._replace(passes=theirs.passes)
        for takes, ours, theirs in zip(takes_other, drafted, other, strict=True)
    ]


def _hypothesis(read: DecoderResult, no_speech_prob: float) -> Hypothesis:
    return Hypothesis(read.tokens, read.score / (len(read.tokens) + 1), no_speech_prob, read.passes)


def ctc_greedy(log_probs: Tensor, lengths: Tensor, blank: int) -> list[list[int]]:
    """Return the text of CTC's best path for log_probs (B, T, V): repeats merged, blanks dropped."""
    texts = []
    for path, length in zip(log_probs.argmax(dim=-1).cpu(), lengths.tolist(), strict=True):
        merged = path[:length].unique_consecutive()
        texts.append(merged[merged != blank].tolist())
    return texts


def _no_speech(log_probs: Tensor, memory: EncoderOutput, blank: int) -> Tensor:
    """Return P(empty text) under CTC, (B,): every step blank."""
    blanks = log_probs[..., blank]
    return (blanks if memory.mask is None else blanks.masked_fill(~memory.mask, 0.0)).sum(dim=1).exp()


def ctc_score(log_probs: Tensor, memory: EncoderOutput, texts: list[list[int]], blank: int) -> Tensor:
    """Return the CTC head's log P(text | audio) of each text, (B,); -inf if the audio is too short for the text."""
    targets = pad_sequence([torch.tensor(text, dtype=torch.long) for text in texts], True, IGNORED)
    if targets.shape[1] == 0:
        targets = torch.full((len(texts), 1), IGNORED)
    targets = targets.to(log_probs.device)
    return -ctc_losses(log_probs, memory.lengths(), targets, blank)
