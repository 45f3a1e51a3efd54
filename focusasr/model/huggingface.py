"""Reader of transformers' Whisper models: folders with config.json and safetensors or pytorch_model.bin."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from focusasr.config import ModelConfig
from focusasr.model.pickled import opened
from focusasr.model.weights import ImportedCheckpoint, Weight, safetensors_in
from focusasr.model.whisper_tokens import optional_json, tokenizer_of_folder
from focusasr.model.whisper_weights import (
    HUGGING_FACE_PARTS,
    HUGGING_FACE_REST,
    check_front_end,
    rename_weight,
    whisper_card,
    whisper_settings,
)
from focusasr.runtime.errors import InputError
from focusasr.runtime.files import read_json

SAFETENSORS, PICKLED = "model.safetensors", "pytorch_model.bin"


def read_hugging_face(folder: Path, files: contextlib.ExitStack) -> ImportedCheckpoint:
    """Read a folder; InputError if files are missing, corrupt or of another model."""
    config = read_json(folder / "config.json")
    if config.get("model_type") != "whisper":
        raise InputError(f"{folder}: model_type is {config.get('model_type')!r}; expected: 'whisper'")
    check_front_end(folder, config.get("num_mel_bins", 80))
    generation = optional_json(folder / "generation_config.json") or config
    named = dict(_weights(folder, files))
    weights = {
        rename_weight(name, HUGGING_FACE_PARTS, HUGGING_FACE_REST) or name: weight
        for name, weight in named.items()
        if name != "proj_out.weight"
    }
    settings = _settings(config, weights, folder / "config.json")
    output, embedding = named.get("proj_out.weight"), weights["decoder.token_embedding.weight"]
    if output is not None and not np.array_equal(output.read(), embedding.read()):  # Whisper ties them
        raise InputError(f"{folder}: proj_out differs from the token embedding; expected: a model with both tied")
    tokenizer = tokenizer_of_folder(folder, generation, settings)
    return ImportedCheckpoint(settings, tokenizer, weights, whisper_card(folder.name, settings, weights), folder)


def _weights(folder: Path, files: contextlib.ExitStack) -> Iterator[tuple[str, Weight]]:
    """Yield names and weights of one file or of its shards."""
    for name in (SAFETENSORS, PICKLED):
        shards = _shards(folder, name)
        for shard in shards:
            path = folder / Path(shard).name  # always in this folder
            if not os.path.isfile(path):
                raise InputError(f"{folder}: the shard {path.name[:100]!r} is missing; copy the folder again")
            if name == SAFETENSORS:
                yield from safetensors_in(path).items()
            else:
                with opened(path, files, "not weights that torch.save wrote") as file:
                    named = file.weights(file.contents)
                yield from named.items()
        if shards:
            return
    raise InputError(f"{folder}: model.safetensors is missing, and so is pytorch_model.bin; copy the folder again")


def _shards(folder: Path, name: str) -> list[str]:
    """Return the weight files of a folder by name or by index; none without both."""
    index = folder / f"{name}.index.json"
    if (folder / name).is_file() or not index.is_file():
        return [name] if (folder / name).is_file() else []
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise InputError(f"{index}: has no weight_map; copy the folder again")
    return sorted({str(shard) for shard in places.values()})


def _settings(config: Mapping[str, Any], weights: Mapping[str, Weight], where: Path) -> ModelConfig:
    ours = {
        "mel_bands": "num_mel_bins", "width": "d_model", "heads": "encoder_attention_heads",
        "encoder_layers": "encoder_layers", "decoder_layers": "decoder_layers",
        "audio_context": "max_source_positions", "text_context": "max_target_positions",
    }  # fmt: skip
    settings = whisper_settings({name: config.get(theirs) for name, theirs in ours.items()}, weights, where)
    wanted = {
        "activation_function": "gelu", "scale_embedding": False, "decoder_attention_heads": settings.heads,
        "encoder_ffn_dim": 4 * settings.width, "decoder_ffn_dim": 4 * settings.width,
    }  # fmt: skip
    for name, value in wanted.items():
        if config.get(name, value) != value:
            raise InputError(f"{where}: {name} is {config[name]!r}; expected: {value!r}, as in Whisper's own models")
    return settings
