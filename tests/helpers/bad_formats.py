"""Bad files of CTranslate2, whisper.cpp and PyTorch: each one change to a good one, for bad_checkpoints.py."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from tests.helpers.bad_weights import Bad, Spoil, called, cut, legacy, tarred, traps, written, zipped

CUTS = (0, 1, 3, 4, 10, 40, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, -1, -4, -100)
SIZES = (-1, 0, 1, 10**6, 2**31 - 1)
FLIPS = 40
MODEL = {"ct2": "model.bin", "ggml": "", "bin": "pytorch_model.bin"}


def bad_formats() -> Iterator[Bad]:
    for kind, piece in MODEL.items():
        for keep in CUTS:
            yield Bad(kind, f"truncated-{keep}", cut(piece, keep))
        for name, trap in [pair for pair in traps() if pair[0] in ("touch-2", "system-4", "open-0")]:
            for form, content in {
                "zip": zipped(trap),
                "bare": trap,
                "legacy": legacy(trap),
                "tar": tarred(trap),
            }.items():
                yield Bad(kind, f"trap-{name}-{form}", written(piece, content))
        for number in range(FLIPS):
            yield Bad(kind, f"flipped-{number}", flipped(piece, number), None)
    yield from ctranslate2()
    yield from ggml()
    yield from pickled()


def flipped(piece: str, seed: int) -> Spoil:
    """Return what changes eight bytes, more of them near the start, where the sizes are."""

    def change(data: bytearray) -> None:
        chance = random.Random(seed)
        for _ in range(8):
            data[int(len(data) * chance.random() ** 6)] = chance.randrange(256)

    return edited(piece, change)


def edited(piece: str, change: Callable[[bytearray], object]) -> Spoil:
    def spoil(path: Path) -> None:
        place = path / piece if piece else path
        data = bytearray(place.read_bytes())
        change(data)
        place.write_bytes(data)

    return spoil


def number_at(piece: str, find: Callable[[bytes], int], form: str, value: int) -> Spoil:
    """Return what writes a number at the byte that `find` returns."""

    def change(data: bytearray) -> None:
        struct.pack_into(form, data, find(bytes(data)), value)

    return edited(piece, change)


# CTranslate2: u32 version · u16, name of the specification · u32 revision · u32 count at byte 22 · variables

COUNT, FIRST = 22, 26
EMBEDDING = b"decoder/embeddings/weight\0"


def ctranslate2() -> Iterator[Bad]:
    after = lambda data: data.index(EMBEDDING) + len(EMBEDDING)  # noqa: E731
    places: dict[str, tuple[Callable[[bytes], int], str]] = {
        "version": (lambda _: 0, "<I"), "spec-length": (lambda _: 4, "<H"), "count": (lambda _: COUNT, "<I"),
        "name-length": (lambda _: FIRST, "<H"), "rank": (after, "<B"), "rows": (lambda data: after(data) + 1, "<I"),
        "width": (lambda data: after(data) + 5, "<I"), "type": (lambda data: after(data) + 9, "<B"),
        "bytes": (lambda data: after(data) + 10, "<I"), "aliases": (_aliases, "<I"),
    }  # fmt: skip
    for name, (find, form) in places.items():
        largest = 2 ** (8 * struct.calcsize(form)) - 1
        for value in (0, 1, 7, 100, largest // 2, largest):
            works = None if (name, value) in {("version", 1), ("aliases", 0), ("aliases", 1), ("type", 1)} else False
            yield Bad("ct2", f"{name}-{value}", number_at("model.bin", find, form, value), works)
    yield Bad("ct2", "longer-than-said", edited("model.bin", lambda data: data.extend(bytes(100))), True)
    yield Bad("ct2", "aliases-of-the-largest", edited("model.bin", _many_aliases))
    for piece in ("config.json", "tokenizer.json"):
        for name, content in {"empty": b"", "list": b"[]", "cut": b'{"a":', "zeros": bytes(100)}.items():
            yield Bad("ct2", f"{piece}-{name}", written(piece, content))
    for key in ("suppress_ids", "suppress_ids_begin", "alignment_heads"):
        for value in ('"a"', "[[1]]", "[-1]", "[1e400]", "[99999999]", "7"):
            yield Bad("ct2", f"config-{key}-{value}", written("config.json", f'{{"{key}": {value}}}'.encode()))
    for name, content in {"empty": b"", "short": b"a\nb\n", "binary": b"\xff\xfe", "long": b"a" * 10**6}.items():
        yield Bad("ct2", f"vocabulary-{name}", _listed(content))


def _aliases(data: bytes) -> int:
    """Return where the number of aliases is: before the length and the name of the first."""
    return data.index(b"decoder/projection/weight\0") - 2 - 4


def _many_aliases(data: bytearray) -> None:
    """Give the largest variable a thousand names, as of layers that do not exist."""
    at, end = _aliases(bytes(data)), len(data)
    (count,) = struct.unpack_from("<I", data, at)
    old = bytes(data[at + 4 : end])
    names = [f"encoder/layer_{number}/ffn/linear_0/weight".encode() + b"\0" for number in range(2, 1000)]
    more = b"".join(
        struct.pack("<H", len(name)) + name + struct.pack("<H", len(EMBEDDING)) + EMBEDDING for name in names
    )
    data[at:] = struct.pack("<I", count + len(names)) + old + more


def _listed(content: bytes) -> Spoil:
    def spoil(path: Path) -> None:
        (path / "tokenizer.json").unlink()
        (path / "vocabulary.txt").write_bytes(content)

    return spoil


# whisper.cpp: u32 magic · eleven i32 · filters · i32 count of tokens · tensors

GGML_EMBEDDING = b"decoder.token_embedding.weight"
GGML_DIMS = (
    "vocab audio-ctx audio-state audio-head audio-layer text-ctx text-state text-head text-layer mels ftype".split()
)


def ggml() -> Iterator[Bad]:
    tokens = lambda data: 56 + 4 * 201 * struct.unpack_from("<i", data, 40)[0]  # noqa: E731
    tensor = lambda data: data.index(GGML_EMBEDDING) - 20  # noqa: E731
    places: dict[str, Callable[[bytes], int]] = {
        **{name: (lambda _, place=place: 4 + 4 * place) for place, name in enumerate(GGML_DIMS)},  # type: ignore[misc]
        "bands": lambda _: 48, "bins": lambda _: 52, "tokens": tokens, "token-length": lambda data: tokens(data) + 4,
        "rank": tensor, "name-length": lambda data: tensor(data) + 4, "type": lambda data: tensor(data) + 8,
        "columns": lambda data: tensor(data) + 12, "rows": lambda data: tensor(data) + 16,
    }  # fmt: skip
    free = {"vocab", "ftype", "audio-ctx", "text-ctx"}  # the weights say it, or nothing depends on it
    heads = {("audio-head", 1), ("text-head", 1), ("text-layer", 1), ("type", 1), ("token-length", 1)}
    for name, find in places.items():
        for value in SIZES:
            works = None if name in free or (name, value) in heads else False
            yield Bad("ggml", f"{name}-{value}", number_at("", find, "<i", value), works)
    yield Bad("ggml", "longer-than-said", edited("", lambda data: data.extend(bytes(100))))
    yield Bad("ggml", "magic", edited("", lambda data: data.__setitem__(0, 0)))


# PyTorch


def pickled() -> Iterator[Bad]:
    changes: dict[str, Callable[[dict[str, torch.Tensor]], object]] = {
        "missing": lambda weights: weights.pop("model.encoder.conv1.weight"),
        "extra": lambda weights: weights.update(stranger=torch.zeros(3)),
        "none": lambda weights: weights.clear(),
        "numbered": lambda weights: weights.update({1: torch.zeros(1)}),  # type: ignore[dict-item]
        "number": lambda weights: weights.update(stranger=3),  # type: ignore[arg-type]
        "untied": lambda weights: weights.update({"proj_out.weight": weights["proj_out.weight"] + 1}),
        "expanded": lambda weights: weights.update({"stranger": torch.zeros(1).expand(10**5, 10**5)}),
        "nan": lambda weights: weights["model.encoder.conv1.weight"].fill_(float("nan")),
        "integers": lambda weights: weights.update({name: value.int() for name, value in weights.items()}),
    }
    for name, change in changes.items():
        yield Bad("bin", f"weights-{name}", _saved(change))
    yield Bad("bin", "list", _saved(lambda weights: [1], replace=True))
    for module, name, arguments in (("builtins", "bytearray", (10**10,)), ("torch", "FloatTensor", (10**10,))):
        yield Bad(
            "bin", f"calls-{module}.{name}", written("pytorch_model.bin", zipped(called(module, name, *arguments)))
        )


def _saved(change: Callable[[dict[str, torch.Tensor]], object], replace: bool = False) -> Spoil:
    def spoil(path: Path) -> None:
        weights = torch.load(path / "pytorch_model.bin", weights_only=True)
        result = change(weights)
        torch.save(result if replace else weights, path / "pytorch_model.bin")

    return spoil
