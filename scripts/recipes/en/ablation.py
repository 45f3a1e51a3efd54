"""Ablation of the hybrid attention on a real Whisper: the same adaptation with and without it, on several seeds.

    scripts/recipes/en/ablation.py tiny.en RECORDINGS… --dev DEV.jsonl --noise-folder DIR -o runs/ablation

It adapts the source on the recordings (manifests, as for `focusasr adapt`) once per variant and seed, with equal steps
and data, evaluates each model on short clips of DEV, on the same clips joined to at most 28 s, and in noise, and prints
a table. What is finished is not run again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile

from focusasr.audio.load import load
from focusasr.config import SAMPLE_RATE_HZ
from focusasr.data.manifest import Utterance, read_manifest
from focusasr.runtime.console import stderr

VARIANTS = {
    "global": ("--attention", "global"),
    "hybrid": ("--attention", "hybrid"),
    "hybrid, longer spans flatter": ("--attention", "hybrid", "--no-sharpen-longer"),
    "hybrid, temperature by formula": ("--attention", "hybrid", "--temperature", "formula"),
}
LONGEST_SECONDS, PAUSE_SECONDS, NOISE_DB = 28.0, 0.4, 5.0


def write_set(folder: Path, items: Iterator[tuple[np.ndarray, str]]) -> Path:
    """Write recordings and their manifest, and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, (samples, text) in enumerate(items):
        path = folder / f"{number:03}.flac"
        soundfile.write(path, samples, SAMPLE_RATE_HZ)
        rows.append({"audio_filepath": str(path.absolute()), "duration": len(samples) / SAMPLE_RATE_HZ, "text": text})
    manifest = folder / "test.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return manifest


def joined(clips: list[tuple[np.ndarray, str]]) -> Iterator[tuple[np.ndarray, str]]:
    """Yield the clips joined with pauses, in their order."""
    pause = np.zeros(round(PAUSE_SECONDS * SAMPLE_RATE_HZ), np.float32)
    group: list[tuple[np.ndarray, str]] = []
    for clip in [*clips, None]:
        long = clip and sum(len(one) + len(pause) for one, _ in [*group, clip]) > LONGEST_SECONDS * SAMPLE_RATE_HZ
        if group and (clip is None or long):
            yield np.concatenate([part for one, _ in group for part in (one, pause)]), " ".join(t for _, t in group)
            group = []
        group += [clip] if clip else []


def noisy(clips: list[tuple[np.ndarray, str]], noises: list[np.ndarray]) -> Iterator[tuple[np.ndarray, str]]:
    """Yield the clips with noise, each at NOISE_DB of signal over noise."""
    chance = np.random.default_rng(0)
    for samples, text in clips:
        noise = noises[chance.integers(len(noises))]
        start = chance.integers(max(1, len(noise) - len(samples)))
        part = np.resize(noise[start : start + len(samples)], len(samples))
        gain = np.sqrt(np.mean(samples**2) / max(1e-12, float(np.mean(part**2)))) * 10 ** (-NOISE_DB / 20)
        yield np.clip(samples + gain * part, -1, 1).astype(np.float32), text


def sets(dev: list[Utterance], noise_folder: Path, folder: Path) -> dict[str, Path]:
    """Return the evaluation sets by name."""
    clips = [(load(one.source), one.text) for one in dev]
    noises = [load(path) for path in sorted(noise_folder.iterdir()) if path.suffix in (".flac", ".wav", ".opus")]
    made = {"short": iter(clips), "joined": joined(clips), "noisy": noisy(clips, noises)}
    return {name: write_set(folder / name, items) for name, items in made.items()}


def call(*command: object) -> str:
    """Run focusasr, with its progress on stderr, and return its stdout."""
    words = [sys.executable, "-m", "focusasr", *map(str, command)]
    return subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout


def scores(model: Path, tests: dict[str, Path]) -> dict[str, float]:
    """Return WER % per set, and seconds of computation per hour of audio, stored beside the model."""
    path = model / "ablation.json"
    if not path.is_file():
        found = {}
        for name, manifest in tests.items():
            report = json.loads(
                call("evaluate", manifest, "--model", model / "last", "--normalizer", "english", "--json")
            )
            found[name] = 100 * report["wer"]
            found[f"{name} s/h"] = 3600 * report["seconds"] / report["audio_seconds"]
        path.write_text(json.dumps(found), encoding="utf-8")
    return json.loads(path.read_text(encoding="utf-8"))


def main() -> None:
    """Adapt, evaluate, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("recordings", nargs="+")
    parser.add_argument("--dev", type=Path, required=True)
    parser.add_argument("--noise-folder", type=Path, required=True)
    parser.add_argument("-o", "--output-dir", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batch-seconds", type=float, default=24)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--variants", nargs="+", default=["global", "hybrid"], choices=VARIANTS)
    given = parser.parse_args()
    tests = sets(read_manifest(given.dev), given.noise_folder, given.output_dir / "sets")
    table: dict[str, list[dict[str, float]]] = {}
    for seed in range(given.seeds):
        for variant in given.variants:
            folder = given.output_dir / f"{variant.replace(', ', '-').replace(' ', '-')}-{seed}"
            if not (folder / "done").is_file():
                call(
                    "adapt", given.source, *given.recordings, *VARIANTS[variant], "-o", folder, "--seed", seed,
                    "--steps", given.steps, "--batch-seconds", given.batch_seconds, "--warmup-steps", 10,
                    "--evaluate-every", given.steps,
                    *(("--max-span", 64, "--ramp", 8, "--win-size", 64) if variant != "global" else ()),
                )  # fmt: skip
                (folder / "done").touch()
            table.setdefault(variant, []).append(scores(folder, tests))
            stderr().print(f"{variant}, seed {seed}: {table[variant][-1]}")
    columns = list(next(iter(table.values()))[0])
    print("| variant | " + " | ".join(columns) + " |\n|---|" + "---|" * len(columns))
    for variant, runs in table.items():
        cells = [[run[column] for run in runs] for column in columns]
        shown = [f"{statistics.mean(cell):.1f} ({', '.join(f'{one:.1f}' for one in cell)})" for cell in cells]
        print(f"| {variant} | " + " | ".join(shown) + " |")


if __name__ == "__main__":
    main()
