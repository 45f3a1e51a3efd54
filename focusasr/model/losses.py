"""Joint CTC/attention loss of training, and the CTC loss, also used in decoding."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from focusasr.model.transformer import EncoderOutput, ForwardOutput

IGNORED = -100  # target of padding


class Losses(NamedTuple):
    """Training loss and its parts, means per token (attention) and per target token (CTC)."""

    total: Tensor
    attention: Tensor
    ctc: Tensor
    span: Tensor  # mean span_scale
    rows: Tensor  # (B,), loss of each utterance


def ctc_losses(log_probs: Tensor, lengths: Tensor, targets: Tensor, blank: int, zero_infinity: bool = False) -> Tensor:
    """Return -log P(targets) under CTC (Graves et al. 2006), (B,); infinite if the audio is too short.

    log_probs (B, T, V) with lengths (B,) in steps; targets (B, L) padded with IGNORED. `zero_infinity` sets an
    infinite loss and its gradient to 0: torch's gradient of an infinite loss is NaN even if masked.
    """
    device = log_probs.device
    if device.type == "mps":  # which has no CTC
        log_probs, targets = log_probs.cpu(), targets.cpu()
    target_lengths = (targets != IGNORED).sum(dim=1)
    columns = targets.clamp(min=0)
    losses = F.ctc_loss(log_probs.transpose(0, 1), columns, lengths, target_lengths, blank, "none", zero_infinity)
    return losses.to(device)


class LossWeights(NamedTuple):
    """Weights of the parts of the joint loss."""

    ctc: float = 0.3
    label_smoothing: float = 0.1
    span_penalty: float = 0.0
    intermediate_ctc: float = 0.0  # share of the CTC loss in the middle of the encoder


class Size(NamedTuple):
    """Size of a batch: target tokens, end tokens included, and utterances."""

    tokens: float
    utterances: float


def joint_loss(
    heard: ForwardOutput, targets: Tensor, blank: int, weights: LossWeights, whole: Size | None = None
) -> Losses:
    """Return the joint CTC/attention loss (Watanabe et al. 2017, equation 8) plus the span penalty.

    `targets` (B, L) end with the end token and are padded with IGNORED; CTC's targets have no end token. If the batch
    is a part of a larger one, `whole` is the size of the larger one: the losses and gradients of all parts then add up
    to its own. Intermediate CTC: Lee & Watanabe 2021, equation 10.
    """
    memory, logits, log_probs, below = heard
    spelled = (targets != IGNORED).sum(dim=1)
    whole = whole or Size(float(spelled.sum()), len(targets))
    per_token = F.cross_entropy(
        logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED, label_smoothing=weights.label_smoothing,
        reduction="none",
    )  # fmt: skip
    attention = per_token.view(targets.shape).sum(dim=1)  # (B,)
    ctc, ctc_share = torch.zeros_like(attention), 0.0
    if log_probs is not None and weights.ctc > 0:
        ctc_share = weights.ctc
        ctc = _mean_ctc(log_probs, memory, targets, blank)
        if below is not None:
            share = weights.intermediate_ctc
            ctc = (1 - share) * ctc + share * _mean_ctc(below, memory, targets, blank)
    spans = [scale.float().mean(dim=1) for scale in memory.spans]
    span = torch.stack(spans).mean(dim=0) if spans else torch.zeros_like(attention)
    parts = attention.sum() / whole.tokens, ctc.sum() / whole.utterances, span.sum() / whole.utterances
    total = (1 - ctc_share) * parts[0] + ctc_share * parts[1] + weights.span_penalty * parts[2]
    rows = (1 - ctc_share) * attention / spelled.clamp(min=1) + ctc_share * ctc + weights.span_penalty * span
    means = [part.detach() for part in parts]
    return Losses(total, means[0], means[1], means[2], rows.detach())


def _mean_ctc(log_probs: Tensor, memory: EncoderOutput, targets: Tensor, blank: int) -> Tensor:
    """Return each utterance's CTC loss per target token, (B,), 0 if the audio is too short for the text."""
    ends = (targets != IGNORED).sum(dim=1, keepdim=True) - 1  # of the end token
    text = targets.masked_fill(torch.arange(targets.shape[1], device=targets.device) == ends, IGNORED)
    losses = ctc_losses(log_probs, memory.lengths(), text, blank, zero_infinity=True)
    return losses / (text != IGNORED).sum(dim=1).clamp(min=1)
