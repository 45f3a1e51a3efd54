"""Bounds-checked reading of binary files with numbers, names and tensors."""

from __future__ import annotations

import contextlib
import math
import struct
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from focusasr.runtime.errors import InputError


class BinaryFile:
    """A little-endian file, open as long as `files`; InputError if it is truncated."""

    def __init__(self, path: Path, files: contextlib.ExitStack) -> None:
        self.path = path
        try:
            self._file = files.enter_context(path.open("rb"))
            self.size = path.stat().st_size
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error}). Check the file.") from None

    @property
    def position(self) -> int:
        """Return the current position in bytes."""
        return self._file.tell()

    def numbers(self, kinds: str) -> tuple[int, ...]:
        """Read numbers, each given by its letter in the module struct."""
        return struct.unpack(f"<{kinds}", self.bytes(struct.calcsize(f"<{kinds}")))

    def number(self, kind: str) -> int:
        return self.numbers(kind)[0]

    def bytes(self, count: int) -> bytes:
        self._check(count)
        return self._file.read(count)

    def skip(self, count: int) -> None:
        self._check(count)
        self._file.seek(count, 1)

    def tensor(self, start: int, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
        """Return the tensor that starts at a byte; its end was checked when it was skipped."""
        data = bytearray(math.prod(shape) * dtype.itemsize)
        self._file.seek(start)
        if self._file.readinto(data) != len(data):
            raise self.broken("it ends too early")
        return (
            torch.frombuffer(data, dtype=dtype).reshape(tuple(shape))
            if data
            else torch.empty(tuple(shape), dtype=dtype)
        )

    def broken(self, reason: str) -> InputError:
        """Return the error for a corrupt file."""
        return InputError(f"{self.path}: not a whole file: {reason}. Copy it again.")

    def _check(self, count: int) -> None:
        if not 0 <= count <= self.size - self.position:
            raise self.broken(f"{count} bytes are expected at byte {self.position} of {self.size}")
