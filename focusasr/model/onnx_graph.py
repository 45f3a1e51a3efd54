"""Graphs of ONNX operators, written in ONNX's format (onnx.proto), with weights apart."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from focusasr.runtime.onnx import session

IR_VERSION = 8
OPERATOR_SETS = {"": 18, "com.microsoft": 1}
CONTRIBUTED = {"Gelu", "MatMulIntegerToFloat", "MatMulNBits", "MultiHeadAttention"}  # operators of ONNX Runtime
DATA_TYPES = {
    np.dtype(kind): number for kind, number in {"float32": 1, "uint8": 2, "int8": 3, "int64": 7, "float16": 10}.items()
}
EXTERNAL = 1  # TensorProto.DataLocation
MOST_INSIDE = 64  # bytes of a weight in the model itself: shapes must be known when it is read


def _varint(number: int) -> bytes:
    """Return a number in Protocol Buffers' base 128, least significant group first."""
    number &= (1 << 64) - 1
    groups = bytearray()
    while number > 127:
        groups.append(number & 127 | 128)
        number >>= 7
    return bytes([*groups, number])


def _message(*fields: tuple[int, Any]) -> bytes:
    """Return a message of (number, value): an int, a float, a str, the bytes of a message, or a list of one of them."""
    parts = []
    for number, value in fields:
        for one in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(one, int):
                parts += [_varint(number << 3), _varint(one)]
            elif isinstance(one, float):
                parts += [_varint(number << 3 | 5), struct.pack("<f", one)]
            else:
                data = one.encode() if isinstance(one, str) else one
                parts += [_varint(number << 3 | 2), _varint(len(data)), data]
    return b"".join(parts)


def _attribute(name: str, value: Any) -> bytes:
    if isinstance(value, float):
        return _message((1, name), (2, value), (20, 1))
    return (
        _message((1, name), (3, value), (20, 2)) if isinstance(value, int) else _message((1, name), (8, value), (20, 7))
    )


def _tensor_type(dtype: type[np.generic], shape: Sequence[int | str]) -> bytes:
    sizes = [_message((2 if isinstance(size, str) else 1, size)) for size in shape]
    tensor = _message((1, DATA_TYPES[np.dtype(dtype)]), (2, _message((1, sizes))))
    return _message((1, tensor))


@dataclass
class Graph:
    """Operators in order, and the weights that they read; names of values are given in the order of creation."""

    weights: dict[str, np.ndarray] = field(default_factory=dict)
    _nodes: list[bytes] = field(default_factory=list)
    _inputs: list[bytes] = field(default_factory=list)
    _outputs: list[bytes] = field(default_factory=list)

    def input(self, name: str, *shape: int | str, dtype: type[np.generic] = np.float32) -> str:
        """Declare an input; sizes that vary have a name."""
        self._inputs.append(_message((1, name), (2, _tensor_type(dtype, shape))))
        return name

    def output(self, value: str, *shape: int | str, dtype: type[np.generic] = np.float32) -> None:
        """Declare an operator's result as the next output."""
        self._outputs.append(_message((1, value), (2, _tensor_type(dtype, shape))))

    def weight(self, values: np.ndarray | Sequence[float] | Sequence[int]) -> str:
        """Add a constant and return its name; whole numbers become int64."""
        array = np.asarray(values)
        if not isinstance(values, np.ndarray):
            array = array.astype(np.int64 if array.dtype.kind == "i" else np.float32)
        name = f"weight{len(self.weights)}"
        self.weights[name] = np.asarray(array, order="C")
        return name

    def number(self, value: float) -> str:
        """Return a constant number in float32."""
        return self.weight(np.array(value, np.float32))

    def byte(self, value: int) -> str:
        """Return a constant number of 8 bits, without a sign."""
        return self.weight(np.array(value, np.uint8))

    def add(self, operator: str, *inputs: str, **attributes: float | int | list[int]) -> str:
        """Add an operator with one output, and return the output's name."""
        name = f"node{len(self._nodes)}"
        domain = [(7, "com.microsoft")] if operator in CONTRIBUTED else []
        described = [_attribute(key, value) for key, value in attributes.items()]
        self._nodes.append(_message((1, list(inputs)), (2, name), (4, operator), (5, described), *domain))
        return name

    def session(self, threads: int, arena: bool = True) -> Any:
        """Return an ONNX Runtime session of the graph."""
        apart = {name: array for name, array in self.weights.items() if array.nbytes > MOST_INSIDE}
        return session(self.to_model(), threads, apart, arena)

    def to_model(self) -> bytes:
        """Return the model in ONNX's format; all but its smallest weights are given to the session apart."""
        weights = []
        for name, array in self.weights.items():
            inside = array.nbytes <= MOST_INSIDE
            place = (
                [(9, array.tobytes())] if inside else [(13, _message((1, "location"), (2, "memory"))), (14, EXTERNAL)]
            )
            weights.append(_message((1, list(array.shape)), (2, DATA_TYPES[array.dtype]), (8, name), *place))
        graph = _message((1, self._nodes), (2, "graph"), (5, weights), (11, self._inputs), (12, self._outputs))
        sets = [_message((1, domain), (2, version)) for domain, version in OPERATOR_SETS.items()]
        return _message((1, IR_VERSION), (7, graph), (8, sets))
