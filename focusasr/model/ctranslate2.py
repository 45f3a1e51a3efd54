"""Reader of CTranslate2's Whisper models, as in faster-whisper: folders with model.bin.

The format: u32 version · string spec · u32 revision · u32 count · per variable string name, u8 rank, u32 sizes,
u8 type, u32 bytes, data · u32 count · per alias two strings. A string is a u16 length and bytes up to a NUL. Up to
version 3 the type is the bytes per number, followed by the count of numbers. Source: CTranslate2, model_spec.py and
model.cc.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from focusasr.config import ModelConfig
from focusasr.model.binary import BFLOAT16, BinaryFile
from focusasr.model.weights import ImportedCheckpoint, Weight
from focusasr.model.whisper_tokens import optional_json, tokenizer_of_folder
from focusasr.model.whisper_weights import check_front_end, whisper_card, whisper_settings
from focusasr.runtime.errors import InputError

SPEC = "WhisperSpec"
VERSIONS = range(2, 7)
TYPES = ("float32", "int8", "int16", "int32", "float16", "bfloat16")  # by number
DTYPES: list[np.dtype] = [BFLOAT16 if name == "bfloat16" else np.dtype(name) for name in TYPES]
TYPES_BY_WIDTH: dict[int, np.dtype] = {
    4: np.dtype(np.float32),
    2: np.dtype(np.int16),
    1: np.dtype(np.int8),
}  # before version 4
INT16_SCALE = 1000.0  # of int16 without its own scale, in early versions
# Their names → ours: tables, whole names, and names in a layer. Some join several of our linear layers by rows; in a
# joined bias the rows of the key are zero.
TABLES = {
    "encoder/position_encodings/encodings": "encoder.positions",
    "decoder/position_encodings/encodings": "decoder.positional_embedding",
    "decoder/embeddings/weight": "decoder.token_embedding.weight",
}
MODULES = {
    "encoder/conv1": "encoder.stem.conv1", "encoder/conv2": "encoder.stem.conv2",
    "encoder/layer_norm": "encoder.ln_post", "decoder/layer_norm": "decoder.ln",
}  # fmt: skip
SELF_GLOBAL = "attention.attn_global"
PARTS = {
    "self_attention/layer_norm": "attention.ln_global", "self_attention/linear_1": f"{SELF_GLOBAL}.out",
    "self_attention/linear_0": f"{SELF_GLOBAL}.query {SELF_GLOBAL}.key {SELF_GLOBAL}.value",
    "ffn/layer_norm": "mlp.0", "ffn/linear_0": "mlp.1", "ffn/linear_1": "mlp.3",
}  # fmt: skip
CROSS_PARTS = {
    "attention/layer_norm": "ln_cross", "attention/linear_0": "cross.query",
    "attention/linear_1": "cross.key cross.value", "attention/linear_2": "cross.out",
}  # fmt: skip


class Variable(NamedTuple):
    """A variable in the file: shape, type and first byte."""

    shape: tuple[int, ...]
    dtype: np.dtype
    start: int

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def read_ctranslate2(folder: Path, files: contextlib.ExitStack) -> ImportedCheckpoint:
    """Read a folder with model.bin; InputError if files are missing, corrupt or of another model."""
    variables = Variables(BinaryFile(folder / "model.bin", files))
    generation = optional_json(folder / "config.json") or {}
    weights = dict(_mapped(variables))
    settings = _settings(variables, weights)
    embedding, output = variables["decoder/embeddings/weight"], variables.get("decoder/projection/weight")
    if output not in (None, embedding) and not np.array_equal(
        variables.read("decoder/projection/weight"), variables.read("decoder/embeddings/weight")
    ):
        raise InputError(f"{variables.file.path}: the output layer differs from the embedding. Use a Whisper model.")
    check_front_end(folder, settings.mel_bands)
    words = {"suppress_ids": "suppress_tokens", "suppress_ids_begin": "begin_suppress_tokens"}
    renamed = {words.get(name, name): value for name, value in generation.items()}
    tokenizer = tokenizer_of_folder(folder, renamed, settings)
    return ImportedCheckpoint(
        settings, tokenizer, weights, whisper_card(folder.name, settings, weights), variables.file.path
    )


class Variables:
    """Variables of a model.bin by name, read one by one."""

    def __init__(self, file: BinaryFile) -> None:
        self.file = file
        (version,) = file.numbers("I")
        if version not in VERSIONS:
            raise InputError(
                f"{file.path}: binary version {version} of CTranslate2; expected 2 to 6. Convert it again."
            )
        spec = self._string()
        if spec != SPEC:
            raise InputError(f"{file.path}: a CTranslate2 model of another kind, {spec[:40]!r}. Use a Whisper model.")
        _revision, count = file.numbers("II")
        self._all: dict[str, Variable] = dict(self._variable(version) for _ in range(count))
        aliases = file.number("I") if version >= 3 else 0
        for alias, name in ((self._string(), self._string()) for _ in range(aliases)):
            for suffix in ("", "_scale"):
                if name + suffix in self._all:
                    self._all.setdefault(alias + suffix, self._all[name + suffix])
        if sum(variable.bytes for variable in self._all.values()) > 2 * file.size:  # many names for few bytes
            raise file.broken("its aliases claim more than twice its size")

    def _string(self) -> str:
        return self.file.bytes(self.file.number("H")).partition(b"\0")[0].decode("utf-8", "replace")

    def _variable(self, version: int) -> tuple[str, Variable]:
        name = self._string()
        shape = self.file.numbers("I" * self.file.number("B"))
        kind, size = self.file.numbers("BI")
        if version >= 4:
            dtype = DTYPES[kind] if kind < len(TYPES) else None
        else:
            dtype, size = TYPES_BY_WIDTH.get(kind), size * kind
        if dtype is None:
            raise InputError(
                f"{self.file.path}: variable {name[:100]!r} has the unknown type {kind}. Convert it again."
            )
        variable = Variable(shape, dtype, self.file.position)
        if variable.bytes != size:
            raise self.file.broken(f"variable {name[:100]!r} of shape {shape} has {size} bytes")
        self.file.skip(size)
        return name, variable

    def __contains__(self, name: str) -> bool:
        return name in self._all

    def __getitem__(self, name: str) -> Variable:
        if name not in self._all:
            raise self.file.broken(f"variable {name!r} is missing")
        return self._all[name]

    def get(self, name: str) -> Variable | None:
        return self._all.get(name)

    def read(self, name: str, first: int = 0, rows: int | None = None) -> np.ndarray:
        """Return `rows` rows from row `first`, all by default, in the file's type, or in float32 if quantized."""
        variable = self[name]
        value = self._rows(variable, first, rows)
        if variable.dtype in (np.int8, np.int16) and variable.shape:
            value = value.astype(np.float32) / self._scale(name, first, value)
        return value

    def _rows(self, variable: Variable, first: int = 0, rows: int | None = None) -> np.ndarray:
        shape = variable.shape if rows is None else (rows, *variable.shape[1:])
        row = math.prod(variable.shape[1:]) * variable.dtype.itemsize
        return self.file.array(variable.start + first * row, variable.dtype, shape)

    def _scale(self, name: str, first: int, value: np.ndarray) -> np.ndarray:
        """Return the divisor of quantized rows: one for all, or one per row."""
        if f"{name}_scale" not in self:
            if value.dtype == np.int8:
                raise self.file.broken(f"variable {name + '_scale'!r} is missing")
            return np.array(INT16_SCALE, np.float32)
        scale = self[f"{name}_scale"]
        if math.prod(scale.shape) == 1:
            return self._rows(scale).astype(np.float32).reshape(())
        if scale.shape != self[name].shape[:1]:
            raise self.file.broken(f"variable {name + '_scale'!r} has shape {scale.shape}")
        return self._rows(scale, first, len(value)).astype(np.float32).reshape(-1, *[1] * (value.ndim - 1))


def modules(encoder_layers: int, decoder_layers: int) -> Iterator[tuple[str, list[str]]]:
    """Yield the name of each module, and our names of the modules that it joins."""
    for theirs, ours in MODULES.items():
        yield theirs, [ours]
    sides = (("encoder", encoder_layers, PARTS), ("decoder", decoder_layers, {**PARTS, **CROSS_PARTS}))
    for side, layers, parts in sides:
        for layer in range(layers):
            for theirs, ours in parts.items():
                yield f"{side}/layer_{layer}/{theirs}", [f"{side}.blocks.{layer}.{one}" for one in ours.split()]


def words(theirs: str) -> tuple[tuple[str, str], tuple[str, str]]:
    """Return the names of weight and bias of a module, each as (theirs, ours)."""
    norm = theirs.endswith("layer_norm")
    return ("gamma" if norm else "weight", "weight"), ("beta" if norm else "bias", "bias")


def _mapped(variables: Variables) -> Iterator[tuple[str, Weight]]:
    """Yield our names and weights."""
    for theirs, ours in TABLES.items():
        yield ours, _weight(variables, theirs)
    for theirs, parts in modules(_layers(variables, "encoder"), _layers(variables, "decoder")):
        if len(parts) > 1:
            yield from _split(variables, theirs, parts)
        else:
            for word, our_word in words(theirs):
                yield f"{parts[0]}.{our_word}", _weight(variables, f"{theirs}/{word}")


def _layers(variables: Variables, side: str) -> int:
    return next(n for n in itertools.count() if f"{side}/layer_{n}/self_attention/layer_norm/gamma" not in variables)


def _weight(variables: Variables, name: str, first: int = 0, rows: int | None = None) -> Weight:
    shape = variables[name].shape if rows is None else (rows, *variables[name].shape[1:])
    return Weight(shape, lambda: variables.read(name, first, rows))


def _split(variables: Variables, theirs: str, parts: Sequence[str]) -> Iterator[tuple[str, Weight]]:
    """Yield our layers of a joined linear layer; InputError if the key has a bias, which Whisper lacks."""
    shape, bias = variables[f"{theirs}/weight"].shape, variables[f"{theirs}/bias"].shape
    if len(shape) != 2 or shape[0] % len(parts) or bias != shape[:1]:
        raise variables.file.broken(f"variable {theirs + '/weight'!r} has shape {shape}, its bias {bias}")
    rows = shape[0] // len(parts)
    for number, part in enumerate(parts):
        yield f"{part}.weight", _weight(variables, f"{theirs}/weight", number * rows, rows)
        if not part.endswith(".key"):
            yield f"{part}.bias", _weight(variables, f"{theirs}/bias", number * rows, rows)
        elif variables.read(f"{theirs}/bias", number * rows, rows).any():
            raise InputError(f"{variables.file.path}: {theirs}/bias is not zero for keys. Use a Whisper model.")


def _heads(variables: Variables, name: str, width: int) -> int:
    """Return a number of heads; early versions omit it, and OpenAI's heads are 64 wide."""
    if name not in variables:
        return width // 64
    if math.prod(variables[name].shape) != 1:
        raise variables.file.broken(f"variable {name!r} has shape {variables[name].shape}")
    return int(variables.read(name).reshape(()))


def _settings(variables: Variables, weights: Mapping[str, Weight]) -> ModelConfig:
    path = variables.file.path
    shapes = {name: weights[name].shape for name in ("encoder.stem.conv1.weight", *TABLES.values())}
    for name, shape in shapes.items():
        if len(shape) != (3 if "conv" in name else 2):
            raise variables.file.broken(f"{name} has shape {shape}")
    width = shapes["encoder.positions"][1]
    heads = [_heads(variables, f"{side}/num_heads", width) for side in ("encoder", "decoder")]
    if heads[0] != heads[1]:
        raise InputError(f"{path}: {heads[0]} heads in the encoder, {heads[1]} in the decoder; expected the same")
    sizes = {
        "mel_bands": shapes["encoder.stem.conv1.weight"][1], "width": width, "heads": heads[0],
        "encoder_layers": _layers(variables, "encoder"), "decoder_layers": _layers(variables, "decoder"),
        "audio_context": shapes["encoder.positions"][0], "text_context": shapes["decoder.positional_embedding"][0],
    }  # fmt: skip
    return whisper_settings(sizes, weights, path)
