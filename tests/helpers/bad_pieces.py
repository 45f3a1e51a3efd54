"""Bad texts, tokenizers, shards and .pt files: each one change to a small good checkpoint, for bad_checkpoints.py."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from tests.helpers.bad_weights import MARKER, WEIGHTS, Bad, Spoil, called, changed, cut, written, zipped
from tests.helpers.toy_speech import letters_tokenizer

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
        yield Bad(kind, f"{WEIGHTS}-{shape}", lambda path, make=make: _replaced(path / WEIGHTS, make))


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


def parts() -> Iterator[Bad]:
    """Yield vocab.json, merges.txt and added_tokens.json in place of tokenizer.json."""
    for name, first in {"text": "a", "fraction": 1.5, "nothing": None, "huge": 10**30, "negative": -1}.items():
        yield Bad("whisper", f"parts-first-{name}", _in_parts(lambda vocab, first=first: vocab.update({FIRST: first})))
        added = json.dumps({FIRST: first}).encode()
        yield Bad("whisper", f"parts-added-{name}", _in_parts(lambda vocab: None, added))
    yield Bad("whisper", "parts-merges", _in_parts(lambda vocab: None, b"{}", "a b c"))
    yield Bad("whisper", "parts-merges-of-strangers", _in_parts(lambda vocab: None, b"{}", "zz yy"))


FIRST = "<|endoftext|>"


def _in_parts(change: Callable[[dict[str, Any]], Any], added: bytes = b"{}", merges: str = "") -> Spoil:
    def spoil(folder: Path) -> None:
        model = json.loads((folder / "tokenizer.json").read_text())["model"]
        (folder / "tokenizer.json").unlink()
        change(model["vocab"])
        (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
        (folder / "merges.txt").write_text("\n".join([*model["merges"], merges]))
        (folder / "added_tokens.json").write_bytes(added)

    return spoil


SHARDS = (
    "../../../../../etc/passwd", "/etc/passwd", "..", ".", "", "\0", "a\nb", "x" * 5000, "other/model.safetensors",
    "https://example.com/a.safetensors", "../model.safetensors", 3, None, ["a"], {"a": 1}, "tokenizer.json",
)  # fmt: skip


def shards() -> Iterator[Bad]:
    for name in SHARDS:
        spoil: Spoil = lambda path, name=name: _index(path, {"weight_map": {"a": name}})  # type: ignore[misc] # noqa: E731
        yield Bad("whisper", f"shard-{str(name)[:40]!r}", spoil)
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
        with zipfile.ZipFile(path, "w", compression, compresslevel=1) as new:
            for name, content in records.items():
                new.writestr(name, content)

    return spoil


def _with(**changes: Any) -> Spoil:
    return saved(lambda file: {**file, **changes})


def _embedding(value: Any) -> Spoil:
    return saved(lambda file: file["model_state_dict"].update({"decoder.token_embedding.weight": value}))


FILES: dict[str, Spoil] = {
    "list": saved(lambda file: [1]), "number": saved(lambda file: 0), "dims-list": _with(dims=[1]),
    "dims-text": _with(dims="a"), "dims-none": _with(dims=None), "state-list": _with(model_state_dict=[1]),
    "state-none": _with(model_state_dict=None), "state-empty": _with(model_state_dict={}),
    "state-numbered": _with(model_state_dict={1: torch.zeros(3)}), "no-dims": saved(lambda file: [*file.values()]),
    "embedding-scalar": _embedding(torch.tensor(1.0)), "embedding-number": _embedding(3),
    "extra": saved(lambda file: file["model_state_dict"].update(stranger=torch.zeros(3))), "wide": saved(_wide),
}  # fmt: skip
VALUES: dict[str, Callable[[torch.Tensor], Any]] = {
    "number": lambda value: 3, "text": lambda value: "a", "list": torch.Tensor.tolist, "in-list": lambda value: [value],
    "meta": lambda value: value.to("meta"), "integers": torch.Tensor.int, "nan": lambda value: value * float("nan"),
    "sparse": torch.Tensor.to_sparse, "complex": lambda value: value.to(torch.complex64), "scalar": torch.Tensor.sum,
    "longer": lambda value: torch.cat((value, value)),
}  # fmt: skip
RECORDS: dict[str, tuple[Callable[[str, bytes], bytes], int]] = {
    "short": (lambda name, content: content[:2] if "/data/" in name else content, zipfile.ZIP_STORED),
    "empty": (lambda name, content: b"" if "/data/" in name else content, zipfile.ZIP_STORED),
    "bomb": (lambda name, content: content + bytes(2**27) * ("/data/0" in name), zipfile.ZIP_DEFLATED),
    "pickle-bomb": (lambda name, content: content + bytes(2**27) * name.endswith("pkl"), zipfile.ZIP_DEFLATED),
    "byte-order": (lambda name, content: b"middle" if name.endswith("byteorder") else content, zipfile.ZIP_STORED),
}
PICKLES = {
    "deep": b"\x80\x02" + b"(" * 10**5 + b"t" * 10**5 + b".",
    "text-longer-than-said": b"\x80\x02X\xff\xff\xff\x7fabc.",
    "memo-far": b"\x80\x02}r\xff\xff\xff\x7f.",
}
CALLS: list[tuple[str, str, tuple[Any, ...]]] = [
    ("__builtin__", "bytearray", (10**10,)), ("builtins", "bytearray", (10**10,)), ("torch", "Tensor", (10**10,)),
    ("torch", "FloatTensor", (10**10,)), ("torch", "Size", ((10**10,),)), ("builtins", "set", (3,)),
    ("torch._utils", "_rebuild_tensor_v2", (1, 2)), ("torch._utils", "_rebuild_sparse_tensor", (1, 2)),
    ("torch._utils", "_rebuild_meta_tensor_no_storage", (1, (10**12,), (1,), False)),
    ("torch.nn.parameter", "Parameter", (1,)), ("os", "system", (f"touch {MARKER}",)),
]  # fmt: skip


def torch_files() -> Iterator[Bad]:
    for name, spoil in FILES.items():
        yield Bad("pt", name, spoil)
    for name, change in VALUES.items():
        yield Bad("pt", f"weight-{name}", _weights(change))
        yield Bad("pt", f"weights-{name}", _all_weights(change))
    for kind in ("pt", "state"):
        for name, content in {"empty": b"", "zeros": bytes(10_000), "empty-zip": b"PK\5\6" + bytes(18)}.items():
            yield Bad(kind, f"file-{name}", written("", content))
        for keep in (1, 30, 100, 0.1, 0.5, 0.9, 0.99, -1, -22, -100):
            yield Bad(kind, f"truncated-{keep}", cut("", keep))
        for name, (packed, compression) in RECORDS.items():
            yield Bad(kind, f"records-{name}", repacked(packed, compression))
        for name, pickled in PICKLES.items():
            yield Bad(kind, name, written("", zipped(pickled)))
        for module, name, arguments in CALLS:
            yield Bad(kind, f"calls-{module}.{name}", written("", zipped(called(module, name, *arguments))))
    for text in ("", "a b c\n", f"YQ== {10**30}\n", "YQ== -1\n", "\xff" * 1000):
        yield Bad("pt", f"ranks-{text[:9]!r}", _ranks(text))
    yield Bad("pt", "folder", lambda path: _replaced(path, os.mkdir))


def _ranks(text: str) -> Spoil:
    return lambda path: [place.write_text(text) for place in path.parent.glob("*.tiktoken")]
