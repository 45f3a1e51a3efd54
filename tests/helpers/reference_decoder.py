"""The decoder's score of a text in one pass without a draft: the slow twin of what draft and verify counts."""

from __future__ import annotations

import math

import torch
from torch.nn.utils.rnn import pad_sequence

from focusasr.model.engine import Engine
from focusasr.model.losses import IGNORED
from focusasr.model.transformer import EncoderOutput
from focusasr.text.tokenizer import Tokenizer


def decoder_score(engine: Engine, memory: EncoderOutput, texts: list[list[int]], tokenizer: Tokenizer) -> list[float]:
    """Return log P(text, end | audio) of the decoder for each text; -inf where it exceeds `text_context`."""
    fits = [len(text) < engine.config.text_context for text in texts]
    texts = [text if fit else [] for text, fit in zip(texts, fits, strict=True)]
    inputs = pad_sequence([torch.tensor([tokenizer.start, *text]) for text in texts], True, tokenizer.end)
    targets = pad_sequence([torch.tensor([*text, tokenizer.end]) for text in texts], True, IGNORED).to(engine.device)
    logits = engine.advance(inputs.to(engine.device), engine.start(memory))
    chosen = logits.float().log_softmax(dim=-1).gather(2, targets.clamp(min=0)[..., None])[..., 0]
    sums = chosen.masked_fill(targets == IGNORED, 0.0).sum(dim=1).tolist()
    return [score if fit else -math.inf for score, fit in zip(sums, fits, strict=True)]
