"""Network of the recognizer: convolutional stem, encoder, decoder and CTC head.

Letters: B batch, F mel frames, M mel bands, T encoder steps, L tokens, D width, V vocabulary.
Masks are boolean, True = visible. Whisper is one configuration of these classes: absolute positions, global
attention, strides (1, 2), no CTC head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from focusasr.config import ModelConfig
from focusasr.model.attention import GlobalAttention, HybridAttention, MultiheadAttention, Rotation, rotations


class EncoderOutput(NamedTuple):
    """Encoder states (B, T, D), their mask (B, T), None without padding, and the spans per layer."""

    states: Tensor
    mask: Tensor | None
    spans: list[Tensor]  # span_scale (B, H) of each hybrid layer
    middle: Tensor | None = None  # states (B, T, D) after half of the layers, in training

    def lengths(self) -> Tensor:
        """Return the encoder steps of each utterance, (B,)."""
        batch, steps, _ = self.states.shape
        return torch.full((batch,), steps) if self.mask is None else self.mask.sum(dim=1).cpu()

    def mean(self) -> Tensor:
        """Return the mean over an utterance's steps, (B, 1, D)."""
        if self.mask is None:
            return self.states.mean(dim=1, keepdim=True)
        weights = self.mask.to(self.states.dtype)[..., None]
        return (self.states * weights).sum(dim=1, keepdim=True) / weights.sum(dim=1, keepdim=True)

    def select(self, rows: Tensor | list[int]) -> EncoderOutput:
        """Return the memory of some utterances, numbered by `rows` (R,)."""
        mask = None if self.mask is None else self.mask[rows]
        return EncoderOutput(self.states[rows], mask, [span[rows] for span in self.spans])


class ForwardOutput(NamedTuple):
    """One training pass: memory, decoder logits (B, L, V), CTC log probabilities (B, T, V) if there is a head.

    `middle`, if requested, are those of the same head on the states after half of the encoder's layers.
    """

    memory: EncoderOutput
    logits: Tensor
    ctc: Tensor | None
    middle: Tensor | None = None


def _self_attention(config: ModelConfig, kind: str, causal: bool) -> nn.Module:
    return HybridAttention(config, causal) if kind == "hybrid" else GlobalAttention(config, causal)


def _mlp(width: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))


def sinusoids(length: int, width: int) -> Tensor:
    """Return Whisper's fixed position embedding, (length, width)."""
    rates = torch.exp(-torch.arange(width // 2) * (torch.log(torch.tensor(10_000.0)) / (width // 2 - 1)))
    angles = torch.arange(length)[:, None] * rates[None, :]
    return torch.cat((angles.sin(), angles.cos()), dim=1)


class Stem(nn.Module):
    """Two strided convolutions over time; frames after an utterance's end are zero for both."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(config.mel_bands, config.width, 3, stride=config.strides[0], padding=1)
        self.conv2 = nn.Conv1d(config.width, config.width, 3, stride=config.strides[1], padding=1)

    def forward(self, mel: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Turn mel (B, F, M) with lengths (B,) in frames into (B, T, D) and the mask (B, T)."""
        x = mel.transpose(1, 2)
        mask = _until(lengths, x.shape[2])
        for conv in (self.conv1, self.conv2):
            x = F.gelu(conv(x * mask[:, None, :].to(x.dtype)))
            lengths = (lengths - 1) // conv.stride[0] + 1
            mask = _until(lengths, x.shape[2])
        return x.transpose(1, 2).contiguous(), mask  # else every encoder layer would copy it


def _until(lengths: Tensor, size: int) -> Tensor:
    return torch.arange(size, device=lengths.device) < lengths[:, None]


class Convolution(nn.Module):
    """A gated depthwise convolution over time (Gulati et al. 2020, section 2.2), LayerNorm instead of BatchNorm.

    Steps after an utterance's end are zero, so that the rest of the batch has no effect.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, kernel = config.width, config.conv_kernel
        self.ln = nn.LayerNorm(width)
        self.gate = nn.Linear(width, 2 * width)
        self.depthwise = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)
        self.ln_inner = nn.LayerNorm(width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Turn x (B, T, D) with its mask (B, T) into (B, T, D)."""
        x = F.glu(self.gate(self.ln(x)), dim=-1)
        if mask is not None:
            x = x * mask[..., None].to(x.dtype)
        return self.out(F.silu(self.ln_inner(self.depthwise(x.transpose(1, 2)).transpose(1, 2))))


class EncoderBlock(nn.Module):
    """Pre-LN block: self-attention, a convolution if `conv_kernel` is not 0, a two-layer perceptron."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention = _self_attention(config, config.attention, causal=False)
        self.convolution = Convolution(config) if config.conv_kernel else None
        self.mlp = _mlp(config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, mask: Tensor | None, rotation: Rotation | None) -> tuple[Tensor, Tensor | None]:
        """Return x (B, T, D) after this block, and the span per head (B, H) of a hybrid block."""
        attended = self.attention(x, mask=mask, rotation=rotation)
        x = x + self.dropout(attended.out)
        if self.convolution is not None:
            x = x + self.dropout(self.convolution(x, mask))
        return x + self.dropout(self.mlp(x)), attended.span_scale


class Encoder(nn.Module):
    """Encoder from log-mel frames to states."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = Stem(config)
        self.blocks = nn.ModuleList(EncoderBlock(config) for _ in range(config.encoder_layers))
        self.ln_post = nn.LayerNorm(config.width)
        self.dropout = nn.Dropout(config.dropout)
        if config.positions == "absolute":
            table = torch.empty(config.audio_context, config.width)
            self.positions = nn.Buffer(table if table.is_meta else sinusoids(config.audio_context, config.width))

    def forward(self, mel: Tensor, lengths: Tensor) -> EncoderOutput:
        """Encode mel (B, F, M) with lengths (B,) in frames, at least 1 each; ValueError on wrong shapes."""
        x, visible, rotation = self.embed(mel, lengths)
        x = self.dropout(x)
        spans, middle = [], None
        for number, block in enumerate(self.blocks, start=1):
            x, span_scale = block(x, visible, rotation)
            if span_scale is not None:
                spans.append(span_scale)
            if self.training and number == len(self.blocks) // 2:
                middle = x
        return EncoderOutput(self.ln_post(x), visible, spans, middle)

    def embed(self, mel: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor | None, Rotation | None]:
        """Return the input of the first block: x (B, T, D), its mask (None without padding), the rotation."""
        if mel.dim() != 3 or mel.shape[2] != self.config.mel_bands or mel.shape[1] == 0:
            raise ValueError(f"mel has shape {tuple(mel.shape)}; expected (B, F ≥ 1, {self.config.mel_bands})")
        if int(lengths.min()) < 1 or int(lengths.max()) > mel.shape[1]:
            raise ValueError(f"lengths are {lengths.tolist()}; expected 1 to {mel.shape[1]} frames")
        x, mask = self.stem(mel, lengths)
        visible = None if bool(mask.all()) else mask
        if self.config.positions == "absolute":
            if x.shape[1] > self.config.audio_context:
                raise ValueError(f"{x.shape[1]} encoder steps exceed audio_context {self.config.audio_context}")
            x = x + self.positions[: x.shape[1]].to(x.dtype)
        return x, visible, rotations(self.config, x.shape[1], x.device)


class DecoderBlock(nn.Module):
    """Pre-LN block: causal self-attention, cross-attention to the audio, perceptron."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention = _self_attention(config, config.decoder_attention, causal=True)
        self.ln_cross = nn.LayerNorm(config.width)
        self.cross = MultiheadAttention(config)
        self.mlp = _mlp(config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: Tensor, memory: EncoderOutput, mean: Tensor, rotation: Rotation | None, scores: list[Tensor] | None
    ) -> Tensor:
        """Return x (B, L, D) after this block; `scores` gets those of the cross-attention (B, H, L, S)."""
        x = x + self.dropout(self.attention(x, xa=mean, rotation=rotation).out)
        queries, audio = self.ln_cross(x), self.cross.keys_values(memory.states)
        if scores is not None:
            scores.append(self.cross.cross_scores(queries, audio))
        x = x + self.dropout(self.cross.cross(queries, audio, memory.mask))
        return x + self.dropout(self.mlp(x))


class Decoder(nn.Module):
    """Decoder from tokens and audio to logits of the next token, with tied input and output embeddings."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        table = torch.empty(config.vocabulary, config.width)
        self.token_embedding = nn.Embedding(config.vocabulary, config.width, _weight=table)
        self.blocks = nn.ModuleList(DecoderBlock(config) for _ in range(config.decoder_layers))
        self.ln = nn.LayerNorm(config.width)
        self.dropout = nn.Dropout(config.dropout)
        if not table.is_meta:  # arithmetic on "meta" imports torch._dynamo: 1.2 s and 130 MB
            nn.init.normal_(self.token_embedding.weight, std=config.width**-0.5)
        if config.positions == "absolute":
            places = torch.empty(config.text_context, config.width)
            self.positional_embedding = nn.Parameter(places if places.is_meta else torch.randn_like(places) * 0.01)

    def forward(self, tokens: Tensor, memory: EncoderOutput) -> Tensor:
        """Read whole texts (B, L) and return logits (B, L, V); ValueError if they exceed `text_context`."""
        return self.logits(self.hidden(tokens, memory))

    @torch.inference_mode()
    def attention(
        self, memory: EncoderOutput, tokens: Sequence[int], heads: Sequence[tuple[int, int]]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return logits (L, V) after each token of one utterance's text, and scores of cross-attention (H, L, S).

        The scores are those of `heads`, as (layer, head), before mask and softmax.
        """
        memory = memory._replace(states=memory.states.to(self.token_embedding.weight.dtype))
        scores: list[Tensor] = []
        logits = self.logits(self.hidden(torch.tensor([tokens], device=memory.states.device), memory, scores))
        chosen = torch.stack([scores[layer][0, head] for layer, head in heads])
        return logits[0].float().cpu().numpy(), chosen.float().cpu().numpy()

    def hidden(self, tokens: Tensor, memory: EncoderOutput, scores: list[Tensor] | None = None) -> list[Tensor]:
        """Read whole texts (B, L); return the states (B, L, D) after each block and after the last LayerNorm.

        `scores` gets the cross-attention scores (B, H, L, S) of each layer, before mask and softmax.
        """
        length = tokens.shape[1]
        if length > self.config.text_context:
            raise ValueError(f"{length} tokens exceed text_context {self.config.text_context}")
        x, mean = self.token_embedding(tokens), memory.mean()
        rotation = rotations(self.config, length, tokens.device)
        if self.config.positions == "absolute":
            x = x + self.positional_embedding[:length]
        states = [self.dropout(x)]
        for block in self.blocks:
            states.append(block(states[-1], memory, mean, rotation, scores))
        return [*states[1:], self.ln(states[-1])]

    def logits(self, states: list[Tensor]) -> Tensor:
        """Return the logits (B, L, V) of the states that `hidden` returned."""
        return states[-1] @ self.token_embedding.weight.T


class Model(nn.Module):
    """The whole recognizer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.vocabulary < 1:
            raise ValueError(f"vocabulary is {config.vocabulary}; expected the tokenizer's size")
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.ctc_head = nn.Linear(config.width, config.vocabulary) if config.ctc else None

    def encode(self, mel: Tensor, lengths: Tensor) -> EncoderOutput:
        """Encode mel (B, F, M) with lengths (B,) in frames."""
        return self.encoder(mel, lengths)

    def ctc_log_probs(self, memory: EncoderOutput) -> Tensor:
        """Return log probabilities (B, T, V) of the CTC head, in float32; ValueError without a CTC head."""
        if self.ctc_head is None:
            raise ValueError("this model has no CTC head")
        return self.ctc_head(memory.states).float().log_softmax(dim=-1)

    def forward(self, mel: Tensor, lengths: Tensor, tokens: Tensor, middle: bool = False) -> ForwardOutput:
        """Encode mel (B, F, M) with lengths (B,) and read tokens (B, L), for the losses.

        `middle` requests CTC in the middle of the encoder too (intermediate CTC).
        """
        memory = self.encode(mel, lengths)
        logits = self.decoder(tokens, memory)
        if self.ctc_head is None:
            return ForwardOutput(memory, logits, None)
        below = None
        if middle and memory.middle is not None:
            below = self.ctc_log_probs(memory._replace(states=self.encoder.ln_post(memory.middle)))
        return ForwardOutput(memory, logits, self.ctc_log_probs(memory), below)

    def parameter_count(self) -> int:
        """Return the number of parameters."""
        return sum(parameter.numel() for parameter in self.parameters())
