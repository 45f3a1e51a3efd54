"""Bounds-checked reading of binary files with numbers, names and arrays."""

from __future__ import annotations

import contextlib
import math
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from focusasr.runtime.errors import InputError

BFLOAT16 = np.dtype("V2")  # upper halves of float32, which numpy lacks


def to_numbers(values: np.ndarray) -> np.ndarray:
    """Return values that numpy can compute with: bfloat16 becomes float32."""
    if values.dtype != BFLOAT16:
        return values
    return (values.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


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

    def array(self, start: int, dtype: np.dtype, shape: Sequence[int]) -> np.ndarray:
        """Return the numbers that start at a byte; their end was checked when they were skipped."""
        data = bytearray(math.prod(shape) * dtype.itemsize)
        self._file.seek(start)
        if self._file.readinto(data) != len(data):
            raise self.broken("it ends too early")
        return to_numbers(np.frombuffer(data, dtype)).reshape(tuple(shape))

    def broken(self, reason: str) -> InputError:
        """Return the error for a corrupt file."""
        return InputError(f"{self.path}: not a whole file: {reason}. Copy it again.")

    def _check(self, count: int) -> None:
        if not 0 <= count <= self.size - self.position:
            raise self.broken(f"{count} bytes are expected at byte {self.position} of {self.size}")
