"""Whisper models as Hugging Face has them: folders, and names on the hub."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from focusasr.audio.features import FFT_SAMPLES, HOP_SAMPLES
from focusasr.config import SAMPLE_RATE_HZ, ModelConfig, WhisperConfig
from focusasr.model.weights import Weight, build_model, safetensors_in
from focusasr.model.whisper_weights import (
    ENGLISH_VOCABULARY,
    HUGGING_FACE_PARTS,
    HUGGING_FACE_REST,
    ImportedCheckpoint,
    check_generation,
    default_alignment_heads,
    rename_weight,
    whisper_card,
    whisper_policy,
    whisper_settings,
)
from focusasr.runtime.errors import InputError, quote
from focusasr.runtime.files import read_json, read_text
from focusasr.runtime.settings import read_settings
from focusasr.text.whisper_tokenizer import (
    LANGUAGE_CODES,
    Task,
    WhisperTokenizer,
    document_from_parts,
    read_merges,
    special_tokens,
)

HUB_FILES = [
    "config.json", "generation_config.json", "preprocessor_config.json", "model.safetensors",
    "model.safetensors.index.json", "model-*-of-*.safetensors", "tokenizer.json", "vocab.json", "merges.txt",
    "added_tokens.json", "metrics.json", "README.md",
]  # fmt: skip


def download(name: str, local_files_only: bool = False, cache: Path | None = None) -> Path:
    """Return the folder of a repository on the hub, such as openai/whisper-tiny.en, fetched or from the cache,
    the hub's usual one or `cache`.

    InputError where it is neither.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(
            snapshot_download(name, allow_patterns=HUB_FILES, local_files_only=local_files_only, cache_dir=cache)
        )
    except Exception as error:  # the library passes on those of its HTTP client
        if local_files_only:
            what, asked = "", "leave --local-files-only out"
        elif isinstance(error, RepositoryNotFoundError):  # its answer also where only some may see it
            what, asked = ", and the hub has no such model for you", "check the name"
        elif isinstance(error, LocalEntryNotFoundError):
            what, asked = ", and the hub cannot be reached", "check name and connection"
        else:
            what, asked = f", and the hub does not give it ({type(error).__name__})", "check name and connection"
        raise InputError(
            f"{name}: no such checkpoint folder here, nor in the hub's cache{what}; {asked}, or give a folder"
        ) from error


def load_hugging_face(folder: Path, device: str) -> ImportedCheckpoint:
    config = read_json(folder / "config.json")
    if config.get("model_type") != "whisper":
        raise InputError(f"{folder}: model_type is {config.get('model_type')!r}; wanted: 'whisper'")
    _check_front_end(folder, config)
    generation = _optional_json(folder / "generation_config.json") or config
    with contextlib.ExitStack() as files:
        named = dict(_safetensors(folder, device, files))
        weights: dict[str, Weight] = {}
        for name, weight in named.items():
            ours = rename_weight(name, HUGGING_FACE_PARTS, HUGGING_FACE_REST)
            if name != "proj_out.weight":
                weights[ours or name] = weight
        embedding = weights.get("decoder.token_embedding.weight")
        if embedding is None or len(embedding.shape) != 2:
            raise InputError(f"{folder}: the weights hold no token embedding; it is no whole Whisper model")
        _check_tied(named.get("proj_out.weight"), embedding, folder)
        settings = _hugging_face_settings(config, embedding.shape[0], folder / "config.json")
        model = build_model(settings, weights, folder)
    return ImportedCheckpoint(
        model, _hugging_face_tokenizer(folder, generation, settings), whisper_card(folder.name, model)
    )


def _safetensors(folder: Path, device: str, files: contextlib.ExitStack) -> Iterator[tuple[str, Weight]]:
    """Yield the weights of model.safetensors or of its shards, with their names; the files stay open in `files`."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        shards = [single.name]
    elif index.is_file():
        places = read_json(index).get("weight_map")
        if not isinstance(places, dict):
            raise InputError(f"{index}: says not where the weights are; copy the folder again")
        shards = sorted({str(shard) for shard in places.values()})
    else:
        raise InputError(
            f"{folder}: model.safetensors is missing; copy the folder again, or save it anew with safe_serialization"
        )
    for shard in shards:
        path = folder / Path(shard).name  # whatever the index says, of this folder
        if not os.path.isfile(path):
            raise InputError(f"{folder}: the shard {path.name[:100]!r} is missing; copy the folder again")
        yield from safetensors_in(path, device, files)


def _check_tied(output: Weight | None, embedding: Weight, folder: Path) -> None:
    """Refuse an output embedding of its own: Whisper's is the input embedding."""
    if output is not None and not torch.equal(output.read(), embedding.read()):
        raise InputError(f"{folder}: proj_out differs from the token embedding; wanted: a model with both tied")


def _check_front_end(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse a preprocessor that makes other frames than ours."""
    ours = {"n_fft": FFT_SAMPLES, "hop_length": HOP_SAMPLES, "sampling_rate": SAMPLE_RATE_HZ}
    ours["feature_size"] = config.get("num_mel_bins", 80)
    theirs = _optional_json(folder / "preprocessor_config.json") or {}
    for name, value in ours.items():
        if theirs.get(name, value) != value:
            raise InputError(
                f"{folder / 'preprocessor_config.json'}: {name} is {quote(theirs[name])}; wanted: {quote(value)}"
            )


def _hugging_face_settings(config: Mapping[str, Any], vocabulary: int, where: Path) -> ModelConfig:
    ours = {
        "mel_bands": "num_mel_bins", "width": "d_model", "heads": "encoder_attention_heads",
        "encoder_layers": "encoder_layers", "decoder_layers": "decoder_layers",
        "audio_context": "max_source_positions", "text_context": "max_target_positions",
    }  # fmt: skip
    settings = whisper_settings({name: config.get(theirs) for name, theirs in ours.items()}, vocabulary, where)
    wanted = {
        "activation_function": "gelu", "scale_embedding": False, "decoder_attention_heads": settings.heads,
        "encoder_ffn_dim": 4 * settings.width, "decoder_ffn_dim": 4 * settings.width,
    }  # fmt: skip
    for name, value in wanted.items():
        if config.get(name, value) != value:
            raise InputError(f"{where}: {name} is {config[name]!r}; wanted: {value!r}, as in Whisper's own models")
    return settings


def _hugging_face_tokenizer(folder: Path, generation: Mapping[str, Any], settings: ModelConfig) -> WhisperTokenizer:
    multilingual = bool(generation.get("is_multilingual", settings.vocabulary > ENGLISH_VOCABULARY))
    forced = generation.get("forced_decoder_ids") or []
    if isinstance(forced, list):  # a place without a token is left to the model
        forced = [pair for pair in forced if not (isinstance(pair, list) and None in pair)]
    kept = {
        "suppress_tokens": generation.get("suppress_tokens") or [],
        "begin_suppress_tokens": generation.get("begin_suppress_tokens") or [],
        "forced_decoder_ids": forced,
        "alignment_heads": generation.get("alignment_heads") or default_alignment_heads(settings),
    }
    initial = generation.get("max_initial_timestamp_index")
    if initial is not None:
        kept["max_initial_timestamp_index"] = initial
    whisper = read_settings(
        WhisperConfig, {"multilingual": multilingual, **kept}, str(folder / "generation_config.json")
    )
    if any(layer >= settings.decoder_layers for layer, _ in whisper.alignment_heads):  # a teacher's, of more layers
        whisper = replace(whisper, alignment_heads=default_alignment_heads(settings))
    check_generation(whisper, settings, folder)
    policy = whisper_policy(settings, multilingual)
    try:
        tokenizer = WhisperTokenizer.from_document(_document(folder), policy, whisper, settings.vocabulary)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from None
    return tokenizer.speaking(_language(tokenizer, generation), _task(tokenizer, generation))


def _optional_json(path: Path) -> dict[str, Any] | None:
    return read_json(path) if path.is_file() else None


def _document(folder: Path) -> str:
    """Return the text of tokenizer.json, or of one made from vocab.json and merges.txt."""
    if (folder / "tokenizer.json").is_file():
        return read_text(folder / "tokenizer.json")
    if not ((folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()):
        raise InputError("tokenizer.json is missing, and so are vocab.json and merges.txt; copy the folder again")
    pieces = read_json(folder / "vocab.json")
    added = _optional_json(folder / "added_tokens.json") or {}
    if not added:
        specials = special_tokens(99)
        first = pieces.get(specials[0], len(pieces))
        if type(first) is not int:
            raise InputError(f"vocab.json: {specials[0]} is {first!r}; wanted: a number; copy the folder again")
        added = {name: first + place for place, name in enumerate(specials)}
    return document_from_parts(pieces, read_merges(read_text(folder / "merges.txt")), added)


def _language(tokenizer: WhisperTokenizer, generation: Mapping[str, Any]) -> str | None:
    """Return the language that a fine-tuned model was made for, where its generation settings force one."""
    forced = {token for _, token in tokenizer.whisper.forced_decoder_ids}
    said = str(generation.get("language") or "").strip("<|>").lower()
    said = LANGUAGE_CODES.get(said, said)
    return next((code for code, id in tokenizer.languages.items() if id in forced or code == said), None)


def _task(tokenizer: WhisperTokenizer, generation: Mapping[str, Any]) -> Task:
    forced = {token for _, token in tokenizer.whisper.forced_decoder_ids}
    return "translate" if tokenizer.translate in forced or generation.get("task") == "translate" else "transcribe"
