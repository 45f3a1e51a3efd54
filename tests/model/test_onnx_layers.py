"""Products in 8 bit integers are those that numpy computes, and a row does not depend on the others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from focusasr.config import ModelConfig
from focusasr.model import onnx_layers
from focusasr.model.onnx_layers import LOWEST_GELU, ZERO, Layers, exact_zero
from focusasr.model.onnx_weights import WeightReader
from focusasr.model.weights import Integers, Weight
from focusasr.runtime.onnx import run

INPUTS, OUTPUTS = 96, 40


def product(x: np.ndarray, values: np.ndarray, scales: np.ndarray, lowest: float | None, whole: bool) -> np.ndarray:
    """Return x (1, T, K) times weights (N, K), by a graph of one product."""
    layers = Layers(WeightReader({}, Path("none")), ModelConfig(), whole=whole)
    layers.output(layers.product(layers.input("x", 1, "T", INPUTS), values, scales, lowest=lowest), 1, "T", OUTPUTS)
    (found,) = run(layers.session(1), {"x": x})
    return found


def by_numpy(x: np.ndarray, values: np.ndarray, scales: np.ndarray, lowest: float | None) -> np.ndarray:
    """Return the same with exact sums of whole numbers: the slow twin of products with one scale for each row."""
    if lowest is None:
        scale, zeros = np.abs(x).max(axis=-1, keepdims=True) * np.float32(1 / 127), np.float32(0)
    else:
        scale = (x.max(axis=-1, keepdims=True) - np.float32(lowest)) * np.float32(1 / 255)
        zeros = np.rint(np.float32(-lowest) / scale)
    scale = np.maximum(scale, np.float32(1e-30))
    integers = (
        np.clip(np.rint(x / scale) + zeros, -128 if lowest is None else 0, 127 if lowest is None else 255) - zeros
    )
    return (integers.astype(np.int64) @ values.T.astype(np.int64)) * scale * scales.T


@pytest.mark.parametrize("zero", [0, ZERO])
@pytest.mark.parametrize("lowest", [None, LOWEST_GELU])
@pytest.mark.parametrize("rows", [1, 2, 33])
def test_products_of_whole_rows_are_exact(
    rows: int, lowest: float | None, zero: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not zero and exact_zero("MatMulIntegerToFloat") != 0:
        pytest.skip("this CPU does not multiply signed 8 bit integers exactly")
    monkeypatch.setattr(onnx_layers, "exact_zero", lambda operator: zero)
    chance = np.random.default_rng(rows)
    x = chance.normal(size=(1, rows, INPUTS)).astype(np.float32) * 10 ** chance.uniform(-3, 3, (1, rows, 1))
    x[0, -1] = 0
    x = (np.maximum(x, LOWEST_GELU) if lowest is not None else x).astype(np.float32)
    values = chance.integers(-127, 128, (OUTPUTS, INPUTS)).astype(np.int8)
    scales = chance.uniform(0.5, 2, (OUTPUTS, 1)).astype(np.float32)
    found, expected = product(x, values, scales, lowest, whole=True), by_numpy(x, values, scales, lowest)
    largest = (np.abs(x).max(axis=-1, keepdims=True) - (lowest or 0)) * np.abs(values * scales).sum(axis=1)
    assert (np.abs(found - expected) <= 1e-6 * largest).all()
    alone = [product(x[:, row : row + 1], values, scales, lowest, whole=True) for row in range(rows)]
    assert np.array_equal(found, np.concatenate(alone, axis=1))


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("lowest", [None, LOWEST_GELU])
def test_products_are_near_those_of_floats(whole: bool, lowest: float | None) -> None:
    chance = np.random.default_rng(0)
    x = np.maximum(chance.normal(size=(1, 50, INPUTS)), -9 if lowest is None else lowest).astype(np.float32)
    values = chance.integers(-127, 128, (OUTPUTS, INPUTS)).astype(np.int8)
    scales = chance.uniform(0.5, 2, (OUTPUTS, 1 if whole else 3)).astype(np.float32)
    weights = values * np.repeat(scales, INPUTS // scales.shape[1], axis=1)
    exact = x @ weights.T
    assert np.abs(product(x, values, scales, lowest, whole) - exact).mean() < 0.01 * exact.std()


def test_gains_make_products_of_rows_with_outliers_more_exact() -> None:
    chance = np.random.default_rng(0)
    scale = np.where(np.arange(INPUTS) % 16 == 0, 20, 1).astype(np.float32)  # of a norm: some columns are large
    embedding = (chance.normal(size=(OUTPUTS, INPUTS)) / scale).astype(np.float32)
    tensors = {"head": embedding, "norm.weight": scale, "norm.bias": np.zeros(INPUTS, np.float32)}
    weights = {name: Weight(one.shape, lambda one=one: one) for name, one in tensors.items()}  # type: ignore[misc]
    values, scales, gains = WeightReader(weights, Path("none")).balanced("head", OUTPUTS, INPUTS, "norm")
    assert np.abs(values * scales / gains - embedding).max() < 0.01 * np.abs(embedding).max()
    x = (chance.normal(size=(1, 50, INPUTS)) * scale).astype(np.float32)
    plain = WeightReader(weights, Path("none")).integers("head", OUTPUTS, INPUTS)
    errors = [
        np.abs(product(given, *integers, None, whole=True) - x @ embedding.T).mean()
        for given, integers in ((x, plain), (x / gains, (values, scales)))
    ]
    assert errors[1] < 0.5 * errors[0]
    stored = Weight((OUTPUTS, INPUTS), lambda: embedding, lambda: Integers(*plain))
    assert (WeightReader({"head": stored}, Path("none")).balanced("head", OUTPUTS, INPUTS, "norm")[2] == 1).all()
