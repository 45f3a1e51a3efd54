"""Cross-attention as ONNX operators, in floats or with 8 bit integers.

Letters: W windows, R rows of a window, L tokens, T encoder steps, D width, H heads, E head width.
"""

from __future__ import annotations

import numpy as np

from focusasr.model.onnx_layers import TO_FLOAT, ZERO, Layers

HIGH, LOW = 1 / 255, 1 / 255**2  # steps of the two integers that attention weights are split into

Kind = tuple[type[np.generic], tuple[int | str, int | str]]


class FloatCross:
    """Keys and values in float32.

    `arrays` has the type, and the shape after (W, H), of what the decoder reads of each layer. The bias of a step is
    added to its scores: 0, and -inf for steps after the end of a window (`Memory`).
    """

    joins_rows = False
    whole_steps = 64  # keys come in multiples of it, so that sums do not depend on the longest window of a batch

    def __init__(self, size: int) -> None:
        self.arrays: dict[str, Kind] = {
            "k": (np.float32, (size, "T")), "v": (np.float32, ("T", size)), "bias": (np.float32, (1, "T")),
        }  # fmt: skip

    def remember(self, graph: Layers, keys: str, values: str) -> list[str]:
        """Return the arrays for the keys and values (1, T, D) of a layer."""
        keys = graph.across(graph.split(keys))
        return [keys, graph.split(values), graph.times(_sum(graph, keys), 0.0)]

    def attend(self, graph: Layers, query: str, keys: str, values: str, bias: str) -> tuple[str, str]:
        """Return the scores (W, H, R, L, T) of queries (W, H, R, L, E), and the mixture of values."""
        scores = graph.scores(query, keys, bias)
        return scores, graph.mixed(scores, values)


class IntegerCross:
    """Keys and values in 8 bits, with one scale for each of the D columns of a window.

    They take a quarter of the memory, whose speed limits steps with many rows. The scales of keys are multiplied into
    the queries, which are then rounded to 8 bits with one scale a row. Attention weights have 16 bits. The biases
    subtract what the products have too much since integers of queries and weights have no sign. `zero` stands for 0 in
    keys and values: 0, or 128 if they have no sign either (`onnx_layers.exact_zero`).
    """

    whole_steps = 32

    def __init__(self, size: int, zero: int) -> None:
        self.zero = np.array(zero, np.uint8 if zero else np.int8)
        self.joins_rows = zero != 0  # of a window into one product: without a sign, rows alone take as long as several
        whole, line = self.zero.dtype.type, (np.float32, (1, size))
        self.arrays: dict[str, Kind] = {
            "k": (whole, (size, "T")), "k_scale": line, "bias": (np.float32, (1, "T")),
            "v": (whole, ("T", size)), "v_scale": line, "v_bias": line,
        }  # fmt: skip

    def remember(self, graph: Layers, keys: str, values: str) -> list[str]:
        """Return the arrays for the keys and values (1, T, D) of a layer."""
        key_scale, value_scale = (graph.peak_scale(x, 1) for x in (keys, values))
        zero, one = graph.weight(self.zero), graph.number(1.0)
        keys = graph.across(graph.split(_rounded(graph, keys, key_scale, zero)))
        values = graph.split(_rounded(graph, values, value_scale, zero))
        sums = (_sum(graph, graph.add("DequantizeLinear", x, one, zero)) for x in (keys, values))
        keys_bias, values_bias = map(graph.times, sums, (-ZERO, -ZERO * HIGH))
        key_scale, value_scale = graph.split(key_scale), graph.split(graph.times(value_scale, HIGH))
        return [keys, key_scale, keys_bias, values, value_scale, values_bias]

    def attend(
        self, graph: Layers, query: str, keys: str, key_scale: str, bias: str, values: str, value_scale: str, more: str
    ) -> tuple[str, str]:
        """Return the scores (W, H, R, L, T) of queries (W, H, R, L, E), and the mixture of values."""
        query = graph.add("Mul", query, key_scale)
        scale, zero, high_step = graph.peak_scale(query, -1), graph.byte(ZERO), graph.number(HIGH)
        product = self._product(graph, _rounded(graph, query, scale, zero), keys)
        scores = graph.add("Mul", graph.plus(product, bias), scale)
        weights = graph.add("Softmax", scores, axis=-1)
        high = graph.add("QuantizeLinear", weights, high_step, graph.byte(0))
        rest = graph.add("Sub", weights, graph.add("DequantizeLinear", high, high_step, graph.byte(0)))
        low = graph.add("QuantizeLinear", rest, graph.number(LOW), zero)
        mixed, rest = (self._product(graph, one, values) for one in (high, low))
        return scores, graph.add("Mul", graph.plus(mixed, graph.times(rest, HIGH), more), value_scale)

    def _product(self, graph: Layers, integers: str, values: str) -> str:
        """Multiply integers without a sign by keys or values, exactly, but in float32."""
        zeros = [graph.byte(0), graph.weight(self.zero)] if self.zero else []
        return graph.add("Cast", graph.add("MatMulInteger", integers, values, *zeros), to=TO_FLOAT)


def _sum(graph: Layers, x: str) -> str:
    """Return the sum over the third axis."""
    return graph.add("ReduceSum", x, graph.weight([2]), keepdims=1)


def _rounded(graph: Layers, x: str, scale: str, zero: str) -> str:
    """Return x divided by a scale and rounded to 8 bits."""
    return graph.add("QuantizeLinear", graph.add("Div", x, scale), graph.number(1.0), zero)
