"""Compute types, and linear layers of 8 bit integers for the CPU."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from focusasr.config import WIDE_ENOUGH, ModelConfig
from focusasr.model.attention import HybridAttention
from focusasr.runtime.errors import SettingError

Fill = Callable[[nn.Module, str], object]  # reads the weights of a module, without its children, by its name
ComputeType = Literal["auto", "float32", "bfloat16", "float16", "int8"]

STEPS = 127  # activations are quantized to -127 ... 127
NARROW_STEPS = 63  # or to -63 ... 63 on CPUs that add two products in 16 bits, where larger ones would saturate
SMALLEST = 1e-20  # peak for rows of zeros
ROWS_AT_ONCE = 4096  # of a matrix that is quantized, so that no whole copy in float32 is made
ROWS_IN_CACHE = 384  # of activations that are quantized and multiplied at once


class Integers(NamedTuple):
    """A matrix (N, K) of 8 bit integers, and its float32 scales (N, groups), each for K / groups columns."""

    values: Tensor
    scales: Tensor


class Linear(nn.Module):
    """A linear layer for inference, with weights stored transposed, which is faster for single rows."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Buffer(weight.detach().T.contiguous(), persistent=False)  # (K, N)
        self.bias = nn.Buffer(_bias(weight, bias), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Turn x (…, K) into (…, N)."""
        return torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight).view(*x.shape[:-1], -1)


class Int8Linear(nn.Module):
    """A linear layer of 8 bit weights, one scale per output, and 8 bit activations, one scale per row.

    Each row has its own scale, so that other rows of a batch change nothing, and sums of integers are exact in any
    order. CPU only; without VNNI activations have 7 bits. Dettmers et al. 2022, LLM.int8(), section 3.1.
    A `fine` layer also multiplies the rounding error, instead of treating outliers apart as they do: inputs without a
    LayerNorm have values far above the others, and one scale for all would lose most digits of the small ones.
    """

    def __init__(self, weight: Tensor | Integers, bias: Tensor | None, fine: bool = False) -> None:
        super().__init__()
        integers = weight if isinstance(weight, Integers) else quantized(weight.detach())
        self._packed = _pack(integers)
        self.bias = nn.Buffer(_bias(integers.scales, bias, torch.float32), persistent=False)
        self.steps, self.fine = STEPS if has_wide_products() else NARROW_STEPS, fine

    def forward(self, x: Tensor) -> Tensor:
        """Turn x (…, K) into (…, N)."""
        rows = x.reshape(-1, x.shape[-1])
        peak = torch.linalg.vector_norm(rows, torch.inf, 1, True).clamp_(min=SMALLEST)
        rows = rows / peak
        if self.fine:
            rounded = (rows * self.steps).round_().div_(self.steps)
            rest = (rows - rounded).mul_(2 * self.steps)
            large, small = _product(torch.cat((rounded, rest)), self._packed, self.steps).chunk(2)
            product = large.add_(small, alpha=0.5 / self.steps)
        else:
            product = _product(rows, self._packed, self.steps)
        return torch.addcmul(self.bias, product, peak).view(*x.shape[:-1], -1)


class RowBlocks(nn.Module):
    """A module that treats each row of x (…, K) alone, computed for a few rows at a time: what it needs stays small."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        """Turn x (…, K) into (…, K)."""
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        blocks = (one.view(-1, x.shape[-1]).split(ROWS_IN_CACHE) for one in (x.contiguous(), out))
        for rows, place in zip(*blocks, strict=True):
            place.copy_(self.module(rows))
        return out


class JoinedInt8Linear(nn.Module):
    """A linear layer with several concatenated input vectors, each with its own weights and scales.

    With one scale for all, a vector with small weights or values would be rounded to zero.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, parts: int) -> None:
        super().__init__()
        biases = (bias, *[None] * (parts - 1))
        pairs = zip(weight.detach().chunk(parts, dim=1), biases, strict=True)
        self.parts = nn.ModuleList(Int8Linear(part, own, fine=True) for part, own in pairs)

    def forward(self, x: Tensor) -> Tensor:
        """Turn x (…, K) into (…, N)."""
        first, *others = (layer(own) for layer, own in zip(self.parts, x.chunk(len(self.parts), dim=-1), strict=True))
        return sum(others, first)


def quantized(weight: Tensor) -> Integers:
    """Return weights (N, K) of any type as 8 bit integers with one scale per row."""
    values, scales = torch.empty(weight.shape, dtype=torch.int8), torch.empty(len(weight), 1, dtype=torch.double)
    for start in range(0, len(weight), ROWS_AT_ONCE):
        here = slice(start, start + ROWS_AT_ONCE)
        rows = weight[here].float()
        scales[here] = rows.abs().amax(dim=1, keepdim=True).clamp(min=SMALLEST).double() / 127
        zeros = torch.zeros(len(rows), dtype=torch.long)
        values[here] = torch.quantize_per_channel(rows, scales[here, 0], zeros, 0, torch.qint8).int_repr()
    return Integers(values, scales)


def _pack(weight: Integers) -> torch.ScriptObject:
    """Return weights (N, K) with one scale per row in the memory layout of the product."""
    scales, zeros = weight.scales[:, 0].double(), torch.zeros(len(weight.values), dtype=torch.long)
    return torch.ops.quantized.linear_prepack(
        torch._make_per_channel_quantized_tensor(weight.values, scales, zeros, 0), None
    )


def _product(rows: Tensor, packed: torch.ScriptObject, steps: int) -> Tensor:
    """Return the product (B, N) of packed weights and rows (B, K) in -1 ... 1, rounded to `steps` steps."""
    multiply = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32.default
    return multiply(rows, 1 / steps, steps + 1, packed)


def _bias(weight: Tensor, bias: Tensor | None, dtype: torch.dtype | None = None) -> Tensor:
    return weight.new_zeros(len(weight), dtype=dtype) if bias is None else bias.detach()


def make_linear(
    weight: Tensor | Integers, bias: Tensor | None, compute_type: ComputeType, fine: bool = False, parts: int = 1
) -> nn.Module:
    """Return a layer that computes x @ weight.T + bias for weight (N, K) and bias (N,) or None.

    `fine`: x is not a LayerNorm's output. `parts`: number of equally wide vectors that are concatenated in x. On CPUs
    whose products leave 7 bits to activations, all layers of 8 bits are fine: 7 bits alone change words.
    """
    if isinstance(weight, Integers) or (compute_type == "int8" and parts == 1):
        return Int8Linear(weight, bias, fine or not has_wide_products())
    return JoinedInt8Linear(weight, bias, parts) if compute_type == "int8" else Linear(weight, bias)


def choose_compute_type(wanted: ComputeType, device: torch.device, config: ModelConfig) -> ComputeType:
    """Return a compute type, chosen by device and shape if `auto`; SettingError if the device lacks it."""
    if wanted == "int8" and device.type != "cpu":
        raise SettingError("compute_type", "int8", f"float16 or another on {device.type}: only the CPU has int8")
    if wanted == "int8" and not has_products():
        raise SettingError(
            "compute_type", "int8", "auto or float32: PyTorch lacks 8 bit products for this CPU (fbgemm)"
        )
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "float16"
    wide = device.type == "cpu" and config.width >= WIDE_ENOUGH
    return "int8" if wide and has_products() and has_wide_products() else "float32"


def has_products() -> bool:
    """Return whether PyTorch has the product of `Int8Linear` for this CPU; its engine for ARM lacks it."""
    return "fbgemm" in torch.backends.quantized.supported_engines


@functools.cache
def has_wide_products() -> bool:
    """Return whether the product of `Int8Linear` is exact for 8 bit activations, by a trial.

    FBGEMM's kernels for AVX2 and AVX512 add two 8 bit products in 16 bits, which saturate; those for VNNI use 32 bits.
    """
    ones = torch.ones(1, 64)
    return float(_product(ones, _pack(quantized(ones)), STEPS)) > 63.5


def converted(module: nn.Module, compute_type: ComputeType) -> nn.Module:
    """Return a module for inference that computes in `compute_type`; the given module is unchanged.

    float32 returns the module itself; int8 replaces its linear layers and shares everything else.
    """
    if compute_type == "float32":
        return module
    if compute_type == "int8":
        shared: dict[int, object] = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
        result = copy.deepcopy(module, shared)
        replace_linears(result)
        return result
    return copy.deepcopy(module).to(torch.bfloat16 if compute_type == "bfloat16" else torch.float16)


def replace_linears(module: nn.Module, fill: Fill = lambda module, name: None, place: str = "") -> None:
    """Replace a module's linear layers by layers of 8 bit integers; each one is filled right before."""
    fill(module, place)
    before: nn.Module | None = None
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            fill(child, f"{place}.{name}")
            parts = 2 if isinstance(module, HybridAttention) and name == "projection" else 1  # [local | global]
            fine = name not in ("query", "key", "value") and not isinstance(before, nn.LayerNorm)
            setattr(module, name, make_linear(child.weight, child.bias, "int8", fine, parts))
        else:
            replace_linears(child, fill, f"{place}.{name}")
            if isinstance(child, nn.Sequential):  # the perceptrons, whose inner states are the largest
                setattr(module, name, RowBlocks(child))
        before = child
