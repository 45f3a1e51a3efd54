"""Weights of a checkpoint for an `OnnxEngine`, in floats or as 8 bit integers."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from focusasr.model.onnx_graph import Graph
from focusasr.model.weights import Weight
from focusasr.runtime.errors import InputError
from focusasr.runtime.onnx import run

SMALLEST = 1e-30  # peak of a block of zeros
BALANCE = 0.7  # by how much gains make the columns of inputs alike, and not those of weights
ROWS_AT_ONCE = 1024  # of a matrix that is rounded, so that its copies stay in the cache
NORM = "weight", "bias"  # of a layer norm


class WeightReader:
    """Weights by name, read one by one; InputError for missing, surplus or unusable ones in the file or folder."""

    def __init__(self, weights: Mapping[str, Weight], place: Path) -> None:
        self._weights, self._place = weights, place
        self._left = set(weights)

    def floats(self, name: str, *shape: int) -> np.ndarray:
        """Return weights in float32."""
        return self._checked(name, self._weight(name, shape).read())

    def integers(
        self, name: str, rows: int, size: int, parts: int = 1, block: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return weights (N, K) as 8 bit integers, and scales for equal parts of each row, (N, parts).

        Weights stored in 8 bits have `parts` scales a row, others one for each `block` of a row, if given.
        """
        weight = self._weight(name, (rows, size))
        if weight.integers is not None:
            values, scales = weight.integers()
            if scales.shape != (rows, parts):
                raise self._error(f"the scales of {name} have shape {scales.shape}; expected {(rows, parts)}")
            return values, self._checked(f"{name}.scale", scales)
        return rounded(self._checked(name, weight.read()), size // block if block else parts)

    def balanced(self, name: str, rows: int, size: int, norm: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return weights (N, K) times gains as 8 bit integers, scales (N, 1), and the gains (K,).

        A product with one scale for each row is more exact if the norm before it is divided by the gains: columns with
        large inputs get smaller ones. Xiao et al. 2023, SmoothQuant, section 4, with the inputs that the norm's weights
        let expect. Weights that are stored in 8 bits have gains of 1.
        """
        if self._weight(name, (rows, size)).integers is not None:
            return *self.integers(name, rows, size), np.ones(size, np.float32)
        weight, (scale, bias) = self.floats(name, rows, size), (self.floats(f"{norm}.{x}", size) for x in NORM)
        inputs, largest = 3 * np.abs(scale) + np.abs(bias), np.maximum(weight.max(axis=0), -weight.min(axis=0))
        gains = np.maximum(inputs, SMALLEST) ** BALANCE / np.maximum(largest, SMALLEST) ** (1 - BALANCE)
        return *rounded(weight, 1, gains), gains

    def end(self) -> None:
        """Reject weights that nobody has read."""
        if self._left:
            raise self._error(f"unknown weights {', '.join(sorted(self._left)[:3])}")

    def _weight(self, name: str, shape: Sequence[int]) -> Weight:
        if name not in self._weights:
            raise self._error(f"{name} is missing")
        self._left.discard(name)
        weight = self._weights[name]
        if weight.shape != tuple(shape):
            raise self._error(f"{name} has shape {weight.shape}; expected {tuple(shape)}")
        return weight

    def _checked(self, name: str, values: np.ndarray) -> np.ndarray:
        """Return values in float32."""
        if values.dtype.kind != "f":
            raise self._error(f"{name} is {values.dtype}; expected: floating point")
        if values.dtype == np.float16:
            values = run(_widening(), {"x": values.ravel()})[0].reshape(values.shape)
        values = values.astype(np.float32, copy=False)
        if not np.isfinite([values.min(initial=0), values.max(initial=0)]).all():  # faster than one by one
            raise self._error(f"{name} has values that are not finite")
        return values

    def _error(self, problem: str) -> InputError:
        return InputError(f"{self._place}: {problem}. Copy the checkpoint again.")


@functools.cache
def _widening() -> Any:
    """Return the graph that turns values (N,) of 16 bits into float32: ten times as fast as numpy."""
    graph = Graph()
    graph.output(graph.add("Cast", graph.input("x", "N", dtype=np.float16), to=1), "N")
    return graph.session(1, arena=False)


@functools.cache
def _rounding(balanced: bool) -> Any:
    """Return the graph of blocks (B, K) → 8 bit integers (B, K) and scales (B,).

    If balanced, values (B, K) times gains (K,) → integers (K, B) and scales.
    """
    graph = Graph()
    x = graph.input("x", "B", "K")
    if balanced:
        x = graph.add("Mul", x, graph.input("gains", "K"))
    peak = graph.add("ReduceMax", graph.add("Abs", x), graph.weight([1]), keepdims=0)
    lowest, steps = (graph.weight(np.array(value, np.float32)) for value in (SMALLEST, 127))
    scale = graph.add("Div", graph.add("Max", peak, lowest), steps)
    zeros = graph.add("Expand", graph.weight(np.array(0, np.int8)), graph.add("Shape", scale))
    integers = graph.add("QuantizeLinear", x, scale, zeros, axis=0)
    graph.output(graph.add("Transpose", integers, perm=[1, 0]) if balanced else integers, "N", "M", dtype=np.int8)
    graph.output(scale, "B")
    return graph.session(1, arena=False)


def rounded(weight: np.ndarray, parts: int, gains: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return weights (N, K) as 8 bit integers, with scales (N, parts) for equal parts of each row.

    With gains, each row is one part, and the weights are multiplied by them; the integers are in order by columns.
    """
    rows, size = weight.shape
    scales = np.empty((rows, parts), np.float32)
    values = np.empty(weight.shape, np.int8, "C" if gains is None else "F")
    for start in range(0, rows, ROWS_AT_ONCE):
        here = slice(start, start + ROWS_AT_ONCE)
        given = {"x": weight[here].reshape(-1, size // parts)} | ({} if gains is None else {"gains": gains})
        found, scale = run(_rounding(gains is not None), given)
        values[here] = found.reshape(-1, size) if gains is None else found.T
        scales[here] = scale.reshape(-1, parts)
    return values, scales


def to_floats(values: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Return integers (…, K) times the scales (…, parts) of equal parts, in float32."""
    parts = values.reshape(*scales.shape, -1) * scales[..., None]
    return parts.reshape(values.shape).astype(np.float32)
