"""Focused hybrid attention: a global branch beside a local window whose span and sharpness are learned.

Letters: B batch, T steps (queries), S steps (keys), D width, H heads, E = D / H head width, W block of windows.
Masks are boolean, True = may look. Distances and radii are steps.

What query i may see of key j in the local branch, for a radius r and a soft edge of width `ramp`:

    weight m(|i - j|)      1 |‾‾‾‾‾‾‾‾\\
                             |         \\
                           0 |__________\\____  |i - j|
                             0    r-ramp r
"""

from __future__ import annotations

import copy
import math
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from focusasr.config import KnobsConfig, ModelConfig
from focusasr.settings import UsageError

Rotation = tuple[Tensor, Tensor]
KeysValues = tuple[Tensor, Tensor]
Module = TypeVar("Module", bound=nn.Module)

LEARNED_TEMPERATURE_RANGE = 4.0  # a learned temperature stays within the formula's value divided or multiplied by this


class Cache(NamedTuple):
    """Keys and values of the text so far (B, H, S, E), a value that goes in and comes out; `local` in hybrid ones."""

    globe: KeysValues
    local: KeysValues | None = None


class Attended(NamedTuple):
    """What attention returns: (B, T, D), the cache where it was causal, and the span per utterance and head (B, H)."""

    out: Tensor
    cache: Cache | None = None
    span_scale: Tensor | None = None


def _require_steps(x: Tensor) -> None:
    if x.shape[-2] == 0:
        raise ValueError("attention has 0 steps to look from; wanted at least 1")


def rotary(steps: Tensor, head_width: int, base: float) -> Rotation:
    """Return cosines and sines (T, E/2) for positions `steps` (T,) (Su et al. 2021, section 3.4.2)."""
    exponents = torch.arange(0, head_width, 2, device=steps.device, dtype=torch.float32) / head_width
    angles = steps.float()[:, None] * base**-exponents
    return angles.cos(), angles.sin()


def rotate(x: Tensor, rotation: Rotation | None) -> Tensor:
    """Turn each pair of coordinates of x (B, H, T, E) by its position's angle; None leaves x as it is."""
    if rotation is None:
        return x
    cos, sin = (part.to(x.dtype) for part in rotation)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)


def soft_mask(radius: Tensor, ramp: int, distance: Tensor) -> Tensor:
    """Return m(δ) = clip((r - δ) / ramp, 0, 1) as (…, *distance.shape) for radii r of any shape.

    Sukhbaatar et al. 2019, Adaptive Attention Span, equation 1, made two-sided by δ = |i - j|.
    """
    radius = radius.reshape(radius.shape + (1,) * distance.dim())
    return ((radius - distance) / ramp).clamp(0.0, 1.0)


def log_mask(mask: Tensor) -> Tensor:
    """Return log m, -inf where m is 0, with zero gradient there."""
    seen = mask > 0
    return torch.where(seen, torch.where(seen, mask, 1.0).log(), -torch.inf)


def _distance(queries: Tensor, keys: Tensor, causal: bool) -> Tensor:
    """Return |i - j| (T, S) between positions; infinite where a causal query would look ahead."""
    ahead = keys - queries[:, None]
    distance = ahead.abs().float()
    return distance.masked_fill(ahead > 0, torch.inf) if causal else distance


class Window(NamedTuple):
    """How far the queries of each head look: radii (B or 1, H or 1) with a soft edge, backward only where causal."""

    radius: Tensor
    ramp: int
    causal: bool
    block: int

    @property
    def reach(self) -> int:
        """Return the furthest distance that any head of the batch gives weight to."""
        return max(0, math.ceil(self.radius.max().item()) - 1)


def windowed_attention(q: Tensor, k: Tensor, v: Tensor, window: Window, mask: Tensor | None) -> Tensor:
    """Attend inside a soft window; time and memory grow with T times the reach, not with T times T.

    q (B, H, T, E), k and v (B, H, S, E) with S ≥ T, the queries being the last T of the S positions (S > T only
    where causal), mask (B, S) of the keys → (B, H, T, E). Queries that may see nothing give zeros.
    ValueError where T is 0.
    """
    _require_steps(q)
    steps, keys = q.shape[2], k.shape[2]
    reach = min(window.reach, keys - 1)
    ahead = 0 if window.causal else reach
    if torch.is_grad_enabled():  # the backward pass copies the keys of each block: longer blocks copy less
        window = window._replace(block=max(window.block, reach))
    if steps != keys or steps <= window.block + reach + ahead:
        return _dense(q, k, v, window, mask)
    return _blocked(q, k, v, window, mask, (reach, ahead))


def _dense(q: Tensor, k: Tensor, v: Tensor, window: Window, mask: Tensor | None) -> Tensor:
    steps, keys = q.shape[2], k.shape[2]
    positions = torch.arange(keys, device=q.device)
    distance = _distance(positions[keys - steps :], positions, window.causal)
    bias = log_mask(soft_mask(window.radius, window.ramp, distance))  # (B, H, T, S)
    if mask is not None:
        bias = bias.masked_fill(~mask[:, None, None, :], -torch.inf)
    return _attend(q, k, v, bias)


def _blocked(q: Tensor, k: Tensor, v: Tensor, window: Window, mask: Tensor | None, look: tuple[int, int]) -> Tensor:
    """Attend block by block, each to the keys in its reach, which are views: no key or value is copied per block.

    One bias serves all blocks of a run in which everybody sees every key; only the others, at the edges and where
    there is padding, get a bias of their own.
    """
    batch, heads, steps, head_width = q.shape
    behind, ahead = look
    block = window.block
    blocks = -(-steps // block)
    spare = blocks * block - steps
    width = behind + block + ahead

    def windows(x: Tensor) -> Tensor:  # (B, H, T, E) -> (B * H, blocks, width, E)
        padded = F.pad(x, (0, 0, behind, ahead + spare)).flatten(0, 1)
        return padded.unfold(1, width, block).transpose(2, 3)

    queries = F.pad(q, (0, 0, 0, spare)).reshape(batch * heads, blocks, block, head_width)
    keys, values = windows(k), windows(v)
    inside = torch.ones(1, steps, dtype=torch.bool, device=q.device) if mask is None else mask
    inside = F.pad(inside, (behind, ahead + spare)).unfold(1, width, block)  # (B, blocks, width)
    positions = torch.arange(width, device=q.device)
    distance = _distance(positions[behind : behind + block], positions, window.causal)
    bias = log_mask(soft_mask(window.radius, window.ramp, distance))[:, :, None].expand(-1, heads, -1, -1, -1)
    runs = _clear_run(inside)
    outs = []
    split = [x.split(runs, dim=1) for x in (queries, keys, values, inside)]
    for index, (some, near, held, seen) in enumerate(zip(*split, strict=True)):
        if not runs[index]:
            continue  # PyTorch 2.11 divides by the number of blocks
        hidden = bias if index == 1 else bias.masked_fill(~seen[:, None, :, None, :], -torch.inf)
        outs.append(_attend(some, near, held, hidden.expand(batch, -1, -1, -1, -1).flatten(0, 1)))
    return torch.cat(outs, dim=1).reshape(batch, heads, blocks * block, head_width)[:, :, :steps]


def _clear_run(inside: Tensor) -> list[int]:
    """Return the blocks before, in and after the first run whose keys, inside (B, blocks, width), everybody sees."""
    clear = inside.all(dim=2).all(dim=0).tolist()
    start = clear.index(True) if True in clear else len(clear)
    length = next((n for n, seen in enumerate(clear[start:]) if not seen), len(clear) - start)
    return [start, length, len(clear) - start - length]


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Softmax attention, scale 1/√E, with an additive bias; rows that are -inf throughout give zeros, never NaN."""
    blind = (bias == -torch.inf).all(dim=-1, keepdim=True)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.masked_fill(blind, 0.0).to(q.dtype))
    return out.masked_fill(blind, 0.0)


def _split(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)  # (B, T, D) -> (B, H, T, E)


def _merge(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)  # (B, H, T, E) -> (B, T, D)


def _extend(k: Tensor, v: Tensor, past: KeysValues | None) -> KeysValues:
    if past is None:
        return k, v
    return torch.cat((past[0], k), dim=2), torch.cat((past[1], v), dim=2)


class MultiheadAttention(nn.Module):
    """Whisper's multi-head attention (keys without bias), the global branch and the cross-attention."""

    def __init__(self, config: ModelConfig, causal: bool = False) -> None:
        super().__init__()
        self.heads = config.heads
        self.max_dist = config.max_dist
        self.block = config.win_size
        self.causal = causal
        self.query = nn.Linear(config.width, config.width)
        self.key = nn.Linear(config.width, config.width, bias=False)
        self.value = nn.Linear(config.width, config.width)
        self.out = nn.Linear(config.width, config.width)

    def keys_values(self, xa: Tensor) -> KeysValues:
        """Project what is looked at, (B, S, D), to keys and values (B, H, S, E)."""
        return _split(self.key(xa), self.heads), _split(self.value(xa), self.heads)

    def cross(self, x: Tensor, memory: KeysValues, mask: Tensor | None = None) -> Tensor:
        """Look from x (B, T, D) at the projected memory, with mask (B, S) → (B, T, D)."""
        seen = None if mask is None else mask[:, None, None, :]
        q = _split(self.query(x), self.heads)
        return self.out(_merge(F.scaled_dot_product_attention(q, *memory, attn_mask=seen)))

    def cross_scores(self, x: Tensor, memory: KeysValues) -> Tensor:
        """Return what `cross` takes the softmax of, before any mask: (B, H, T, S)."""
        q, k = _split(self.query(x), self.heads), memory[0]
        scale = q.shape[-1] ** -0.25  # on both sides, as Whisper has it
        return (q * scale) @ (k * scale).transpose(-1, -2)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, past: KeysValues | None = None, rotation: Rotation | None = None
    ) -> tuple[Tensor, KeysValues]:
        """Look from x (B, T, D) at itself and at the past; `mask` (B, S) covers past and present.

        Returns (B, T, D) and the keys and values of past and present; ValueError where T is 0.
        """
        _require_steps(x)
        q = rotate(_split(self.query(x), self.heads), rotation)
        k, v = self.keys_values(x)
        k, v = _extend(rotate(k, rotation), v, past)
        if self.max_dist is not None:
            radius = torch.full((1, 1), self.max_dist + 1.0, device=x.device)
            mixed = windowed_attention(q, k, v, Window(radius, 1, self.causal, self.block), mask)
        else:
            mixed = self._everywhere(q, k, v, mask)
        return self.out(_merge(mixed)), (k, v)

    def _everywhere(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        steps, keys = q.shape[2], k.shape[2]
        seen = None if mask is None else mask[:, None, None, :]
        if self.causal and steps > 1:
            before = torch.ones(steps, keys, dtype=torch.bool, device=q.device).tril(keys - steps)
            seen = before if seen is None else before & seen
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen)


class SpanPredictor(nn.Module):
    """The span of each head for each utterance, from the mean of what the global branch (or the audio) says."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.linear = nn.Linear(config.width, config.heads)
        nn.init.constant_(self.linear.bias, math.log(config.initial_span / (1 - config.initial_span)))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return span_scale (B, H) in (0, 1) from x (B, T, D) and its mask (B, T)."""
        if mask is None:
            return torch.sigmoid(self.linear(x.mean(dim=1)))
        weights = mask.to(x.dtype)[..., None]
        return torch.sigmoid(self.linear((x * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1.0)))


class AdaptiveSpanAttention(nn.Module):
    """The local branch: attention inside a learned span with a temperature that depends on the span.

    radius r = ramp + (max_span - ramp) · span_scale. Temperature τ = 1 + temp_scale · (1 - span_scale) where
    `sharpen_longer`, else τ = 0.5 + temp_scale · span_scale; `temperature="learned"` multiplies it per head by
    a bounded factor that starts at 1. Two knobs, 1 unless `with_knobs` turned them, multiply what was learned:
    one the span_scale that gives the radius, up to 1, the other the temperature, which keeps to the learned span.
    """

    def __init__(self, config: ModelConfig, causal: bool = False) -> None:
        super().__init__()
        self.heads = config.heads
        self.config = config
        self.causal = causal
        self.query = nn.Linear(config.width, config.width)
        self.key = nn.Linear(config.width, config.width, bias=False)
        self.value = nn.Linear(config.width, config.width)
        self.sharpness = nn.Parameter(torch.zeros(config.heads)) if config.temperature == "learned" else None
        self.span_knob, self.temperature_knob = 1.0, 1.0

    def radius(self, span_scale: Tensor) -> Tensor:
        """Return the radius in steps, (B, H), differentiable in span_scale (B, H)."""
        turned = (self.span_knob * span_scale).clamp(max=1.0)
        return self.config.ramp + (self.config.max_span - self.config.ramp) * turned

    def temperature(self, span_scale: Tensor) -> Tensor:
        """Return the softmax temperature (B, H) for span_scale (B, H)."""
        if self.config.sharpen_longer:
            formula = 1.0 + self.config.temp_scale * (1.0 - span_scale)
        else:
            formula = 0.5 + self.config.temp_scale * span_scale
        if self.sharpness is not None:
            formula = formula * LEARNED_TEMPERATURE_RANGE ** torch.tanh(self.sharpness)
        return self.temperature_knob * formula

    def forward(
        self,
        x: Tensor,
        span_scale: Tensor,
        mask: Tensor | None = None,
        past: KeysValues | None = None,
        rotation: Rotation | None = None,
    ) -> tuple[Tensor, KeysValues]:
        """Look from x (B, T, D) inside the span at itself and the past; returns (B, T, D) and keys and values."""
        q = rotate(_split(self.query(x), self.heads), rotation)
        k = rotate(_split(self.key(x), self.heads), rotation)
        k, v = _extend(k, _split(self.value(x), self.heads), past)
        q = q / self.temperature(span_scale)[:, :, None, None].to(q.dtype)
        precise = torch.promote_types(span_scale.dtype, torch.float32)  # half precision would round radii to steps
        window = Window(self.radius(span_scale.to(precise)), self.config.ramp, self.causal, self.config.win_size)
        return _merge(windowed_attention(q, k, v, window, mask)), (k, v)


class GlobalAttention(nn.Module):
    """LayerNorm and the global branch alone: Whisper's self-attention, the baseline."""

    def __init__(self, config: ModelConfig, causal: bool = False) -> None:
        super().__init__()
        self.ln_global = nn.LayerNorm(config.width)
        self.attn_global = MultiheadAttention(config, causal)

    def forward(
        self,
        x: Tensor,
        xa: Tensor | None = None,
        mask: Tensor | None = None,
        cache: Cache | None = None,
        rotation: Rotation | None = None,
    ) -> Attended:
        """Attend from x (B, T, D); `xa` is for the hybrid form and changes nothing here."""
        out, globe = self.attn_global(self.ln_global(x), mask, cache.globe if cache else None, rotation)
        return Attended(out, Cache(globe))


class HybridAttention(nn.Module):
    """LayerNorm for each branch, global branch, local branch, concatenation, projection 2D → D.

    The projection reads [local | global], so that weights [0 | I] compute what the global branch alone computes.
    In an encoder the span comes from the global branch's output; in a decoder (causal) from the audio `xa`, since
    the future of the text cannot be seen.
    """

    def __init__(self, config: ModelConfig, causal: bool = False) -> None:
        super().__init__()
        self.causal = causal
        self.ln_local = nn.LayerNorm(config.width)
        self.ln_global = nn.LayerNorm(config.width)
        self.attn_local = AdaptiveSpanAttention(config, causal)
        self.attn_global = MultiheadAttention(config, causal)
        self.span_pred = SpanPredictor(config)
        self.projection = nn.Linear(2 * config.width, config.width)

    def forward(
        self,
        x: Tensor,
        xa: Tensor | None = None,
        mask: Tensor | None = None,
        cache: Cache | None = None,
        rotation: Rotation | None = None,
    ) -> Attended:
        """Attend from x (B, T, D); mask (B, S) covers the cache and x.

        `xa` (B, 1, D) is the mean of the audio that a causal form takes its span from; ValueError without it.
        """
        if self.causal and xa is None:
            raise ValueError("causal hybrid attention needs xa, the audio's mean (B, 1, D), for its span")
        globe, globe_kv = self.attn_global(self.ln_global(x), mask, cache.globe if cache else None, rotation)
        span_scale = self.span_pred(globe, mask) if xa is None else self.span_pred(xa)
        past = cache.local if cache else None
        local, local_kv = self.attn_local(self.ln_local(x), span_scale, mask, past, rotation)
        out = self.projection(torch.cat((local, globe), dim=-1))
        return Attended(out, Cache(globe_kv, local_kv), span_scale)


def with_knobs(model: Module, knobs: KnobsConfig) -> Module:
    """Return `model` with every learned span and temperature multiplied, for use, not for training.

    The weights are shared and `model` stays as it is. UsageError where a knob is turned and nothing has spans.
    """
    if knobs.span_scale == knobs.temperature_scale == 1.0:
        return model
    shared: dict[int, object] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    turned = copy.deepcopy(model, shared)
    branches = [module for module in turned.modules() if isinstance(module, AdaptiveSpanAttention)]
    if not branches:
        given = f"span_scale is {knobs.span_scale}, temperature_scale {knobs.temperature_scale}"
        raise UsageError(f"{given}, but this model's attention is global, without spans; leave both at 1")
    for branch in branches:
        branch.span_knob, branch.temperature_knob = knobs.span_scale, knobs.temperature_scale
    return turned
