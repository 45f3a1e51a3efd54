"""Detection of checkpoint formats by content, with remedies for common wrong files."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Literal

from focusasr.runtime.errors import InputError
from focusasr.runtime.files import read_json

Format = Literal["focusasr", "huggingface", "ctranslate2", "openai", "ggml"]

HEAD_BYTES = 64
GGML, ZIP = b"lmgg", b"PK\x03\x04"
PIECES = ("config.json", "model.safetensors", "tokenizer.json")  # of a native checkpoint
TRANSFORMERS_WEIGHTS = (
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
)  # fmt: skip
CTRANSLATE2_WEIGHTS = "model.bin"
TEXT_PIECES = ("config.json", "tokenizer.json", "generation_config.json", "preprocessor_config.json", "vocab.json")
LARGEST_INDEX = 2**24  # bytes of the pickle in a .pt file that are searched for names

# First bytes of a wrong file, its kind, and the remedy.
WRONG = (
    (rb"version https?://git-lfs", "a Git LFS pointer, not the file itself. Run 'git lfs pull' in its clone."),
    (rb"\s*<(!doctype|html|head|\?xml)", "a web page, not a model. Download the file itself, not the page about it."),
    (rb"GGUF", "a GGUF file, llama.cpp's format. Use whisper.cpp's ggml file, or the original model."),
    (rb"\x89HDF", "weights of TensorFlow. Save the model as safetensors, or use the original."),
    (rb"\x1f\x8b|\xfd7zXZ|7z\xbc\xaf", "a packed archive. Unpack it, and give the folder."),
)


def locate(path: Path) -> Path:
    """Return the checkpoint of a path: for the hub's cache a snapshot, for a file of a folder the folder."""
    if path.is_dir():
        return snapshot(path) or path
    if path.parent.name == "blobs" and (whole := snapshot(path.parent.parent)):  # a file in the hub's cache
        return whole
    head = _head(path)
    part = b"{" in (head[:1], head[8:9]) or _is_ctranslate2(head) or (head.startswith(ZIP) and not _is_openai(path))
    return path.parent if part and (path.parent / "config.json").is_file() else path


def snapshot(root: Path) -> Path | None:
    """Return the current snapshot below models--ORG--NAME in the hub's cache; None if there is none."""
    places = [place for place in root.glob("snapshots/*") if place.is_dir()]
    main = root / "refs" / "main"
    if main.is_file():
        current = main.read_bytes()[:HEAD_BYTES].decode("ascii", "replace").strip()
        places = [place for place in places if place.name == current] or places
    return max(places, key=lambda place: place.stat().st_mtime, default=None)


def weights_in(folder: Path) -> list[str]:
    """Return the names of a folder's weight files, of transformers or CTranslate2."""
    return [name for name in (*TRANSFORMERS_WEIGHTS, CTRANSLATE2_WEIGHTS) if (folder / name).is_file()]


def format_of(path: Path) -> Format:
    """Return the format of a file or folder; InputError if it is no checkpoint."""
    if path.is_file():
        return _format_of_file(path)
    for name in (*TEXT_PIECES, *TRANSFORMERS_WEIGHTS, CTRANSLATE2_WEIGHTS):
        if (path / name).is_file():
            refuse_wrong(path / name)
    weights = weights_in(path)
    config = read_json(path / "config.json") if (path / "config.json").is_file() else {}
    if "n_audio_state" in config:
        raise InputError(f"{path}: a folder of MLX, Apple's framework. Use the model that it was made from.")
    only = weights == [CTRANSLATE2_WEIGHTS] or "model_type" not in config
    if CTRANSLATE2_WEIGHTS in weights and only and "format" not in config:
        return _ctranslate2(path / CTRANSLATE2_WEIGHTS)
    if "model_type" not in config:
        if not any((path / piece).is_file() for piece in PIECES):
            raise _no_checkpoint(path)
        return "focusasr"
    if not weights:
        _refuse_exports(path)
    return "huggingface"


def _format_of_file(path: Path) -> Format:
    refuse_wrong(path)
    head = _head(path)
    if head.startswith(GGML):
        return "ggml"
    if head.startswith(ZIP) or path.suffix == ".pt":
        return "openai"
    if path.suffix == ".onnx":
        raise InputError(f"{path}: an ONNX export. Use the model that it was made from, such as openai/whisper-base.")
    if _is_ctranslate2(head) or head[8:9] == b"{":
        raise InputError(f"{path}: weights without config.json next to them. Copy the whole folder.")
    raise InputError(
        f"{path}: no checkpoint, it is no folder, and no .pt or ggml file; give a folder that 'focusasr train' wrote, "
        "or a Whisper's"
    )


def refuse_wrong(path: Path) -> None:
    """Raise InputError, with a remedy, for a file that is often mistaken for a model or a part of one."""
    head = _head(path)
    for pattern, what in WRONG:
        if re.match(pattern, head, re.IGNORECASE):
            raise InputError(f"{path}: {what}")


def _ctranslate2(path: Path) -> Format:
    head = _head(path)
    if head.startswith(ZIP):
        raise InputError(
            f"{path}: a file of PyTorch, not of CTranslate2. If it is OpenAI's, give the file itself; else rename it "
            "to pytorch_model.bin, and put the config.json of transformers next to it."
        )
    if head.startswith(GGML):
        raise InputError(f"{path}: a ggml file of whisper.cpp, not CTranslate2's. Give the file itself: --model {path}")
    return "ctranslate2"


def _refuse_exports(folder: Path) -> None:
    """Raise InputError for a folder with weights of other frameworks only."""
    if any(folder.glob("*.onnx")) or any(folder.glob("onnx/*.onnx")):
        raise InputError(f"{folder}: an ONNX export. Use the model that it was made from, such as openai/whisper-base.")
    for name, maker in (("tf_model.h5", "TensorFlow"), ("flax_model.msgpack", "Flax")):
        if (folder / name).is_file():
            raise InputError(f"{folder}: has weights of {maker} only. Save the model as safetensors with transformers.")


def _no_checkpoint(folder: Path) -> InputError:
    if folder.is_dir():
        _refuse_exports(folder)
        files = sorted(file for file in folder.glob("*") if file.is_file() and _head(file).startswith((GGML, ZIP)))
        models = [file for file in files if _head(file).startswith(GGML) or _is_openai(file)]
        if models:
            return InputError(f"{folder}: a folder of model files. Give one of them, such as --model {models[0]}")
    if folder.is_dir() and (folder / "blobs").is_dir():
        return InputError(f"{folder}: a model in the hub's cache without its files. Download it again.")
    seen = "has no config.json" if folder.is_dir() else "is not there"
    return InputError(f"{folder}: no checkpoint, it {seen}; give a folder that 'focusasr train' wrote, or a Whisper's")


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(HEAD_BYTES)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error}). Check the file.") from None


def _is_ctranslate2(head: bytes) -> bool:
    """Return whether a file starts with a version below 256 and the name of a specification."""
    return re.match(rb"[\x01-\xff]\0\0\0..\w+Spec\0", head, re.DOTALL) is not None


def _is_openai(path: Path) -> bool:
    """Return whether a zip file of PyTorch has OpenAI's names in its index of tensors."""
    try:
        with zipfile.ZipFile(path) as archive:
            for record in archive.infolist():
                if record.filename.endswith("data.pkl") and record.file_size < LARGEST_INDEX:
                    with archive.open(record) as index:
                        return b"model_state_dict" in index.read(LARGEST_INDEX)
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError, RuntimeError):
        pass
    return False
