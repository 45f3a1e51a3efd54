"""Export of Whisper models to transformers (Hugging Face) and faster-whisper (CTranslate2)."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors.torch import save_file
from torch import Tensor

from focusasr.audio.mel_stream import FFT_SAMPLES, HOP_SAMPLES
from focusasr.config import SAMPLE_RATE_HZ, ModelConfig
from focusasr.model.checkpoint import Checkpoint
from focusasr.model.ctranslate2 import SPEC, TABLES, TYPES, modules, words
from focusasr.model.whisper_weights import HUGGING_FACE_PARTS, HUGGING_FACE_REST
from focusasr.runtime.errors import InputError
from focusasr.runtime.files import write_json
from focusasr.text.whisper_tokenizer import TASKS, WhisperTokenizer

GELU = 3  # CTranslate2's number for this activation
REVISION = 3  # of CTranslate2's WhisperSpec
HUGGING_FACE_TABLES = {
    "encoder.positions": "encoder.embed_positions.weight",
    "decoder.positional_embedding": "decoder.embed_positions.weight",
}


def check_plain_whisper(checkpoint: Checkpoint, source: str, target: str) -> None:
    """Raise InputError if other programs cannot compute a model, with the first setting that they lack."""
    if checkpoint.whisper is None:
        raise InputError(f"{source}: not a Whisper model, so {target} cannot read it. Use --to focusasr.")
    config = checkpoint.model.config
    plain: dict[str, Any] = {
        "attention": "global", "decoder_attention": "global", "tail_frames": None, "positions": "absolute",
        "strides": (1, 2), "conv_kernel": 0, "ctc": False, "max_dist": None,
    }  # fmt: skip
    for name, value in plain.items():
        if getattr(config, name) != value:
            raise InputError(
                f"{source}: {name} is {getattr(config, name)}, which {target} cannot compute. "
                f"Use --to focusasr, or a model with {name} {value}."
            )


def save_hugging_face(folder: Path, checkpoint: Checkpoint, dtype: torch.dtype) -> None:
    """Write a folder for transformers; the weights are stored as `dtype`."""
    tokenizer = _whisper_tokenizer(checkpoint)
    config = checkpoint.model.config
    weights = {hugging_face_name(name): value for name, value in _weights(checkpoint, dtype)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    write_vocabulary(folder, tokenizer)
    _write_shared(folder, checkpoint, tokenizer)
    for name, value in {
        "config": _hugging_face_config(config, tokenizer, dtype), "generation_config": _generation(tokenizer, config),
        "tokenizer_config": _tokenizer_config(config),
    }.items():  # fmt: skip
        write_json(folder / f"{name}.json", value)
    (folder / "model.safetensors").chmod((folder / "config.json").stat().st_mode)  # safetensors makes it private


def save_ctranslate2(folder: Path, checkpoint: Checkpoint, dtype: torch.dtype) -> None:
    """Write a folder for faster-whisper; the weights are stored as `dtype`."""
    tokenizer, whisper = _whisper_tokenizer(checkpoint), checkpoint.whisper
    assert whisper is not None
    config = {
        "alignment_heads": whisper.alignment_heads, "lang_ids": sorted(tokenizer.languages.values()),
        "suppress_ids": whisper.suppress_tokens, "suppress_ids_begin": whisper.begin_suppress_tokens,
    }  # fmt: skip
    write_json(folder / "config.json", config)
    _write_shared(folder, checkpoint, tokenizer)
    listed = [str(tokenizer.engine.id_to_token(id)) for id in range(tokenizer.size)]
    (folder / "vocabulary.txt").write_text("\n".join(listed) + "\n", encoding="utf-8")
    variables = {**_ctranslate2_scalars(checkpoint.model.config), **dict(_ctranslate2_weights(checkpoint, dtype))}
    with (folder / "model.bin").open("wb") as file:
        _write_ctranslate2(file, variables)


def _whisper_tokenizer(checkpoint: Checkpoint) -> WhisperTokenizer:
    assert isinstance(checkpoint.tokenizer, WhisperTokenizer)
    return checkpoint.tokenizer


def _weights(checkpoint: Checkpoint, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    for name, value in checkpoint.model.state_dict().items():
        yield name, value.detach().to("cpu", dtype).contiguous()


def _write_shared(folder: Path, checkpoint: Checkpoint, tokenizer: WhisperTokenizer) -> None:
    """Write the files that both kinds of folders share."""
    config = checkpoint.model.config
    assert config.longest_samples is not None
    front = {
        "feature_extractor_type": "WhisperFeatureExtractor", "processor_class": "WhisperProcessor",
        "feature_size": config.mel_bands, "sampling_rate": SAMPLE_RATE_HZ, "n_fft": FFT_SAMPLES,
        "hop_length": HOP_SAMPLES, "chunk_length": config.longest_samples // SAMPLE_RATE_HZ,
        "n_samples": config.longest_samples, "nb_max_frames": config.longest_samples // HOP_SAMPLES,
        "padding_side": "right", "padding_value": 0.0, "return_attention_mask": False,
    }  # fmt: skip
    write_json(folder / "preprocessor_config.json", front)
    (folder / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    (folder / "README.md").write_text(checkpoint.card, encoding="utf-8", errors="backslashreplace")


# transformers


def write_vocabulary(folder: Path, tokenizer: WhisperTokenizer) -> None:
    """Write vocab.json, merges.txt and added_tokens.json."""
    document = json.loads(tokenizer.to_json())
    added = {one["content"]: one["id"] for one in document["added_tokens"]}
    write_json(folder / "added_tokens.json", added)
    pieces = {piece: id for piece, id in document["model"]["vocab"].items() if piece not in added}
    write_json(folder / "vocab.json", pieces)
    merges = [" ".join(pair) for pair in document["model"]["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")


def hugging_face_name(name: str) -> str:
    """Return transformers' name of one of our weights."""
    if name in HUGGING_FACE_TABLES:
        return f"model.{HUGGING_FACE_TABLES[name]}"
    stem, _, kind = name.rpartition(".")
    layer = re.fullmatch(r"(encoder|decoder)\.blocks\.(\d+)\.(.+)", stem)
    if layer is None:
        return f"model.{_turned(HUGGING_FACE_REST)[stem]}.{kind}"
    return f"model.{layer[1]}.layers.{layer[2]}.{_turned(HUGGING_FACE_PARTS)[layer[3]]}.{kind}"


def _turned(names: Mapping[str, str]) -> dict[str, str]:
    return {ours: theirs for theirs, ours in names.items()}


def _hugging_face_config(config: ModelConfig, tokenizer: WhisperTokenizer, dtype: torch.dtype) -> dict[str, Any]:
    sides = {
        f"{side}_{name}": value
        for side, layers in (("encoder", config.encoder_layers), ("decoder", config.decoder_layers))
        for name, value in (
            ("layers", layers), ("attention_heads", config.heads), ("ffn_dim", 4 * config.width), ("layerdrop", 0.0),
        )
    }  # fmt: skip
    return {
        "architectures": ["WhisperForConditionalGeneration"], "model_type": "whisper", "activation_function": "gelu",
        "vocab_size": config.vocabulary, "num_mel_bins": config.mel_bands, "d_model": config.width,
        "num_hidden_layers": config.encoder_layers, "is_encoder_decoder": True, "scale_embedding": False,
        "tie_word_embeddings": True, "max_source_positions": config.audio_context,
        "max_target_positions": config.text_context, "torch_dtype": str(dtype).removeprefix("torch."),
        **sides, **_token_ids(tokenizer),
    }  # fmt: skip


def _token_ids(tokenizer: WhisperTokenizer) -> dict[str, int]:
    ends = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), tokenizer.end)
    return {**ends, "decoder_start_token_id": tokenizer.start}


def _generation(tokenizer: WhisperTokenizer, config: ModelConfig) -> dict[str, Any]:
    """Return generation_config.json, with language and task by name, as newer versions expect."""
    whisper = tokenizer.whisper
    settings = {
        **_token_ids(tokenizer), "is_multilingual": whisper.multilingual, "max_length": config.text_context,
        "no_timestamps_token_id": tokenizer.no_timestamps, "prev_sot_token_id": tokenizer.sot_prev,
        "return_timestamps": False, "alignment_heads": whisper.alignment_heads,
        "suppress_tokens": whisper.suppress_tokens, "begin_suppress_tokens": whisper.begin_suppress_tokens,
        "max_initial_timestamp_index": whisper.max_initial_timestamp_index,
    }  # fmt: skip
    if whisper.multilingual:
        settings["lang_to_id"] = {f"<|{code}|>": id for code, id in tokenizer.languages.items()}
        settings["task_to_id"] = {task: tokenizer.token(f"<|{task}|>") for task in TASKS}
        settings["task"] = whisper.task
        if tokenizer.policy.language:
            settings["language"] = tokenizer.policy.language
    return settings


def _tokenizer_config(config: ModelConfig) -> dict[str, Any]:
    ends = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), "<|endoftext|>")
    return {
        **ends, "tokenizer_class": "WhisperTokenizer", "processor_class": "WhisperProcessor",
        "add_prefix_space": False, "clean_up_tokenization_spaces": False, "errors": "replace",
        "model_max_length": config.text_context,
    }  # fmt: skip


# CTranslate2; the format is described in ctranslate2.py


def _ctranslate2_scalars(config: ModelConfig) -> dict[str, Tensor]:
    flags = {"activation": GELU, "alibi": 0, "pre_norm": 1, "scale_embeddings": 0, "start_from_zero_embedding": 0}
    counts = {"decoder/alignment_heads": 1, "decoder/alignment_layer": -1}  # one head of the last layer by default
    heads = {"encoder/num_heads": config.heads, "decoder/num_heads": config.heads}
    return {
        **{f"decoder/{name}": torch.tensor(value, dtype=torch.int8) for name, value in flags.items()},
        **{name: torch.tensor(value, dtype=torch.int16) for name, value in {**counts, **heads}.items()},
    }


def _ctranslate2_weights(checkpoint: Checkpoint, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    config, ours = checkpoint.model.config, dict(_weights(checkpoint, dtype))
    for theirs, name in TABLES.items():
        yield theirs, ours[name]
    for theirs, parts in modules(config.encoder_layers, config.decoder_layers):
        for word, our_word in words(theirs):
            zeros = torch.zeros(config.width, dtype=dtype)  # for the key, which has no bias
            joined = [ours.get(f"{part}.{our_word}", zeros) for part in parts]
            yield f"{theirs}/{word}", torch.cat(joined)


def _write_ctranslate2(file: BinaryIO, variables: Mapping[str, Tensor]) -> None:
    def text(name: str) -> bytes:
        data = name.encode() + b"\0"
        return struct.pack("<H", len(data)) + data

    file.write(struct.pack("<I", 6) + text(SPEC) + struct.pack("<II", REVISION, len(variables)))
    for name, value in sorted(variables.items()):
        file.write(text(name) + struct.pack(f"<B{value.dim()}I", value.dim(), *value.shape))
        file.write(struct.pack("<BI", TYPES.index(str(value.dtype).removeprefix("torch.")), value.nbytes))
        file.write(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    file.write(struct.pack("<I", 1) + text("decoder/projection/weight") + text("decoder/embeddings/weight"))
