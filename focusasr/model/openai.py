"""Reader of OpenAI's Whisper models: .pt files of dimensions and weights."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Engine

from focusasr.model.weights import ImportedCheckpoint, Weight
from focusasr.model.whisper_tokens import tokenizer_of_engine
from focusasr.model.whisper_weights import OPENAI_PARTS, OPENAI_REST, openai_settings, rename_weight, whisper_card
from focusasr.runtime.errors import InputError
from focusasr.runtime.files import read_text
from focusasr.text.whisper_tokenizer import ENGLISH_VOCABULARY, engine_from_ranks, openai_engine


def read_openai(path: Path, files: contextlib.ExitStack) -> ImportedCheckpoint:
    """Read a .pt file; InputError if it is corrupt or has other contents."""
    dims, named = _read(path)
    weights = {rename_weight(name, OPENAI_PARTS, OPENAI_REST) or name: weight for name, weight in named.items()}
    settings = openai_settings(dims, weights, path)
    tokenizer = tokenizer_of_engine(_engine(path, settings.vocabulary), settings, path.stem)
    return ImportedCheckpoint(settings, tokenizer, weights, whisper_card(path.stem, settings, weights), path)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Weight]]:
    """Return the dimensions and the weights in a file; InputError if it has other contents."""
    from focusasr.model.torch_weights import read_torch, tensors_by_name

    try:
        saved = read_torch(path)
        return dict(saved["dims"]), tensors_by_name(saved["model_state_dict"], path)
    except Exception as error:  # many kinds from PyTorch's reader
        reason = " ".join(str(error).split())[:120]
        raise InputError(
            f"{path}: not one of OpenAI's .pt files, or it would run code when read ({reason}); "
            "expected: dims and model_state_dict"
        ) from None


def _engine(path: Path, vocabulary: int) -> Engine:
    """Return the engine of OpenAI's vocabulary, or of a file of ranks next to the weights under OpenAI's name."""
    ranks = path.parent / ("multilingual.tiktoken" if vocabulary > ENGLISH_VOCABULARY else "gpt2.tiktoken")
    try:
        return engine_from_ranks(read_text(ranks), vocabulary) if ranks.is_file() else openai_engine(vocabulary)
    except InputError as error:
        raise InputError(f"{path}: {ranks if ranks.is_file() else 'its vocabulary'}: {error}") from None
