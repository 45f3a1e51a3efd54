"""Stretches and masks: drawn per recording, applied to a batch as one recording alone would have them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from focusasr.audio.features import stack
from focusasr.training.augment import NO_MASKS, Masks, apply_masks, draw_masks, stack_masks, stretch_bands
from focusasr.training_config import TrainConfig

NOTHING = TrainConfig(formant=0, spec_augment=False)
MASKS_ALONE = TrainConfig(formant=0)


def draw(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def slowly_augmented(mel: Tensor, config: TrainConfig, draw: np.random.Generator) -> Tensor:
    """Stretch and mask one spectrogram (F, M), drawing on the way: the plain twin of masks drawn first."""
    if config.formant:
        mel = slowly_stretched(mel, draw.uniform(1 - config.formant, 1 + config.formant))
    return slowly_masked(mel, draw) if config.spec_augment else mel


def slowly_stretched(mel: Tensor, factor: float) -> Tensor:
    bands = mel.shape[1]
    position = (torch.arange(bands) * factor).clamp(max=bands - 1)
    low = position.floor().long()
    high = (low + 1).clamp(max=bands - 1)
    share = position - low
    return mel[:, low] * (1 - share) + mel[:, high] * share


def slowly_masked(mel: Tensor, draw: np.random.Generator) -> Tensor:
    frames, bands = mel.shape
    mel, filling = mel.clone(), mel.mean()
    for _ in range(2):
        width = int(draw.integers(0, max(1, bands // 4) + 1))
        start = int(draw.integers(0, bands - width + 1))
        mel[:, start : start + width] = filling
    for _ in range(1 + frames // 150):
        width = int(draw.integers(0, min(30, frames // 8) + 1))
        start = int(draw.integers(0, frames - width + 1))
        mel[start : start + width] = filling
    return mel


def masked(mel: Tensor, masks: Masks) -> Tensor:
    """Return one spectrogram (F, M) under its masks."""
    return apply_masks(mel[None], torch.tensor([len(mel)]), stack_masks([masks]))[0]


@settings(deadline=None, max_examples=100)
@given(
    rows=st.lists(st.integers(1, 700), min_size=1, max_size=6),
    bands=st.sampled_from([1, 2, 3, 20, 80, 128]),
    formant=st.sampled_from([0.0, 0.1, 0.45]),
    spec_augment=st.booleans(),
    clean=st.integers(0, 6),
    seed=st.integers(0, 10**6),
)
def test_a_batch_is_masked_as_each_row_alone(
    rows: list[int], bands: int, formant: float, spec_augment: bool, clean: int, seed: int
) -> None:
    """Rows of any length, one of them perhaps clean; the generators go on from the same place."""
    config = TrainConfig(formant=formant, spec_augment=spec_augment)
    made = torch.Generator().manual_seed(seed)
    mels = [torch.randn(frames, bands, generator=made) + 0.5 for frames in rows]
    drawn, expected = [], []
    for row, mel in enumerate(mels):
        slow, quick = draw(seed + row), draw(seed + row)
        drawn.append(NO_MASKS if row == clean else draw_masks(len(mel), bands, config, quick))
        expected.append(mel if row == clean else slowly_augmented(mel, config, slow))
        assert row == clean or slow.random() == quick.random()
    batch, lengths = stack(mels)
    before = batch.clone()
    changed = apply_masks(batch, lengths, stack_masks(drawn))
    assert changed.dtype == torch.float32
    torch.testing.assert_close(changed, stack(expected)[0], rtol=0, atol=1e-5)
    assert torch.equal(batch, before)


def test_nothing_changes_nothing() -> None:
    mel = torch.randn(50, 20)
    assert torch.equal(masked(mel, NO_MASKS), mel)
    assert torch.equal(masked(mel, draw_masks(50, 20, NOTHING, draw())), mel)


def test_masks_are_stripes_of_limited_width() -> None:
    mel = torch.arange(320 * 80, dtype=torch.float32).reshape(320, 80)
    hidden_bands, hidden_frames = [], []
    for seed in range(40):
        changed = masked(mel, draw_masks(320, 80, MASKS_ALONE, draw(seed))) != mel
        bands, frames = changed.all(dim=0), changed.all(dim=1)
        assert torch.equal(changed, bands[None, :] | frames[:, None])
        hidden_bands.append(int(bands.sum()))
        hidden_frames.append(int(frames.sum()))
    assert 0 < max(hidden_bands) <= 40
    assert 0 < max(hidden_frames) <= 90
    assert len(set(hidden_bands)) > 10
    assert len(set(hidden_frames)) > 10


def test_what_is_hidden_has_the_mean_of_its_own_row() -> None:
    mels = [torch.randn(frames, 20) + shift for frames, shift in ((90, 3.0), (20, -3.0))]
    everything = Masks(torch.tensor(1.0), torch.tensor([[0, 20]]), torch.zeros(0, 2, dtype=torch.long))
    changed = apply_masks(*stack(mels), stack_masks([everything, everything]))
    for row, mel in zip(changed, mels, strict=True):
        torch.testing.assert_close(row[: len(mel)], mel.mean().expand(len(mel), 20))
    assert not changed[1, 20:].any(), "padding stays empty"


def test_short_recordings_are_hardly_masked_in_time() -> None:
    for seed in range(20):
        changed = masked(torch.randn(7, 80), draw_masks(7, 80, TrainConfig(), draw(seed))).T
        assert not (changed == changed[:1]).all()


@pytest.mark.parametrize(("factor", "expected"), [(1.0, 1.0), (0.5, 0.5), (1.5, 1.5)])
def test_stretching_moves_bands(factor: float, expected: float) -> None:
    mel = torch.arange(20.0).expand(2, 3, 20)
    stretched = stretch_bands(mel, torch.tensor([factor, 1.0]))
    torch.testing.assert_close(stretched[0], (mel[0] * expected).clamp(max=19))
    assert torch.equal(stretched[1], mel[1]), "each row by its own factor"
