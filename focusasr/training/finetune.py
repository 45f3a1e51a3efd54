"""Fine-tuning: the source checkpoint, and the choice of trained parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from focusasr.config import SAMPLE_RATE_HZ, ModelConfig, TextConfig
from focusasr.model.attention import GlobalAttention, HybridAttention
from focusasr.model.checkpoint import Checkpoint, load_checkpoint
from focusasr.model.checkpoint_folder import find_checkpoint
from focusasr.model.transformer import Model
from focusasr.runtime.errors import SettingError, quote
from focusasr.runtime.settings import require, to_settings
from focusasr.text.tokenizer import Tokenizer
from focusasr.text.whisper_tokenizer import WhisperTokenizer
from focusasr.training.batching import LARGEST_GAP_SECONDS
from focusasr.training_config import TrainConfig

# Settings that may differ from the source: the first always, the others if the source has no hybrid layer yet.
MOSTLY = 0.9
FREE = {"dropout", "tail_frames"}
FOCUS = {
    "attention", "decoder_attention", "max_span", "initial_span", "ramp", "win_size", "temperature", "sharpen_longer",
    "temp_scale",
}  # fmt: skip
JOINED_SHARE = 0.8  # of the window: silences between utterances may be longer than their mean
OF_TOKENS = ("tokens", "vocabulary_size", "case")  # settings of [text] that the source's tokens depend on


def find_source(
    settings: dict[str, Any], folder: Path, last: Path | None, local_files_only: bool = False
) -> Checkpoint | None:
    """Return the checkpoint that a run's `[train] init_from` names, relative to `folder` if it is there.

    `last` is the run's own last checkpoint when it is resumed, which replaces the source.
    """
    name = settings.get("train", {}).get("init_from")
    if not isinstance(name, str):
        return None
    if last is not None:
        return load_checkpoint(last)
    place = str(folder / name) if (folder / name).exists() else name
    return load_checkpoint(find_checkpoint(place, local_files_only))


def settings_from(source: Checkpoint, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the tables of a run, with defaults from the source's model and text policy.

    InputError if the user sets an architecture that the source's weights do not fit.
    """
    given, there = settings.get("model", {}), to_settings(source.model.config)
    hybrid = "hybrid" in (there["attention"], there["decoder_attention"])
    for name, value in given.items():
        if name not in there and name != "preset":
            continue  # an unknown name, which read_run rejects
        same = name in there and there[name] == (tuple(value) if isinstance(value, list) else value)
        if not same and name not in FREE and (hybrid or name not in FOCUS):
            found = f"{quote(there[name])}, as" if name in there else "the size"
            raise SettingError(name, value, f"{found} in the checkpoint to start from; leave it out")
    policy = to_settings(source.tokenizer.policy)
    fixed = ("tokens", "vocabulary_size") if isinstance(source.tokenizer, WhisperTokenizer) else OF_TOKENS
    for name, value in settings.get("text", {}).items():
        if name in fixed and value != policy[name]:
            raise SettingError(name, value, f"{quote(policy[name])}, as in the checkpoint to start from; leave it out")
    text = {**policy, **settings.get("text", {})}
    return {**settings, "model": {**there, **given}, "text": text}


def settings_for(source: Checkpoint, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the tables of a run, with default training settings that fit a Whisper model.

    They were chosen on AN4's dev set with tiny.en: at the learning rate of a run from scratch, every transcript becomes
    empty.
    """
    if source.whisper is None:
        return settings
    given = settings.get("train", {})
    rate = 2e-4 if given.get("train_only") == "local" else 3e-5
    fitting: dict[str, Any] = {"learning_rate": rate, "warmup_steps": 20, "ema_decay": 0.99}
    if source.model.config.window_samples is not None:  # the window of 30 s may hold several utterances
        fitting |= {"join": 0.8, "join_seconds": 30.0}
    return {**settings, "train": {**fitting, **given}}


def warm_tokenizer(source: Checkpoint, policy: TextConfig) -> Tokenizer:
    """Return the source's tokenizer under the user's text policy."""
    if isinstance(source.tokenizer, WhisperTokenizer):
        return WhisperTokenizer(source.tokenizer.engine, policy, source.tokenizer.whisper)
    return Tokenizer(source.tokenizer.engine, policy)


def warm_model(config: ModelConfig, source: Model) -> Model:
    """Return a model with the source's weights; new hybrid layers compute what the source computes."""
    model = Model(config)
    wanting = model.load_state_dict(source.state_dict(), strict=False)
    assert not wanting.unexpected_keys
    before = dict(source.named_modules())
    for name, module in model.named_modules():
        if isinstance(module, HybridAttention) and isinstance(before[name], GlobalAttention):
            begin_as_global(module)
    return model


@torch.no_grad()
def begin_as_global(attention: HybridAttention) -> None:
    """Make a hybrid layer compute what its global branch alone computes: projection [0 | I], no bias.

    The local branch starts as the global one inside a window, which is a better start than random weights.
    """
    attention.ln_local.load_state_dict(attention.ln_global.state_dict())
    for part in ("query", "key", "value"):
        globe, local = getattr(attention.attn_global, part), getattr(attention.attn_local, part)
        local.load_state_dict(globe.state_dict())
    width = attention.projection.out_features
    attention.projection.weight.copy_(torch.cat((torch.zeros(width, width), torch.eye(width)), dim=1))
    attention.projection.bias.zero_()


def learn_only(model: Model, settings: TrainConfig) -> None:
    """Train only some weights: "all", "encoder", or "local", the additions of a hybrid layer to its global branch.

    SettingError if there are no such additions, or if the other weights would stay random.
    """
    if (train_only := settings.train_only) == "all":
        return
    wanted = "init_from too, since all other weights stay as they are there"
    require(settings.init_from is not None, "train_only", train_only, wanted)
    if train_only == "encoder":
        model.decoder.requires_grad_(False)
        return
    hybrid = [module for module in model.modules() if isinstance(module, HybridAttention)]
    if not hybrid:
        raise SettingError("train_only", train_only, "a model with hybrid attention, as --attention hybrid makes it")
    model.requires_grad_(False)
    for module in hybrid:
        new: tuple[nn.Module, ...] = (module.ln_local, module.attn_local, module.span_pred, module.projection)
        for part in new:
            part.requires_grad_(True)


def within_window(settings: TrainConfig, model: ModelConfig) -> TrainConfig:
    """Return the settings with items short enough for absolute positions, whatever their speed and silences."""
    if model.longest_samples is None:
        return settings
    longest = model.longest_samples / SAMPLE_RATE_HZ * (1 - settings.speed) - 2 * LARGEST_GAP_SECONDS
    if longest <= 0:
        raise SettingError("audio_context", model.audio_context, "room for more than a second of audio")
    joined = min(settings.join_seconds, JOINED_SHARE * longest)  # the rest is for silences between utterances
    return dataclasses.replace(settings, max_seconds=min(settings.max_seconds, longest), join_seconds=joined)


def remarks(settings: TrainConfig, model: ModelConfig, tokenizer: Tokenizer, measured: bool = True) -> list[str]:
    """Return lines on the source checkpoint and on settings that do not apply."""
    lines = [f"begins as {settings.init_from}"] if settings.init_from else []
    if settings.train_only == "local":
        lines.append("only the local branches and their projections learn")
    if settings.train_only == "encoder":
        lines.append("the decoder stays as it is")
    if not model.ctc and settings.ctc_weight not in (0, TrainConfig.ctc_weight):
        lines.append("ctc_weight is ignored: this model has no CTC head")
    if settings.intermediate_ctc > 0 and not (model.ctc and settings.ctc_weight > 0 and model.encoder_layers > 1):
        lines.append("intermediate_ctc is ignored: it needs a CTC head, ctc_weight and two encoder layers")
    if settings.span_penalty > 0 and model.attention != "hybrid":
        lines.append("span_penalty is ignored: this model's encoder has global attention, without spans")
    if settings.patience > 0 and not measured:
        lines.append("patience is ignored: there is no dev manifest")
    if isinstance(tokenizer, WhisperTokenizer) and tokenizer.whisper.multilingual and not tokenizer.policy.language:
        lines.append("texts of manifests without a language count as English; --language changes that")
    return lines


def style_remarks(texts: Sequence[str], source: Checkpoint | None) -> list[str]:
    """Return lines on training texts in another style than the source model's output."""
    if source is None or source.whisper is None or not texts:
        return []
    lines = []
    cased = [text for text in texts if text.upper() != text.lower()]
    if cased and sum(text == text.upper() for text in cased) > MOSTLY * len(cased):
        lines.append("texts are in capitals; the source writes sentence case and will unlearn it: --case lower")
    if not any(text.rstrip().endswith(tuple(".?!…。？！")) for text in texts):
        lines.append("texts have no punctuation; the source writes it and will unlearn it")
    return lines


def freeze(model: Model, layers: int) -> None:
    """Keep the stem and the lowest encoder layers fixed; SettingError if there are fewer layers."""
    blocks = model.encoder.blocks
    if layers > len(blocks):
        raise SettingError("freeze", layers, f"0 to {len(blocks)}, the encoder's layers")
    for module in (model.encoder.stem, *blocks[:layers]) if layers else ():
        module.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise SettingError("freeze", layers, "fewer layers, since nothing is left to train")
