"""Checkpoints: folders of config.json, model.safetensors, tokenizer.json, README.md and metrics.json.

Nothing is unpickled. A folder is written under a temporary name and renamed. Names and shapes are checked against the
configuration before any weight is loaded.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from focusasr import __version__
from focusasr.config import WhisperConfig
from focusasr.model.checkpoint_folder import FORMAT, WEIGHTS
from focusasr.model.imported import read_checkpoint
from focusasr.model.torch_weights import UnreadWeights, as_int8, checked_model
from focusasr.model.transformer import Model
from focusasr.runtime.files import link_or_copy, write_json
from focusasr.runtime.settings import to_settings
from focusasr.text.tokenizer import Tokenizer
from focusasr.text.whisper_tokenizer import WhisperTokenizer


@dataclass(frozen=True)
class Checkpoint:
    """A model with its tokenizer, metrics and model card."""

    model: Model
    tokenizer: Tokenizer
    metrics: dict[str, Any]
    card: str  # README.md
    folder: Path | None = None
    unread: UnreadWeights | None = None  # the weights, if the model is on the device "meta"

    @property
    def whisper(self) -> WhisperConfig | None:
        """Return the tokens and heads of a Whisper model; None for a native model."""
        return self.tokenizer.whisper if isinstance(self.tokenizer, WhisperTokenizer) else None


def save_checkpoint(
    folder: Path,
    checkpoint: Checkpoint,
    run: dict[str, Any] | None = None,
    made_with: dict[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
    weights: Path | None = None,
) -> None:
    """Write a checkpoint into `folder`, an empty or new one; `run` and `made_with` go into config.json.

    Weights are written as `dtype` (int8: `as_int8`); they are float32 again when loaded. A file that holds the same
    `weights` already is linked instead.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = checkpoint.model
    config = {
        "format": FORMAT,
        "focusasr": __version__,
        "model": to_settings(model.config),
        "text": to_settings(checkpoint.tokenizer.policy),
        **({"whisper": to_settings(checkpoint.whisper)} if checkpoint.whisper else {}),
        **({"run": run} if run else {}),
        **({"made_with": made_with} if made_with else {}),
    }
    write_json(folder / "config.json", config)
    write_json(folder / "metrics.json", checkpoint.metrics)
    (folder / "tokenizer.json").write_text(checkpoint.tokenizer.to_json(), encoding="utf-8")
    (folder / "README.md").write_text(checkpoint.card, encoding="utf-8", errors="backslashreplace")
    if weights:
        link_or_copy(weights, folder / WEIGHTS)
        return
    state = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    integers = dtype == torch.int8
    tensors = as_int8(state) if integers else {name: value.to(dtype).contiguous() for name, value in state.items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / WEIGHTS).chmod((folder / "config.json").stat().st_mode)  # safetensors makes it private


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> Checkpoint:
    """Read a checkpoint of any format; InputError names the file that is missing, corrupt or of another size."""
    checkpoint = open_checkpoint(path, device)
    assert checkpoint.unread is not None
    with contextlib.closing(checkpoint.unread):
        checkpoint.unread.fill(checkpoint.model)
    return replace(checkpoint, unread=None)


def open_checkpoint(path: Path, device: torch.device | str = "cpu") -> Checkpoint:
    """Read a checkpoint of any format without its weights, which stay `unread`; errors are those of `load_checkpoint`.

    Names and shapes of the weights are checked; numbers that are not finite are found when they are read.
    """
    with contextlib.ExitStack() as files:
        read = read_checkpoint(path, files)
        model = checked_model(read.config, read.tensors, read.place)
        unread = UnreadWeights(read.tensors, read.place, torch.device(device), files.pop_all())
    return Checkpoint(model, read.tokenizer, dict(read.metrics), read.card, path, unread)
