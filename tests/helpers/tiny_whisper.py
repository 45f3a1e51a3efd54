"""Small Hugging Face folders of Whisper's shape with random weights, written by hand, for tests and trials."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor

from focusasr.model.transformer import sinusoids
from focusasr.text.whisper_tokenizer import TIMESTAMPS, WhisperTokenizer, document_from_parts

LANGUAGES = ("en", "de", "es")
SPECIALS = [
    "<|endoftext|>",
    "<|startoftranscript|>",
    *(f"<|{name}|>" for name in (*LANGUAGES, "translate", "transcribe", "startoflm", "startofprev", "nospeech")),
    "<|notimestamps|>",
    *TIMESTAMPS,
]
TEXTS = ["the cat sat on the mat", "the hat of the cat", "a b c d e f g h", "Grüße, Straße!"]
SHAPE: dict[str, Any] = {
    "model_type": "whisper", "num_mel_bins": 20, "d_model": 16, "encoder_layers": 2, "decoder_layers": 1,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
    "max_source_positions": 100, "max_target_positions": 64, "activation_function": "gelu",
}  # fmt: skip


def small_vocabulary(texts: Sequence[str] = TEXTS, size: int = 300) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return the pieces and merges of a byte-level BPE that is learned from the texts."""
    engine = Tokenizer(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    engine.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    )
    model = json.loads(engine.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


def small_weights(shape: dict[str, Any], vocabulary: int, seed: int = 0) -> dict[str, Tensor]:
    """Return random weights under Hugging Face's names."""
    torch.manual_seed(seed)
    width = shape["d_model"]
    weights: dict[str, Tensor] = {}

    def add(name: str, *size: int, bias: bool = True, norm: bool = False) -> None:
        fan_in = torch.Size(size[1:]).numel()
        weights[f"model.{name}.weight"] = torch.ones(size) if norm else torch.randn(size) * fan_in**-0.5
        if bias:
            weights[f"model.{name}.bias"] = torch.randn(size[0]) * 0.02

    add("encoder.conv1", width, shape["num_mel_bins"], 3)
    add("encoder.conv2", width, width, 3)
    for side, attentions in (("encoder", ["self_attn"]), ("decoder", ["self_attn", "encoder_attn"])):
        for layer in range(shape[f"{side}_layers"]):
            home = f"{side}.layers.{layer}"
            for attention in attentions:
                for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
                    add(f"{home}.{attention}.{part}", width, width, bias=part != "k_proj")
                add(f"{home}.{attention}_layer_norm", width, norm=True)
            add(f"{home}.fc1", 4 * width, width)
            add(f"{home}.fc2", width, 4 * width)
            add(f"{home}.final_layer_norm", width, norm=True)
        add(f"{side}.layer_norm", width, norm=True)
    add("decoder.embed_tokens", vocabulary, width, bias=False)
    weights["model.encoder.embed_positions.weight"] = sinusoids(shape["max_source_positions"], width)
    weights["model.decoder.embed_positions.weight"] = torch.randn(shape["max_target_positions"], width) * 0.01
    return weights


def write_whisper(folder: Path, texts: Sequence[str] = TEXTS, size: int = 300, **changes: Any) -> Path:
    """Write a folder as the hub has them; `changes` are settings of config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    pieces, merges = small_vocabulary(texts, size)
    added = {name: len(pieces) + place for place, name in enumerate(SPECIALS)}
    vocabulary = len(pieces) + len(SPECIALS)
    shape = {**SHAPE, "vocab_size": vocabulary, **changes}
    space, end = pieces["Ġ"], added["<|endoftext|>"]
    generation = {
        "is_multilingual": True, "suppress_tokens": [1, 2], "begin_suppress_tokens": [space, end],
        "alignment_heads": [[0, 1]], "forced_decoder_ids": [[1, None], [2, added["<|transcribe|>"]]],
        "max_initial_timestamp_index": 25,
    }  # fmt: skip
    front = {"feature_size": shape["num_mel_bins"], "hop_length": 160, "n_fft": 400, "sampling_rate": 16_000}
    for name, value in (("config", shape), ("generation_config", generation), ("preprocessor_config", front)):
        (folder / f"{name}.json").write_text(json.dumps(value))
    (folder / "tokenizer.json").write_text(document_from_parts(pieces, merges, added))
    save_file(small_weights(shape, vocabulary), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def as_whisper(tokenizer: object) -> WhisperTokenizer:
    """Return the tokenizer, which must be Whisper's."""
    assert isinstance(tokenizer, WhisperTokenizer)
    return tokenizer
