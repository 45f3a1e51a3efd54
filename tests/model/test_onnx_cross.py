"""Cross-attention in 8 bit integers is what numpy computes from the same integers, and near that in floats."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from focusasr.config import ModelConfig
from focusasr.model.onnx_cross import FloatCross, IntegerCross
from focusasr.model.onnx_layers import ZERO, Layers, exact_zero
from focusasr.model.onnx_memory import Memory
from focusasr.model.onnx_weights import WeightReader
from focusasr.runtime.onnx import run

HEADS, SIZE, STEPS, ROWS, LENGTH = 2, 8, 40, 3, 2
Arrays = dict[str, np.ndarray]
Cross = FloatCross | IntegerCross


def layers() -> Layers:
    return Layers(WeightReader({}, Path("none")), ModelConfig(width=HEADS * SIZE, heads=HEADS))


def remembered(cross: Cross, keys: np.ndarray, values: np.ndarray) -> Arrays:
    """Return what the encoder leaves of keys and values (1, T, D)."""
    graph = layers()
    inputs = [graph.input(name, 1, "T", HEADS * SIZE) for name in ("keys", "values")]
    for value, (dtype, shape) in zip(cross.remember(graph, *inputs), cross.arrays.values(), strict=True):
        graph.output(value, 1, HEADS, *shape, dtype=dtype)
    return dict(zip(cross.arrays, run(graph.session(1), {"keys": keys, "values": values}), strict=True))


def attended(cross: Cross, query: np.ndarray, arrays: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """Return scores and mixtures for queries (1, H, R, L, E)."""
    graph = layers()
    inputs = [graph.input("query", 1, HEADS, "R", "L", SIZE)]
    for name, (dtype, shape) in cross.arrays.items():
        inputs.append(graph.input(name, 1, HEADS, 1, *shape, dtype=dtype))
    for value, size in zip(cross.attend(graph, *inputs), ("T", SIZE), strict=True):
        graph.output(value, 1, HEADS, "R", "L", size)
    scores, mixed = run(graph.session(1), {"query": query, **{name: one[:, :, None] for name, one in arrays.items()}})
    return scores, mixed


def by_numpy(query: np.ndarray, keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the same with signs, integers of 64 bits and no split of weights: the slow twin."""

    def rounded(x: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
        scale = np.maximum(np.abs(x).max(axis=axis, keepdims=True) * np.float32(1 / 127), np.float32(1e-30))
        return np.rint(x / scale).astype(np.int64), scale

    keys, values = (x.reshape(1, -1, 1, HEADS, SIZE).transpose(0, 3, 2, 1, 4) for x in (keys, values))
    (keys, key_scale), (values, value_scale) = rounded(keys, 3), rounded(values, 3)
    query, scale = rounded(query * key_scale, -1)
    scores = (query @ keys.swapaxes(3, 4)) * scale
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights = np.rint(weights / weights.sum(axis=-1, keepdims=True) * 255**2).astype(np.int64)
    return scores, (weights @ values) / 255**2 * value_scale


@pytest.fixture(params=[0, ZERO], ids=["signed", "unsigned"])
def zero(request: pytest.FixtureRequest) -> int:
    if not request.param and exact_zero("MatMulInteger") != 0:
        pytest.skip("this CPU does not multiply signed 8 bit integers exactly")
    return int(request.param)


@pytest.mark.parametrize("sharpness", [0.1, 1.0, 20.0])
def test_integers_and_floats_are_near_each_other_and_the_twin(sharpness: float, zero: int) -> None:
    chance = np.random.default_rng(0)
    keys, values = chance.normal(size=(2, 1, STEPS, HEADS * SIZE)).astype(np.float32) * np.float32(3)
    query = sharpness * chance.normal(size=(1, HEADS, ROWS, LENGTH, SIZE)).astype(np.float32)
    integers, floats = IntegerCross(SIZE, zero), FloatCross(SIZE)
    scores, mixed = attended(integers, query, remembered(integers, keys, values))
    expected_scores, expected = by_numpy(query, keys, values)
    assert np.abs(scores - expected_scores).max() <= 1e-5 * np.abs(expected_scores).max()
    assert np.abs(mixed - expected).max() <= STEPS / 255**2 * np.abs(values).max()
    exact_scores, exact = attended(floats, query, remembered(floats, keys, values))
    assert np.abs(scores - exact_scores).mean() < 0.02 * exact_scores.std()
    assert np.abs(mixed - exact).mean() < 0.05 * exact.std()


def test_many_faint_weights_are_not_lost(zero: int) -> None:
    steps = 1500
    keys, values = np.zeros((1, steps, HEADS * SIZE), np.float32), np.ones((1, steps, HEADS * SIZE), np.float32)
    keys[:, 0, ::SIZE], values[:, 0] = np.log(steps), -1
    query = np.zeros((1, HEADS, 1, 1, SIZE), np.float32)
    query[..., 0] = 1
    cross = IntegerCross(SIZE, zero)
    _, mixed = attended(cross, query, remembered(cross, keys, values))  # half of the weight is on the first step
    assert np.abs(mixed).max() < 0.02


@pytest.mark.parametrize("whole", [False, True], ids=["floats", "integers"])
def test_steps_after_the_end_get_no_weight(whole: bool, zero: int) -> None:
    chance = np.random.default_rng(0)
    keys, values = chance.normal(size=(2, 1, STEPS, HEADS * SIZE)).astype(np.float32)
    query = chance.normal(size=(1, HEADS, ROWS, LENGTH, SIZE)).astype(np.float32)
    cross: Cross = IntegerCross(SIZE, zero) if whole else FloatCross(SIZE)
    arrays = remembered(cross, keys, values)
    sizes = {"T": STEPS + 24}
    longer = Memory.empty(
        {
            name: (dtype, (1, HEADS, *(sizes.get(size, size) for size in shape)))
            for name, (dtype, shape) in cross.arrays.items()
        }
    )
    longer.put(0, list(arrays.values()))
    short, long = attended(cross, query, arrays), attended(cross, query, longer.arrays)
    assert np.allclose(short[1], long[1], rtol=1e-5, atol=1e-6) and np.isneginf(long[0][..., STEPS:]).all()
