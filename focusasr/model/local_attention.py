"""Attention inside a soft window, in time and memory linear in the length.

Letters: B batch, T steps (queries), S steps (keys), H heads, E head width, N blocks, W keys visible to a block.
Masks are boolean, True = visible. Distances and radii are in steps.

Weight of key j for query i, with radius r and a soft edge of width `ramp`:

    weight m(|i - j|)      1 |‾‾‾‾‾‾‾‾\\
                             |         \\
                           0 |__________\\____  |i - j|
                             0    r-ramp r

Three paths give the same result: `_dense` for short passes and caches; `_blocked` with PyTorch's fused attention for
any device; `Stretches` on a CPU with few threads. The last one computes short batches whole, and long ones head by
head, each with its own reach, in tiles that fit the cache of one core.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from focusasr.runtime.devices import one_thread

STRETCH_STEPS = 512  # steps of one product in `Stretches`: its scores, about 512 x 160, fit the L2 cache
FEW_SCORES = 2**20  # largest batch computed in one product: calls would cost more than the cache saves
FEW_THREADS = 2  # one thread within its cache beats two in the fused attention; more are not measured


def require_steps(x: Tensor) -> None:
    """Raise ValueError if x (…, T, E) has no steps."""
    if x.shape[-2] == 0:
        raise ValueError("attention has 0 query steps; expected at least 1")


def soft_mask(radius: Tensor, ramp: int, distance: Tensor) -> Tensor:
    """Return m(δ) = clip((r - δ) / ramp, 0, 1) as (…, *distance.shape) for radii r of any shape.

    Sukhbaatar et al. 2019, Adaptive Attention Span, equation 1, made two-sided by δ = |i - j|.
    """
    radius = radius.reshape(radius.shape + (1,) * distance.dim())
    return ((radius - distance) / ramp).clamp(0.0, 1.0)


def log_mask(mask: Tensor) -> Tensor:
    """Return log m, -inf with zero gradient if m is 0."""
    seen = mask > 0
    return torch.where(seen, torch.where(seen, mask, 1.0).log(), -torch.inf)


class Window(NamedTuple):
    """Visible window of each head: radii (B or 1, H or 1) with a soft edge, backward only if causal."""

    radius: Tensor
    ramp: int
    causal: bool
    block: int

    @property
    def reach(self) -> int:
        """Return the largest distance with a weight above 0 in the batch."""
        return max(map(max, self.reaches()))

    def reaches(self) -> list[list[int]]:
        """Return the largest distance with a weight above 0, by utterance (B or 1) and head (H or 1)."""
        return [[max(0, math.ceil(radius) - 1) for radius in row] for row in self.radius.tolist()]

    def bias(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Return log m (B or 1, H or 1, T, S) between positions; -inf for keys ahead of a causal query."""
        ahead = keys - queries[:, None]
        distance = ahead.abs().float()
        if self.causal:
            distance = distance.masked_fill(ahead > 0, torch.inf)
        return log_mask(soft_mask(self.radius, self.ramp, distance))


def windowed_attention(
    q: Tensor, k: Tensor, v: Tensor, window: Window, mask: Tensor | None, temperature: Tensor | None = None
) -> Tensor:
    """Attend inside a soft window; time and memory grow with T times the reach, not with T squared.

    q (B, H, T, E), k and v (B, H, S, E) with S ≥ T, mask (B, S) of the keys, temperature (B or 1, H) of the softmax
    → (B, H, T, E). The queries are the last T of the S positions; S > T only if causal. Queries without visible keys
    give zeros. ValueError if T is 0.
    """
    require_steps(q)
    steps, keys = q.shape[2], k.shape[2]
    reach = min(window.reach, keys - 1)
    ahead = 0 if window.causal else reach
    if temperature is None:
        temperature = torch.ones(1, 1, device=q.device)
    if steps != keys or steps <= 2 * window.block + reach + ahead:
        return _dense(_cooled(q, temperature), k, v, window, mask)
    if _few_threads(q):
        return _stretched(q, k, v, window, mask, temperature)
    if torch.is_grad_enabled():  # the backward pass copies the keys of each block: longer blocks copy less
        window = window._replace(block=max(window.block, reach))
    return _blocked(_cooled(q, temperature), k, v, window, mask, (reach, ahead))


def _few_threads(q: Tensor) -> bool:
    """Return whether q is computed on so few threads that `Stretches`, which uses one, is the fastest path."""
    precise = q.dtype in (torch.float32, torch.float64)
    return q.device.type == "cpu" and precise and torch.get_num_threads() <= FEW_THREADS


def _cooled(q: Tensor, temperature: Tensor) -> Tensor:
    return q / temperature[..., None, None].to(q.dtype)


def _dense(q: Tensor, k: Tensor, v: Tensor, window: Window, mask: Tensor | None) -> Tensor:
    steps, keys = q.shape[2], k.shape[2]
    positions = torch.arange(keys, device=q.device)
    bias = window.bias(positions[keys - steps :], positions)
    if mask is not None:
        bias = bias.masked_fill(~mask[:, None, None, :], -torch.inf)
    return _attend(q, k, v, bias)


def _blocked(q: Tensor, k: Tensor, v: Tensor, window: Window, mask: Tensor | None, look: tuple[int, int]) -> Tensor:
    """Attend block by block to views of the keys in reach, without copies of keys or values per block.

    All blocks of a run in which every key is visible share one bias; blocks at the edges or with padding have their
    own.
    """
    batch, heads, steps, head_width = q.shape
    behind, ahead = look
    block = window.block
    blocks = -(-steps // block)
    spare = blocks * block - steps
    width = behind + block + ahead

    def windows(x: Tensor) -> Tensor:  # (B, H, T, E) -> (B * H, N, W, E)
        padded = F.pad(x, (0, 0, behind, ahead + spare)).flatten(0, 1)
        return padded.unfold(1, width, block).transpose(2, 3)

    queries = F.pad(q, (0, 0, 0, spare)).reshape(batch * heads, blocks, block, head_width)
    keys, values = windows(k), windows(v)
    inside = torch.ones(1, steps, dtype=torch.bool, device=q.device) if mask is None else mask
    inside = F.pad(inside, (behind, ahead + spare)).unfold(1, width, block)  # (B, N, W)
    positions = torch.arange(width, device=q.device)
    bias = window.bias(positions[behind : behind + block], positions)[:, :, None].expand(-1, heads, -1, -1, -1)
    runs = _clear_run(inside)
    outs = []
    split = [x.split(runs, dim=1) for x in (queries, keys, values, inside)]
    for index, (some, near, held, seen) in enumerate(zip(*split, strict=True)):
        if not runs[index]:
            continue  # PyTorch 2.11 divides by the number of blocks
        hidden = bias if index == 1 else bias.masked_fill(~seen[:, None, :, None, :], -torch.inf)
        outs.append(_attend(some, near, held, hidden.expand(batch, -1, -1, -1, -1).flatten(0, 1)))
    return torch.cat(outs, dim=1).reshape(batch, heads, blocks * block, head_width)[:, :, :steps]


def _clear_run(inside: Tensor) -> list[int]:
    """Return the number of blocks before, in and after the first run with all keys visible, inside (B, N, W)."""
    clear = inside.all(dim=2).all(dim=0).tolist()
    start = clear.index(True) if True in clear else len(clear)
    length = next((n for n, seen in enumerate(clear[start:]) if not seen), len(clear) - start)
    return [start, length, len(clear) - start - length]


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Compute softmax attention, scale 1/√E, with an additive bias; rows of -inf only give zeros, never NaN."""
    blind = (bias == -torch.inf).all(dim=-1, keepdim=True)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.masked_fill(blind, 0.0).to(q.dtype))
    return out.masked_fill(blind, 0.0)


def _stretched(q: Tensor, k: Tensor, v: Tensor, window: Window, mask: Tensor | None, temperature: Tensor) -> Tensor:
    batch, heads, steps, head_width = q.shape
    reaches = torch.tensor(window.reaches()).clamp(max=steps - 1).expand(batch, heads)
    reach = int(reaches.max())
    positions = torch.arange(reach + window.block + (0 if window.causal else reach))
    bias = window.bias(positions[reach : reach + window.block], positions).to(q.dtype)
    factor = (1.0 / (temperature * head_width**0.5)).to(q.dtype)
    seen = torch.ones(1, steps, dtype=torch.bool) if mask is None else mask
    tiles = list(_tiles(reaches.tolist(), window, seen.expand(batch, steps)))
    out: Tensor = Stretches.apply(q * factor[..., None, None], k, v, bias.expand(batch, heads, -1, -1), tiles)
    return out


class Tile(NamedTuple):
    """Blocks of queries from step `start`, for some heads of some utterances, with their reach.

    R is the number of its utterances, G the number of heads of all R together.
    """

    rows: slice
    heads: slice
    start: int
    blocks: int
    block: int
    behind: int
    width: int  # keys visible to a block
    spare: int  # left columns of the bias that only heads with a longer reach use
    hidden: Tensor | None  # (R, 1, N, 1, W), -inf for hidden keys, else 0; None if all are visible

    def queries(self, x: Tensor) -> Tensor:
        """Return the blocks of x (B, H, T, E) as (G N, block, E), zeros after the end."""
        end = self.start + self.blocks * self.block
        return _steps(x[self.rows, self.heads], self.start, end).reshape(-1, self.block, x.shape[3])

    def windows(self, x: Tensor) -> Tensor:
        """Return the window of each block in x (B, H, T, E) as (G N, W, E); for one head a view, except at the ends."""
        start = self.start - self.behind
        near = _steps(x[self.rows, self.heads], start, start + (self.blocks - 1) * self.block + self.width)
        return near.unfold(2, self.width, self.block).mT.flatten(0, 2)

    def bias(self, x: Tensor) -> Tensor:
        """Return the biases, or their gradients, of these heads (R, H, block, W), a view."""
        return x[self.rows, self.heads, :, self.spare : self.spare + self.width]

    def scores(self, bias: Tensor, x: Tensor) -> Tensor:
        """Return scores (G N, block, W) as (R, H, N, block, W), a view."""
        return x.view(*bias.shape[:2], self.blocks, self.block, self.width)

    def put(self, x: Tensor, blocks: Tensor) -> None:
        """Write blocks (G N, block, E) to their positions in x (B, H, T, E)."""
        place = x[self.rows, self.heads, self.start : self.start + self.blocks * self.block]
        place.copy_(blocks.view(*place.shape[:2], -1, x.shape[3])[:, :, : place.shape[2]])

    def add(self, x: Tensor, windows: Tensor) -> None:
        """Add overlapping windows (G N, W, E) to their positions in x (B, H, T, E)."""
        rows, steps = (self.blocks - 1) * self.block + self.width, x.shape[2]
        place = x[self.rows, self.heads]
        each = windows.view(*place.shape[:2], self.blocks, self.width, -1)
        total = windows.new_zeros(*place.shape[:2], rows, x.shape[3])
        for first in range(0, self.width, self.block):
            part = each[:, :, :, first : first + self.block].mT
            length = part.shape[4]
            total[:, :, first : first + rows - self.width + length].unfold(2, length, self.block).add_(part)
        start = self.start - self.behind
        place[:, :, max(0, start) : start + rows].add_(total[:, :, max(0, -start) : steps - start])


def _steps(x: Tensor, start: int, end: int) -> Tensor:
    """Return the steps `start` to `end` of x (…, T, E), zeros outside of x."""
    inside = x[..., max(0, start) : end, :]
    if inside.shape[-2] == end - start:
        return inside
    return F.pad(inside, (0, 0, max(0, -start), max(0, end - x.shape[-2])))


def _tiles(reaches: list[list[int]], window: Window, mask: Tensor) -> Iterator[Tile]:
    """Yield the tiles of a batch for masks (B, T) of the keys: one for a small batch, else several per head."""
    everybody = bool((window.radius > 0).all())  # each query sees at least itself, padding apart
    longest, block, (batch, steps) = max(map(max, reaches)), window.block, mask.shape

    def tile(rows: slice, heads: slice, start: int, blocks: int, behind: int) -> Tile:
        width = behind + block + (0 if window.causal else behind)
        first = start - behind
        seen = _steps(mask[rows, :, None], first, first + (blocks - 1) * block + width)
        clear = everybody and bool(seen.all())
        hidden = None if clear else log_mask(seen.unfold(1, width, block)[:, None].to(window.radius.dtype))
        return Tile(rows, heads, start, blocks, block, behind, width, longest - behind, hidden)

    blocks = -(-steps // block)
    if batch * len(reaches[0]) * blocks * block * (block + 2 * longest) <= FEW_SCORES:
        yield tile(slice(None), slice(None), 0, blocks, longest)
        return
    most = max(1, STRETCH_STEPS // block)
    for row, first in itertools.product(range(batch), range(0, blocks, most)):
        for head, behind in enumerate(reaches[row]):
            some = min(most, blocks - first)
            yield tile(slice(row, row + 1), slice(head, head + 1), first * block, some, behind)


class Stretches(torch.autograd.Function):
    """Softmax attention tile by tile; with several tiles, the backward pass recomputes the weights."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, tiles: list[Tile]) -> Tensor:
        """Return (B, H, T, E) for scaled q and a bias (B, H, block, W)."""
        ctx.tiles = tiles
        out, kept = torch.empty_like(q), []
        with one_thread():
            for tile in tiles:
                weights = _weights(tile, tile.queries(q), tile.windows(k), bias)
                tile.put(out, weights @ tile.windows(v))
                kept += [weights] if len(tiles) == 1 else []
        ctx.save_for_backward(q, k, v, bias, *kept)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of q, k, v and bias."""
        q, k, v, bias, *kept = ctx.saved_tensors
        (grad,) = grads
        to_q, to_k, to_v, to_bias = (torch.zeros_like(x) for x in (q, k, v, bias))
        with one_thread():
            for tile in ctx.tiles:
                queries, keys, asked = tile.queries(q), tile.windows(k), tile.queries(grad)
                weights = kept[0] if kept else _weights(tile, queries, keys, bias)
                tile.add(to_v, weights.mT @ asked)
                scores = torch._softmax_backward_data(asked @ tile.windows(v).mT, weights, -1, weights.dtype)
                tile.add(to_k, scores.mT @ queries)
                tile.put(to_q, scores @ keys)
                part = tile.bias(to_bias)
                part.add_(tile.scores(part, scores).sum(dim=2))
        return to_q, to_k, to_v, to_bias, None


def _weights(tile: Tile, queries: Tensor, keys: Tensor, bias: Tensor) -> Tensor:
    """Return a tile's softmax (G N, block, W), zeros for queries without visible keys."""
    part = tile.bias(bias)
    if part.shape[:2] == (1, 1):
        scores = torch.baddbmm(part[0, 0], queries, keys.mT)
    else:
        scores = queries @ keys.mT
        tile.scores(part, scores).add_(part[:, :, None])
    if tile.hidden is None:
        return scores.softmax(dim=-1)
    tile.scores(part, scores).add_(tile.hidden)
    blind = scores.amax(dim=-1, keepdim=True) == -torch.inf
    return scores.softmax(dim=-1).masked_fill_(blind, 0.0)
