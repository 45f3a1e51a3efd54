"""Reading of checkpoints of any format, ours or of other programs, into numpy."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from focusasr.model.checkpoint_folder import WEIGHTS, read_description
from focusasr.model.ctranslate2 import read_ctranslate2
from focusasr.model.formats import Format, format_of
from focusasr.model.ggml import read_ggml
from focusasr.model.huggingface import read_hugging_face
from focusasr.model.openai import read_openai
from focusasr.model.weights import ImportedCheckpoint, from_int8, safetensors_in
from focusasr.runtime.files import read_json, read_text


def read_checkpoint(path: Path, files: contextlib.ExitStack) -> ImportedCheckpoint:
    """Read a checkpoint of any format without its weights, which are read one by one as long as `files` are open.

    InputError names the file that is missing, corrupt or of another size.
    """
    return READERS[format_of(path)](path, files)


def read_native(folder: Path, files: contextlib.ExitStack) -> ImportedCheckpoint:
    """Read a folder that save_checkpoint wrote."""
    settings, tokenizer = read_description(folder)
    path = folder / WEIGHTS
    tensors = from_int8(safetensors_in(path))
    metrics = read_json(folder / "metrics.json") if (folder / "metrics.json").is_file() else {}
    card = read_text(folder / "README.md") if (folder / "README.md").is_file() else ""
    return ImportedCheckpoint(settings, tokenizer, tensors, card, path, metrics)


Reader = Callable[[Path, contextlib.ExitStack], ImportedCheckpoint]
READERS: dict[Format, Reader] = {
    "focusasr": read_native, "huggingface": read_hugging_face, "ctranslate2": read_ctranslate2,
    "openai": read_openai, "ggml": read_ggml,
}  # fmt: skip
