"""Names of Whisper's weights per format, configuration from their shapes, and model card."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from focusasr.audio.mel_stream import FFT_SAMPLES, HOP_SAMPLES
from focusasr.config import SAMPLE_RATE_HZ, ModelConfig
from focusasr.model.weights import Weight, check_layers
from focusasr.runtime.errors import InputError, quote
from focusasr.runtime.files import read_json
from focusasr.runtime.settings import read_settings

# Their names → ours. Names in layers are {encoder,decoder}.{layers,blocks}.N.REST, with REST from these tables.
HUGGING_FACE_PARTS = {
    "self_attn_layer_norm": "attention.ln_global", "self_attn.q_proj": "attention.attn_global.query",
    "self_attn.k_proj": "attention.attn_global.key", "self_attn.v_proj": "attention.attn_global.value",
    "self_attn.out_proj": "attention.attn_global.out", "encoder_attn_layer_norm": "ln_cross",
    "encoder_attn.q_proj": "cross.query", "encoder_attn.k_proj": "cross.key", "encoder_attn.v_proj": "cross.value",
    "encoder_attn.out_proj": "cross.out", "final_layer_norm": "mlp.0", "fc1": "mlp.1", "fc2": "mlp.3",
}  # fmt: skip
OPENAI_PARTS = {
    "attn_ln": "attention.ln_global", "attn.query": "attention.attn_global.query",
    "attn.key": "attention.attn_global.key", "attn.value": "attention.attn_global.value",
    "attn.out": "attention.attn_global.out", "cross_attn_ln": "ln_cross", "cross_attn.query": "cross.query",
    "cross_attn.key": "cross.key", "cross_attn.value": "cross.value", "cross_attn.out": "cross.out",
    "mlp_ln": "mlp.0", "mlp.0": "mlp.1", "mlp.2": "mlp.3",
}  # fmt: skip
HUGGING_FACE_REST = {
    "encoder.conv1": "encoder.stem.conv1", "encoder.conv2": "encoder.stem.conv2",
    "encoder.layer_norm": "encoder.ln_post", "decoder.layer_norm": "decoder.ln",
    "decoder.embed_tokens": "decoder.token_embedding",
}  # fmt: skip
OPENAI_REST = {"encoder.conv1": "encoder.stem.conv1", "encoder.conv2": "encoder.stem.conv2"}
WHOLE_NAMES = {
    "encoder.embed_positions.weight": "encoder.positions", "encoder.positional_embedding": "encoder.positions",
    "decoder.embed_positions.weight": "decoder.positional_embedding",
}  # fmt: skip


def rename_weight(name: str, parts: Mapping[str, str], rest: Mapping[str, str]) -> str | None:
    """Return our name of one of their weights; None for a weight that our model lacks."""
    name = name.removeprefix("model.")
    if name in WHOLE_NAMES:
        return WHOLE_NAMES[name]
    stem, _, kind = name.rpartition(".")
    layer = re.fullmatch(r"(encoder|decoder)\.(?:layers|blocks)\.(\d+)\.(.+)", stem)
    if layer:
        part = parts.get(layer[3])
        return part and f"{layer[1]}.blocks.{layer[2]}.{part}.{kind}"
    return f"{rest[stem]}.{kind}" if stem in rest else name


def whisper_settings(shape: Mapping[str, Any], weights: Mapping[str, Weight], where: Path) -> ModelConfig:
    """Return the configuration of a Whisper model from its shape and its weights under our names."""
    lacking = [name for name, value in shape.items() if value is None]
    if lacking:
        raise InputError(f"{where}: lacks the model's {lacking[0]}; copy it again")
    whisper = {
        "vocabulary": _vocabulary(weights, where), "strides": (1, 2), "conv_kernel": 0, "positions": "absolute",
        "ctc": False, "attention": "global", "decoder_attention": "global", "dropout": 0.0,
    }  # fmt: skip
    settings = read_settings(ModelConfig, {**whisper, **shape}, str(where))
    check_layers(settings, len(weights), where)
    return settings


def check_front_end(folder: Path, mel_bands: Any) -> None:
    """Raise InputError for a preprocessor_config.json with other features than ours."""
    path = folder / "preprocessor_config.json"
    theirs = read_json(path) if path.is_file() else {}
    ours = {"n_fft": FFT_SAMPLES, "hop_length": HOP_SAMPLES, "sampling_rate": SAMPLE_RATE_HZ, "feature_size": mel_bands}
    for name, value in ours.items():
        if theirs.get(name, value) != value:
            raise InputError(f"{path}: {name} is {quote(theirs[name])}; expected: {quote(value)}")


def openai_settings(dims: Mapping[str, Any], weights: Mapping[str, Weight], path: Path) -> ModelConfig:
    """Return the configuration for OpenAI's dimensions; `weights`, under our names, give the vocabulary size."""
    for audio, text in (("n_audio_state", "n_text_state"), ("n_audio_head", "n_text_head")):
        if dims.get(audio) != dims.get(text):
            raise InputError(f"{path}: {audio} is {dims.get(audio)}, {text} {dims.get(text)}; expected: the same")
    ours = {
        "mel_bands": "n_mels", "width": "n_audio_state", "heads": "n_audio_head", "encoder_layers": "n_audio_layer",
        "decoder_layers": "n_text_layer", "audio_context": "n_audio_ctx", "text_context": "n_text_ctx",
    }  # fmt: skip
    return whisper_settings({name: dims.get(theirs) for name, theirs in ours.items()}, weights, path)


def _vocabulary(weights: Mapping[str, Weight], where: Path) -> int:
    """Return the number of token embeddings; InputError without an embedding."""
    embedding = weights.get("decoder.token_embedding.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise InputError(f"{where}: the weights hold no token embedding; it is no whole Whisper model")
    return embedding.shape[0]


def whisper_card(name: str, config: ModelConfig, tensors: Mapping[str, Weight]) -> str:
    """Return the README.md of a checkpoint in another format."""
    layers = f"{config.encoder_layers} + {config.decoder_layers} layers of width {config.width}"
    count = sum(math.prod(weight.shape) for name, weight in tensors.items() if name != "encoder.positions")
    return (
        f"# {name}\n\nA Whisper model with {count / 1e6:.1f} million weights: {layers}, "
        f"{config.mel_bands} bands, {config.vocabulary} tokens.\n"
        "Its makers' card says what it was trained on and under which licence.\n"
    )
