"""Whisper's weights, whoever wrote the files, as the model classes of this package."""

from __future__ import annotations

from pathlib import Path

from focusasr.files import read_json
from focusasr.hugging_face import load_hugging_face
from focusasr.openai_file import load_openai
from focusasr.whisper_weights import Pieces


def is_whisper(path: Path) -> bool:
    """Return whether a file or folder is a Whisper checkpoint of another house: .pt, or config.json of that type."""
    if path.is_file():
        return path.suffix == ".pt"
    return (path / "config.json").is_file() and "model_type" in read_json(path / "config.json")


def load_whisper(path: Path, device: str = "cpu") -> Pieces:
    """Read a Hugging Face folder or OpenAI's .pt; InputError names what is missing, broken or of another shape."""
    return load_openai(path, device) if path.is_file() else load_hugging_face(path, device)
