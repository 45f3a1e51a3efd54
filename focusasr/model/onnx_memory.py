"""What an `OnnxEngine` remembers: encoded windows, and the tokens of their texts so far.

Letters: W windows, R rows (equally many for each window, side by side), P tokens so far, T encoder steps, D width, H
heads, E head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

NEVER = -1e9  # score of a key that a query does not see


@dataclass
class Memory:
    """Encoded windows: the states (1, T, D) of each, and what the decoder's cross-attention needs of all of them.

    `keys_values` are keys (W, H, E, T) and values (W, H, T, E) of each decoder layer. `unseen` (W, 1, 1, T) is NEVER
    after the end of a window and 0 before. `numbers` (W,) tells which window has each place in these arrays.
    """

    states: list[np.ndarray]
    keys_values: list[np.ndarray]
    unseen: np.ndarray
    numbers: list[int]

    @classmethod
    def empty(cls, like: Sequence[np.ndarray], windows: int, length: int) -> Memory:
        """Return a memory for some windows of a length in steps; `like` are the keys and values of one window."""
        arrays = []
        for number, one in enumerate(like):
            _, heads, *sizes = one.shape
            sizes[1 - number % 2] = length
            arrays.append(np.zeros((windows, heads, *sizes), np.float32))
        return cls([], arrays, np.full((windows, 1, 1, length), NEVER, np.float32), list(range(windows)))

    @classmethod
    def joined(cls, memories: Sequence[Memory]) -> Memory:
        """Return windows that were encoded apart as one batch."""
        length = max(memory.unseen.shape[3] for memory in memories)
        whole = cls.empty(memories[0].keys_values, len(memories), length)
        for place, memory in enumerate(memories):
            whole.put(place, memory.states[0], memory.keys_values)
        return whole

    def put(self, place: int, states: np.ndarray, keys_values: Sequence[np.ndarray]) -> None:
        """Put the next window into its place."""
        self.states.append(states)
        for whole, one in zip(self.keys_values, keys_values, strict=True):
            whole[place, :, : one.shape[2], : one.shape[3]] = one[0]
        self.unseen[place, ..., : states.shape[1]] = 0.0

    def window(self, number: int) -> Memory:
        """Return one window alone."""
        place = self.numbers.index(number)
        part = slice(place, place + 1)
        return Memory([self.states[number]], [one[part] for one in self.keys_values], self.unseen[part], [0])

    def keep(self, places: Sequence[int]) -> list[int]:
        """Move these places before the others, and return their new order."""
        order = list(range(len(self.numbers)))
        kept = set(places)
        fillers = [place for place in order[len(kept) :] if place in kept]
        for hole in (place for place in order[: len(kept)] if place not in kept):
            pair = [hole, fillers.pop()]
            for one in (*self.keys_values, self.unseen):
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
