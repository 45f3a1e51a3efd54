"""What Whisper's weights are called, what shape they say the model has, and how our classes take them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from focusasr.config import ModelConfig, TextConfig, WhisperConfig
from focusasr.model.transformer import Model
from focusasr.runtime.errors import InputError
from focusasr.runtime.settings import read_settings
from focusasr.text.whisper_tokenizer import ENGLISH_RANKS, WhisperTokenizer, special_tokens

ENGLISH_VOCABULARY = ENGLISH_RANKS + len(special_tokens(99))  # multilingual ones are larger

# Their names → ours. Layers: {encoder,decoder}.{layers,blocks}.N.REST, where REST is one of these.
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


class ImportedCheckpoint(NamedTuple):
    """What a Whisper checkpoint from elsewhere consists of."""

    model: Model
    tokenizer: WhisperTokenizer
    card: str


def rename_weight(name: str, parts: Mapping[str, str], rest: Mapping[str, str]) -> str | None:
    """Return our name of one of their weights; None for one that we do not have."""
    name = name.removeprefix("model.")
    if name in WHOLE_NAMES:
        return WHOLE_NAMES[name]
    stem, _, kind = name.rpartition(".")
    layer = re.fullmatch(r"(encoder|decoder)\.(?:layers|blocks)\.(\d+)\.(.+)", stem)
    if layer:
        part = parts.get(layer[3])
        return part and f"{layer[1]}.blocks.{layer[2]}.{part}.{kind}"
    return f"{rest[stem]}.{kind}" if stem in rest else name


def whisper_settings(shape: Mapping[str, Any], vocabulary: int, where: Path) -> ModelConfig:
    """Return Whisper's configuration of our classes for one of its shapes."""
    lacking = [name for name, value in shape.items() if value is None]
    if lacking:
        raise InputError(f"{where}: says nothing of the model's {lacking[0]}; copy it again")
    whisper = {
        "vocabulary": vocabulary, "strides": (1, 2), "attention": "global", "decoder_attention": "global",
        "conv_kernel": 0, "positions": "absolute", "ctc": False, "dropout": 0.0,
    }  # fmt: skip
    return read_settings(ModelConfig, {**whisper, **shape}, str(where))


def whisper_policy(settings: ModelConfig, multilingual: bool) -> TextConfig:
    """Return Whisper's text policy: as it is written; .en models speak English."""
    language = None if multilingual else "en"
    return TextConfig("keep", "keep", "bpe", language=language, vocabulary_size=settings.vocabulary)


def check_generation(whisper: WhisperConfig, settings: ModelConfig, where: Path) -> None:
    """Refuse tokens and heads that the model does not have."""
    forced = [token for _, token in whisper.forced_decoder_ids]
    tokens = {"suppress_tokens": whisper.suppress_tokens, "begin_suppress_tokens": whisper.begin_suppress_tokens}
    for name, ids in {**tokens, "forced_decoder_ids": forced}.items():
        bad = [id for id in ids if not 0 <= id < settings.vocabulary]
        if bad:
            raise InputError(f"{where}: {name} has {bad[0]}, but the model has {settings.vocabulary} tokens")
    for layer, head in whisper.alignment_heads:
        if not (0 <= layer < settings.decoder_layers and 0 <= head < settings.heads):
            shape = f"{settings.decoder_layers} decoder layers of {settings.heads} heads"
            raise InputError(f"{where}: alignment_heads has {[layer, head]}, but the model has {shape}")


def default_alignment_heads(settings: ModelConfig) -> list[tuple[int, int]]:
    """Return every head of the later half of the decoder: OpenAI's choice where nobody looked for better ones."""
    layers = range(settings.decoder_layers // 2, settings.decoder_layers)
    return [(layer, head) for layer in layers for head in range(settings.heads)]


def whisper_card(name: str, model: Model) -> str:
    """Return the README.md of a checkpoint from elsewhere."""
    config = model.config
    layers = f"{config.encoder_layers} + {config.decoder_layers} layers of width {config.width}"
    return (
        f"# {name}\n\nA Whisper model with {model.parameter_count() / 1e6:.1f} million weights: {layers}, "
        f"{config.mel_bands} bands, {config.vocabulary} tokens.\n"
        "Its makers' card says what it was trained on and under which licence.\n"
    )
