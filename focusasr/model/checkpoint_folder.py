"""Places of checkpoints, and shape and tokenizer of a model, without PyTorch."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from focusasr.config import BUNDLED_CHECKPOINTS, ModelConfig, TextConfig, WhisperConfig
from focusasr.model.formats import PIECES, locate
from focusasr.model.hub import HUB_NAME, WHISPER_NAMES, WHISPER_SIZES, download, find_whisper
from focusasr.model.whisper_tokens import check_generation
from focusasr.runtime.cache import fingerprint, json_digest
from focusasr.runtime.errors import InputError, nearest
from focusasr.runtime.files import read_json, read_text
from focusasr.runtime.settings import read_settings
from focusasr.text.tokenizer import Tokenizer
from focusasr.text.whisper_tokenizer import WhisperTokenizer

FORMAT = 1
WEIGHTS = "model.safetensors"
MODEL_VARIABLE = "FOCUSASR_MODEL"  # environment variable: the model to use instead of the default one
FOR_READERS = {"README.md", "metrics.json"}  # files of a checkpoint without effect on transcripts


def find_checkpoint(name: str | None, local_files_only: bool = False, model_dir: Path | None = None) -> Path:
    """Return the file or folder of a checkpoint; InputError if the name matches none.

    None is the model that the environment variable FOCUSASR_MODEL names, or "default". "alnum" is the checkpoint for
    letters and digits; the folder of a training run gives its best checkpoint. Other names are a folder or file of any
    format, the hub's cache of a model, or a name on the hub such as openai/whisper-tiny.en, which is downloaded once.
    OpenAI's own names, such as tiny.en, are looked up in the caches, first in `model_dir`.
    """
    if name is None:
        name = os.environ.get(MODEL_VARIABLE) or "default"
    if name == "default" or (name in BUNDLED_CHECKPOINTS and not os.path.exists(name)):
        return _bundled(BUNDLED_CHECKPOINTS[name])
    folder = Path(name)
    if os.path.isfile(folder / "best" / "config.json") and not os.path.exists(folder / "config.json"):
        return folder / "best"
    if os.path.isdir(folder) or os.path.isfile(folder):  # False for impossible file names
        return locate(folder)
    if name in WHISPER_NAMES:
        return find_whisper(name, local_files_only, model_dir)
    if HUB_NAME.fullmatch(name):
        try:
            return download(name, local_files_only, model_dir)
        except InputError as error:
            raise InputError(f"{error}{_near(name)}") from error
    kind, stem = ("file", folder.stem) if folder.suffix in (".pt", ".bin") else ("checkpoint folder", str(folder))
    raise InputError(
        f"{name[:200]}: no such {kind}{_near(name, stem)}; give one that 'focusasr train' wrote, a Whisper's "
        "folder or file, OpenAI's name such as tiny.en or turbo, the hub's such as openai/whisper-tiny.en, or default"
    )


def _bundled(name: str) -> Path:
    inside, clone = (Path(__file__).parents[up] / "checkpoints" / name for up in (1, 2))
    folder = inside if inside.is_dir() else clone
    if not folder.is_dir():
        raise InputError(f"{clone}: this bundled checkpoint is missing; reinstall focusasr or give --model FOLDER")
    return folder


def _near(name: str, stem: str | None = None) -> str:
    """Return a hint with the known name, or the checkpoint in the same folder, nearest to a name or its stem."""
    known = [*WHISPER_NAMES, *(f"openai/whisper-{size}" for size in WHISPER_SIZES.split()), *BUNDLED_CHECKPOINTS]
    with contextlib.suppress(OSError, ValueError):  # impossible folder names
        for kind in ("config.json", "best/config.json"):
            known += [str(folder) for folder in Path(name).parent.glob("*") if (folder / kind).is_file()]
    near = nearest(stem or name, (one for one in known if one != name))
    return f" (did you mean {near}?)" if near else ""


def read_description(folder: Path) -> tuple[ModelConfig, Tokenizer]:
    """Return the shape and the tokenizer of a folder that `save_checkpoint` wrote; InputError if it is not whole."""
    for piece in PIECES:
        if not (folder / piece).is_file():
            raise InputError(f"{folder}: not a whole checkpoint, {piece} is missing; copy the folder again")
    config = read_json(folder / "config.json")
    if config.get("format") != FORMAT:
        raise InputError(
            f"{folder / 'config.json'}: format is {config.get('format')!r}; this version reads {FORMAT}; "
            "install a newer focusasr"
        )
    settings = read_settings(ModelConfig, _section(config, "model", folder), str(folder / "config.json"))
    policy = read_settings(TextConfig, _section(config, "text", folder), str(folder / "config.json"))
    tokenizer = _read_tokenizer(folder, policy, settings, config)
    if tokenizer.size != settings.vocabulary:
        raise InputError(
            f"{folder / 'tokenizer.json'}: {tokenizer.size} tokens, but the model has {settings.vocabulary}; "
            "it belongs to another checkpoint"
        )
    return settings, tokenizer


def _read_tokenizer(folder: Path, policy: TextConfig, settings: ModelConfig, config: dict[str, Any]) -> Tokenizer:
    text = read_text(folder / "tokenizer.json")
    try:
        if "whisper" not in config:
            return Tokenizer.from_json(text, policy)
        whisper = read_settings(WhisperConfig, _section(config, "whisper", folder), "config.json")
        check_generation(whisper, settings, Path("config.json"))
        return WhisperTokenizer.from_document(text, policy, whisper)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from None


def _section(config: dict[str, Any], name: str, folder: Path) -> dict[str, Any]:
    section = config.get(name)
    if not isinstance(section, dict):
        raise InputError(f"{folder / 'config.json'}: section {name!r} is missing; copy the folder again")
    return section


def fingerprint_of_model(path: Path) -> str:
    """Return the SHA-256 of a checkpoint: of its file, or of its folder's files except FOR_READERS and hidden ones."""
    if path.is_file():
        return fingerprint(path)
    told_apart = (file for file in path.iterdir() if file.is_file() and file.name not in FOR_READERS)
    files = sorted(file for file in told_apart if file.name[0] != ".")
    return json_digest([[file.name, fingerprint(file)] for file in files])
