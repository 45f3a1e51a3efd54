"""Weights in files, read without running code and in memory bounded by the file's size."""

from __future__ import annotations

import contextlib
import functools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from focusasr.config import ModelConfig
from focusasr.model.binary import BFLOAT16, to_numbers
from focusasr.runtime.errors import InputError
from focusasr.text.tokenizer import Tokenizer

SCALE = ".scale"  # suffix for the scales of a weight that is stored as int8
MAPPED_BYTES = 2**23  # read from a mapped file before it is mapped again: pages that were read stay in memory


class Integers(NamedTuple):
    """A matrix (N, K) of 8 bit integers, and its float32 scales (N, groups), each for K / groups columns."""

    values: np.ndarray
    scales: np.ndarray


class Weight(NamedTuple):
    """A weight in a file: its shape, a function that reads it, and one that reads it as it is stored in 8 bits."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]
    integers: Callable[[], Integers] | None = None


class ImportedCheckpoint(NamedTuple):
    """Result of a reader: a checkpoint without its network.

    `tensors` have our names and are read one by one, so their files stay open; `place` is their path for messages.
    """

    config: ModelConfig
    tokenizer: Tokenizer
    tensors: Mapping[str, Weight]
    card: str
    place: Path
    metrics: Mapping[str, Any] = MappingProxyType({})


def safetensors_in(path: Path) -> dict[str, Weight]:
    """Return names and weights of a file; InputError, here or when a weight is read, if it is corrupt."""
    file = _Safetensors(path)
    return {name: Weight(shape, functools.partial(file.read, name, shape)) for name, shape in file.shapes().items()}


class _Safetensors:
    """A safetensors file that is mapped again after MAPPED_BYTES, so that only weights in use take memory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: Any = None
        self._left = 0

    def shapes(self) -> dict[str, tuple[int, ...]]:
        with self._checked():
            file = safe_open(self._path, framework="np")
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118

    def read(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        with self._checked():
            if self._left <= 0:
                self._file, self._left = safe_open(self._path, framework="np"), MAPPED_BYTES
            part = self._file.get_slice(name)
            kind = part.get_dtype()
            if kind.startswith("F8"):
                raise InputError(f"{self._path}: weight {name} is {kind}; expected: float16, bfloat16 or float32")
            if tuple(part.get_shape()) != shape:
                raise InputError(f"{self._path}: another file since loading began; load it again")
            value: np.ndarray = self._half(name, shape) if kind == "BF16" else self._file.get_tensor(name)
        self._left -= value.nbytes
        if self._left <= 0:
            self._file = None
        return value

    def _half(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """Return a weight in bfloat16, which numpy lacks, in float32; the library has checked the file."""
        with self._path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            begin, _ = json.loads(file.read(length))[name]["data_offsets"]
        return to_numbers(np.fromfile(self._path, BFLOAT16, math.prod(shape), offset=8 + length + begin)).reshape(shape)

    @contextlib.contextmanager
    def _checked(self) -> Iterator[None]:
        try:
            yield
        except (SafetensorError, OSError) as error:
            raise InputError(f"{self._path}: not a whole safetensors file ({error}); copy it again") from None


def from_int8(weights: Mapping[str, Weight]) -> dict[str, Weight]:
    """Return stored weights by name, int8 weights multiplied by their scales."""
    return {
        name: _stored_as_int8(weight, weights[name + SCALE]) if name + SCALE in weights else weight
        for name, weight in weights.items()
        if not name.endswith(SCALE)
    }


def _stored_as_int8(weight: Weight, scale: Weight) -> Weight:
    integers = functools.partial(_integers, weight, scale)
    return Weight(weight.shape, lambda: _multiplied(integers()), integers)


def _multiplied(integers: Integers) -> np.ndarray:
    values, scales = integers
    groups = values.astype(np.float32).reshape(*scales.shape, -1)
    return (groups * scales[..., None]).reshape(values.shape)


def _integers(weight: Weight, scale: Weight) -> Integers:
    values, scales = weight.read(), scale.read().astype(np.float32)
    fits = values.dtype == np.int8 and values.ndim == scales.ndim == 2 and len(scales) == len(values)
    if not fits or not scales.shape[1] or values.shape[1] % scales.shape[1]:
        shapes = f"int8 weights of shape {weight.shape} have scales of shape {scale.shape}"
        raise InputError(f"{shapes}; copy the file again")
    return Integers(values, scales)


def check_layers(settings: ModelConfig, weights: int, where: Path) -> None:
    """Raise InputError for more layers than weights, since even empty layers take memory and time."""
    layers = settings.encoder_layers + settings.decoder_layers
    if layers > weights:
        raise InputError(
            f"{where}: holds {weights} weights, the configuration wants {layers} layers; "
            "the files belong to different checkpoints"
        )
