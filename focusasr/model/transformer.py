"""Network of the recognizer: convolutional stem, encoder, decoder and CTC head.

Letters: B batch, F mel frames, M mel bands, T encoder steps, L tokens, D width, V vocabulary.
Masks are boolean, True = visible. Whisper is one configuration of these classes: absolute positions, global
attention, strides (1, 2), no CTC head.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from focusasr.config import ModelConfig
from focusasr.model.attention import (
    Cache,
    GlobalAttention,
    HybridAttention,
    KeysValues,
    MultiheadAttention,
    Rotation,
    rotary,
)


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


class DecoderState(NamedTuple):
    """Decoder state between tokens: cross-attention keys and values, and a cache per layer."""

    memory: list[KeysValues]
    mask: Tensor | None
    mean: Tensor
    caches: list[Cache | None]
    length: int  # tokens read so far


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
        rotation = None
        if self.config.positions == "rotary":
            steps = torch.arange(x.shape[1], device=x.device)
            rotation = rotary(steps, self.config.width // self.config.heads, self.config.base)
        else:
            x = x + self._absolute(x.shape[1]).to(x.dtype)
        return x, visible, rotation

    def _absolute(self, steps: int) -> Tensor:
        if steps > self.config.audio_context:
            raise ValueError(f"{steps} encoder steps exceed audio_context {self.config.audio_context}")
        return self.positions[:steps]


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
        self, x: Tensor, state: DecoderState, layer: int, rotation: Rotation | None
    ) -> tuple[Tensor, Cache | None]:
        """Return x (B, L, D) after this block, and this layer's cache."""
        x, cache = self.self_attend(x, state, layer, rotation)
        return self.cross_attend(x, state, layer), cache

    def self_attend(
        self, x: Tensor, state: DecoderState, layer: int, rotation: Rotation | None
    ) -> tuple[Tensor, Cache | None]:
        """Return x (B, L, D) after self-attention, and this layer's cache."""
        attended = self.attention(x, xa=state.mean, cache=state.caches[layer], rotation=rotation)
        return x + self.dropout(attended.out), attended.cache

    def cross_attend(self, x: Tensor, state: DecoderState, layer: int) -> Tensor:
        """Return x (B, L, D) after cross-attention and perceptron."""
        x = x + self.dropout(self.cross.cross(self.ln_cross(x), state.memory[layer], state.mask))
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

    def start(self, memory: EncoderOutput) -> DecoderState:
        """Return the state before the first token, with the cross-attention keys and values."""
        crossings = [cast(DecoderBlock, block).cross for block in self.blocks]
        projected = [cross.keys_values(memory.states) for cross in crossings]
        return DecoderState(projected, memory.mask, memory.mean(), [None] * len(self.blocks), 0)

    def forward(self, tokens: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """Read tokens (B, L) after those in `state`; return logits (B, L, V) and the next state.

        ValueError if the text exceeds `text_context`.
        """
        x, rotation = self._embed(tokens, state)
        caches: list[Cache | None] = []
        for layer, block in enumerate(self.blocks):
            x, cache = block(x, state, layer, rotation)
            caches.append(cache)
        return self._logits(x), state._replace(caches=caches, length=state.length + tokens.shape[1])

    def hidden(self, tokens: Tensor, memory: EncoderOutput) -> list[Tensor]:
        """Read whole texts (B, L); return the states (B, L, D) after each block and after the last LayerNorm.

        The product of the last ones and the embedding gives the logits.
        """
        state = self.start(memory)
        x, rotation = self._embed(tokens, state)
        states = []
        for layer, block in enumerate(self.blocks):
            x, _ = block(x, state, layer, rotation)
            states.append(x)
        return [*states, self.ln(x)]

    def cross_attention_scores(self, tokens: Tensor, state: DecoderState) -> tuple[Tensor, list[Tensor]]:
        """Read tokens (B, L); return logits (B, L, V) and the cross-attention scores (B, H, L, S) of each layer.

        Scores are before mask and softmax; the state is unchanged.
        """
        x, rotation = self._embed(tokens, state)
        scores = []
        for layer, block in enumerate(cast(list[DecoderBlock], self.blocks)):
            x, _ = block.self_attend(x, state, layer, rotation)
            scores.append(block.cross.cross_scores(block.ln_cross(x), state.memory[layer]))
            x = block.cross_attend(x, state, layer)
        return self._logits(x), scores

    def _logits(self, x: Tensor) -> Tensor:
        return self.ln(x) @ self.token_embedding.weight.T

    def _embed(self, tokens: Tensor, state: DecoderState) -> tuple[Tensor, Rotation | None]:
        """Return the input of the first block: x (B, L, D), and the rotation."""
        end = state.length + tokens.shape[1]
        if end > self.config.text_context:
            raise ValueError(f"{end} tokens exceed text_context {self.config.text_context}")
        x = self.token_embedding(tokens)
        rotation = None
        if self.config.positions == "rotary":
            steps = torch.arange(state.length, end, device=tokens.device)
            rotation = rotary(steps, self.config.width // self.config.heads, self.config.base)
        else:
            x = x + self.positional_embedding[state.length : end]
        return self.dropout(x), rotation


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
        logits, _ = self.decoder(tokens, self.decoder.start(memory))
        if self.ctc_head is None:
            return ForwardOutput(memory, logits, None)
        below = None
        if middle and memory.middle is not None:
            below = self.ctc_log_probs(memory._replace(states=self.encoder.ln_post(memory.middle)))
        return ForwardOutput(memory, logits, self.ctc_log_probs(memory), below)

    def parameter_count(self) -> int:
        """Return the number of parameters."""
        return sum(parameter.numel() for parameter in self.parameters())
