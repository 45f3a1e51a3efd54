"""Layers of Whisper models as ONNX operators, with products in 8 bit integers."""

from __future__ import annotations

import functools

import numpy as np

from focusasr.config import ModelConfig
from focusasr.model.onnx_graph import Graph
from focusasr.model.onnx_weights import NORM, SMALLEST, WeightReader
from focusasr.runtime.onnx import run

BLOCK = 32  # values of a row with one scale, where rows have several
HEAD_BLOCK = 64  # the same before the logits; in larger blocks, rows would get other bits than alone
WHOLE_NUMBERS, FLOATS = 4, 1  # accuracy levels of ONNX Runtime
LOWEST_GELU = -0.17  # smallest value of the GELU
ZERO = 128  # what stands for 0 in unsigned integers; 0 does in signed ones
TO_FLOAT, TO_UINT8 = 1, 2  # TensorProto.DataType


class Layers(Graph):
    """A graph of the layers of a Whisper model.

    `whole`: rows of weights and activations have one scale each, if this CPU computes that exactly; else each block of
    a row has one.
    """

    def __init__(self, weights: WeightReader, config: ModelConfig, whole: bool = False) -> None:
        super().__init__()
        self.read, self.config, self.width, self.heads = weights, config, config.width, config.heads
        self.zero = exact_zero("MatMulIntegerToFloat")
        self.block = None if whole and self.zero is not None else BLOCK
        self._rounded: dict[str, tuple[str, str, str]] = {}

    def linear(self, x: str, name: str, outputs: int | None = None, bias: bool = True) -> str:
        """Apply a linear layer."""
        outputs = outputs or self.width
        values, scales = self.read.integers(f"{name}.weight", outputs, self.width, block=self.block)
        return self.product(x, values, scales, self.weight(self.read.floats(f"{name}.bias", outputs)) if bias else "")

    def query(self, x: str, name: str) -> str:
        """Return queries, divided by the root of the head width."""
        values, scales, bias = self._query(name)
        return self.product(x, values, scales, self.weight(bias))

    def queries_keys_values(self, x: str, name: str) -> list[str]:
        """Return queries, divided by the root of the head width, keys and values (B, H, T, E), by one product."""
        query, scales, bias = self._query(name)
        key, value = (
            self.read.integers(f"{name}.{part}.weight", self.width, self.width, block=self.block)
            for part in ("key", "value")
        )
        biases = np.concatenate([bias, np.zeros_like(bias), self.read.floats(f"{name}.value.bias", self.width)])
        values, scales = np.concatenate([query, key[0], value[0]]), np.concatenate([scales, key[1], value[1]])
        product = self.product(x, values, scales, self.weight(biases))
        parts = self.add("Reshape", product, self.weight([0, 0, 3, self.heads, self.width // self.heads]))
        turned = self.turned(parts, 2, 0, 3, 1, 4)
        return [self.add("Gather", turned, self.weight(np.array(place)), axis=0) for place in range(3)]

    def _query(self, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return integers, scales and bias of queries, divided by the root of the head width.

        The factor is in the weights: products of a scaled query with keys would be computed several times slower.
        """
        values, scales = self.read.integers(f"{name}.query.weight", self.width, self.width, block=self.block)
        bias = self.read.floats(f"{name}.query.bias", self.width)
        factor = np.float32((self.width // self.heads) ** -0.5)
        return values, scales * factor, bias * factor

    def product(
        self, x: str, values: np.ndarray, scales: np.ndarray, bias: str = "", lowest: float | None = None
    ) -> str:
        """Multiply x (…, K) in 8 bits by weights (N, K) with scales (N, blocks); add the bias.

        No value of x is below `lowest`.
        """
        if self.block:
            product = self.block_product(x, values, scales, self.block)
        else:
            product = self.add("Unsqueeze", self.rows_product(x, values, scales, lowest), self.weight([0]))
        return self.plus(product, bias) if bias else product

    def block_product(self, x: str, values: np.ndarray, scales: np.ndarray, block: int) -> str:
        """Multiply with a scale for each block of a row of activations; rows of weights may have fewer scales."""
        rows, size = values.shape
        blocks = _unsigned(values).reshape(rows, -1, block)
        each = np.repeat(scales, size // block // scales.shape[1], axis=1)
        level = WHOLE_NUMBERS if has_exact_blocks() else FLOATS
        shape = {"K": size, "N": rows, "bits": 8, "block_size": block, "accuracy_level": level}
        return self.add("MatMulNBits", x, self.weight(blocks), self.weight(each.ravel()), **shape)

    def rows_product(self, x: str, values: np.ndarray, scales: np.ndarray, lowest: float | None = None) -> str:
        """Multiply x (…, K) to (T, N), with one scale for each row, which takes a third of the time if T is large."""
        integers, scale, zeros = self._round(x, values.shape[1], lowest)
        zero = ZERO if lowest is None else 0
        weights, zeros_of_both = (_unsigned(values), (zero, ZERO)) if self.zero else (values, (zero,))
        factors = self.weight(weights.T), self.number(1.0), self.weight(scales[:, 0])
        product = self.add("MatMulIntegerToFloat", integers, *factors, *map(self.byte, zeros_of_both))
        if lowest is not None:  # rows have different zeros
            ones = self.weight(scales.T * values.sum(axis=1, dtype=np.float32))
            product = self.add("Sub", product, self.add("Mul", zeros, ones))
        return self.add("Mul", product, scale)

    def _round(self, x: str, size: int, lowest: float | None) -> tuple[str, str, str]:
        """Return x (1, T, K) in integers (T, K), the scale of each row (T, 1), and what stands for 0 in it (T, 1)."""
        if x not in self._rounded:
            rows, line = self.add("Reshape", x, self.weight([-1, size])), self.weight([-1])
            if lowest is None:
                scale = self.peak_scale(rows, 1)
                zeros = self.add("Expand", self.byte(ZERO), self.add("Shape", self.add("Reshape", scale, line)))
                whole = zeros
            else:
                peak = self.add("ReduceMax", rows, self.weight([1]), keepdims=1)
                scale = self.times(self.add("Sub", peak, self.number(lowest)), 1 / 255)
                scale = self.add("Max", scale, self.number(SMALLEST))
                zeros = self.add("Round", self.add("Div", self.number(-lowest), scale))
                whole = self.add("Cast", self.add("Reshape", zeros, line), to=TO_UINT8)
            integers = self.add("QuantizeLinear", rows, self.add("Reshape", scale, line), whole, axis=0)
            self._rounded[x] = integers, scale, zeros
        return self._rounded[x]

    def peak_scale(self, x: str, axis: int) -> str:
        """Return the scale by which the largest values along an axis become 127."""
        peak = self.add("ReduceMax", self.add("Abs", x), self.weight([axis]), keepdims=1)
        return self.add("Max", self.times(peak, 1 / 127), self.number(SMALLEST))

    def norm(self, x: str, name: str, gains: np.ndarray | float = 1.0) -> str:
        """Apply a LayerNorm, and divide by gains (D,)."""
        factors = [self.weight(self.read.floats(f"{name}.{one}", self.width) / gains) for one in NORM]
        return self.add("LayerNormalization", x, *factors, axis=-1, epsilon=1e-5)

    def split(self, x: str) -> str:
        """Turn (B, T, D) into heads (B, H, T, E)."""
        shape = self.weight([0, 0, self.heads, self.width // self.heads])
        return self.turned(self.add("Reshape", x, shape), 0, 2, 1, 3)

    def merge(self, x: str) -> str:
        """Turn heads (B, H, T, E) into (B, T, D)."""
        return self.add("Reshape", self.turned(x, 0, 2, 1, 3), self.weight([0, 0, self.width]))

    def scores(self, q: str, k: str, bias: str) -> str:
        """Return the scores of keys (…, E, T) for queries (…, L, E), with a bias."""
        return self.add("Add", self.add("MatMul", q, k), bias)

    def mixed(self, scores: str, v: str) -> str:
        """Return the mixture of values (…, T, E) for scores (…, L, T)."""
        return self.add("MatMul", self.add("Softmax", scores, axis=-1), v)

    def keys_values(self, x: str, name: str) -> list[str]:
        """Return keys and values (B, H, T, E)."""
        return [self.split(self.linear(x, f"{name}.key", bias=False)), self.split(self.linear(x, f"{name}.value"))]

    def across(self, x: str) -> str:
        """Turn keys (B, H, T, E) into (B, H, E, T)."""
        return self.turned(x, 0, 1, 3, 2)

    def perceptron(self, x: str, name: str) -> str:
        """Add a block's perceptron to x."""
        inner = self.linear(self.norm(x, f"{name}.0"), f"{name}.1", 4 * self.width)
        values, scales = self.read.integers(f"{name}.3.weight", self.width, 4 * self.width, block=self.block)
        bias = self.weight(self.read.floats(f"{name}.3.bias", self.width))
        return self.plus(x, self.product(self.add("Gelu", inner), values, scales, bias, LOWEST_GELU))

    def plus(self, *values: str) -> str:
        """Add values up."""
        return functools.reduce(lambda a, b: self.add("Add", a, b), values)

    def times(self, x: str, factor: float) -> str:
        return self.add("Mul", x, self.number(factor))

    def turned(self, x: str, *order: int) -> str:
        return self.add("Transpose", x, perm=list(order))


def _unsigned(values: np.ndarray) -> np.ndarray:
    """Return 8 bit integers with 128 in place of 0."""
    return values.view(np.uint8) ^ np.uint8(ZERO)


@functools.cache
def exact_zero(operator: str) -> int | None:
    """Return what stands for 0 in weights of 8 bits whose products are exact on this CPU, or None.

    It is 0 if they may have a sign, which is faster, or 128. Without VNNI, products with signed weights are added in 16
    bits, which saturate.
    """
    for zero in (0, ZERO):
        size, graph = 32, Graph()
        x, signed = graph.input("x", "M", size, dtype=np.uint8), np.full((size, 1), 127, np.int8)
        most, one = graph.weight(_unsigned(signed) if zero else signed), graph.weight(np.ones(1, np.float32))
        zeros = graph.byte(0), *([graph.byte(ZERO)] if zero else [])
        if operator == "MatMulInteger":
            product = graph.add("Cast", graph.add(operator, x, most, *zeros), to=TO_FLOAT)
        else:
            product = graph.add(operator, x, most, graph.number(1.0), one, *zeros)
        if _is(graph, product, np.full(size, 255, np.uint8), size * 127 * 255):
            return zero
    return None


@functools.cache
def has_exact_blocks() -> bool:
    """Return whether products in 8 bits with a scale for each block are exact on this CPU."""
    size, graph, unit = BLOCK, Graph(), np.ones(1, np.float32)
    most = graph.weight(np.full((1, 1, size), 255, np.uint8))
    shape = {"K": size, "N": 1, "bits": 8, "block_size": size, "accuracy_level": WHOLE_NUMBERS}
    product = graph.add("MatMulNBits", graph.input("x", "M", size), most, graph.weight(unit), **shape)
    return _is(graph, product, np.ones(size, np.float32), size * 127)


def _is(graph: Graph, product: str, row: np.ndarray, expected: float) -> bool:
    """Return whether a product of one or two equal rows x, which other instructions compute, is the expected number."""
    graph.output(product, "M", 1)
    session = graph.session(1)
    found = [run(session, {"x": np.broadcast_to(row, (rows, len(row)))})[0] for rows in (1, 2)]
    return all(np.abs(one - expected).max() < 1 for one in found)
