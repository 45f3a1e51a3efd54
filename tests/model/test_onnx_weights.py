"""Weights are widened and rounded to 8 bits as numpy does it, bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from focusasr.model.onnx_weights import ROWS_AT_ONCE, SMALLEST, WeightReader, rounded
from focusasr.model.weights import Weight
from focusasr.runtime.errors import InputError

SHAPE = ROWS_AT_ONCE + 300, 96


def by_numpy(weight: np.ndarray, parts: int, gains: np.ndarray | float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Return integers and scales as `rounded` does: the slow twin."""
    blocks = (weight * gains).reshape(len(weight), parts, -1)
    scales = np.maximum(np.abs(blocks).max(axis=2), np.float32(SMALLEST)) / np.float32(127)
    return np.rint(blocks / scales[:, :, None]).astype(np.int8).reshape(weight.shape), scales


def reader(weight: np.ndarray) -> WeightReader:
    return WeightReader({"one": Weight(weight.shape, lambda: weight)}, Path("model"))


@pytest.mark.parametrize(("parts", "balanced"), [(1, False), (2, False), (3, False), (1, True)])
def test_rounding_is_that_of_numpy(parts: int, balanced: bool) -> None:
    chance = np.random.default_rng(parts)
    weight = (chance.normal(size=SHAPE) * 10 ** chance.uniform(-9, 3, (SHAPE[0], 1))).astype(np.float32)
    weight[5] = 0
    weight[6, ::2] = 0.5 * weight[6, 1::2]  # halves are rounded to even numbers
    gains = chance.uniform(0.1, 9, SHAPE[1]).astype(np.float32) if balanced else None
    found, scales = rounded(weight, parts, gains)
    values, expected = by_numpy(weight, parts, 1.0 if gains is None else gains)
    assert np.array_equal(found, values)
    assert np.array_equal(scales, expected)


def test_all_16_bit_floats_are_widened_exactly() -> None:
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    finite = every[np.isfinite(every)].reshape(2, -1)
    found = reader(finite).floats("one", *finite.shape)
    assert found.dtype == np.float32
    assert np.array_equal(found.view(np.uint32), finite.astype(np.float32).view(np.uint32))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(value: float, dtype: type[np.floating]) -> None:
    weight = np.zeros((3, 32), dtype)
    weight[1, 7] = value
    with pytest.raises(InputError, match="one has values that are not finite"):
        reader(weight).integers("one", 3, 32)
