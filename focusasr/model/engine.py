"""Inference engine: a model with fused projections and caches that are written in place.

Letters: B rows, U utterances (B = U · rows per utterance), L tokens, S encoder steps, D width, H heads, E head width.
It computes the same as `transformer.Decoder`, its slow twin in the tests; only the order of sums may differ.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from focusasr.audio.features import stack
from focusasr.config import DecodingConfig
from focusasr.model.attention import (
    AdaptiveSpanAttention,
    HybridAttention,
    KeysValues,
    MultiheadAttention,
    Rotation,
    merge_heads,
    rotate,
    rotations,
    with_attention_scaling,
)
from focusasr.model.decoding_state import DecodingState
from focusasr.model.local_attention import log_mask
from focusasr.model.quantization import (
    ComputeType,
    Integers,
    choose_compute_type,
    converted,
    make_linear,
    replace_linears,
)
from focusasr.model.torch_weights import UnreadWeights, bare_model
from focusasr.model.transformer import DecoderBlock, EncoderOutput, Model
from focusasr.runtime.devices import one_thread

FEW_PRODUCTS = 100_000_000  # of the widest layer in one pass: fewer are faster in one thread, measured on two cores
FRAMES_AT_ONCE = 3000  # in a batch on a CPU: more exceed its caches


class _PassPositions(NamedTuple):
    """Positions of the tokens of one pass: `start` if all rows have the same, else positions (B, L)."""

    start: int | None
    positions: Tensor  # (L,) or (B, L)
    end: int  # end of the visible keys
    distance: Tensor | None  # (1 or B, L, end), negative ahead; None for a single query after all keys
    seen: Tensor | None  # (1 or B, 1, L, end), keys visible to the global branch; None for all
    rotation: Rotation | None


class _Layer:
    """One decoder block with fused weights."""

    def __init__(self, block: DecoderBlock, compute_type: ComputeType) -> None:
        attention = block.attention
        globe = cast(MultiheadAttention, attention.attn_global)
        self.ln_global, self.heads = attention.ln_global, globe.heads
        self.qkv = _fused([globe.query, globe.key, globe.value], compute_type)
        self.out = _fused([globe.out], compute_type, fine=True)
        self.local: AdaptiveSpanAttention | None = None
        if isinstance(attention, HybridAttention):
            local = attention.attn_local
            self.local, self.ln_local, self.span_pred = _without_linears(local), attention.ln_local, attention.span_pred
            self.local_qkv = _fused([local.query, local.key, local.value], compute_type)
            projection = attention.projection  # of [local | global]
            self.projection = make_linear(projection.weight, projection.bias, compute_type, parts=2)
        self.ln_cross = block.ln_cross
        self.cross_query = _fused([block.cross.query], compute_type)
        self.cross_kv = _fused([block.cross.key, block.cross.value], compute_type)
        self.cross_out = _fused([block.cross.out], compute_type, fine=True)
        self.ln_mlp, inner, _, outer = block.mlp
        self.inner, self.outer = _fused([inner], compute_type), _fused([outer], compute_type, fine=True)

    def __call__(self, x: Tensor, layer: int, state: DecodingState, place: _PassPositions) -> Tensor:
        x = x + self._self_attend(x, state.caches[layer], state.spans[layer], place)
        x = x + self._cross_attend(layer_norm(x, self.ln_cross), state.memory[layer], state)
        return x + self.outer(F.gelu(self.inner(layer_norm(x, self.ln_mlp))))

    def _self_attend(self, x: Tensor, cache: Tensor, span: Tensor | None, place: _PassPositions) -> Tensor:
        q, past = self._project(self.qkv, layer_norm(x, self.ln_global), cache[:2], place)
        global_out = self.out(merge_heads(F.scaled_dot_product_attention(q, *past, attn_mask=place.seen)))
        if self.local is None or span is None:
            return global_out
        q, past = self._project(self.local_qkv, layer_norm(x, self.ln_local), cache[2:], place)
        q = q / self.local.temperature(span)[:, :, None, None].to(q.dtype)
        bias = self._soft_window(span, place).to(q.dtype)
        local = merge_heads(F.scaled_dot_product_attention(q, *past, attn_mask=bias))
        return self.projection(torch.cat((local, global_out), dim=-1))

    def _project(self, qkv: nn.Module, x: Tensor, cache: Tensor, place: _PassPositions) -> tuple[Tensor, KeysValues]:
        """Project x (B, L, D) to queries (B, H, L, E), and to keys and values appended to those of the past."""
        split = qkv(x).view(*x.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # (3, B, H, L, E)
        q, k = rotate(split[:2], place.rotation)  # both in one call, since calls dominate the cost of single tokens
        return q, _extend(cache, k, split[2], place)

    def _soft_window(self, span: Tensor, place: _PassPositions) -> Tensor:
        assert self.local is not None
        distance = place.distance
        if distance is None:  # a single query after all its keys
            distance = _behind(place.end, span.device)
        reach = torch.where(distance < 0, torch.inf, distance.float())[:, None]  # (1 or B, 1, L, end)
        radius = self.local.radius(span.float())[:, :, None, None]
        # `soft_mask` with a distance per row
        return log_mask(((radius - reach) / self.local.config.ramp).clamp(0.0, 1.0))

    def keys_values(self, memory: Tensor) -> KeysValues:
        """Return keys and values (U, H, S, E) of encoder states (U, S, D) for cross-attention."""
        split = self.cross_kv(memory).view(*memory.shape[:2], 2, self.heads, -1)
        k, v = split.permute(2, 0, 3, 1, 4).contiguous()
        return k, v

    def _cross_attend(self, x: Tensor, memory: KeysValues, state: DecodingState) -> Tensor:
        q = self.cross_query(x)  # (B, L, D); rows of one utterance share its keys
        grouped = q.view(len(memory[0]), -1, self.heads, q.shape[-1] // self.heads).transpose(1, 2)
        if state.steps is None:
            mixed = F.scaled_dot_product_attention(grouped, *memory, attn_mask=state.mask)
        else:
            mixed = torch.cat([_attend_alone(grouped, memory, *one) for one in enumerate(state.steps)])
        return self.cross_out(merge_heads(mixed).view(q.shape))


def _fused(layers: Sequence[nn.Module], compute_type: ComputeType, fine: bool = False) -> nn.Module:
    """Return one layer that computes several linear layers of the same input, with concatenated outputs."""
    linears = [cast(nn.Linear, layer) for layer in layers]
    weights: list[Tensor] = [linear.weight for linear in linears]
    biases: list[Tensor] = [
        weight.new_zeros(len(weight)) if linear.bias is None else linear.bias
        for linear, weight in zip(linears, weights, strict=True)
    ]
    return make_linear(torch.cat(weights), torch.cat(biases), compute_type, fine)


def _without_linears(module: AdaptiveSpanAttention) -> AdaptiveSpanAttention:
    """Return a copy of a module without the weights of its linear layers."""
    linears = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    memo: dict[int, object] = {id(one): one.detach().to("meta") for layer in linears for one in layer.parameters()}
    return copy.deepcopy(module, memo)


def _attend_alone(q: Tensor, memory: KeysValues, utterance: int, steps: int) -> Tensor:
    """Return the attention of one utterance's queries (1, H, L, E) to its own steps, without padding."""
    here = slice(utterance, utterance + 1)
    k, v = (kept[here, :, :steps] for kept in memory)
    return F.scaled_dot_product_attention(q[here], k, v)


def _extend(cache: Tensor, k: Tensor, v: Tensor, place: _PassPositions) -> tuple[Tensor, Tensor]:
    """Write keys and values (B, H, L, E) into the cache and return views up to the end of this pass."""
    if place.start is not None:
        cache[0, :, :, place.start : place.end] = k
        cache[1, :, :, place.start : place.end] = v
    else:
        rows = torch.arange(len(k), device=k.device)[:, None]
        cache[0][rows, :, place.positions] = k.transpose(1, 2)
        cache[1][rows, :, place.positions] = v.transpose(1, 2)
    return cache[0, :, :, : place.end], cache[1, :, :, : place.end]


def _behind(end: int, device: torch.device) -> Tensor:
    """Return the distances (1, 1, end) of a single query, the last of `end`, to its keys."""
    return torch.arange(end - 1, -1, -1, device=device)[None, None]


def _seen(distance: Tensor | None, end: int, max_dist: int | None, device: torch.device) -> Tensor | None:
    """Return which keys each query may see, (1 or B, 1, L, end); None for all."""
    if distance is None and (max_dist is None or end <= max_dist + 1):
        return None
    distance = _behind(end, device) if distance is None else distance
    seen = distance >= 0
    return (seen if max_dist is None else seen & (distance <= max_dist))[:, None]


def joined(parts: Sequence[EncoderOutput]) -> EncoderOutput:
    """Return several batches of encoded audio as one."""
    if len(parts) == 1:
        return parts[0]
    steps = max(part.states.shape[1] for part in parts)
    states = torch.cat([F.pad(part.states, (0, 0, 0, steps - part.states.shape[1])) for part in parts])
    lengths = torch.cat([part.lengths() for part in parts]).to(states.device)
    mask = torch.arange(steps, device=states.device) < lengths[:, None]
    spans = [torch.cat(layer) for layer in zip(*(part.spans for part in parts), strict=True)]
    return EncoderOutput(states, None if bool(mask.all()) else mask, spans)


class Engine:
    """A model for inference: `encode` audio, `start` a text, `advance` it by tokens to the logits of the next.

    If the model is on the device "meta", its weights are `unread`. For int8 they are read layer by layer, so that the
    model is never in memory in float32. Such a model is used up, any other one is unchanged.
    """

    def __init__(
        self, model: Model, compute_type: ComputeType = "float32", unread: UnreadWeights | None = None
    ) -> None:
        self.config = model.config
        self.device = unread.device if unread else model.decoder.token_embedding.weight.device
        self.compute_type = choose_compute_type(compute_type, self.device, model.config)
        integers = self.compute_type == "int8"
        if unread and not integers:
            unread.fill(model)
            unread = None
        whole = model if integers else cast(Model, converted(model.eval(), self.compute_type))
        decoder = whole.decoder
        self.embedding: Tensor | Integers = decoder.token_embedding.weight
        if unread:
            self.embedding = unread.table("decoder.token_embedding.weight")
            unread.fill_alone(decoder, "decoder")
            unread.fill(decoder.ln, "decoder.ln")
            if model.ctc_head is not None:
                unread.fill(model.ctc_head, "ctc_head")
            replace_linears(model.encoder, unread.fill_alone, "encoder")
        self.head = make_linear(self.embedding, None, self.compute_type)
        as_given = unread or not integers
        self.encoder = whole.encoder if as_given else converted(whole.encoder.eval(), "int8")
        self.ctc_head, self.ln = whole.ctc_head, decoder.ln
        self.positions = decoder.positional_embedding if self.config.positions == "absolute" else None
        self.dtype = self.ln.weight.dtype
        self.layers = list(self._layers(decoder.blocks, unread))
        # Sums of integers are exact in any order, so that decoding a batch gives every bit that each row gives alone.
        self.keeps_rows_apart = integers and all(layer.local is None for layer in self.layers)
        self.capacity = self.config.text_context + 1  # the last position takes writes of full rows
        self.rotations = rotations(self.config, self.capacity, self.device)

    def _layers(self, blocks: nn.ModuleList, unread: UnreadWeights | None) -> Iterator[_Layer]:
        """Yield the layers of decoder blocks; unread blocks are read one by one, and forgotten."""
        for number, block in enumerate(blocks):
            if unread:
                unread.fill(block, f"decoder.blocks.{number}")
            yield _Layer(cast(DecoderBlock, block), self.compute_type)
            if unread:
                blocks[number] = nn.Identity()

    @torch.inference_mode()
    def encode(self, mels: Sequence[Tensor]) -> EncoderOutput:
        """Encode spectrograms (F, M) as one batch."""
        if self.device.type != "cpu":
            return self._encode(mels)
        parts: list[list[Tensor]] = []
        frames = 0
        for mel in mels:
            frames += len(mel)
            if not parts or frames > FRAMES_AT_ONCE:
                parts.append([])
                frames = len(mel)
            parts[-1].append(mel)
        return joined([self._encode(part) for part in parts])

    def _encode(self, mels: Sequence[Tensor]) -> EncoderOutput:
        mel, lengths = stack(mels)
        with self.threads(mel.shape[0] * mel.shape[1]):
            return self.encoder(mel.to(self.dtype), lengths)

    def threads(self, frames: int) -> AbstractContextManager[None]:
        """Return the context for computing `frames` frames: one thread if they are few, which is faster."""
        steps = frames // (self.config.strides[0] * self.config.strides[1])
        return self._threads(steps * 4 * self.config.width**2)

    def _threads(self, products: int) -> AbstractContextManager[None]:
        return one_thread() if self.device.type == "cpu" and products < FEW_PRODUCTS else nullcontext()

    @torch.inference_mode()
    def ctc_log_probs(self, memory: EncoderOutput) -> Tensor:
        """Return log probabilities (B, T, V) of the CTC head, in float32; ValueError without a CTC head."""
        if self.ctc_head is None:
            raise ValueError("this model has no CTC head")
        return self.ctc_head(memory.states).float().log_softmax(dim=-1)

    @torch.inference_mode()
    def start(self, memory: EncoderOutput, group: int = 1) -> DecodingState:
        """Return the state before the first token, with `group` rows per utterance."""
        utterances, _, width = memory.states.shape
        keys_values = [layer.keys_values(memory.states) for layer in self.layers]
        mask = None if memory.mask is None else memory.mask[:, None, None, :]
        mean = memory.mean().to(memory.states.dtype)
        spans = [
            layer.span_pred(mean).repeat_interleave(group, dim=0) if layer.local else None for layer in self.layers
        ]
        state = DecodingState(keys_values, mask, spans, group)
        if self.keeps_rows_apart and memory.mask is not None:
            state.mask, state.steps = None, memory.lengths().tolist()
        head_width = width // self.config.heads
        for layer in self.layers:
            branches = 2 if layer.local is None else 4
            shape = (branches, utterances * group, self.config.heads, self.capacity, head_width)
            state.caches.append(memory.states.new_zeros(shape))
        return state

    @torch.inference_mode()
    def advance(self, tokens: Tensor, state: DecodingState, last: bool = False) -> Tensor:
        """Read tokens (B, L) after those in `state`, which is updated; return logits (B, L, V) of the next tokens.

        `last`: only those after the last token, (B, 1, V).
        The logits of rows that are full at `text_context` are undefined; ValueError if all rows are full.
        """
        length = tokens.shape[1]
        if min(state.lengths) + length > self.config.text_context:
            end = min(state.lengths) + length
            raise ValueError(f"{end} tokens exceed text_context {self.config.text_context}")
        widest = max(4 * self.config.width, self.config.vocabulary)
        with self._threads(tokens.numel() * self.config.width * widest):
            return self.head(layer_norm(self._advance(tokens, state)[:, -1 if last else 0 :], self.ln))

    def _advance(self, tokens: Tensor, state: DecodingState) -> Tensor:
        """Read tokens (B, L) and return the last layer's states (B, L, D)."""
        length = tokens.shape[1]
        place = self._place(state.lengths, length)
        x = self._embed(tokens)
        if self.positions is not None:
            x = x + self.positions[place.positions.clamp(max=self.config.text_context - 1)]
        for index, layer in enumerate(self.layers):
            x = layer(x, index, state, place)
        state.lengths = [before + length for before in state.lengths]
        return x

    def _embed(self, tokens: Tensor) -> Tensor:
        if isinstance(self.embedding, Integers):
            return self.embedding.values[tokens] * self.embedding.scales[tokens]
        return F.embedding(tokens, self.embedding).to(self.dtype)

    def _place(self, lengths: list[int], new: int) -> _PassPositions:
        first, end = lengths[0], min(max(lengths) + new, self.capacity)
        steps = torch.arange(new, device=self.device)
        uniform = min(lengths) == max(lengths)
        if uniform:
            positions = steps + first
        else:
            positions = (torch.tensor(lengths, device=self.device)[:, None] + steps).clamp(max=self.capacity - 1)
        distance = None
        if new > 1 or not uniform:
            distance = positions[..., None] - torch.arange(end, device=self.device)
            distance = distance[None] if uniform else distance
        rotation = None
        if self.rotations is not None:
            if uniform:
                cos, sin = (turn[first : first + new] for turn in self.rotations)
            else:
                cos, sin = (turn[positions][:, None] for turn in self.rotations)
            rotation = cos, sin
        seen = _seen(distance, end, self.config.max_dist, self.device)
        return _PassPositions(first if uniform else None, positions, end, distance, seen, rotation)


def layer_norm(x: Tensor, norm: Any) -> Tensor:
    """Apply an nn.LayerNorm without the overhead of a module call."""
    return F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def prepare(model: Model, device: torch.device, config: DecodingConfig, unread: UnreadWeights | None = None) -> Engine:
    """Return the engine of a model on a device, with the scaling and the compute type of `config`.

    `unread` are the weights of a model on the device "meta".
    """
    model = bare_model(model.config) if unread else model.to(device)
    return Engine(with_attention_scaling(model.eval(), config), config.compute_type, unread)
