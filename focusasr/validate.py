"""A model in training measured on dev manifests, and the card that is written beside its weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from focusasr import audio
from focusasr.config import DecodingConfig, ModelConfig
from focusasr.data import parse_manifest_option
from focusasr.decoding import decode
from focusasr.engine import Engine
from focusasr.features import log_mel
from focusasr.manifest import Utterance, read_manifest
from focusasr.model import Model
from focusasr.score import Score, score
from focusasr.settings import InputError
from focusasr.text import apply_policy
from focusasr.tokenizer import Tokenizer

FRAMES_PER_BATCH = 12_000


@dataclass(frozen=True)
class DevSet:
    """Utterances to measure on, and the name they go by."""

    name: str
    utterances: list[Utterance]


@dataclass(frozen=True)
class Measured:
    """A score and what was said and heard, utterance by utterance."""

    score: Score
    references: list[str]
    hypotheses: list[str]
    broken: list[str]  # what could not be read and is not in the score


def read_dev_set(option: str) -> DevSet:
    """Read one dev manifest, named by its folder and file; InputError where it has no lines."""
    path, _ = parse_manifest_option(option)
    utterances = read_manifest(path)
    if not utterances:
        raise InputError(f"{path}: no utterances to measure on; leave this dev manifest out or fill it")
    return DevSet(f"{path.absolute().parent.name}/{path.stem}", utterances)


def measure(model: Model, tokenizer: Tokenizer, dev: DevSet) -> Measured:
    """Transcribe a dev set and score it under the checkpoint's own text policy; InputError where none can be read."""
    device = next(model.parameters()).device
    heard, mels, broken = _listen(dev, model.config)
    hypotheses = [""] * len(mels)
    engine, config = Engine(model), DecodingConfig()
    for rows in _batches([mel.shape[0] for mel in mels]):
        for row, answer in zip(
            rows, decode(engine, [mels[r].to(device) for r in rows], tokenizer, config), strict=True
        ):
            hypotheses[row] = tokenizer.decode(answer.tokens)
    references = [apply_policy(utterance.text, tokenizer.policy) for utterance in heard]
    return Measured(score(references, hypotheses, normalizer="none"), references, hypotheses, broken)


def _listen(dev: DevSet, config: ModelConfig) -> tuple[list[Utterance], list[Tensor], list[str]]:
    """Return the utterances that can be read, their spectrograms (F, M), and lines on those that cannot."""
    heard, mels, broken = [], [], []
    for utterance in dev.utterances:
        try:
            waveform = audio.load(audio.Source(str(utterance.audio), utterance.offset, utterance.duration))
        except InputError as error:
            broken.append(str(error))
            continue
        heard.append(utterance)
        mels.append(log_mel(torch.from_numpy(waveform), config.mel_bands, config.window_samples))
    if not heard:
        raise InputError(f"dev set {dev.name}: no recording can be read, such as {broken[0]}")
    return heard, mels, broken


def _batches(lengths: Sequence[int]) -> list[list[int]]:
    """Group rows of similar length so that no group holds more than FRAMES_PER_BATCH frames, padding included."""
    groups: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        if not groups or (len(groups[-1]) + 1) * lengths[row] > FRAMES_PER_BATCH:
            groups.append([])
        groups[-1].append(row)
    return groups


def model_card(name: str, model: Model, run: dict[str, Any], scores: dict[str, Score]) -> str:
    """Return the README.md of a checkpoint: what it is, what it was trained on, what it scores."""
    rows = [
        f"| {dev} | {100 * s.wer:.1f} | {100 * s.wer_low:.1f}–{100 * s.wer_high:.1f} | {100 * s.cer:.1f} | {s.words} |"
        for dev, s in scores.items()
    ]
    millions = model.parameter_count() / 1e6
    return "\n".join(
        [
            f"# {name}",
            "",
            f"A focusasr recognizer with {millions:.1f} million weights, {model.config.attention} attention.",
            "",
            *([f"It began as `{run['train']['init_from']}`.", ""] if run["train"].get("init_from") else []),
            "Trained on: " + ", ".join(f"`{manifest}`" for manifest in run["data"]["train"]) + ".",
            "",
            "Measured on dev while training, under the checkpoint's own text policy, with 95 % bootstrap intervals:",
            "",
            "| set | WER % | interval | CER % | words |",
            "|---|---|---|---|---|",
            *rows,
            "",
            "What it was not trained on it cannot be expected to read. A test set gives the final figure:",
            "`focusasr evaluate TEST.jsonl --model FOLDER`.",
            "",
        ]
    )
