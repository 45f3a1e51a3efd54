"""Attention statistics of one recording: spans, temperatures, entropies, weights and norms.

Letters: T encoder steps, D width, H heads, E = D / H head width, F mel frames, M mel bands. All weights are computed
densely, T × T per head, from the layer's own projections: a slow reference implementation for short recordings.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from focusasr.audio.features import input_mel, stack
from focusasr.audio.load import load
from focusasr.audio.source import Source
from focusasr.config import SAMPLE_RATE_HZ, InspectionConfig, ModelConfig
from focusasr.model.attention import (
    AdaptiveSpanAttention,
    HybridAttention,
    MultiheadAttention,
    Rotation,
    rotate,
    with_attention_scaling,
)
from focusasr.model.local_attention import soft_mask
from focusasr.model.transformer import EncoderBlock, Model
from focusasr.runtime.devices import to_float64
from focusasr.runtime.errors import InputError, SettingError
from focusasr.runtime.files import printable

NOTICEABLE = 0.01  # a weight above this counts in `share_above_1_percent`


class Branch(NamedTuple):
    """One branch of one layer: its weights, and its share of the layer's output."""

    weights: Tensor  # (H, T, T), queries by keys, each row sums to 1
    visible: Tensor  # (H or 1, T, T), True if the key is visible
    heads: Tensor  # (H, T, D), each head's share of the layer's output
    whole: Tensor  # (T, D), the branch's share of the layer's output: all heads and the branch's bias


class LayerView(NamedTuple):
    """One layer on one recording; radii in steps; local.whole + globe.whole + the projection's bias is its output."""

    span_scale: Tensor  # (H,) as predicted, before the scaling factor
    radius: Tensor  # (H,)
    temperature: Tensor  # (H,)
    local: Branch
    globe: Branch


@dataclass(frozen=True)
class HeadFigures:
    """The figures of one head.

    `span_ms` is the span to either side. Entropies are means over the queries; `…_entropy` is relative to uniform
    attention over the visible keys: 1 is uniform, 0 a single key. Norms are those of the head's share of the layer's
    output through either half of the projection, means over the steps.
    """

    span_scale: float
    span_ms: float
    temperature: float
    local_entropy_bits: float
    local_entropy: float
    local_share_above_1_percent: float
    global_entropy_bits: float
    global_entropy: float
    global_share_above_1_percent: float
    local_norm: float
    global_norm: float
    local_over_global: float


@dataclass(frozen=True)
class LayerFigures:
    """The figures of one layer, counted from 1; the norms are of whole branches."""

    layer: int
    local_norm: float
    global_norm: float
    local_over_global: float
    heads: list[HeadFigures]


@dataclass(frozen=True)
class Inspection:
    """The figures of all layers; the mel (F, M) and the views of the chosen layers for a picture."""

    name: str
    audio_seconds: float
    mel: Tensor  # longer than a short recording
    settings: ModelConfig
    layers: list[LayerFigures]
    views: dict[int, LayerView]
    config: InspectionConfig


def hybrid_layers(model: Model) -> list[HybridAttention]:
    """Return the encoder's attention layers; InputError if they are global and have no spans."""
    layers = [cast(EncoderBlock, block).attention for block in model.encoder.blocks]
    hybrid = [layer for layer in layers if isinstance(layer, HybridAttention)]
    if len(hybrid) < len(layers):
        raise InputError("this checkpoint's encoder has global attention, without spans; expected: a hybrid one")
    return hybrid


def inspect_recording(model: Model, path: str, config: InspectionConfig, layers: Sequence[int] | None) -> Inspection:
    """Compute the attention on the part of a recording that `config` selects, with its scaling factors.

    The views of `layers`, from 1, are kept (default: first, middle, last). InputError if a layer, a span or the
    recording does not exist.
    """
    count = len(hybrid_layers(model))
    for layer in layers or ():
        if not 1 <= layer <= count:
            raise SettingError("layer", layer, f"1 to {count}, the encoder's layers")
    waveform = load(Source(path, config.offset, config.seconds))
    device = next(model.parameters()).device
    mel = input_mel(torch.from_numpy(waveform).to(device), model.config)
    chosen = layers or (1, (count + 1) // 2, count)
    figures, kept = [], {}
    for number, view in enumerate(layer_views(with_attention_scaling(model, config), mel), start=1):
        figures.append(layer_figures(number, view, model.config.step_seconds))
        if number in chosen:
            kept[number] = view
    name = printable(Path(path).name)
    seconds = len(waveform) / SAMPLE_RATE_HZ
    return Inspection(name, seconds, mel.cpu(), model.config, figures, kept, config)


@torch.inference_mode()
def layer_views(model: Model, mel: Tensor) -> Iterator[LayerView]:
    """Yield each encoder layer's view of one spectrogram (F, M), one layer at a time: dense weights are large."""
    attentions = hybrid_layers(model.eval())
    x, mask, rotation = model.encoder.embed(*stack([mel]))
    for block, attention in zip(model.encoder.blocks, attentions, strict=True):
        after, span_scale = block(x, mask, rotation)
        yield layer_view(attention, x, span_scale, rotation)
        x = after


def layer_view(attention: HybridAttention, x: Tensor, span_scale: Tensor, rotation: Rotation | None) -> LayerView:
    """Return the view of one layer from its input x (1, T, D) and its span_scale (1, H)."""
    local, globe = attention.attn_local, attention.attn_global
    near, far = attention.projection.weight.chunk(2, dim=1)  # (D, D) each; the projection reads [local | global]
    steps = torch.arange(x.shape[1], device=x.device, dtype=x.dtype)
    distance = (steps - steps[:, None]).abs()
    mask = soft_mask(local.radius(span_scale), local.config.ramp, distance)[0]
    weights, values = dense_weights(local, attention.ln_local(x), mask, local.temperature(span_scale)[0], rotation)
    heads = _through(weights @ values, near)
    local_part = Branch(weights, mask > 0, heads, heads.sum(dim=0))
    mask = torch.ones_like(distance) if globe.max_dist is None else (distance <= globe.max_dist).to(x.dtype)
    even = torch.ones(globe.heads, device=x.device)
    weights, values = dense_weights(globe, attention.ln_global(x), mask[None], even, rotation)
    heads = _through(weights @ values, far @ globe.out.weight)
    global_part = Branch(weights, mask[None] > 0, heads, heads.sum(dim=0) + far @ globe.out.bias)
    return LayerView(
        span_scale[0], local.radius(span_scale)[0], local.temperature(span_scale)[0], local_part, global_part
    )


def dense_weights(
    branch: AdaptiveSpanAttention | MultiheadAttention,
    x: Tensor,
    mask: Tensor,
    temperature: Tensor,
    rotation: Rotation | None,
) -> tuple[Tensor, Tensor]:
    """Return weights (H, T, T) and values (H, T, E) of a branch that reads x (1, T, D); weights @ values is its output.

    mask (H or 1, T, T) multiplies the exponentials, temperature (H,) divides the scores.
    """
    query, key, value = (
        project(x).unflatten(-1, (branch.heads, -1)).transpose(1, 2)  # (1, H, T, E)
        for project in (branch.query, branch.key, branch.value)
    )
    scores = (rotate(query, rotation) @ rotate(key, rotation).mT)[0] / math.sqrt(query.shape[-1])
    return (scores / temperature[:, None, None] + mask.log()).softmax(dim=-1), value[0]


def _through(outputs: Tensor, projection: Tensor) -> Tensor:
    """Project each head's output (H, T, E) by its columns of a projection (D, D) → (H, T, D)."""
    return outputs @ projection.unflatten(1, (outputs.shape[0], -1)).permute(1, 2, 0)


def entropy(weights: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean entropy of rows (…, T, S) in bits, (…), and the same relative to uniform attention, 0 to 1.

    Uniform is 1 / n over the n visible keys of a query; if every query sees one key, the relative entropy is 1.
    """
    bits = torch.special.entr(to_float64(weights)).sum(dim=-1).mean(dim=-1) / math.log(2)
    uniform = to_float64(visible.sum(dim=-1)).log2().mean(dim=-1).expand_as(bits)
    return bits, torch.where(uniform > 0, bits / uniform, 1.0)


def share_above(weights: Tensor, visible: Tensor, threshold: float = NOTICEABLE) -> Tensor:
    """Return the share of the visible weights (…, T, S) above a threshold, (…)."""
    above = ((weights > threshold) & visible).sum(dim=(-2, -1))
    return above / visible.sum(dim=(-2, -1))


def _length(x: Tensor) -> Tensor:
    """Return the mean length of the vectors x (…, T, D) over the steps, (…)."""
    return x.norm(dim=-1).mean(dim=-1)


def _ratio(local: Tensor, globe: Tensor) -> Tensor:
    return local / globe.clamp(min=1e-9)  # finite, for JSON


def layer_figures(number: int, view: LayerView, step_seconds: float) -> LayerFigures:
    """Return the figures of one layer."""
    columns = {
        "span_scale": view.span_scale,
        "span_ms": 1000 * step_seconds * view.radius,
        "temperature": view.temperature,
        "local_norm": _length(view.local.heads),
        "global_norm": _length(view.globe.heads),
    }
    columns["local_over_global"] = _ratio(columns["local_norm"], columns["global_norm"])
    for name, branch in (("local", view.local), ("global", view.globe)):
        columns[f"{name}_entropy_bits"], columns[f"{name}_entropy"] = entropy(branch.weights, branch.visible)
        columns[f"{name}_share_above_1_percent"] = share_above(branch.weights, branch.visible)
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    heads = [HeadFigures(**dict(zip(columns, row, strict=True))) for row in rows]
    local, globe = _length(view.local.whole), _length(view.globe.whole)
    return LayerFigures(number, local.item(), globe.item(), _ratio(local, globe).item(), heads)


@torch.inference_mode()
def mean_spans(model: Model, mels: Iterable[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Return each encoder layer's radii in ms and temperatures, (H,) each, at the mean span of spectrograms (F, M)."""
    layers, device = hybrid_layers(model.eval()), next(model.parameters()).device
    encoded = (model.encode(*stack([mel.to(device)])) for mel in mels)
    spans = [torch.stack([scale[0].float() for scale in memory.spans]) for memory in encoded]  # (layers, H) each
    means = torch.stack(spans).mean(dim=0)
    ms = 1000 * model.config.step_seconds
    return [
        (ms * layer.attn_local.radius(scale), layer.attn_local.temperature(scale))
        for layer, scale in zip(layers, means, strict=True)
    ]


def to_json(inspection: Inspection) -> dict[str, Any]:
    """Return the figures ready for JSON: recording, scaling factors, and the `HeadFigures` of each layer."""
    knobs = inspection.config
    return {
        "offset_seconds": knobs.offset,
        "audio_seconds": inspection.audio_seconds,
        "step_ms": 1000 * inspection.settings.step_seconds,
        "knobs": {"span_scale": knobs.span_scale, "temperature_scale": knobs.temperature_scale},
        "layers": [dataclasses.asdict(layer) for layer in inspection.layers],
    }
