"""State of the inference engine's decoder between tokens.

Letters: B rows, U utterances (B = U · rows per utterance), S encoder steps, H heads, E head width.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from focusasr.model.attention import KeysValues


class DecodingState:
    """Decoder state of each row: number of tokens read, their keys and values, and those of the audio.

    `lengths` may be reduced, row by row: later tokens are then ignored and overwritten.
    """

    def __init__(self, memory: list[KeysValues], mask: Tensor | None, spans: list[Tensor | None], group: int) -> None:
        self.memory = memory  # per layer (U, H, S, E)
        self.mask = mask  # (U, 1, 1, S), None without padding
        self.steps: list[int] | None = None  # per utterance, in place of the mask: its audio is attended to alone
        self.spans = spans  # per layer span_scale (B, H) of a hybrid decoder
        self.group = group  # rows per utterance
        self.lengths = [0] * (memory[0][0].shape[0] * group)
        self.caches: list[Tensor] = []  # per layer (2 or 4, B, H, capacity, E): keys, values, and the local branch's

    def select(self, rows: Sequence[int]) -> None:
        """Keep `rows` in this order; some may be repeated.

        Adjacent rows of one utterance share its keys and values if every utterance has the same number of rows.
        """
        device = self.memory[0][0].device
        owners = [row // self.group for row in rows]
        runs = [(owner, len(list(run))) for owner, run in itertools.groupby(owners)]
        alike = len({length for _, length in runs}) == 1 and len({owner for owner, _ in runs}) == len(runs)
        owners = [owner for owner, _ in runs] if alike else owners
        if owners != list(range(self.memory[0][0].shape[0])):
            utterances = torch.tensor(owners, device=device)
            self.memory = [(k[utterances], v[utterances]) for k, v in self.memory]
            self.mask = None if self.mask is None else self.mask[utterances]
            self.steps = self.steps and [self.steps[owner] for owner in owners]
        self.group = runs[0][1] if alike else 1
        index = torch.tensor(list(rows), device=device)
        self.spans = [None if span is None else span[index] for span in self.spans]
        self.lengths = [self.lengths[row] for row in rows]
        used = max(self.lengths)
        for layer, cache in enumerate(self.caches):
            chosen = cache[..., :used, :].index_select(1, index)
            if len(rows) != cache.shape[1]:  # zeros, since uninitialized memory times a weight of 0 may be NaN
                self.caches[layer] = cache.new_zeros(cache.shape[0], len(rows), *cache.shape[2:])
            self.caches[layer][..., :used, :] = chosen
