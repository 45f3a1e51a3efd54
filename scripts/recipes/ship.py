"""Measure a trained checkpoint on test manifests, write its card, and bundle it.

    scripts/recipes/ship.py runs/alnum/best checkpoints/focusasr-alnum-en scripts/recipes/alnum-en/card.md \\
        data/an4/test.jsonl data/fsdd/test.jsonl [--dtype int8]

Everything is measured on the stored checkpoint, with the default options of `transcribe`. The card is the given text
with {results}, {size}, {training} and {spans} filled in; the figures are also written to metrics.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from focusasr.audio.features import input_mel
from focusasr.audio.load import load
from focusasr.audio.source import Source
from focusasr.data.manifest import read_manifest
from focusasr.evaluation.analysis import to_json
from focusasr.evaluation.attention_stats import mean_spans
from focusasr.evaluation.bootstrap import Interval
from focusasr.evaluation.evaluate import evaluate
from focusasr.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from focusasr.model.transformer import Model
from focusasr.runtime.files import read_json, written_aside
from focusasr.transcription.loaded_model import load_recognizer
from focusasr.transcription.recognizer import AnyRecognizer, ModelChoice
from focusasr.transcription.result import Outcome

NORMALIZERS = ("basic", "english")


def main() -> None:
    """Measure, write the card, copy."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    for name in ("source", "target", "card"):
        parser.add_argument(name, type=Path)
    parser.add_argument("manifests", type=Path, nargs="+")
    parser.add_argument("--dtype", choices=("float32", "float16", "int8"), default="float32")
    asked = parser.parse_args()
    source, target, card, manifests = asked.source, asked.target, asked.card, asked.manifests
    dtype = getattr(torch, asked.dtype)
    checkpoint = load_checkpoint(source)
    run = read_json(source / "config.json")["run"]
    with tempfile.TemporaryDirectory() as place:
        save_checkpoint(Path(place) / "stored", checkpoint, dtype=dtype)
        recognizer = load_recognizer(ModelChoice(str(Path(place) / "stored")), {}).recognizer
        results = {f"{path.absolute().parent.name}/{path.stem}": measured(recognizer, path) for path in manifests}
    text = card.read_text(encoding="utf-8").format(
        results=results_table(results),
        size=size_line(checkpoint, asked.dtype),
        training=training_line(checkpoint, run),
        spans=spans_table(checkpoint.model, manifests[0]),
    )
    shipped = dataclasses.replace(checkpoint, card=text, metrics={**checkpoint.metrics, "test": results})
    with written_aside(target) as aside:
        save_checkpoint(aside, shipped, public(run), dtype=dtype)
    print(results_table(results))


def public(run: dict[str, Any]) -> dict[str, Any]:
    """Return a run's settings and manifests, with files by the last two parts of their paths."""

    def last_two(path: str) -> str:
        return "/".join(Path(path).parts[-2:])

    data = {split: [last_two(option) for option in options] for split, options in run["data"].items()}
    train = run["train"]
    places = {name: train.get(name) and last_two(train[name]) for name in ("init_from", "noise_folder", "room_folder")}
    return {"train": {**train, **places}, "data": data}


def measured(recognizer: AnyRecognizer, manifest: Path) -> dict[str, Any]:
    """Return the figures of one manifest under each normalizer, transcribed once."""
    utterances = read_manifest(manifest)
    outcomes = list(recognizer.transcribe([utterance.source for utterance in utterances]))
    print(f"{manifest}: transcribed", file=sys.stderr)

    def replay(sources: Iterable[Source], *_: object) -> Iterator[Outcome]:
        return (outcome for _, outcome in zip(sources, outcomes, strict=True))

    return {name: to_json(evaluate(replay, utterances, name)) for name in NORMALIZERS}


def results_table(results: dict[str, dict[str, Any]]) -> str:
    """Return WER per test set with its 95 % interval, as a Markdown table."""
    rows = [
        "| test set | utterances | words | WER % (95 % interval) | CER % | WER %, Whisper's English normalizer |",
        "|---|---|---|---|---|---|",
    ]
    for name, figures in results.items():
        plain, english = figures["basic"], figures["english"]
        rows.append(
            f"| {name} | {plain['utterances']} | {plain['words']} | {interval(plain)} | {100 * plain['cer']:.1f} "
            f"| {interval(english)} |"
        )
    return "\n".join(rows)


def interval(figures: dict[str, Any]) -> str:
    """Return a WER with its interval, in percent; one recording has no interval."""
    rate = Interval(*(figures[key] for key in ("wer", "wer_low", "wer_high")))
    bounds = rate.bounds(lambda ratio: f"{100 * ratio:.1f}", "–") or " (one recording)"
    return f"{100 * rate.value:.1f}{bounds}"


def size_line(checkpoint: Checkpoint, dtype: str) -> str:
    """Return the size and the parts of the model as text."""
    config, tokens = checkpoint.model.config, checkpoint.tokenizer.policy.tokens
    return (
        f"{checkpoint.model.parameter_count() / 1e6:.1f} million weights ({dtype}): "
        f"{config.encoder_layers} encoder and {config.decoder_layers} decoder layers, width {config.width}, "
        f"{config.heads} heads, {config.attention} attention, {1000 * config.step_seconds:.0f} ms steps, "
        f"{config.vocabulary} tokens ({tokens})"
    )


def training_line(checkpoint: Checkpoint, run: dict[str, Any]) -> str:
    """Return the duration of the training as text."""
    position = checkpoint.metrics["position"]
    return (
        f"{position['step']} of {run['train']['steps']} steps, {position['audio_seconds'] / 3600:.0f} hours of speech "
        f"heard (augmented and repeated), {position['seconds'] / 60:.0f} minutes of training and dev measurements"
    )


def spans_table(model: Model, manifest: Path) -> str:
    """Return the hybrid layers' local radius in ms and temperature per head, means over a manifest."""
    rows = ["| layer | local radius of each head, ms | temperature of each head |", "|---|---|---|"]
    waveforms = (load(u.source) for u in read_manifest(manifest)[:64])
    mels = (input_mel(torch.from_numpy(waveform), model.config) for waveform in waveforms)
    for layer, (radii, temperatures) in enumerate(mean_spans(model, mels), start=1):
        shown = ", ".join(f"{radius:.0f}" for radius in radii.tolist())
        sharp = ", ".join(f"{value:.2f}" for value in temperatures.tolist())
        rows.append(f"| {layer} | {shown} | {sharp} |")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
