"""Reader of OpenAI's Whisper models: .pt files of dimensions and weights."""

from __future__ import annotations

import contextlib
from pathlib import Path

from tokenizers import Tokenizer as Engine

from focusasr.model.pickled import opened
from focusasr.model.weights import ImportedCheckpoint
from focusasr.model.whisper_tokens import tokenizer_of_engine
from focusasr.model.whisper_weights import OPENAI_PARTS, OPENAI_REST, openai_settings, rename_weight, whisper_card
from focusasr.runtime.errors import InputError
from focusasr.runtime.files import read_text
from focusasr.text.whisper_tokenizer import ENGLISH_VOCABULARY, engine_from_ranks, openai_engine


def read_openai(path: Path, files: contextlib.ExitStack) -> ImportedCheckpoint:
    """Read a .pt file; InputError if it is corrupt or has other contents."""
    with opened(path, files, "not one of OpenAI's .pt files") as file:
        dims, named = dict(file.contents["dims"]), file.weights(file.contents["model_state_dict"])
    weights = {rename_weight(name, OPENAI_PARTS, OPENAI_REST) or name: weight for name, weight in named.items()}
    settings = openai_settings(dims, weights, path)
    tokenizer = tokenizer_of_engine(_engine(path, settings.vocabulary), settings, path.stem)
    return ImportedCheckpoint(settings, tokenizer, weights, whisper_card(path.stem, settings, weights), path)


def _engine(path: Path, vocabulary: int) -> Engine:
    """Return the engine of OpenAI's vocabulary, or of a file of ranks next to the weights under OpenAI's name."""
    ranks = path.parent / ("multilingual.tiktoken" if vocabulary > ENGLISH_VOCABULARY else "gpt2.tiktoken")
    try:
        return engine_from_ranks(read_text(ranks), vocabulary) if ranks.is_file() else openai_engine(vocabulary)
    except InputError as error:
        raise InputError(f"{path}: {ranks if ranks.is_file() else 'its vocabulary'}: {error}") from None
