"""From sound to tokens: greedy decoding with a cache, the CTC draft and guard, and the choice between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from focusasr.alignment import Word, word_times
from focusasr.features import stack
from focusasr.model import IGNORED, Memory, Model, ctc_losses
from focusasr.tokenizer import Tokenizer


class Hypothesis(NamedTuple):
    """What was heard: token ids without start and end, mean log probability per token, and CTC's P(no text).

    `words`, where they were asked for, are its words with their times.
    """

    tokens: list[int]
    avg_logprob: float
    no_speech_prob: float
    words: list[Word] | None = None


@torch.inference_mode()
def decode(
    model: Model, mels: Sequence[Tensor], tokenizer: Tokenizer, ctc_weight: float, timed: bool = False
) -> list[Hypothesis]:
    """Return the text of each spectrogram (F, M); the answer for one does not depend on the others.

    Models with a CTC head: where CTC's best path is empty the text is empty (guard); else the CTC text and the
    decoder's greedy text are both scored by ctc_weight · log P_ctc + (1 - ctc_weight) · log P_decoder, and the
    better one is taken. Without a CTC head the decoder's greedy text is the answer. `timed`: with word times, which
    need a CTC head.
    """
    model.eval()
    memory = model.encode(*stack(mels))
    if model.ctc_head is None:
        texts, scores = greedy(model, memory, tokenizer)
        return [_hypothesis(text, score, 0.0) for text, score in zip(texts, scores.tolist(), strict=True)]
    log_probs = model.ctc_log_probs(memory)
    drafts = ctc_greedy(log_probs, memory.lengths(), tokenizer.blank)
    silent = _no_speech(log_probs, memory, tokenizer.blank).tolist()
    heard = [row for row, draft in enumerate(drafts) if draft]
    answers = [Hypothesis([], 0.0, probability) for probability in silent]
    if not heard:
        return answers
    memory, log_probs = _rows(memory, heard), log_probs[heard]
    candidates = [[drafts[row] for row in heard]]
    if ctc_weight < 1:
        candidates.append(greedy(model, memory, tokenizer)[0])
    by_decoder = torch.stack([decoder_score(model, memory, texts, tokenizer) for texts in candidates])
    by_ctc = torch.stack([ctc_score(log_probs, memory, texts, tokenizer.blank) for texts in candidates])
    best = _joint(by_ctc, by_decoder, ctc_weight).argmax(dim=0).tolist()
    for place, (row, choice) in enumerate(zip(heard, best, strict=True)):
        answers[row] = _hypothesis(candidates[choice][place], float(by_decoder[choice, place]), silent[row])
        if timed:
            heard_probs = log_probs[place, : int(memory.lengths()[place])]
            words = word_times(heard_probs, mels[row], answers[row].tokens, tokenizer, model.config.step_seconds)
            answers[row] = answers[row]._replace(words=words)
    return answers


def _joint(by_ctc: Tensor, by_decoder: Tensor, ctc_weight: float) -> Tensor:
    """Mix log probabilities, of which some may be -inf; a weight of 0 leaves one side out."""
    if ctc_weight in (0, 1):
        return by_ctc if ctc_weight else by_decoder
    return ctc_weight * by_ctc + (1 - ctc_weight) * by_decoder


def _hypothesis(tokens: list[int], score: float, no_speech_prob: float) -> Hypothesis:
    return Hypothesis(tokens, score / (len(tokens) + 1), no_speech_prob)


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


def greedy(model: Model, memory: Memory, tokenizer: Tokenizer) -> tuple[list[list[int]], Tensor]:
    """Take the decoder's likeliest token until the end token; return texts and their log probabilities (B,).

    A text is cut at the number of encoder steps (no CTC alignment could be longer) and at `text_context`.
    """
    device = memory.states.device
    limits = memory.lengths().to(device).clamp(max=model.config.text_context - 2)
    state = model.decoder.start(memory)
    token = torch.full((len(limits), 1), tokenizer.start, device=device)
    done = torch.zeros(len(limits), dtype=torch.bool, device=device)
    scores = torch.zeros(len(limits), device=device)
    columns = []
    for step in range(int(limits.max()) + 1):
        logits, state = model.decoder(token, state)
        log_probs = logits[:, -1].float().log_softmax(dim=-1)
        best, choice = log_probs.max(dim=-1)
        cut = (step >= limits) & ~done
        choice = torch.where(cut, tokenizer.end, choice)
        best = torch.where(cut, log_probs[:, tokenizer.end], best)
        scores += best.masked_fill(done, 0.0)
        columns.append(choice.masked_fill(done, tokenizer.end))
        done |= choice == tokenizer.end
        if bool(done.all()):
            break
        token = choice[:, None]
    rows = torch.stack(columns, dim=1).tolist()
    return [row[: row.index(tokenizer.end)] if tokenizer.end in row else row for row in rows], scores


def decoder_score(model: Model, memory: Memory, texts: list[list[int]], tokenizer: Tokenizer) -> Tensor:
    """Return log P(text, end | audio) of the decoder for each text, (B,); -inf where it exceeds `text_context`."""
    device = memory.states.device
    fits = torch.tensor([len(text) < model.config.text_context for text in texts], device=device)
    texts = [text if fit else [] for text, fit in zip(texts, fits.tolist(), strict=True)]
    inputs = pad_sequence([torch.tensor([tokenizer.start, *text]) for text in texts], True, tokenizer.end).to(device)
    targets = pad_sequence([torch.tensor([*text, tokenizer.end]) for text in texts], True, IGNORED).to(device)
    logits, _ = model.decoder(inputs, model.decoder.start(memory))
    chosen = logits.float().log_softmax(dim=-1).gather(2, targets.clamp(min=0)[..., None])[..., 0]
    return chosen.masked_fill(targets == IGNORED, 0.0).sum(dim=1).masked_fill(~fits, -torch.inf)


def ctc_score(log_probs: Tensor, memory: Memory, texts: list[list[int]], blank: int) -> Tensor:
    """Return log P(text | audio) of the CTC head for each text, (B,); -inf where the audio is too short for it."""
    targets = pad_sequence([torch.tensor(text, dtype=torch.long) for text in texts], True, IGNORED)
    if targets.shape[1] == 0:
        targets = torch.full((len(texts), 1), IGNORED)
    targets = targets.to(log_probs.device)
    return -ctc_losses(log_probs, memory.lengths(), targets, blank)
