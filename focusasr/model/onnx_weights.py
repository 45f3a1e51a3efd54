"""Weights of a checkpoint for an `OnnxEngine`, in floats or as 8 bit integers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from focusasr.model.weights import Weight
from focusasr.runtime.errors import InputError

SMALLEST = 1e-30  # peak of a block of zeros
BALANCE = 0.7  # by how much gains make the columns of inputs alike, and not those of weights
ROWS_AT_ONCE = 4096  # of a matrix that is rounded, so that no whole copy in float32 is made
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
        return _rounded(self._checked(name, weight.read()), size // block if block else parts)

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
        return *_rounded(weight, 1, gains, order="F"), gains  # in the order of the product

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
        values = values.astype(np.float32, copy=False)
        if not np.isfinite([values.min(initial=0), values.max(initial=0)]).all():  # faster than one by one
            raise self._error(f"{name} has values that are not finite")
        return values

    def _error(self, problem: str) -> InputError:
        return InputError(f"{self._place}: {problem}. Copy the checkpoint again.")


def _rounded(
    weight: np.ndarray, parts: int, gains: np.ndarray | float = 1.0, order: Literal["C", "F"] = "C"
) -> tuple[np.ndarray, np.ndarray]:
    """Return weights (N, K) times gains as 8 bit integers, with scales (N, parts) for equal parts of each row."""
    values, scales = np.empty(weight.shape, np.int8, order), np.empty((len(weight), parts), np.float32)
    for start in range(0, len(weight), ROWS_AT_ONCE):
        here = slice(start, start + ROWS_AT_ONCE)
        blocks = (weight[here] * gains).reshape(-1, parts, weight.shape[1] // parts)
        scales[here] = np.maximum(np.abs(blocks).max(axis=2), SMALLEST) / 127
        values[here] = np.rint(blocks / scales[here, :, None]).reshape(-1, weight.shape[1])
    return values, scales


def to_floats(values: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Return integers (…, K) times the scales (…, parts) of equal parts, in float32."""
    parts = values.reshape(*scales.shape, -1) * scales[..., None]
    return parts.reshape(values.shape).astype(np.float32)
