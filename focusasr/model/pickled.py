"""Tensors in files of torch.save, read without PyTorch and without running code.

A file is a zip archive: NAME/data.pkl is a pickle of containers and tensors, which name a storage, an offset, sizes and
strides in numbers; NAME/data/KEY are the storages. Source: PyTorch, serialization.py and _utils.py.
"""

from __future__ import annotations

import contextlib
import functools
import io
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from focusasr.model.binary import BFLOAT16, to_numbers
from focusasr.model.weights import Weight
from focusasr.runtime.errors import InputError

DTYPES: dict[str, np.dtype] = {
    "FloatStorage": np.dtype("<f4"), "HalfStorage": np.dtype("<f2"), "BFloat16Storage": BFLOAT16,
    "DoubleStorage": np.dtype("<f8"), "LongStorage": np.dtype("<i8"), "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"), "CharStorage": np.dtype("i1"), "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}  # fmt: skip


class _Storage(NamedTuple):
    key: str
    dtype: np.dtype


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.storage.dtype.itemsize


def _tensor(storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any) -> _Tensor:
    """Stand for torch._utils._rebuild_tensor_v2; ValueError for what is no tensor."""
    numbers = [offset, *shape, *strides]
    if not isinstance(storage, _Storage) or not all(type(one) is int and one >= 0 for one in numbers):
        raise ValueError("it has a tensor without storage or of negative size")
    if len(shape) != len(strides):
        raise ValueError(f"it has a tensor of {len(shape)} sizes and {len(strides)} strides")
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


NAMED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): tuple,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
    **{("torch", name): dtype for name, dtype in DTYPES.items()},
}


class _Unpickler(pickle._Unpickler):  # the one in Python: that in C reserves any memory
    """Reader of a pickle that may name what NAMED has, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in NAMED:
            raise ValueError(f"it names {f'{module} {name}'[:80]}")
        return NAMED[module, name]

    def persistent_load(self, saved: Any) -> _Storage:
        kind, dtype, key, _device, _count = saved
        if kind != "storage" or not isinstance(dtype, np.dtype) or not isinstance(key, str):
            raise ValueError("it has other things than storages")
        return _Storage(key, dtype)


class TorchFile:
    """A file of torch.save, open as long as `files`: its `contents`, in which tensors are not read yet.

    ValueError or errors of zipfile and pickle if it is corrupt, names anything else or unpacks to more than its size.
    """

    def __init__(self, path: Path, files: contextlib.ExitStack) -> None:
        self.path = path
        self._archive = files.enter_context(zipfile.ZipFile(path))
        records = self._archive.infolist()
        self._size = path.stat().st_size
        size = sum(record.file_size for record in records)
        if size > self._size:
            raise ValueError(f"{size} bytes are packed into it")
        (index,) = [record.filename for record in records if record.filename.endswith("data.pkl")]
        self._folder = index.removesuffix("data.pkl")
        names = {record.filename for record in records}
        order = f"{self._folder}byteorder"
        if order in names and self._archive.read(order) != b"little":
            raise ValueError("its numbers are big-endian")
        self.contents = _Unpickler(io.BytesIO(self._archive.read(index))).load()

    def weights(self, saved: Any) -> dict[str, Weight]:
        """Return the weights of a state dict in the file; ValueError if they take more memory than it has bytes.

        An output layer tied to the token embedding, which shares its storage, does not count.
        """
        state = dict(saved)
        if not all(isinstance(name, str) and isinstance(value, _Tensor) for name, value in state.items()):
            raise TypeError("it has other things than named weights")
        embeddings = [value for name, value in state.items() if name.endswith("embed_tokens.weight")]
        size = sum(value.bytes for name, value in state.items() if name != "proj_out.weight" or value not in embeddings)
        if size > self._size:  # strides of 0 expand one number to any shape
            raise ValueError(f"its weights would be {size} bytes")
        for value in state.values():
            if self._archive.getinfo(self._place(value)).file_size < _end(value) * value.storage.dtype.itemsize:
                raise ValueError("a tensor is larger than its storage")
        return {name: Weight(value.shape, functools.partial(self._read, value)) for name, value in state.items()}

    def _place(self, tensor: _Tensor) -> str:
        return f"{self._folder}data/{tensor.storage.key}"

    def _read(self, tensor: _Tensor) -> np.ndarray:
        try:
            stored = to_numbers(np.frombuffer(self._archive.read(self._place(tensor)), tensor.storage.dtype))
        except Exception as error:
            raise InputError(f"{self.path}: not a whole file ({error}). Copy it again.") from None
        strides = [stride * stored.itemsize for stride in tensor.strides]
        view = np.lib.stride_tricks.as_strided(stored[tensor.offset :], tensor.shape, strides, writeable=False)
        return np.array(view)


def _end(tensor: _Tensor) -> int:
    """Return the number of values up to the tensor's last one in its storage."""
    steps = (stride * (size - 1) for size, stride in zip(tensor.shape, tensor.strides, strict=True))
    return tensor.offset + sum(steps) + 1 if math.prod(tensor.shape) else 0


@contextlib.contextmanager
def opened(path: Path, files: contextlib.ExitStack, expected: str) -> Iterator[TorchFile]:
    """Yield a file of torch.save; InputError if it, or what is done with it inside, fails."""
    try:
        yield TorchFile(path, files)
    except Exception as error:  # many kinds, from zipfile and pickle
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise InputError(f"{path}: {expected}, or it would run code when read ({reason}). Copy it again.") from None
