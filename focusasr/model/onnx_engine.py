"""Inference engine on ONNX Runtime: Whisper models in 8 bit integers, without PyTorch.

It computes what `engine.Engine` computes in int8. In the encoder, rows of activations and weights have one scale each.
In the decoder, whose products have few rows, each block of a row has one: nearly as fast there, and more exact.
Letters: W windows, R rows (equally many for each window, side by side), L tokens, P past tokens, F frames, T encoder
steps, D width, H heads, E head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from focusasr.config import LEARNED_TEMPERATURE_RANGE, WIDE_ENOUGH, ModelConfig
from focusasr.model.onnx_cross import FloatCross, IntegerCross
from focusasr.model.onnx_layers import HEAD_BLOCK, Layers, exact_zero
from focusasr.model.onnx_memory import Memory, State
from focusasr.model.onnx_weights import WeightReader, to_floats
from focusasr.runtime.onnx import run

LARGEST = 2**31 - 1  # end of a slice: to the end
FAINTEST = 1e-35  # weight of a key outside the soft window
NEVER = -1e9  # score of a key that a query does not see

Cross = FloatCross | IntegerCross


def supports(config: ModelConfig) -> bool:
    """Return whether models of this shape can be computed here: Whisper's, with global or hybrid encoder attention."""
    plain = config.conv_kernel == 0 and config.max_dist is None and config.positions == "absolute"
    whole = config.width % HEAD_BLOCK == 0 and config.decoder_attention == "global" and not config.ctc
    return plain and whole and config.width >= WIDE_ENOUGH


class _EncoderGraph(Layers):
    """mel (1, F, M), positions (1, T, D) → what the cross-attention of every decoder layer reads.

    The local branch of a hybrid model attends from each block of C steps to three of them: `ends` (8,) pads the steps
    to whole blocks, and `outside` (1, 1, T / C, 1, 3 C) is the bias of keys that are no steps.
    """

    def build(self, cross: Cross) -> None:
        """Add the whole encoder."""
        config = self.config
        x = self.turned(self.input("mel", 1, "F", config.mel_bands), 0, 2, 1)
        for number, (channels, stride) in enumerate(zip((config.mel_bands, self.width), config.strides, strict=True)):
            name = f"encoder.stem.conv{number + 1}"
            weight = self.weight(self.read.floats(f"{name}.weight", self.width, channels, 3))
            bias = self.weight(self.read.floats(f"{name}.bias", self.width))
            x = self.add("Gelu", self.add("Conv", x, weight, bias, strides=[stride], pads=[1, 1]))
        x = self.plus(self.turned(x, 0, 2, 1), self.input("positions", 1, "T", self.width))
        if config.attention == "hybrid":
            self.ends = self.input("ends", 8, dtype=np.int64)
            self.steps = self.input("steps", 1, dtype=np.int64)
            self.outside = self.input("outside", 1, 1, "C", 1, 3 * config.max_span)
        for number in range(config.encoder_layers):
            block = f"encoder.blocks.{number}"
            x = self.plus(x, self._attention(x, f"{block}.attention"))
            x = self.perceptron(x, f"{block}.mlp")
        x = self.norm(x, "encoder.ln_post")
        for number in range(config.decoder_layers):
            name = f"decoder.blocks.{number}.cross"
            keys, values = self.linear(x, f"{name}.key", bias=False), self.linear(x, f"{name}.value")
            arrays = zip(cross.remember(self, keys, values), cross.arrays.values(), strict=True)
            for value, (dtype, shape) in arrays:
                self.output(value, 1, self.heads, *shape, dtype=dtype)

    def _attention(self, x: str, name: str) -> str:
        normed = self.norm(x, f"{name}.ln_global")
        parts = [
            self.linear(normed, f"{name}.attn_global.{part}", bias=part != "key") for part in ("query", "key", "value")
        ]
        mixed = self.add(
            "MultiHeadAttention", *parts, num_heads=self.heads
        )  # never holds the scores of all T x T pairs
        globe = self.linear(mixed, f"{name}.attn_global.out")
        return self._with_local(x, globe, name) if self.config.attention == "hybrid" else globe

    def _with_local(self, x: str, globe: str, name: str) -> str:
        """Return the projection of the local branch and the global one (`attention.HybridAttention`)."""
        config, local = self.config, f"{name}.attn_local"
        mean = self.add("ReduceMean", globe, self.weight([1]), keepdims=1)
        integers, scales = self.read.integers(f"{name}.span_pred.linear.weight", self.heads, self.width)
        weight = self.weight(to_floats(integers, scales).T)
        bias = self.weight(self.read.floats(f"{name}.span_pred.linear.bias", self.heads))
        span = self.add("Sigmoid", self.plus(self.add("MatMul", mean, weight), bias))  # (1, 1, H)
        span = self.add("Reshape", span, self.weight([1, self.heads, 1, 1]))
        temperature = (
            self._line(span, -config.temp_scale, 1.0 + config.temp_scale)
            if config.sharpen_longer
            else self._line(span, config.temp_scale, 0.5)
        )
        if config.temperature == "learned":
            sharpness = LEARNED_TEMPERATURE_RANGE ** np.tanh(self.read.floats(f"{local}.sharpness", self.heads))
            temperature = self.add("Mul", temperature, self.weight(sharpness.reshape(1, -1, 1, 1).astype(np.float32)))
        normed = self.norm(x, f"{name}.ln_local")
        query = self.add("Div", self.split(self.query(normed, local)), temperature)
        radius = self._line(span, config.max_span - config.ramp, config.ramp)
        keys, values = self.keys_values(normed, local)
        mixed = self._windowed(query, keys, values, radius)
        weights, scales = self.read.integers(f"{name}.projection.weight", self.width, 2 * self.width, 2, self.block)
        halves = zip((mixed, globe), np.split(weights, 2, axis=1), np.split(scales, 2, axis=1), strict=True)
        bias = self.weight(self.read.floats(f"{name}.projection.bias", self.width))
        return self.plus(*(self.product(*half) for half in halves), bias)

    def _windowed(self, q: str, k: str, v: str, radius: str) -> str:
        """Attend inside a soft window of a radius (1, H, 1, 1) per head, in blocks as long as the largest radius."""
        block, size = self.config.max_span, self.width // self.heads
        places = np.arange(3 * block, dtype=np.float32)
        distance = self.weight(np.abs(places[block : 2 * block, None] - places))
        reach = self.add("Div", self.add("Sub", radius, distance), self.number(self.config.ramp))
        visible = self.add("Log", self.add("Clip", reach, self.number(FAINTEST), self.number(1.0)))  # (1, H, C, 3 C)
        window = self.add("Unsqueeze", visible, self.weight([2]))
        q, k, v = (self._blocks(one, shifts) for one, shifts in ((q, (1,)), (k, (0, 1, 2)), (v, (0, 1, 2))))
        scores = self.add("MatMul", q, self.turned(k, 0, 1, 2, 4, 3))
        mixed = self.add("MatMul", self.add("Softmax", self.plus(scores, window, self.outside), axis=-1), v)
        joined = self.add("Reshape", mixed, self.weight([0, self.heads, -1, size]))
        return self.merge(self.add("Slice", joined, self.weight([0]), self.steps, self.weight([2])))

    def _blocks(self, x: str, shifts: Sequence[int]) -> str:
        """Cut (1, H, T, E) into blocks (1, H, T / C, C, E), zeros at both ends; join the shifted ones."""
        block, size = self.config.max_span, self.width // self.heads
        blocks = self.add("Reshape", self.add("Pad", x, self.ends), self.weight([0, self.heads, -1, block, size]))
        shifted = [
            self.add("Slice", blocks, self.weight([shift]), self.weight([shift - 2 or LARGEST]), self.weight([2]))
            for shift in shifts
        ]
        return self.add("Concat", *shifted, axis=3) if len(shifted) > 1 else shifted[0]

    def _line(self, x: str, slope: float, start: float) -> str:
        return self.plus(self.add("Mul", x, self.number(slope)), self.number(start))


class Head(NamedTuple):
    """The token embedding: integers (V, D) of it times gains (D,), and their scales (V, blocks).

    `by_rows`: states before the logits have one scale a row, not one a block.
    """

    values: np.ndarray
    scales: np.ndarray
    gains: np.ndarray | float
    by_rows: bool


class _DecoderGraph(Layers):
    """x (R, L, D), bias (L, P + L), keep (1,), past, memory → the past, logits (R, keep, V) of the last tokens, and the
    scores (W, H, R / W, L, T) of cross-attention.

    `by_window` (W, R / W, L, H, E) and `by_row` (R, L, D) are the shapes before and after cross-attention, in which the
    rows of a window read its keys (W, H, 1, E, T) and values (W, H, 1, T, E) one after the other, from the CPU's cache,
    or as one product if they are given as one, (W, 1, R / W · L, H, E).
    """

    def build(self, head: Head, cross: Cross) -> None:
        """Add the whole decoder."""
        size = self.width // self.heads
        x, bias = self.input("x", "R", "L", self.width), self.input("bias", "L", "N")
        keep = self.input("keep", 1, dtype=np.int64)
        scores: list[str] = []  # of cross-attention
        by_window, by_row = (self.input(name, n, dtype=np.int64) for name, n in (("by_window", 5), ("by_row", 3)))
        for number in range(self.config.decoder_layers):
            past = [self.input(f"past_{kind}{number}", "R", self.heads, "P", size) for kind in "kv"]
            memory = [
                self.input(f"{kind}{number}", "W", self.heads, 1, *shape, dtype=dtype)
                for kind, (dtype, shape) in cross.arrays.items()
            ]
            name = f"decoder.blocks.{number}"
            normed, globe = self.norm(x, f"{name}.attention.ln_global"), f"{name}.attention.attn_global"
            query, *fresh = self.queries_keys_values(normed, globe)
            keys, values = (self.add("Concat", *pair, axis=2) for pair in zip(past, fresh, strict=True))
            for value in (keys, values):
                self.output(value, "R", self.heads, "N", size)
            mixed = self.merge(self.mixed(self.scores(query, self.across(keys), bias), values))
            x = self.plus(x, self.linear(mixed, f"{globe}.out"))
            asked = self.query(self.norm(x, f"{name}.ln_cross"), f"{name}.cross")
            asked = self.turned(self.add("Reshape", asked, by_window), 0, 3, 1, 2, 4)
            found, mixed = cross.attend(self, asked, *memory)
            scores.append(found)
            mixed = self.add("Reshape", self.turned(mixed, 0, 2, 3, 1, 4), by_row)
            x = self.plus(x, self.linear(mixed, f"{name}.cross.out"))
            x = self.perceptron(x, f"{name}.mlp")
        normed = self.norm(x, "decoder.ln", head.gains)
        last = self.add("Slice", normed, keep, self.weight([LARGEST]), self.weight([1]))
        if head.by_rows:
            logits = self.rows_product(last, head.values, head.scales)
        else:
            last = self.add("Reshape", last, self.weight([-1, self.width]))
            logits = self.block_product(last, head.values, head.scales, HEAD_BLOCK)
        self.output(logits, "K", self.config.vocabulary)
        for one in scores:
            self.output(one, "W", self.heads, "S", "Q", "T")


class OnnxEngine:
    """A model in ONNX Runtime: `encode` audio, `start` a text, `advance` it by tokens to the logits of the next.

    The bits of a row's logits do not depend on the other rows and windows that are computed with it.
    """

    def __init__(self, weights: WeightReader, config: ModelConfig, threads: int = 0) -> None:
        self.config = config
        zero, rows_zero = map(exact_zero, ("MatMulInteger", "MatMulIntegerToFloat"))
        long = config.window_samples is not None and rows_zero is not None
        shape = "decoder.token_embedding.weight", config.vocabulary, config.width
        if long:
            self.head = Head(*weights.balanced(*shape, "decoder.ln"), by_rows=True)
        else:
            self.head = Head(*weights.integers(*shape, block=HEAD_BLOCK), gains=1.0, by_rows=False)
        self.text_positions = weights.floats("decoder.positional_embedding", config.text_context, config.width)
        self.positions = weights.floats("encoder.positions", config.audio_context, config.width)
        encoder, decoder = _EncoderGraph(weights, config, whole=True), _DecoderGraph(weights, config)
        size = config.width // config.heads
        self._cross: Cross = FloatCross(size) if zero is None or not long else IntegerCross(size, zero)
        encoder.build(self._cross)
        decoder.build(self.head, self._cross)
        weights.end()
        self.encoder, self.decoder = encoder.session(threads), decoder.session(threads)
        self._outputs = [output.name for output in self.decoder.get_outputs()]
        layers, kinds = range(config.decoder_layers), self._cross.arrays.items()
        self._remembered = {f"{name}{number}": kind for number in layers for name, kind in kinds}

    def encode(self, mels: Sequence[np.ndarray]) -> Memory:
        """Encode spectrograms (F, M), one by one."""
        stride, whole = self.config.strides[0] * self.config.strides[1], self._cross.whole_steps
        length = -(-max(len(mel) for mel in mels) // stride // whole) * whole
        kinds: dict[str, Any] = {
            name: (dtype, (len(mels), self.config.heads, *(length if size == "T" else size for size in shape)))
            for name, (dtype, shape) in self._remembered.items()
        }
        memory = Memory.empty(kinds)
        for place, mel in enumerate(mels):
            steps = len(mel) // stride
            given = {"mel": mel[None], "positions": self.positions[None, :steps]}
            if self.config.attention == "hybrid":
                given |= self._windows(steps)
            memory.put(place, run(self.encoder, given))
        return memory

    def _windows(self, steps: int) -> dict[str, np.ndarray]:
        """Return how steps are cut into blocks, and which places are no steps."""
        block = self.config.max_span
        count = -(-steps // block)
        ends = np.array([0, 0, block, 0, 0, 0, (count + 1) * block - steps, 0])
        places = block * np.arange(count)[:, None] + np.arange(-block, 2 * block)
        outside = np.where((places < 0) | (places >= steps), NEVER, 0.0).astype(np.float32)
        return {"ends": ends, "steps": np.array([steps]), "outside": outside[None, None, :, None]}

    def start(self, memory: Memory, rows: int = 1) -> State:
        """Return the state before the first token, with some rows for each window."""
        windows, heads, layers = len(memory.numbers), self.config.heads, self.config.decoder_layers
        empty = np.zeros((windows * rows, heads, 0, self.config.width // heads), np.float32)
        return State(memory, [empty] * 2 * layers, windows)

    def advance(self, tokens: np.ndarray, state: State, keep: int = 1) -> tuple[np.ndarray, State]:
        """Read tokens (R, L) and return logits (R, keep, V) after the last of them, and the state."""
        *now, logits = self._decode(tokens, state, keep, self._outputs[: 2 * self.config.decoder_layers + 1])
        return logits.reshape(len(tokens), keep, -1), State(state.memory, now, state.windows)

    def attention(self, tokens: Sequence[int], memory: Memory) -> tuple[np.ndarray, list[np.ndarray]]:
        """Return logits (L, V) after a window's tokens, and the scores (H, L, T) of each layer's cross-attention."""
        outputs = self._outputs[2 * self.config.decoder_layers :]
        logits, *scores = self._decode(np.array([tokens]), self.start(memory), len(tokens), outputs)
        return logits, [one[0, :, 0] for one in scores]

    def _decode(self, tokens: np.ndarray, state: State, keep: int, outputs: Sequence[str]) -> list[np.ndarray]:
        past, (rows, length), windows = state.past[0].shape[2], tokens.shape, state.windows
        width, heads = self.config.width, self.config.heads
        x = to_floats(self.head.values[tokens], self.head.scales[tokens]) / self.head.gains
        x += self.text_positions[past : past + length]
        ahead = np.triu(np.full((length, past + length), NEVER, np.float32), past + 1)
        given = {"x": x, "bias": ahead, "keep": np.array([-keep])}
        each = rows // windows
        products = (1, each * length) if self._cross.joins_rows else (each, length)
        given["by_window"] = np.array([windows, *products, heads, width // heads])
        given["by_row"] = np.array([rows, length, width])
        kinds = [f"{kind}{number}" for number in range(self.config.decoder_layers) for kind in "kv"]
        given |= {f"past_{kind}": one for kind, one in zip(kinds, state.past, strict=True)}
        given |= {name: one[:windows, :, None] for name, one in state.memory.arrays.items()}
        return run(self.decoder, given, outputs)

    def select(self, state: State, rows: Sequence[int], windows: int | None = None) -> State:
        """Return the state of these rows, in any order, of the first windows, or of all; rows may be repeated.

        The given state must not be used afterwards: if as many rows remain, only those that change places are copied.
        """
        past, moved = state.past, [place for place, row in enumerate(rows) if row != place]
        sources = [rows[place] for place in moved]
        if len(rows) != len(past[0]) or any(rows[row] != row for row in sources):
            past = [one[list(rows)] for one in past]
        elif moved:
            for one in past:
                one[moved] = one[sources]
        return State(state.memory, past, windows or state.windows)

    def cut(self, state: State, length: int) -> State:
        """Return the state after the first `length` tokens."""
        return state._replace(past=[one[:, :, :length] for one in state.past])
