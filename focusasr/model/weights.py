"""Weights in files, read without running code and in memory bounded by the file's size."""

from __future__ import annotations

import contextlib
import functools
import math
import pickletools
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from focusasr.config import ModelConfig
from focusasr.model.quantization import ROWS_AT_ONCE, Integers
from focusasr.model.transformer import Model
from focusasr.runtime.errors import InputError
from focusasr.text.tokenizer import Tokenizer

# Names allowed in a file of torch.save. Its reader would also call others, such as bytearray of any size.
NAMED_IN_PICKLES = re.compile(
    r"collections OrderedDict|torch (Size|[A-Z]\w{2,8}Storage)|torch\._utils _rebuild_(tensor_v2|parameter)"
)


SCALE = ".scale"  # suffix for the scales of a weight that is stored as int8
HALVES = "attention.projection.weight"
SMALLEST_PEAK = 1e-20  # peak for rows of zeros
MAPPED_BYTES = 2**23  # read from a mapped file before it is mapped again: pages that were read stay in memory


class Weight(NamedTuple):
    """A weight in a file: its shape, a function that reads it, and one that reads it as it is stored in 8 bits."""

    shape: tuple[int, ...]
    read: Callable[[], Tensor]
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


def safetensors_in(path: Path, device: str) -> dict[str, Weight]:
    """Return names and weights of a file; InputError, here or when a weight is read, if it is corrupt."""
    file = _Safetensors(path, device)
    return {name: Weight(shape, functools.partial(file.read, name, shape)) for name, shape in file.shapes().items()}


class _Safetensors:
    """A safetensors file that is mapped again after MAPPED_BYTES, so that only weights in use take memory."""

    def __init__(self, path: Path, device: str) -> None:
        self._path, self._device = path, device
        self._file: Any = None
        self._left = 0

    def shapes(self) -> dict[str, tuple[int, ...]]:
        with self._checked():
            file = safe_open(self._path, framework="pt", device=self._device)
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118

    def read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        with self._checked():
            if self._left <= 0:
                self._file, self._left = safe_open(self._path, framework="pt", device=self._device), MAPPED_BYTES
            value = self._file.get_tensor(name)
        if value.shape != shape:
            raise InputError(f"{self._path}: another file since loading began; load it again")
        self._left -= value.nbytes
        if self._left <= 0:
            self._file = None
        return value

    @contextlib.contextmanager
    def _checked(self) -> Iterator[None]:
        try:
            yield
        except (SafetensorError, OSError) as error:
            raise InputError(f"{self._path}: not a whole safetensors file ({error}); copy it again") from None


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
        scale = grouped.abs().amax(dim=2, keepdim=True).clamp(min=SMALLEST_PEAK) / 127
        stored[name] = (grouped / scale).round().to(torch.int8).flatten(1).contiguous()
        stored[name + SCALE] = scale.squeeze(2).contiguous()
    return stored


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


def _multiplied(integers: Integers) -> Tensor:
    values, scales = integers
    return (values.float().unflatten(1, (scales.shape[1], -1)) * scales[..., None]).flatten(1)


def _integers(weight: Weight, scale: Weight) -> Integers:
    values, scales = weight.read(), scale.read().float()
    fits = values.dtype == torch.int8 and values.dim() == scales.dim() == 2 and len(scales) == len(values)
    if not fits or not scales.shape[1] or values.shape[1] % scales.shape[1]:
        shapes = f"int8 weights of shape {weight.shape} have scales of shape {scale.shape}"
        raise InputError(f"{shapes}; copy the file again")
    return Integers(values, scales)


class UnreadWeights:
    """Weights of a model on the device "meta", in files that stay open until `close`.

    Weights are checked when they are read: InputError if they are not finite.
    """

    def __init__(
        self, tensors: Mapping[str, Weight], place: Path, device: torch.device, files: contextlib.ExitStack
    ) -> None:
        self._tensors, self._place, self._files = tensors, place, files
        self.device = device

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each weight, by name."""
        return {name: weight.shape for name, weight in self._tensors.items()}

    def read(self, name: str) -> Tensor:
        """Return one weight in float32."""
        return self._tensors[name].read().float()

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
        read = {key: self._tensors[place + key].read() for key in own}
        found = {key: _in_float32(place + key, value, self._place) for key, value in read.items()}
        module.load_state_dict(found, strict=False, assign=True)

    def table(self, name: str) -> Tensor | Integers:
        """Return a matrix in the fewest bytes that keep its values: as stored in 8 bits, half precision or float32."""
        weight = self._tensors[name]
        if weight.integers is not None:
            values, scales = weight.integers()
            return Integers(values.clone(), _in_float32(name, scales.clone(), self._place))
        value = weight.read()
        half = value.to(torch.float16, copy=True)
        for rows, halves in zip(value.split(ROWS_AT_ONCE), half.split(ROWS_AT_ONCE), strict=True):
            if not torch.equal(_in_float32(name, rows, self._place), halves.float()):
                return _in_float32(name, value, self._place)
        return half


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


def check_layers(settings: ModelConfig, weights: int, where: Path) -> None:
    """Raise InputError for more layers than weights, since even empty layers take memory and time."""
    layers = settings.encoder_layers + settings.decoder_layers
    if layers > weights:
        raise InputError(
            f"{where}: holds {weights} weights, the configuration wants {layers} layers; "
            "the files belong to different checkpoints"
        )


def _in_float32(name: str, value: Tensor, where: Path) -> Tensor:
    if not value.is_floating_point():
        raise InputError(f"{where}: weight {name} is {value.dtype}; expected: floating point")
    value = value.to(torch.float32, copy=True)  # else it would keep its file in memory
    lowest, highest = (float(bound) for bound in value.aminmax())  # NaN if there is one
    if not math.isfinite(highest - lowest):
        raise InputError(
            f"{where}: weight {name} goes from {lowest} to {highest}; expected: finite numbers; copy it again"
        )
    return value


def torch_weights(path: Path, device: str) -> dict[str, Weight]:
    """Return names and weights of a file that torch.save wrote, such as pytorch_model.bin.

    InputError if it has other contents, names code, or claims more than its size.
    """
    try:
        return tensors_by_name(read_torch(path, device), path)
    except Exception as error:  # many kinds from PyTorch's reader
        reason = " ".join(str(error).split())[:120]
        raise InputError(
            f"{path}: not weights that torch.save wrote, or it would run code when read ({reason}). Copy it again."
        ) from None


def tensors_by_name(saved: Any, path: Path) -> dict[str, Weight]:
    """Return the weights of a state dict from a file; ValueError if they take more memory than it has bytes.

    An output layer tied to the token embedding, which shares its storage, does not count.
    """
    state = dict(saved)
    if not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()):
        raise TypeError("it has other things than named weights")
    embeddings = {value.data_ptr() for name, value in state.items() if name.endswith("embed_tokens.weight")}
    tied = [name for name in state if name == "proj_out.weight" and state[name].data_ptr() in embeddings]
    size = sum(value.nbytes for name, value in state.items() if name not in tied)
    if size > path.stat().st_size:  # strides of 0 expand one number to any shape
        raise ValueError(f"its weights would be {size} bytes")
    return {name: Weight(tuple(value.shape), lambda value=value: value) for name, value in state.items()}  # type: ignore[misc]


def read_torch(path: Path, device: str = "cpu") -> Any:
    """Return the contents of a torch.save file: tensors, numbers, strings and containers of these.

    ValueError or PyTorch's errors if the file is corrupt, names anything else or unpacks to more than its size.
    """
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        size = sum(record.file_size for record in records)
        if size > path.stat().st_size:
            raise ValueError(f"{size} bytes are packed into it")
        for record in records:
            if record.filename.endswith("data.pkl"):
                _check_pickle(archive.read(record))
    return torch.load(path, map_location=device, weights_only=True)


def _check_pickle(pickled: bytes) -> None:
    """Raise ValueError for a pickle with names that tensors do not need; nothing is called."""
    for code, name, _ in pickletools.genops(pickled):
        if code.name in ("GLOBAL", "INST", "STACK_GLOBAL") and not NAMED_IN_PICKLES.fullmatch(str(name)):
            raise ValueError(f"it names {str(name)[:80]}")
