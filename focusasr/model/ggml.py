"""Reader of whisper.cpp's models: ggml .bin files, float or quantized.

The format: i32 magic · eleven i32 sizes · i32 bands, i32 bins, the mel filters · i32 count, per token u32 length,
bytes · per tensor i32 rank, i32 length of its name, i32 type, i32 sizes in reverse, name, data. Source: whisper.cpp.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from focusasr.model.binary import BFLOAT16, BinaryFile
from focusasr.model.weights import ImportedCheckpoint, Weight
from focusasr.model.whisper_tokens import tokenizer_of_engine
from focusasr.model.whisper_weights import OPENAI_PARTS, OPENAI_REST, openai_settings, rename_weight, whisper_card
from focusasr.runtime.errors import InputError
from focusasr.runtime.libraries import install_command
from focusasr.text.whisper_tokenizer import engine_from_tokens

DIMS = (
    "n_vocab n_audio_ctx n_audio_state n_audio_head n_audio_layer "
    "n_text_ctx n_text_state n_text_head n_text_layer n_mels"
).split()
FLOATS: dict[int, np.dtype] = {0: np.dtype(np.float32), 1: np.dtype(np.float16), 30: BFLOAT16}
# ggml's number of a type → (name, numbers per block, bytes per block)
OWN_TYPES = {2: ("q4_0", 32, 18), 3: ("q4_1", 32, 20), 6: ("q5_0", 32, 22), 7: ("q5_1", 32, 24), 8: ("q8_0", 32, 34)}
K_TYPES = {
    10: ("q2_K", 256, 84), 11: ("q3_K", 256, 110), 12: ("q4_K", 256, 144), 13: ("q5_K", 256, 176),
    14: ("q6_K", 256, 210),
}  # fmt: skip
MOST_FTYPES = 64


def read_ggml(path: Path, files: contextlib.ExitStack) -> ImportedCheckpoint:
    """Read a ggml file; InputError if it is corrupt, of another model, or of an unknown type."""
    file = BinaryFile(path, files)
    file.skip(4)
    dims = _dims(file)
    bands, bins = file.numbers("ii")
    if bands != dims["n_mels"] or bins < 0:
        raise file.broken(f"mel filters for {bands} bands, a model of {dims['n_mels']}")
    file.skip(4 * bands * bins)
    tokens = [file.bytes(file.number("I")) for _ in range(file.number("I"))]
    weights = dict(_tensors(file))
    settings = openai_settings(dims, weights, path)
    text = tokens[: tokens.index(b"<|endoftext|>")] if b"<|endoftext|>" in tokens else tokens
    try:
        engine = engine_from_tokens(text, settings.vocabulary)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    tokenizer = tokenizer_of_engine(engine, settings, path.stem)
    return ImportedCheckpoint(settings, tokenizer, weights, whisper_card(path.stem, settings, weights), path)


def _dims(file: BinaryFile) -> dict[str, int]:
    """Return the sizes, under OpenAI's names; InputError for the other models that share whisper.cpp's format."""
    sizes = file.numbers("i" * (len(DIMS) + 1))
    words = b"".join(size.to_bytes(4, "little", signed=True) for size in sizes)
    if words[4:].startswith(b"silero"):
        raise InputError(f"{file.path}: a voice activity detector of whisper.cpp (Silero). Use a Whisper model.")
    dims = dict(zip(DIMS, sizes, strict=False))
    bands, ftype = sizes[5:7]  # in a Parakeet file
    if bands in (64, 80, 128) and 0 <= ftype % 1000 < MOST_FTYPES and dims["n_text_state"] != dims["n_audio_state"]:
        raise InputError(f"{file.path}: a Parakeet model of whisper.cpp, which is no Whisper. Use a Whisper model.")
    return dims


def _tensors(file: BinaryFile) -> Iterator[tuple[str, Weight]]:
    """Yield our names and weights; InputError if a type is unknown or a size does not fit."""
    while file.position < file.size:
        rank, length, kind = file.numbers("iii")
        if not (0 <= rank <= 4 and 0 <= length <= 256):
            raise file.broken(f"a tensor of rank {rank} with a name of {length} bytes at byte {file.position}")
        shape = tuple(reversed(file.numbers("i" * rank)))
        name = file.bytes(length).decode("utf-8", "replace")
        if min(shape, default=1) < 0:
            raise file.broken(f"tensor {name[:100]!r} has shape {shape}")
        start = file.position
        file.skip(_bytes(file, name, kind, shape))
        if name == "decoder.proj.weight":  # the embedding once more, in conversions from transformers
            continue
        if name.endswith(("conv1.bias", "conv2.bias")):  # stored as columns
            shape = (math.prod(shape),)
        ours = rename_weight(name, OPENAI_PARTS, OPENAI_REST) or name
        yield ours, Weight(shape, functools.partial(_read, file, start, kind, shape))


def _bytes(file: BinaryFile, name: str, kind: int, shape: tuple[int, ...]) -> int:
    """Return the size of a tensor in bytes; InputError for an unknown type."""
    count = math.prod(shape)
    if kind in FLOATS:
        return count * FLOATS[kind].itemsize
    if kind not in OWN_TYPES and kind not in K_TYPES:
        raise InputError(f"{file.path}: tensor {name[:100]!r} has the unknown type {kind}. Use another quantization.")
    label, numbers, size = OWN_TYPES.get(kind) or K_TYPES[kind]
    if not shape or shape[-1] % numbers:
        raise file.broken(f"tensor {name[:100]!r} of type {label} has rows of {shape[-1:]} numbers")
    if kind in K_TYPES:
        _gguf(file.path, label)
    return count // numbers * size


def _read(file: BinaryFile, start: int, kind: int, shape: tuple[int, ...]) -> np.ndarray:
    if kind in FLOATS:
        return file.array(start, FLOATS[kind], shape)
    label, numbers, size = OWN_TYPES.get(kind) or K_TYPES[kind]
    blocks = file.array(start, np.dtype(np.uint8), (math.prod(shape) // numbers, size))
    if kind in OWN_TYPES:
        return dequantize(blocks, label).reshape(shape)
    values = _gguf(file.path, label).dequantize(blocks, kind)
    return np.ascontiguousarray(values, dtype=np.float32).reshape(shape)


def _gguf(path: Path, label: str):  # type: ignore[no-untyped-def]
    """Return gguf's module for dequantization of K types; InputError without the package gguf."""
    try:
        from gguf import quants
    except ImportError:
        raise InputError(
            f"{path}: quantized as {label}, which the package gguf undoes. Install it: {install_command('ggml')}"
        ) from None
    return quants


def dequantize(blocks: np.ndarray, label: str) -> np.ndarray:
    """Return the numbers (B, 32) in float32 of blocks (B, bytes) of one of OWN_TYPES.

    A block has a float16 scale, a float16 minimum in the _1 types, and a fifth bit per number in q5. Its numbers have
    8 bits, or 4 with the first half of them in the low bits and the second half in the high bits.
    """
    scale, rest = blocks[:, :2].copy().view(np.float16).astype(np.float32), blocks[:, 2:]
    if label == "q8_0":
        return scale * rest.view(np.int8)
    offset: float | np.ndarray = -8.0 if label == "q4_0" else -16.0
    if label.endswith("1"):
        offset, rest = rest[:, :2].copy().view(np.float16).astype(np.float32), rest[:, 2:]
    fifth: int | np.ndarray = 0
    if label.startswith("q5"):
        fifth, rest = np.unpackbits(rest[:, :4], axis=1, bitorder="little") << 4, rest[:, 4:]
    numbers = np.concatenate([rest & 15, rest >> 4], axis=1) | fifth
    return scale * numbers + offset if label.endswith("1") else scale * (numbers + np.float32(offset))
