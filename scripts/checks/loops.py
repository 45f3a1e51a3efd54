"""Loops in clips cut from anywhere, and words in recordings without speech.

    python scripts/checks/loops.py speech/*.jsonl --clips 10000 --keep FOLDER --without-speech noise/*.flac

Clips of 0.3 to 30 s are cut at random places from the recordings (audio files, folders or manifests). A loop is a
phrase that a text repeats at least four times in a row, or at least three times if it has three words or more. Prints
JSON: clips, texts with loops, minutes without speech, words there, and words per ten minutes. Clips with loops are
written to FOLDER. Status 1 if there was a loop, or more than one word in ten minutes.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import focusasr  # noqa: E402
from focusasr.audio.load import load  # noqa: E402
from focusasr.config import SAMPLE_RATE_HZ  # noqa: E402
from focusasr.data.manifest import read_manifest  # noqa: E402
from focusasr.runtime.console import progress_bar  # noqa: E402

SHORTEST_SECONDS, LONGEST_SECONDS = 0.3, 30.0
LONGEST_PHRASE = 12  # words


def loop(text: str) -> str | None:
    """Return the first phrase that is repeated at once, or None."""
    words = re.sub(r"[^\w' ]", "", text.lower()).split()
    for length in range(1, LONGEST_PHRASE + 1):
        times = 3 if length >= 3 else 4
        for at in range(len(words) - times * length + 1):
            phrase = words[at : at + length]
            if all(words[at + length * k : at + length * (k + 1)] == phrase for k in range(times)):
                return " ".join(phrase)
    return None


def recordings(paths: list[str]) -> list[Any]:
    """Return the audio of manifests and the audio files."""
    found: list[Any] = []
    for path in paths:
        found += [one.source for one in read_manifest(Path(path))] if path.endswith(".jsonl") else [Path(path)]
    return found


def cuts(sources: list[Any], count: int, seed: int) -> Iterator[np.ndarray]:
    """Yield clips of random length from random places of the recordings; several are joined if one is too short."""
    chance = np.random.default_rng(seed)
    for _ in range(count):
        samples, length = (
            np.zeros(0, np.float32),
            round(chance.uniform(SHORTEST_SECONDS, LONGEST_SECONDS) * SAMPLE_RATE_HZ),
        )
        while len(samples) < length:
            samples = np.concatenate([samples, load(sources[chance.integers(len(sources))])])
        start = int(chance.integers(max(1, len(samples) - length)))
        yield samples[start : start + length]


def main() -> int:
    """Transcribe the clips and the recordings without speech, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recordings", nargs="*")
    parser.add_argument("--clips", type=int, default=1000)
    parser.add_argument("--without-speech", nargs="*", default=[], metavar="PATH")
    parser.add_argument("--model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, metavar="FOLDER")
    given = parser.parse_args()
    recognizer = focusasr.load(given.model, "cpu")
    sources, quiet = recordings(given.recordings), recordings(given.without_speech)
    clips = given.clips if sources else 0
    loops: list[dict[str, Any]] = []
    texts, seconds = [], 0.0
    with progress_bar(clips, "transcribing") as advance:
        for number, samples in enumerate(cuts(sources, clips, given.seed)):
            text = recognizer.transcribe(samples).text
            if phrase := loop(text):
                loops.append({"phrase": phrase, "text": text, "clip": number})
                if given.keep:
                    given.keep.mkdir(parents=True, exist_ok=True)
                    soundfile.write(given.keep / f"{number}.wav", samples, SAMPLE_RATE_HZ)
            advance(1, len(samples) / SAMPLE_RATE_HZ)
    for source in quiet:
        samples = load(source)
        seconds += len(samples) / SAMPLE_RATE_HZ
        texts += [recognizer.transcribe(samples).text.strip()]
    words = sum(len(text.split()) for text in texts)
    rate = 600 * words / seconds if seconds else 0.0
    shown = {"clips": clips, "loops": loops, "minutes": round(seconds / 60, 1), "words": words}
    print(json.dumps({**shown, "words_per_ten_minutes": round(rate, 2), "texts": [text for text in texts if text]}))
    return int(bool(loops) or rate > 1)


if __name__ == "__main__":
    sys.exit(main())
