"""Names of Whisper models, and their caches in whisper, faster-whisper and transformers."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from focusasr.model.formats import snapshot, weights_in
from focusasr.runtime.errors import InputError

WHISPER_SIZES = "tiny tiny.en base base.en small small.en medium medium.en large-v1 large-v2 large-v3 large-v3-turbo"
WHISPER_NAMES = {name: name for name in WHISPER_SIZES.split()} | {"large": "large-v3", "turbo": "large-v3-turbo"}
HUB_NAME = re.compile(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}", re.ASCII)
TURBO_FOR_FASTER_WHISPER = ("mobiuslabsgmbh/faster-whisper-large-v3-turbo", "deepdml/faster-whisper-large-v3-turbo-ct2")
HUB_FILES = [
    "config.json", "generation_config.json", "preprocessor_config.json", "model.safetensors",
    "model.safetensors.index.json", "model-*-of-*.safetensors", "model.bin", "tokenizer.json", "vocab.json",
    "merges.txt", "added_tokens.json", "vocabulary.txt", "vocabulary.json", "metrics.json", "README.md",
]  # fmt: skip
PICKLED_FILES = ["pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*-of-*.bin"]


def find_whisper(name: str, local_files_only: bool = False, model_dir: Path | None = None) -> Path:
    """Return the file or folder for one of OpenAI's names, such as tiny.en or turbo.

    It is NAME.pt in `model_dir` or in whisper's cache, else a folder of transformers or faster-whisper in the hub's
    cache, else a download. InputError if there is none.
    """
    size = WHISPER_NAMES[name]
    for file in (place / f"{stem}.pt" for place in _openai_places(model_dir) for stem in dict.fromkeys((name, size))):
        if file.is_file():
            return file
    for repository in _repositories(size):
        found = cached(repository, model_dir)
        if found:
            return found
    return download(next(_repositories(size)), local_files_only, model_dir)


def _openai_places(model_dir: Path | None) -> list[Path]:
    """Return `model_dir` and the folder of openai-whisper's files."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return [*([model_dir] if model_dir else []), Path(cache, "whisper")]


def _repositories(size: str) -> Iterator[str]:
    """Yield the repositories of a size on the hub: OpenAI's, then those of faster-whisper."""
    yield f"openai/whisper-{'large' if size == 'large-v1' else size}"
    yield from TURBO_FOR_FASTER_WHISPER if size == "large-v3-turbo" else (f"Systran/faster-whisper-{size}",)


def cached(repository: str, cache: Path | None = None) -> Path | None:
    """Return the folder of a repository in the hub's default cache or `cache`; None unless it has weights."""
    from huggingface_hub import constants

    root = (cache or Path(constants.HF_HUB_CACHE)) / f"models--{repository.replace('/', '--')}"
    folder = snapshot(root)
    return folder if folder and weights_in(folder) else None


def download(name: str, local_files_only: bool = False, cache: Path | None = None) -> Path:
    """Return the folder of a repository on the hub, such as openai/whisper-tiny.en, downloaded or from the cache.

    The cache is the hub's default or `cache`. PyTorch's own files are downloaded if there are no others. InputError if
    the repository is in neither place.
    """
    folder = _fetch(name, HUB_FILES, local_files_only, cache)
    if (folder / "config.json").is_file() and not weights_in(folder):
        folder = _fetch(name, [*HUB_FILES, *PICKLED_FILES], local_files_only, cache)
    return folder


def _fetch(name: str, files: list[str], local_files_only: bool, cache: Path | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=files, local_files_only=local_files_only, cache_dir=cache))
    except Exception as error:  # including errors of its HTTP client
        if local_files_only:
            what, asked = "", "leave --local-files-only out"
        elif isinstance(error, RepositoryNotFoundError):  # also for private repositories
            what, asked = ", and the hub has no such model for you", "check the name"
        elif isinstance(error, LocalEntryNotFoundError):
            what, asked = ", and the hub cannot be reached", "check name and connection"
        else:
            what, asked = f", and the hub does not give it ({type(error).__name__})", "check name and connection"
        raise InputError(
            f"{name}: no such checkpoint folder here, nor in the hub's cache{what}; {asked}, or give a folder"
        ) from error
