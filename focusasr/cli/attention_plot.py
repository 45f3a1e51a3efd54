"""The picture of `inspect`: spectrogram, spans per head, and attention weights."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from focusasr.audio.mel_stream import FRAMES_PER_SECOND
from focusasr.config import SAMPLE_RATE_HZ
from focusasr.evaluation.attention_stats import Inspection, LayerFigures, LayerView
from focusasr.runtime.files import write_errors, written_aside

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure


DOTS_PER_INCH = 110
LEAST_WEIGHT = 1e-3  # smaller weights are drawn like this one
HEAD_INCHES, MOST_INCHES = 2.4, 24.0  # width per head, total width
BAR_INCHES, LAYER_INCHES = 0.16, 4.6  # height per head over the spectrogram, height per chosen layer
MEL_TICKS_HZ = (250, 500, 1000, 2000, 4000, 8000)


def picture_inches(inspection: Inspection) -> tuple[float, float]:
    """Return width and height of the picture in inches."""
    heads = len(inspection.layers[0].heads)
    return min(MOST_INCHES, max(11.0, HEAD_INCHES * heads + 1.4)), _sound_inches(inspection) + LAYER_INCHES * len(
        inspection.views
    )


def _sound_inches(inspection: Inspection) -> float:
    return 1.5 + max(3.0, BAR_INCHES * sum(len(layer.heads) + 1 for layer in inspection.layers))


def draw(inspection: Inspection, path: Path) -> None:
    """Write the picture as PNG; InputError if it cannot be written."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=picture_inches(inspection), dpi=DOTS_PER_INCH, layout="constrained")
    heights = [_sound_inches(inspection), *[LAYER_INCHES] * len(inspection.views)]
    parts = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    axes = parts[0].subplots()
    draw_sound(axes, inspection)
    draw_spans(axes, inspection)
    for part, (number, view) in zip(parts[1:], sorted(inspection.views.items()), strict=True):
        draw_layer(part, inspection, inspection.layers[number - 1], view)
    instead = "choose another place with --output"
    with write_errors(path, instead), written_aside(path) as aside, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # no font has the script of the name
        figure.savefig(aside, format="png")


def draw_sound(axes: Axes, inspection: Inspection) -> None:
    """Draw the log-mel spectrogram in gray, seconds by Hz."""
    frames, bands = inspection.mel.shape
    extent = (inspection.config.offset, inspection.config.offset + frames / FRAMES_PER_SECOND, 0, bands)
    axes.imshow(
        inspection.mel.T.numpy(), origin="lower", aspect="auto", extent=extent, cmap="Greys", vmin=-1.0, vmax=2.5
    )
    axes.set(xlabel="time, s", ylabel="mel band, Hz")
    axes.set_yticks([_band_of(hz, bands) for hz in MEL_TICKS_HZ], [str(hz) for hz in MEL_TICKS_HZ])


def _band_of(hz: float, bands: int) -> float:
    """Return the position of a frequency on the mel axis (Slaney's scale: linear to 1 kHz, then logarithmic)."""

    def mel(hz: float) -> float:
        return 3 * hz / 200 if hz < 1000 else 15 + 27 * np.log(hz / 1000) / np.log(6.4)

    return bands * mel(hz) / mel(SAMPLE_RATE_HZ / 2)


def draw_spans(axes: Axes, inspection: Inspection) -> None:
    """Draw each head's span around the middle: full weight dark, the soft edge light.

    Dotted lines are the largest span that the model could learn.
    """
    from matplotlib import colormaps

    start, stop, _, top = axes.get_images()[0].get_extent()
    middle, edge = (start + stop) / 2, inspection.settings.ramp * inspection.settings.step_seconds
    largest = inspection.settings.max_span * inspection.settings.step_seconds
    row = top / (1 + sum(len(layer.heads) + 1 for layer in inspection.layers))
    y = top - 1.5 * row
    for x, style in ((middle - largest, ":"), (middle, "-"), (middle + largest, ":")):
        axes.axvline(x, color="black", linewidth=1, linestyle=style)
    for layer in inspection.layers:
        color = colormaps["tab10"]((layer.layer - 1) % 10)
        _label(axes, middle - largest, y - row * (len(layer.heads) - 1) / 2, f"layer {layer.layer}  ", "right")
        for head in layer.heads:
            seconds = head.span_ms / 1000
            axes.barh(y, 2 * seconds, 0.85 * row, middle - seconds, color=color, alpha=0.45)
            axes.barh(y, 2 * (seconds - edge), 0.85 * row, middle - seconds + edge, color=color)
            _label(axes, middle + seconds, y, f"  ±{head.span_ms:.0f} ms", "left")
            y -= row
        y -= row
    knobs = inspection.config
    turned = f"spans × {knobs.span_scale:g}, temperatures × {knobs.temperature_scale:g}"
    shown = "as learned" if knobs.span_scale == knobs.temperature_scale == 1 else turned
    title = f"{inspection.name}: what each head sees around one moment, {shown} (pale: soft edge, dotted: largest span)"
    axes.set_title(title, fontsize=9, parse_math=False)
    axes.set(xlim=(min(start, middle - 1.3 * largest), max(stop, middle + 1.3 * largest)), ylim=(0, top))


def _label(axes: Axes, x: float, y: float, words: str, side: str) -> None:
    from matplotlib.patheffects import withStroke

    halo = [withStroke(linewidth=2.5, foreground="white")]
    axes.text(x, y, words, ha=side, va="center", fontsize=7, path_effects=halo, clip_on=True)


def draw_layer(part: SubFigure, inspection: Inspection, figures: LayerFigures, view: LayerView) -> None:
    """Draw the weights of one layer's heads: local ones by offset of the key, global ones by its time."""
    from matplotlib.colors import LogNorm

    start = inspection.config.offset
    stop = start + view.local.weights.shape[1] * inspection.settings.step_seconds
    step_ms = 1000 * inspection.settings.step_seconds
    widest = max(head.span_ms for layer in inspection.layers for head in layer.heads)
    steps = math.ceil(widest / step_ms)  # of all layers
    reach = (steps + 0.5) * step_ms
    rows = part.subplots(2, len(figures.heads), sharey=True, squeeze=False)
    looks = {
        "norm": LogNorm(LEAST_WEIGHT, 1.0, clip=True),
        "cmap": "viridis",
        "aspect": "auto",
        "interpolation": "nearest",
    }
    near = by_offset(view.local.weights, steps).cpu().numpy()
    far = view.globe.weights.cpu().numpy()
    for index, head in enumerate(figures.heads):
        local, globe = rows[0, index], rows[1, index]
        image = local.imshow(near[index], extent=(-reach, reach, stop, start), **looks)
        for x in (-head.span_ms, head.span_ms):
            local.axvline(x, color="white", linewidth=0.8, linestyle="--")
        globe.imshow(far[index], extent=(start, stop, stop, start), **looks)
        sharp = f"±{head.span_ms:.0f} ms, temperature {head.temperature:.2f}"
        local.set_title(f"head {index + 1} local: {head.local_entropy_bits:.1f} bits\n{sharp}", fontsize=8)
        globe.set_title(f"head {index + 1} global: {head.global_entropy_bits:.1f} bits", fontsize=8)
        local.set_xlabel("key − query, ms", fontsize=8)
        globe.set_xlabel("time of key, s", fontsize=8)
    for axes in rows.flat:
        axes.tick_params(labelsize=7)
    for axes in rows[:, 0]:
        axes.set_ylabel("time of query, s", fontsize=8)
    part.colorbar(image, ax=rows, label="attention weight", fraction=0.04, pad=0.01)
    part.suptitle(f"layer {figures.layer}: local adds {figures.local_over_global:.2f} × what global adds", fontsize=10)


def by_offset(weights: Tensor, reach: int) -> Tensor:
    """Turn weights (H, T, T) by key into weights (H, T, 2 reach + 1) by offset -reach … reach of the key; 0 beyond."""
    steps = weights.shape[1]
    padded = F.pad(weights, (reach, reach))
    keys = torch.arange(steps, device=weights.device)[:, None] + torch.arange(2 * reach + 1, device=weights.device)
    return padded.gather(2, keys.expand(len(weights), -1, -1))
