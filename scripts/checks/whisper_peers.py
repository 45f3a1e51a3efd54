"""The same Whisper weights in openai-whisper and faster-whisper, for comparison with focusasr.

Both packages are in the extra `peers`. Their models are made from a loaded checkpoint, so that any format will do.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from focusasr.model.checkpoint import Checkpoint
from focusasr.model.export import check_plain_whisper, save_ctranslate2
from focusasr.model.whisper_weights import OPENAI_PARTS, OPENAI_REST

if TYPE_CHECKING:
    from faster_whisper import WhisperModel
    from whisper.model import Whisper

POSITIONS = {"encoder.positions": "encoder.positional_embedding"}  # our name → OpenAI's


def openai_whisper(checkpoint: Checkpoint, source: str = "the model") -> Whisper:
    """Return openai-whisper's model with a checkpoint's weights in float32; InputError if it cannot compute them."""
    from whisper.model import ModelDimensions, Whisper

    check_plain_whisper(checkpoint, source, "openai-whisper")
    config, whisper = checkpoint.model.config, checkpoint.whisper
    assert whisper is not None and config.audio_context is not None
    shape = (config.width, config.heads)
    dims = ModelDimensions(
        config.mel_bands, config.audio_context, *shape, config.encoder_layers,
        config.vocabulary, config.text_context, *shape, config.decoder_layers,
    )  # fmt: skip
    model = Whisper(dims).eval()
    model.load_state_dict({openai_name(name): value for name, value in checkpoint.model.state_dict().items()})
    heads = torch.zeros(config.decoder_layers, config.heads, dtype=torch.bool)
    for layer, head in whisper.alignment_heads or ():
        heads[layer, head] = True
    if heads.any():
        model.register_buffer("alignment_heads", heads.to_sparse(), persistent=False)
    return model


def openai_name(name: str) -> str:
    """Return OpenAI's name of one of our weights."""
    if name in POSITIONS:
        return POSITIONS[name]
    stem, _, kind = name.rpartition(".")
    side, _, rest = stem.partition(".blocks.")
    if not rest:
        return f"{_turned(OPENAI_REST).get(stem, stem)}.{kind}" if stem else name
    layer, _, part = rest.partition(".")
    return f"{side}.blocks.{layer}.{_turned(OPENAI_PARTS)[part]}.{kind}"


def _turned(names: Mapping[str, str]) -> dict[str, str]:
    return {ours: theirs for theirs, ours in names.items()}


def faster_whisper(checkpoint: Checkpoint, source: str = "the model", **options: Any) -> WhisperModel:
    """Return faster-whisper's model with a checkpoint's weights; `options` are those of its class.

    InputError if it cannot compute them.
    """
    from faster_whisper import WhisperModel

    check_plain_whisper(checkpoint, source, "faster-whisper")
    with tempfile.TemporaryDirectory() as place:
        save_ctranslate2(Path(place), checkpoint, torch.float32)
        return WhisperModel(place, device="cpu", **options)
