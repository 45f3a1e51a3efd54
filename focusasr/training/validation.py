"""Evaluation on dev manifests during training, and the model card of a checkpoint."""

from __future__ import annotations

import contextlib
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from focusasr.audio.features import input_mel
from focusasr.audio.load import load
from focusasr.config import DecodingConfig, ModelConfig
from focusasr.data.manifest import Utterance, read_manifest
from focusasr.decoding.ctc_attention import decode
from focusasr.evaluation.attention_stats import mean_spans
from focusasr.evaluation.wer import Score, score
from focusasr.model.engine import Engine
from focusasr.model.transformer import Model
from focusasr.runtime.devices import Processes
from focusasr.runtime.errors import InputError
from focusasr.runtime.files import free_name, printable
from focusasr.text.normalize import apply_policy
from focusasr.text.tokenizer import Tokenizer
from focusasr.training.batching import filled
from focusasr.training.dataset import parse_manifest_option

FRAMES_PER_BATCH = 12_000
FRAMES_HELD = 10 * FRAMES_PER_BATCH  # spectrograms in memory at once
ALONE = Processes()
FOCUS_UTTERANCES = 4  # utterances whose spans are logged


@dataclass(frozen=True)
class DevSet:
    """Utterances to evaluate on, and the name of their set."""

    name: str
    utterances: list[Utterance]


@dataclass(frozen=True)
class Measured:
    """A score with references and hypotheses, utterance by utterance."""

    score: Score
    references: list[str]
    hypotheses: list[str]
    broken: list[str]  # errors of unreadable recordings, which the score leaves out


def read_dev_sets(options: Iterable[str]) -> list[DevSet]:
    """Read dev manifests, named by folder and file, numbered if names repeat; InputError if one has no lines."""
    sets: list[DevSet] = []
    taken: set[str] = set()
    for option in options:
        path, _ = parse_manifest_option(option)
        utterances = read_manifest(path)
        if not utterances:
            raise InputError(f"{path}: no utterances to measure on; leave this dev manifest out or fill it")
        if not any(os.path.isfile(one.audio) for one in utterances):
            first = utterances[0].audio
            raise InputError(f"{path}: none of its recordings is there, such as {first}; correct the paths")
        name = printable(f"{path.absolute().parent.name}/{path.stem}")
        sets.append(DevSet(free_name(name, taken), utterances))
    return sets


def measure(
    model: Model, tokenizer: Tokenizer, dev: DevSet, processes: Processes = ALONE, normalizer: str = "none"
) -> Measured:
    """Transcribe a dev set and score it under the checkpoint's own text policy; InputError if none is readable.

    Every process transcribes its share and gets the whole result.
    """
    mine = list(_transcribe(model, tokenizer, processes.share(list(enumerate(dev.utterances)))))
    answers = sorted(processes.gather(mine))
    broken = [error for _, _, error in answers if error]
    heard = [(number, text) for number, text, error in answers if not error]
    if not heard:
        raise InputError(f"dev set {dev.name}: no recording can be read, such as {broken[0]}")
    references = [apply_policy(dev.utterances[number].text, tokenizer.policy) for number, _ in heard]
    hypotheses = [text for _, text in heard]
    return Measured(score(references, hypotheses, normalizer=normalizer), references, hypotheses, broken)


def overall_wer(scores: dict[str, Score]) -> float | None:
    """Return the mean of the dev sets' WERs with equal weights; None if no reference has a word."""
    rates = [score.wer for score in scores.values() if score.words]
    return sum(rates) / len(rates) if rates else None


def _transcribe(
    model: Model, tokenizer: Tokenizer, utterances: Sequence[tuple[int, Utterance]]
) -> Iterator[tuple[int, str, str]]:
    """Yield number, text and error of each numbered utterance, in any order."""
    engine = Engine(model)
    mels: dict[str | None, dict[int, Tensor]] = defaultdict(dict)
    held = 0
    for number, utterance in sorted(utterances, key=lambda one: one[1].duration or 0.0):
        try:
            mel = spectrogram(utterance, model.config)
        except InputError as error:
            yield number, "", str(error)
            continue
        mels[utterance.language][number] = mel
        held += len(mel)
        if held > FRAMES_HELD:
            yield from _decoded(engine, tokenizer, mels)
            mels.clear()
            held = 0
    yield from _decoded(engine, tokenizer, mels)


def _decoded(
    engine: Engine, tokenizer: Tokenizer, mels: Mapping[str | None, Mapping[int, Tensor]]
) -> Iterator[tuple[int, str, str]]:
    """Yield number, text and no error of numbered spectrograms, by language."""
    for language, numbered in mels.items():
        speaking = tokenizer.for_language(language)
        for rows in _batches({number: len(mel) for number, mel in numbered.items()}):
            answers = decode(engine, [numbered[row].to(engine.device) for row in rows], speaking, DecodingConfig())
            for row, answer in zip(rows, answers, strict=True):
                yield row, tokenizer.decode(answer.tokens), ""


def spectrogram(utterance: Utterance, model: ModelConfig) -> Tensor:
    """Return the spectrogram (F, M) of an utterance for a model; InputError if it cannot be read."""
    waveform = load(utterance.source)
    return input_mel(torch.from_numpy(waveform), model)


def few_mels(dev: DevSet, model: ModelConfig) -> list[torch.Tensor]:
    """Return the spectrograms of the first readable dev utterances."""
    mels: list[torch.Tensor] = []
    for utterance in dev.utterances:
        with contextlib.suppress(InputError):
            mels.append(spectrogram(utterance, model))
        if len(mels) == FOCUS_UTTERANCES:
            break
    return mels


def _batches(lengths: Mapping[int, int]) -> list[list[int]]:
    """Group rows of similar length with at most FRAMES_PER_BATCH frames per group, padding included."""
    rows = sorted(lengths, key=lengths.__getitem__)
    return [[rows[index] for index in group] for group in filled(sorted(lengths.values()), FRAMES_PER_BATCH)]


def focus(model: Model, mels: Sequence[Tensor]) -> list[dict[str, float]]:
    """Return each hybrid layer's mean span in milliseconds and mean temperature over some spectrograms (F, M)."""
    layers = mean_spans(model, mels) if model.config.attention == "hybrid" and mels else []
    return [{"span_ms": float(radii.mean()), "temperature": float(sharp.mean())} for radii, sharp in layers]


def _bounds(score: Score) -> str:
    return score.rates["wer"].bounds(lambda ratio: f"{100 * ratio:.1f}", "–").strip(" ()") or "none"


def _listed(manifests: Iterable[str]) -> str:
    return ", ".join(f"`{manifest}`" for manifest in manifests)


def model_card(name: str, model: Model, run: dict[str, Any], scores: dict[str, Score]) -> str:
    """Return the README.md of a checkpoint: model, training data and scores."""
    rows = [
        f"| {dev} | {100 * s.wer:.1f} | {_bounds(s)} | {100 * s.cer:.1f} | {s.words} |" for dev, s in scores.items()
    ]
    millions = model.parameter_count() / 1e6
    return "\n".join(
        [
            f"# {name}",
            "",
            f"A focusasr recognizer with {millions:.1f} million weights, {model.config.attention} attention.",
            "",
            *([f"It began as `{run['train']['init_from']}`.", ""] if run["train"].get("init_from") else []),
            f"Trained on: {_listed(run['data']['train'])}.",
            "",
            *([f"With its source's own texts on: {_listed(kept)}.", ""] if (kept := run["data"].get("keep")) else []),
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
