"""Other throats and holes in spectrograms, for training: drawn where sound is read, applied where the model computes.

Holes are SpecAugment's (Park et al. 2019). What is drawn follows from the generator and the number of frames alone.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from numpy.random import Generator
from torch import Tensor

from focusasr.config import TrainConfig


class Masks(NamedTuple):
    """What is done to each row: a factor (B,) for its bands' places, stripes of bands (B, K, 2) and frames (B, L, 2).

    A stripe is its start and its width, which may be 0. One recording's masks have no B.
    """

    stretch: Tensor
    bands: Tensor
    frames: Tensor


NO_STRIPES = torch.zeros(0, 2, dtype=torch.long)
NO_MASKS = Masks(torch.tensor(1.0), NO_STRIPES, NO_STRIPES)


def draw_masks(frames: int, bands: int, config: TrainConfig, draw: Generator) -> Masks:
    """Draw a stretch, two stripes of bands (up to a quarter each), and some of frames (up to 30 and an eighth each)."""
    stretch = draw.uniform(1 - config.formant, 1 + config.formant) if config.formant else 1.0
    if not config.spec_augment:
        return NO_MASKS._replace(stretch=torch.tensor(stretch))
    hidden_bands = _stripes(2, bands, max(1, bands // 4), draw)
    return Masks(torch.tensor(stretch), hidden_bands, _stripes(1 + frames // 150, frames, min(30, frames // 8), draw))


def _stripes(count: int, size: int, widest: int, draw: Generator) -> Tensor:
    """Draw stripes (count, 2) of a row of that size."""
    stripes = []
    for _ in range(count):
        width = int(draw.integers(0, widest + 1))
        stripes.append((int(draw.integers(0, size - width + 1)), width))
    return torch.tensor(stripes)


def stack_masks(masks: Sequence[Masks]) -> Masks:
    """Return the masks of several recordings as those of one batch, with stripes of no width where one has fewer."""
    pad = functools.partial(torch.nn.utils.rnn.pad_sequence, batch_first=True)
    stretch = torch.stack([row.stretch for row in masks])
    return Masks(stretch, pad([row.bands for row in masks]), pad([row.frames for row in masks]))


def apply_masks(mel: Tensor, lengths: Tensor, masks: Masks) -> Tensor:
    """Return mel (B, F, M) with bands stretched, then stripes of each row's `lengths` (B,) frames set to their mean."""
    mel = stretch_bands(mel, masks.stretch)
    frames, bands = mel.shape[1:]
    filling = mel.sum(dim=(1, 2)) / (lengths * bands)  # frames beyond a row's length are zero, and stay so
    hidden = _covered(masks.bands, bands)[:, None] | _covered(masks.frames, frames)[:, :, None]
    there = torch.arange(frames, device=mel.device) < lengths[:, None]
    return torch.where(hidden & there[..., None], filling[:, None, None], mel)


def stretch_bands(mel: Tensor, factor: Tensor) -> Tensor:
    """Return mel (B, F, M) read at `factor` (B,) times each band's index, by linear interpolation."""
    places = torch.arange(mel.shape[2], device=mel.device)
    position = (places * factor[:, None]).clamp(max=mel.shape[2] - 1)
    shares = (1 - (places[:, None] - position[:, None]).abs()).clamp(min=0)  # (B, M from, M to), two in each column
    return mel @ shares


def _covered(stripes: Tensor, size: int) -> Tensor:
    """Return (B, size), true where one of a row's stripes (B, K, 2) lies."""
    start, width = stripes[..., :1], stripes[..., 1:]
    place = torch.arange(size, device=stripes.device)
    return ((place >= start) & (place < start + width)).any(dim=1)
