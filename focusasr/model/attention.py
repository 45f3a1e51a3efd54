"""Focused hybrid attention: a global branch and a local window of learned span and sharpness.

Letters: B batch, T steps (queries), S steps (keys), D width, H heads, E = D / H head width.
Masks are boolean, True = visible. Distances and radii are in steps.
"""

from __future__ import annotations

import copy
import math
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from focusasr.config import LEARNED_TEMPERATURE_RANGE, AttentionScaling, ModelConfig
from focusasr.model.local_attention import Window, require_steps, windowed_attention
from focusasr.runtime.errors import SettingError

Rotation = tuple[Tensor, Tensor]
KeysValues = tuple[Tensor, Tensor]
Module = TypeVar("Module", bound=nn.Module)


class Attended(NamedTuple):
    """Output of attention: (B, T, D), and the span per utterance and head (B, H) of hybrid attention."""

    out: Tensor
    span_scale: Tensor | None = None


def rotary(steps: Tensor, head_width: int, base: float) -> Rotation:
    """Return cosines and sines (T, E/2) for positions `steps` (T,) (Su et al. 2021, section 3.4.2)."""
    exponents = torch.arange(0, head_width, 2, device=steps.device, dtype=torch.float32) / head_width
    angles = steps.float()[:, None] * base**-exponents
    return angles.cos(), angles.sin()


def rotations(config: ModelConfig, steps: int, device: torch.device) -> Rotation | None:
    """Return the rotation of the first `steps` positions; None for absolute positions."""
    if config.positions == "absolute":
        return None
    return rotary(torch.arange(steps, device=device), config.width // config.heads, config.base)


def rotate(x: Tensor, rotation: Rotation | None) -> Tensor:
    """Rotate each pair of coordinates of x (B, H, T, E) by the angle of its position; None leaves x unchanged."""
    if rotation is None:
        return x
    cos, sin = (part.to(x.dtype) for part in rotation)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)


def _split(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)  # (B, T, D) -> (B, H, T, E)


def merge_heads(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)  # (B, H, T, E) -> (B, T, D)


class MultiheadAttention(nn.Module):
    """Whisper's multi-head attention (keys without bias), for the global branch and the cross-attention."""

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
        """Project xa (B, S, D) to keys and values (B, H, S, E)."""
        return _split(self.key(xa), self.heads), _split(self.value(xa), self.heads)

    def cross(self, x: Tensor, memory: KeysValues, mask: Tensor | None = None) -> Tensor:
        """Attend from x (B, T, D) to the projected memory, with mask (B, S) → (B, T, D)."""
        seen = None if mask is None else mask[:, None, None, :]
        q = _split(self.query(x), self.heads)
        return self.out(merge_heads(F.scaled_dot_product_attention(q, *memory, attn_mask=seen)))

    def cross_scores(self, x: Tensor, memory: KeysValues) -> Tensor:
        """Return the scores of `cross` before mask and softmax, (B, H, T, S)."""
        q, k = _split(self.query(x), self.heads), memory[0]
        scale = q.shape[-1] ** -0.25  # on both factors, as in Whisper
        return (q * scale) @ (k * scale).transpose(-1, -2)

    def forward(self, x: Tensor, mask: Tensor | None = None, rotation: Rotation | None = None) -> Tensor:
        """Attend from x (B, T, D) to itself, with mask (B, T) → (B, T, D); ValueError if T is 0."""
        require_steps(x)
        q = rotate(_split(self.query(x), self.heads), rotation)
        k, v = self.keys_values(x)
        k = rotate(k, rotation)
        if self.max_dist is not None:
            radius = torch.full((1, 1), self.max_dist + 1.0, device=x.device)
            mixed = windowed_attention(q, k, v, Window(radius, 1, self.causal, self.block), mask)
        else:
            mixed = self._everywhere(q, k, v, mask)
        return self.out(merge_heads(mixed))

    def _everywhere(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        seen = None if mask is None else mask[:, None, None, :]
        if self.causal:
            before = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
            seen = before if seen is None else before & seen
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen)


class SpanPredictor(nn.Module):
    """Predictor of the span per head and utterance, from the mean of the global branch's output or of the audio."""

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
    """Local branch: attention inside a learned span with a temperature that depends on the span.

    Radius r = ramp + (max_span - ramp) · span_scale. Temperature τ = 1 + temp_scale · (1 - span_scale) if
    `sharpen_longer`, else τ = 0.5 + temp_scale · span_scale; `temperature="learned"` multiplies it per head by a
    bounded factor that starts at 1. `with_attention_scaling` sets two more factors, 1 by default: one multiplies the
    span_scale of the radius, up to 1, the other the temperature, which still depends on the learned span.
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
        """Return the radius (B, H) in steps, differentiable in span_scale (B, H)."""
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
        self, x: Tensor, span_scale: Tensor, mask: Tensor | None = None, rotation: Rotation | None = None
    ) -> Tensor:
        """Attend from x (B, T, D) to itself inside the span, with mask (B, T) → (B, T, D)."""
        q, k = (rotate(_split(project(x), self.heads), rotation) for project in (self.query, self.key))
        v = _split(self.value(x), self.heads)
        precise = torch.promote_types(span_scale.dtype, torch.float32)  # half precision would round radii to steps
        window = Window(self.radius(span_scale.to(precise)), self.config.ramp, self.causal, self.config.win_size)
        mixed = windowed_attention(q, k, v, window, mask, self.temperature(span_scale))
        return merge_heads(mixed)


class GlobalAttention(nn.Module):
    """LayerNorm and global branch only: Whisper's self-attention, the baseline."""

    def __init__(self, config: ModelConfig, causal: bool = False) -> None:
        super().__init__()
        self.ln_global = nn.LayerNorm(config.width)
        self.attn_global = MultiheadAttention(config, causal)

    def forward(
        self, x: Tensor, xa: Tensor | None = None, mask: Tensor | None = None, rotation: Rotation | None = None
    ) -> Attended:
        """Attend from x (B, T, D); `xa` has no effect here, only in `HybridAttention`."""
        return Attended(self.attn_global(self.ln_global(x), mask, rotation))


class HybridAttention(nn.Module):
    """LayerNorm for each branch, global branch, local branch, concatenation, projection 2D → D.

    The projection reads [local | global], so that weights [0 | I] reduce it to the global branch. The span comes from
    the global branch's output in an encoder, and from the audio `xa` in a (causal) decoder, which cannot see the
    future of the text.
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
        self, x: Tensor, xa: Tensor | None = None, mask: Tensor | None = None, rotation: Rotation | None = None
    ) -> Attended:
        """Attend from x (B, T, D) with its mask (B, T).

        `xa` (B, 1, D), the mean of the audio, gives the span if causal; ValueError without it.
        """
        if self.causal and xa is None:
            raise ValueError("causal hybrid attention needs xa, the audio's mean (B, 1, D), for its span")
        global_out = self.attn_global(self.ln_global(x), mask, rotation)
        span_scale = self.span_pred(global_out, mask) if xa is None else self.span_pred(xa)
        local = self.attn_local(self.ln_local(x), span_scale, mask, rotation)
        return Attended(self.projection(torch.cat((local, global_out), dim=-1)), span_scale)


def with_attention_scaling(model: Module, knobs: AttentionScaling) -> Module:
    """Return `model` with every learned span and temperature multiplied, for inference only.

    The weights are shared and `model` is unchanged. SettingError for a factor other than 1 on a model without spans.
    """
    if knobs.span_scale == knobs.temperature_scale == 1.0:
        return model
    shared: dict[int, object] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    turned = copy.deepcopy(model, shared)
    branches = [module for module in turned.modules() if isinstance(module, AdaptiveSpanAttention)]
    if not branches:
        turned_name = "temperature_scale" if knobs.span_scale == 1.0 else "span_scale"
        wanted = "1, since this model's attention is global, without spans"
        raise SettingError(turned_name, getattr(knobs, turned_name), wanted)
    for branch in branches:
        branch.span_knob, branch.temperature_knob = knobs.span_scale, knobs.temperature_scale
    return turned
