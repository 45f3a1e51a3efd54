"""Bad weights and pickles that run code: each one change to a small good checkpoint, for bad_checkpoints.py."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file

MARKER = "sprung"  # the file that a trap makes where it is sprung
WEIGHTS = "model.safetensors"

Spoil = Callable[[Path], object]


class Bad(NamedTuple):
    """One change to a good checkpoint, which is then refused, or `works` as before; None: either."""

    kind: str
    name: str
    spoil: Spoil
    works: bool | None = False


def changed(piece: str, *keys: str, value: Any) -> Spoil:
    """Return what sets a value deep inside a JSON piece; "missing" removes it."""

    def spoil(folder: Path) -> None:
        document = json.loads((folder / piece).read_text())
        place = document
        for key in keys[:-1]:
            place = place[key]
        if value == "missing":
            place.pop(keys[-1], None)
        else:
            place[keys[-1]] = value
        (folder / piece).write_text(json.dumps(document))

    return spoil


def written(piece: str, content: bytes | Callable[[], bytes]) -> Spoil:
    """Return what gives a piece of a folder, or a file itself, another content."""
    return lambda path: _piece(path, piece).write_bytes(content if isinstance(content, bytes) else content()) and None


def _piece(path: Path, piece: str) -> Path:
    return path / piece if path.is_dir() else path


def cut(piece: str, keep: float) -> Spoil:
    """Return what truncates a piece: to a share, or to so many bytes; negative: so many fewer."""

    def spoil(path: Path) -> None:
        whole = _piece(path, piece).read_bytes()
        kept = int(len(whole) * keep) if 0 < keep < 1 else int(keep)
        _piece(path, piece).write_bytes(whole[:kept])

    return spoil


# Code in pickles


class Trap:
    """Runs code where it is unpickled."""

    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call, self.arguments


def traps() -> Iterator[tuple[str, bytes]]:
    """Yield pickles that run code, with names."""
    import runpy
    import subprocess

    calls = {
        "touch": Trap(Path.touch, Path(MARKER)),
        "open": Trap(open, MARKER, "w"),
        "system": Trap(os.system, f"touch {MARKER}"),
        "eval": Trap(eval, f"open({MARKER!r}, 'w')"),
        "exec": Trap(exec, f"open({MARKER!r}, 'w')"),
        "popen": Trap(subprocess.check_call, ["touch", MARKER]),
        "runpy": Trap(runpy.run_path, MARKER),
        "torch.save": Trap(torch.save, 1, MARKER),
    }
    for name, trap in calls.items():
        for protocol in (0, 2, 4):
            yield f"{name}-{protocol}", pickle.dumps({"dims": {}, "model_state_dict": trap}, protocol)


def zipped(pickled: bytes, records: dict[str, bytes] | None = None, compression: int = zipfile.ZIP_STORED) -> bytes:
    """Return a .pt file with such a pickle, as torch.save lays it out."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        for name, content in {"version": b"3\n", "byteorder": b"little", **(records or {})}.items():
            archive.writestr(f"archive/{name}", content)
    return buffer.getvalue()


def tarred(pickled: bytes) -> bytes:
    """Return a file as PyTorch saved them until 2016, with such a pickle."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("storages", "tensors", "pickle"):
            info = tarfile.TarInfo(name)
            info.size = len(pickled)
            archive.addfile(info, io.BytesIO(pickled))
    return buffer.getvalue()


def legacy(pickled: bytes) -> bytes:
    """Return a file as PyTorch saved them until 2020, with such a pickle."""
    head = [0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}]
    return b"".join(pickle.dumps(part, 2) for part in head) + pickled + pickle.dumps([], 2)


def called(module: str, name: str, *arguments: Any) -> bytes:
    """Return a pickle that calls something PyTorch's reader knows, and puts what it gives in a .pt file's place."""
    inside = pickle.dumps(arguments, 2)[2:-1]  # without its PROTO and STOP
    call = b"c" + f"{module}\n{name}\n".encode() + inside + b"R"
    dims = pickle.dumps({}, 2)[2:-1]
    key = [pickle.dumps(text, 2)[2:-1] for text in ("dims", "model_state_dict", "a")]
    return b"\x80\x02}(" + key[0] + dims + key[1] + b"}" + key[2] + call + b"s" + b"u."


def pickled_traps() -> Iterator[Bad]:
    for name, trap in traps():
        yield Bad("pt", f"trap-{name}-zip", written("", zipped(trap)))
        yield Bad("state", f"trap-{name}-zip", written("", zipped(trap)))
    for name, trap in [pair for pair in traps() if pair[0] in ("touch-2", "system-4", "open-0")]:
        for form, content in {"bare": trap, "legacy": legacy(trap), "tar": tarred(trap)}.items():
            yield Bad("pt", f"trap-{name}-{form}", written("", content))
            yield Bad("state", f"trap-{name}-{form}", written("", content))
            for piece in (WEIGHTS, "config.json", "tokenizer.json"):
                yield Bad("native", f"trap-{name}-{form}-as-{piece}", written(piece, content))
                yield Bad("whisper", f"trap-{name}-{form}-as-{piece}", written(piece, content))
        yield Bad("whisper", f"trap-{name}-bin-only", lambda path, trap=trap: _only_bin(path, zipped(trap)))
        yield Bad("whisper", f"trap-{name}-bin-too", written("pytorch_model.bin", zipped(trap)), works=True)
        yield Bad("native", f"trap-{name}-bin-too", written("pytorch_model.bin", zipped(trap)), works=True)


def _only_bin(path: Path, content: bytes) -> None:
    (path / WEIGHTS).unlink()
    (path / "pytorch_model.bin").write_bytes(content)


# Safetensors

Header = dict[str, Any]


def relabeled(change: Callable[[Header], Any]) -> Spoil:
    """Return what changes the header of model.safetensors and leaves the weights."""

    def spoil(folder: Path) -> None:
        header, data = _read_parts(folder / WEIGHTS)
        result = change(header)
        text = result if isinstance(result, bytes) else json.dumps(header).encode()
        (folder / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + data)

    return spoil


def _read_parts(path: Path) -> tuple[Header, bytes]:
    whole = path.read_bytes()
    end = 8 + int.from_bytes(whole[:8], "little")
    return json.loads(whole[8:end]), whole[end:]


def _first(header: Header) -> Header:
    return next(
        value for name, value in reversed(header.items()) if name != "__metadata__" and len(value["shape"]) == 2
    )


def reweighted(change: Callable[[dict[str, torch.Tensor]], Any]) -> Spoil:
    """Return what changes the weights themselves."""

    def spoil(folder: Path) -> None:
        weights = load_file(folder / WEIGHTS)
        change(weights)
        save_file(weights, folder / WEIGHTS)

    return spoil


def _all(weights: dict[str, torch.Tensor], change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    weights.update({name: change(value).contiguous() for name, value in weights.items()})


def _one(weights: dict[str, torch.Tensor], change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    name = max(weights)
    weights[name] = change(weights[name]).contiguous()


def _twice(header: Header) -> bytes:
    name, value = list(header.items())[-1]
    value = {**value, "shape": [1], "data_offsets": [0, 4]}
    return (json.dumps(header)[:-1] + f", {json.dumps(name)}: {json.dumps(value)}" + "}").encode()


HEADERS: dict[str, Callable[[Header], Any]] = {
    "not-json": lambda header: b"{" * 100,
    "a-list": lambda header: b"[1, 2]",
    "deep": lambda header: b'{"a":' * 50_000,
    "not-utf-8": lambda header: b'{"\xff\xfe": 1}',
    "empty": lambda header: b"{}",
    "no-bytes": lambda header: b"",
    "name-twice": _twice,
    "dtype-unknown": lambda header: _first(header).update(dtype="F31"),
    "dtype-twice-as-wide": lambda header: _first(header).update(dtype="F64"),
    "dtype-of-integers": lambda header: _first(header).update(dtype="I32"),
    "shape-negative": lambda header: _first(header).update(shape=[-1, 16]),
    "shape-overflow": lambda header: _first(header).update(shape=[2**62, 16]),
    "shape-huge": lambda header: _first(header).update(shape=[10**12, 10**3]),
    "shape-fraction": lambda header: _first(header).update(shape=[1.5, 16]),
    "shape-text": lambda header: _first(header).update(shape="16"),
    "shape-turned": lambda header: _first(header).update(shape=[*_first(header)["shape"][::-1], 1]),
    "offsets-beyond": lambda header: _first(header).update(data_offsets=[10**12, 10**12 + 1024]),
    "offsets-overlapping": lambda header: _first(header).update(data_offsets=[0, 1024]),
    "offsets-turned": lambda header: _first(header).update(data_offsets=_first(header)["data_offsets"][::-1]),
    "offsets-negative": lambda header: _first(header).update(data_offsets=[-4, 4]),
    "offsets-missing": lambda header: _first(header).pop("data_offsets"),
    "metadata-of-numbers": lambda header: header.update(__metadata__={"format": 3}),
}
REWEIGHTED: dict[str, Callable[[dict[str, torch.Tensor]], Any]] = {
    "missing": lambda weights: weights.pop(max(weights)),
    "extra": lambda weights: weights.update(stranger=torch.zeros(3)),
    "none": lambda weights: weights.clear(),
    "nan": lambda weights: _one(weights, lambda value: value * float("nan")),
    "one-nan": lambda weights: weights[max(weights)].view(-1)[-1:].fill_(float("nan")),
    "infinite": lambda weights: _one(weights, lambda value: value + float("inf")),
    "nan-in-half": lambda weights: _all(weights, lambda value: (value * float("nan")).half()),
    "integers": lambda weights: _all(weights, lambda value: value.to(torch.int32)),
    "bytes": lambda weights: _all(weights, lambda value: value.to(torch.uint8)),
    "truths": lambda weights: _one(weights, lambda value: value > 0),
    "complex": lambda weights: _one(weights, lambda value: value.to(torch.complex64)),
    "longer": lambda weights: _one(weights, lambda value: torch.cat((value, value))),
    "scalar": lambda weights: _one(weights, lambda value: value.sum()),
    "no-elements": lambda weights: _one(weights, lambda value: value[:0]),
}


def weights_of(kind: str) -> Iterator[Bad]:
    for name, change in HEADERS.items():
        yield Bad(kind, f"header-{name}", relabeled(change))
    for name, spoil in REWEIGHTED.items():
        yield Bad(kind, f"weights-{name}", reweighted(spoil))
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        narrowed = reweighted(lambda weights, dtype=dtype: _all(weights, lambda value: value.to(dtype)))
        yield Bad(kind, f"weights-as-{dtype}", narrowed, works=True)
    for keep in (0, 1, 7, 8, 9, 100, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, -1, -4, -1000):
        yield Bad(kind, f"truncated-{keep}", cut(WEIGHTS, keep))
    for length in (2**20, 10**8 + 1, 2**31, 2**32, 2**62, 2**63, 2**64 - 1):
        head = length.to_bytes(8, "little")
        yield Bad(kind, f"header-length-{length}", lambda path, head=head: _head(path / WEIGHTS, head))
    yield Bad(kind, "weights-longer-than-said", lambda path: _append(path / WEIGHTS))


def _head(path: Path, head: bytes) -> None:
    path.write_bytes(head + path.read_bytes()[8:])


def _append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + bytes(100))
