"""Weights in files for PyTorch, and 8 bit integers for storage."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from focusasr.config import ModelConfig
from focusasr.model.pickled import TorchFile
from focusasr.model.quantization import ROWS_AT_ONCE, SMALLEST, Integers
from focusasr.model.transformer import Model
from focusasr.model.weights import SCALE, Weight, check_layers
from focusasr.runtime.errors import InputError

HALVES = "attention.projection.weight"


def as_int8(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights for storage: matrices as int8 with a scale per row, others as float16.

    A hybrid layer's projection has a scale for each of its halves [local | global]. The int8 engine uses exactly these
    integers.
    """
    stored: dict[str, Tensor] = {}
    for name, value in weights.items():
        if value.dim() != 2 or not name.endswith(".weight"):
            stored[name] = value.half().contiguous()
            continue
        grouped = value.float().unflatten(1, (2 if name.endswith(HALVES) else 1, -1))  # (N, groups, K / groups)
        scale = grouped.abs().amax(dim=2, keepdim=True).clamp(min=SMALLEST) / 127
        stored[name] = (grouped / scale).round().to(torch.int8).flatten(1).contiguous()
        stored[name + SCALE] = scale.squeeze(2).contiguous()
    return stored


class UnreadWeights:
    """Weights of a model on the device "meta", in files that stay open until `close`.

    Weights are checked when they are read: InputError if they are not finite.
    """

    def __init__(
        self, tensors: Mapping[str, Weight], place: Path, device: torch.device, files: contextlib.ExitStack
    ) -> None:
        self._tensors, self._place, self._files = tensors, place, files
        self.device = device

    def close(self) -> None:
        """Close the files."""
        self._files.close()

    def fill(self, module: nn.Module, name: str = "") -> None:
        """Read the weights of a module of the model, and of its children, in float32."""
        for child, part in module.named_modules():
            self.fill_alone(part, ".".join(filter(None, (name, child))))

    def fill_alone(self, module: nn.Module, name: str) -> None:
        """Read the weights of a module, without its children, in float32."""
        place = f"{name}." if name else ""
        own = [key for key in module.state_dict() if "." not in key]
        read = {key: torch.from_numpy(self._tensors[place + key].read()) for key in own}
        found = {key: _in_float32(place + key, value, self._place).to(self.device) for key, value in read.items()}
        module.load_state_dict(found, strict=False, assign=True)

    def table(self, name: str) -> Tensor | Integers:
        """Return a matrix in the fewest bytes that keep its values: as stored in 8 bits, half precision or float32."""
        weight = self._tensors[name]
        if weight.integers is not None:
            values, scales = (torch.from_numpy(part) for part in weight.integers())
            return Integers(values.to(self.device), _in_float32(name, scales, self._place).to(self.device))
        value = torch.from_numpy(weight.read())
        half = value.to(torch.float16, copy=True)
        for rows, halves in zip(value.split(ROWS_AT_ONCE), half.split(ROWS_AT_ONCE), strict=True):
            if not torch.equal(_in_float32(name, rows, self._place), halves.float()):
                return _in_float32(name, value, self._place).to(self.device)
        return half.to(self.device)


def bare_model(settings: ModelConfig) -> Model:
    """Return the model of these settings on the device "meta", for inference."""
    with torch.device("meta"):
        return Model(settings).eval()


def checked_model(settings: ModelConfig, weights: Mapping[str, Weight], where: Path) -> Model:
    """Return a bare model after its weights are checked: InputError if names or shapes differ."""
    check_layers(settings, len(weights), where)
    model = bare_model(settings)
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    for name in sorted(wanted.keys() | weights.keys()):
        found = weights[name].shape if name in weights else None
        if wanted.get(name) != found:
            raise InputError(
                f"{where}: weight {name[:100]!r} has shape {found}, the configuration wants {wanted.get(name)}; "
                "the files belong to different checkpoints"
            )
    return model


def _in_float32(name: str, value: Tensor, where: Path) -> Tensor:
    if not value.is_floating_point():
        raise InputError(f"{where}: weight {name} is {value.dtype}; expected: floating point")
    value = value.float()
    lowest, highest = (float(bound) for bound in value.aminmax())  # NaN if there is one
    if not math.isfinite(highest - lowest):
        raise InputError(
            f"{where}: weight {name} goes from {lowest} to {highest}; expected: finite numbers; copy it again"
        )
    return value


def read_torch(path: Path) -> Any:
    """Return the contents of a torch.save file: tensors, numbers, strings and containers of these.

    ValueError or errors of `TorchFile` and PyTorch if the file is corrupt, names anything else or unpacks to more than
    its size.
    """
    with contextlib.ExitStack() as files:
        TorchFile(path, files)  # PyTorch's reader would also call others, such as bytearray of any size
    return torch.load(path, map_location="cpu", weights_only=True)
