"""Bad texts, tokenizers, shards and .pt files: each one change to a small good checkpoint, for bad_checkpoints.py."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from bad_weights import MARKER, WEIGHTS, Bad, Spoil, called, changed, cut, written, zipped
from tones import letters_tokenizer

TEXTS: dict[str, bytes | Callable[[], bytes]] = {
    "empty": b"", "nul": b"\0" * 1000, "list": b"[]", "number": b"1", "null": b"null", "cut": b'{"a": ',
    "not-utf-8": b"\xff\xfe{}", "empty-object": b"{}", "deep-lists": lambda: b"[" * 200_000,
    "deep-objects": lambda: b'{"a":' * 200_000, "deep-whole": lambda: b"[" * 900 + b"]" * 900,
    "number-of-a-million-digits": lambda: b'{"format": ' + b"9" * 10**6 + b"}",
    "infinite": b'{"format": Infinity, "model": NaN}',
}  # fmt: skip


def texts(kind: str) -> Iterator[Bad]:
    for piece in ("config.json", "tokenizer.json"):
        for name, content in TEXTS.items():
            yield Bad(kind, f"{piece}-{name}", written(piece, content))
        yield Bad(kind, f"{piece}-missing", lambda path, piece=piece: (path / piece).unlink())
        yield Bad(kind, f"{piece}-folder", lambda path, piece=piece: _replaced(path / piece, os.mkdir))
        yield Bad(kind, f"{piece}-dangling", lambda path, piece=piece: _replaced(path / piece, _dangling))
        yield Bad(kind, f"{piece}-circular", lambda path, piece=piece: _replaced(path / piece, _circular))
        yield Bad(kind, f"{piece}-pipe", lambda path, piece=piece: _replaced(path / piece, os.mkfifo))
        yield Bad(kind, f"{piece}-endless", lambda path, piece=piece: _replaced(path / piece, _endless))
        yield Bad(kind, f"{piece}-of-a-gigabyte", lambda path, piece=piece: os.truncate(path / piece, 2**30))
    for shape in ("missing", "folder", "dangling", "circular", "pipe", "endless"):
        make = {"missing": lambda _: None, "folder": os.mkdir, "dangling": _dangling, "circular": _circular,
                "pipe": os.mkfifo, "endless": _endless}[shape]  # fmt: skip
        yield Bad(kind, f"weights-{shape}", lambda path, make=make: _replaced(path / WEIGHTS, make))


def _replaced(path: Path, make: Callable[[Path], Any]) -> None:
    path.unlink()
    make(path)


def _dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def _circular(path: Path) -> None:
    path.symlink_to(path.name)


def _endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def tokenizers() -> Iterator[Bad]:
    letters = letters_tokenizer("abc").to_json()
    for kind in ("native", "converted", "whisper"):
        yield Bad(kind, "tokenizer-of-another-model", written("tokenizer.json", letters.encode()))
        for value in (
            None,
            [],
            {},
            "BPE",
            {"type": "BPE"},
            {"type": "WordLevel", "vocab": {}},
            {"vocab": [], "merges": []},
        ):
            yield Bad(kind, f"tokenizer-model-{value}", changed("tokenizer.json", "model", value=value))
        for value in (None, {}, [1], [{"id": -1, "content": "<|endoftext|>"}], [{"id": 10**12, "content": "a"}]):
            yield Bad(kind, f"tokenizer-added-{value}", changed("tokenizer.json", "added_tokens", value=value))
        for change in (_ids_far, _ids_same, _ids_negative, _ids_text, _one_more, _one_less):
            yield Bad(kind, f"tokenizer{change.__name__}", change)
    for kind in ("converted", "whisper"):
        for value in (None, 3, "a b", ["a"], [["a"]], [["a", "b", "c"]], [[1, 2]], [["zz", "zz"]], {"a": 1}):
            yield Bad(kind, f"tokenizer-merges-{value}", changed("tokenizer.json", "model", "merges", value=value))


def _vocabulary(change: Callable[[dict[str, Any]], Any]) -> Spoil:
    def spoil(folder: Path) -> None:
        document = json.loads((folder / "tokenizer.json").read_text())
        change(document["model"]["vocab"])
        (folder / "tokenizer.json").write_text(json.dumps(document))

    return spoil


def _ids_far(folder: Path) -> None:
    _vocabulary(lambda vocab: vocab.update({name: id * 10**6 for name, id in vocab.items()}))(folder)


def _ids_same(folder: Path) -> None:
    _vocabulary(lambda vocab: vocab.update(dict.fromkeys(vocab, 0)))(folder)


def _ids_negative(folder: Path) -> None:
    _vocabulary(lambda vocab: vocab.update({name: -id - 1 for name, id in vocab.items()}))(folder)


def _ids_text(folder: Path) -> None:
    _vocabulary(lambda vocab: vocab.update({name: str(id) for name, id in vocab.items()}))(folder)


def _one_more(folder: Path) -> None:
    _vocabulary(lambda vocab: vocab.update(stranger=len(vocab)))(folder)


def _one_less(folder: Path) -> None:
    _vocabulary(lambda vocab: vocab.pop("a"))(folder)


def shards() -> Iterator[Bad]:
    names = ["../../../../../etc/passwd", "/etc/passwd", "..", ".", "", "\0", "a\nb", "x" * 5000, "other/model.safetensors",
             "https://example.com/a.safetensors", 3, None, ["a"], {"a": 1}, "tokenizer.json", "config.json"]  # fmt: skip
    for name in names:
        yield Bad(
            "whisper", f"shard-{str(name)[:40]!r}", lambda path, name=name: _index(path, {"weight_map": {"a": name}})
        )
    for document in ({}, {"weight_map": None}, {"weight_map": []}, {"weight_map": "a"}, {"weight_map": {}}):
        yield Bad("whisper", f"index-{document}", lambda path, document=document: _index(path, document))


def _index(folder: Path, document: Any) -> None:
    (folder / WEIGHTS).rename(folder.parent / WEIGHTS)  # where an escape would find it
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(document))


def saved(change: Callable[[Any], Any]) -> Spoil:
    """Return what changes a .pt file's content; what `change` returns, if anything, takes its place."""

    def spoil(path: Path) -> None:
        file = torch.load(path, weights_only=True)
        result = change(file)
        torch.save(file if result is None else result, path)

    return spoil


def _weights(change: Callable[[torch.Tensor], Any]) -> Spoil:
    def spoil(file: dict[str, Any]) -> None:
        state = file["model_state_dict"]
        state[max(state)] = change(state[max(state)])

    return saved(spoil)


def _all_weights(change: Callable[[torch.Tensor], Any]) -> Spoil:
    return saved(lambda file: {**file, "model_state_dict": {k: change(v) for k, v in file["model_state_dict"].items()}})


def _wide(file: dict[str, Any]) -> None:
    """Claim a model of a terabyte: the right shapes, each made of one number."""
    wide = {16: 10**5, 64: 4 * 10**5}
    file["dims"] |= {"n_audio_state": 10**5, "n_text_state": 10**5}
    for name, value in file["model_state_dict"].items():
        shape = [size if name.endswith("positional_embedding") and place == 0 else wide.get(size, size)
                 for place, size in enumerate(value.shape)]  # fmt: skip
        file["model_state_dict"][name] = torch.zeros(1).expand(shape)


def repacked(change: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED) -> Spoil:
    """Return what packs a .pt file anew, each record changed."""

    def spoil(path: Path) -> None:
        with zipfile.ZipFile(path) as old:
            records = {name: change(name, old.read(name)) for name in old.namelist()}
        with zipfile.ZipFile(path, "w", compression) as new:
            for name, content in records.items():
                new.writestr(name, content)

    return spoil


def openai_files() -> Iterator[Bad]:
    for name, change in {
        "list": lambda file: [1], "none": lambda file: 0, "no-dims": lambda file: file.pop("dims"),
        "dims-list": lambda file: {**file, "dims": [1]}, "dims-text": lambda file: {**file, "dims": "a"},
        "state-list": lambda file: {**file, "model_state_dict": [1]}, "state-none": lambda file: {**file, "model_state_dict": None},
        "state-empty": lambda file: file["model_state_dict"].clear(),
        "names-numbers": lambda file: {**file, "model_state_dict": dict(enumerate(file["model_state_dict"].values()))},
        "embedding-scalar": lambda file: file["model_state_dict"].update({"decoder.token_embedding.weight": torch.tensor(1.0)}),
        "embedding-number": lambda file: file["model_state_dict"].update({"decoder.token_embedding.weight": 3}),
        "extra": lambda file: file["model_state_dict"].update(stranger=torch.zeros(3)),
        "wide": _wide,
    }.items():  # fmt: skip
        yield Bad("pt", name, saved(change))
    for name, value in {
        "number": lambda value: 3, "text": lambda value: "a", "list": lambda value: value.tolist(),
        "meta": lambda value: value.to("meta"), "integers": lambda value: value.int(), "nan": lambda value: value * float("nan"),
        "sparse": lambda value: value.to_sparse(), "complex": lambda value: value.to(torch.complex64),
        "longer": lambda value: torch.cat((value, value)), "scalar": lambda value: value.sum(),
        "parameter-list": lambda value: [value],
    }.items():  # fmt: skip
        yield Bad("pt", f"weight-{name}", _weights(value))
        if name in ("meta", "integers", "nan", "sparse"):
            yield Bad("pt", f"weights-{name}", _all_weights(value))
    for name, bytes_ in {
        "empty": b"",
        "short": b"PK",
        "zeros": bytes(10_000),
        "empty-zip": b"PK\5\6" + bytes(18),
    }.items():
        for kind in ("pt", "state"):
            yield Bad(kind, f"file-{name}", written("", bytes_))
    for kind in ("pt", "state"):
        for keep in (1, 30, 100, 0.1, 0.5, 0.9, 0.99, -1, -22, -100):
            yield Bad(kind, f"truncated-{keep}", cut("", keep))
        yield Bad(kind, "records-short", repacked(lambda name, content: content[:2] if "/data/" in name else content))
        yield Bad(kind, "records-empty", repacked(lambda name, content: b"" if "/data/" in name else content))
        yield Bad(
            kind,
            "records-bomb",
            repacked(lambda name, content: content + bytes(2**28) * ("/data/0" in name), zipfile.ZIP_DEFLATED),
        )
        yield Bad(
            kind,
            "pickle-bomb",
            repacked(lambda name, content: content + bytes(2**28) * name.endswith("pkl"), zipfile.ZIP_DEFLATED),
        )
        yield Bad(
            kind, "byte-order", repacked(lambda name, content: b"middle" if name.endswith("byteorder") else content)
        )
        yield Bad(kind, "deep", written("", zipped(b"\x80\x02" + b"(" * 10**5 + b"t" * 10**5 + b".")))
        yield Bad(kind, "text-longer-than-said", written("", zipped(b"\x80\x02X\xff\xff\xff\x7fabc.")))
        yield Bad(kind, "memo-far", written("", zipped(b"\x80\x02}r\xff\xff\xff\x7f.")))
        for module, name, arguments in (
            ("__builtin__", "bytearray", (10**10,)), ("builtins", "bytearray", (10**10,)), ("torch", "Tensor", (10**10,)),
            ("torch", "FloatTensor", (10**10,)), ("torch", "Size", ((10**10,),)), ("builtins", "set", (3,)),
            ("torch._utils", "_rebuild_tensor_v2", (1, 2)), ("torch._utils", "_rebuild_sparse_tensor", (1, 2)),
            ("torch._utils", "_rebuild_meta_tensor_no_storage", (1, (10**12,), (1,), False)),
            ("torch.nn.parameter", "Parameter", (1,)), ("os", "system", (f"touch {MARKER}",)),
        ):  # fmt: skip
            yield Bad(kind, f"calls-{module}.{name}", written("", zipped(called(module, name, *arguments))))
    yield Bad(
        "pt",
        "ranks-garbage",
        lambda path: [file.write_text("a b c\n") for file in path.parent.glob("*.tiktoken")],
    )
    yield Bad(
        "pt", "ranks-empty", lambda path: [file.write_text("") for file in path.parent.glob("*.tiktoken")] and None
    )
    yield Bad(
        "pt",
        "ranks-huge-rank",
        lambda path: [file.write_text(f"YQ== {10**30}\n") for file in path.parent.glob("*.tiktoken")],
    )
    yield Bad("pt", "folder", lambda path: _replaced(path, os.mkdir))
