"""What an `OnnxEngine` remembers: encoded windows, and the tokens of their texts so far.

Letters: W windows, R rows (equally many for each window, side by side), P tokens so far, T encoder steps, D width, H
heads, E head width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from focusasr.model.onnx_layers import ZERO


@dataclass
class Memory:
    """Encoded windows: what the decoder's cross-attention reads of them (W, H, …), by name.

    After the end of a window, biases are -inf, and the rest what stands for 0. `numbers` (W,) tells which window has
    each place in the arrays.
    """

    arrays: dict[str, np.ndarray]
    numbers: list[int]

    @classmethod
    def empty(cls, kinds: Mapping[str, tuple[Any, Sequence[int]]]) -> Memory:
        """Return a memory for arrays of these types and shapes."""
        arrays = {}
        for name, (dtype, shape) in kinds.items():
            fill = -np.inf if name.startswith("bias") else ZERO if dtype == np.uint8 else 0
            arrays[name] = np.full(shape, fill, dtype)
        windows = max(shape[0] for _, shape in kinds.values())
        return cls(arrays, list(range(windows)))

    @classmethod
    def joined(cls, memories: Sequence[Memory]) -> Memory:
        """Return windows that were encoded apart as one batch."""
        kinds = {}
        for name, one in memories[0].arrays.items():
            _, *sizes = np.max([memory.arrays[name].shape for memory in memories], axis=0)
            kinds[name] = one.dtype, (len(memories), *sizes)
        whole = cls.empty(kinds)
        for place, memory in enumerate(memories):
            whole.put(place, list(memory.arrays.values()))
        return whole

    def put(self, place: int, arrays: Sequence[np.ndarray]) -> None:
        """Put the next window (1, H, …) into its place."""
        for whole, (one,) in zip(self.arrays.values(), arrays, strict=True):
            whole[place][tuple(slice(size) for size in one.shape)] = one

    def window(self, number: int) -> Memory:
        """Return one window alone."""
        place = self.numbers.index(number)
        return Memory({name: one[place : place + 1] for name, one in self.arrays.items()}, [0])

    def keep(self, places: Sequence[int]) -> list[int]:
        """Move these places before the others, and return their new order."""
        order = list(range(len(self.numbers)))
        kept = set(places)
        fillers = [place for place in order[len(kept) :] if place in kept]
        for hole in (place for place in order[: len(kept)] if place not in kept):
            pair = [hole, fillers.pop()]
            for one in self.arrays.values():
                one[pair] = one[pair[::-1]]
            for numbers in (self.numbers, order):
                numbers[pair[0]], numbers[pair[1]] = numbers[pair[1]], numbers[pair[0]]
        return order[: len(kept)]


class State(NamedTuple):
    """The encoded audio, and keys and values (R, H, P, E) of each decoder layer for the tokens so far.

    The rows belong to the first `windows` places of the memory.
    """

    memory: Memory
    past: list[np.ndarray]
    windows: int
