"""Whisper models as OpenAI publishes them: .pt files, whose vocabulary lies in the package openai-whisper."""

from __future__ import annotations

import ast
import base64
import contextlib
import gzip
import importlib.util
from pathlib import Path
from typing import Any

from torch import Tensor

from focusasr.config import ModelConfig, WhisperConfig
from focusasr.model.weights import Weight, build_model, read_torch
from focusasr.model.whisper_weights import (
    ENGLISH_VOCABULARY,
    OPENAI_PARTS,
    OPENAI_REST,
    ImportedCheckpoint,
    default_alignment_heads,
    rename_weight,
    whisper_card,
    whisper_policy,
    whisper_settings,
)
from focusasr.runtime.errors import InputError
from focusasr.runtime.files import read_text
from focusasr.text.whisper_tokenizer import WhisperTokenizer, engine_from_ranks


def load_openai(path: Path, device: str) -> ImportedCheckpoint:
    dims, state = _read(path, device)
    for audio, text in (("n_audio_state", "n_text_state"), ("n_audio_head", "n_text_head")):
        if dims.get(audio) != dims.get(text):
            raise InputError(f"{path}: {audio} is {dims.get(audio)}, {text} {dims.get(text)}; wanted: the same")
    ours = {
        "mel_bands": "n_mels", "width": "n_audio_state", "heads": "n_audio_head", "encoder_layers": "n_audio_layer",
        "decoder_layers": "n_text_layer", "audio_context": "n_audio_ctx", "text_context": "n_text_ctx",
    }  # fmt: skip
    embedding = state.get("decoder.token_embedding.weight")
    if embedding is None or embedding.dim() != 2:
        raise InputError(f"{path}: the weights hold no token embedding; it is no whole Whisper model")
    settings = whisper_settings({name: dims.get(theirs) for name, theirs in ours.items()}, len(embedding), path)
    weights = {
        rename_weight(name, OPENAI_PARTS, OPENAI_REST) or name: Weight(tuple(value.shape), lambda value=value: value)  # type: ignore[misc]
        for name, value in state.items()
    }
    model = build_model(settings, weights, path)
    return ImportedCheckpoint(model, _openai_tokenizer(path, settings), whisper_card(path.stem, model))


def _read(path: Path, device: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the dimensions and the weights in a file; InputError where it holds anything else."""
    try:
        saved = read_torch(path, device)
        dims, state = dict(saved["dims"]), dict(saved["model_state_dict"])
        if not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()):
            raise TypeError("model_state_dict has other things than named weights")
        size = sum(value.nbytes for value in state.values())
        if size > path.stat().st_size:  # one number can be said to fill a tensor of any shape
            raise ValueError(f"its weights would be {size} bytes")
    except Exception as error:  # of PyTorch's reader, which has many kinds
        reason = " ".join(str(error).split())[:120]
        raise InputError(
            f"{path}: not one of OpenAI's .pt files, or it would run code when read ({reason}); "
            "wanted: dims and model_state_dict"
        ) from None
    return dims, state


def _openai_tokenizer(path: Path, settings: ModelConfig) -> WhisperTokenizer:
    multilingual = settings.vocabulary > ENGLISH_VOCABULARY
    ranks = find_ranks(path, multilingual)
    try:
        engine = engine_from_ranks(read_text(ranks), settings.vocabulary)
    except InputError as error:
        raise InputError(f"{path}: {ranks}: {error}") from None
    policy = whisper_policy(settings, multilingual)
    plain = WhisperTokenizer(engine, policy, WhisperConfig(multilingual=multilingual))
    never = [plain.transcribe, plain.translate, plain.start, plain.sot_prev, plain.sot_lm, plain.no_speech]
    whisper = WhisperConfig(
        multilingual=multilingual,
        suppress_tokens=sorted({*plain.non_speech_tokens(), *never}),
        begin_suppress_tokens=[*plain.encode_exactly(" "), plain.end],
        alignment_heads=_published_heads(path.stem, settings) or default_alignment_heads(settings),
    )
    return WhisperTokenizer(engine, policy, whisper)


def find_ranks(path: Path, multilingual: bool) -> Path:
    """Return OpenAI's vocabulary file: beside the weights, or inside the installed package openai-whisper."""
    name = "multilingual.tiktoken" if multilingual else "gpt2.tiktoken"
    spec = importlib.util.find_spec("whisper")
    places = [path.parent, *(Path(place) / "assets" for place in (spec and spec.submodule_search_locations) or ())]
    for place in places:
        if (place / name).is_file():
            return place / name
    raise InputError(
        f"{path}: a .pt file has no vocabulary; put {name} beside it, or 'pip install openai-whisper', which has it"
    )


def _published_heads(name: str, settings: ModelConfig) -> list[tuple[int, int]]:
    """Return the alignment heads that OpenAI published for a model of this name; none where that is not known.

    They stand in the package's source, which is read and not run: it imports much, and may not be able to.
    """
    spec = importlib.util.find_spec("whisper")
    published: dict[str, bytes] = {}
    with contextlib.suppress(OSError, SyntaxError, ValueError):
        for line in ast.parse(Path(spec.origin).read_text("utf-8")).body if spec and spec.origin else ():
            if isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == "_ALIGNMENT_HEADS":
                published = ast.literal_eval(line.value)
    if name not in published:
        return []
    mask = gzip.decompress(base64.b85decode(published[name]))
    if len(mask) != settings.decoder_layers * settings.heads:
        return []
    return [divmod(place, settings.heads) for place, chosen in enumerate(mask) if chosen]
