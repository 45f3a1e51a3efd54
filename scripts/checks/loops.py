"""Loops in clips cut from anywhere, and words in recordings without speech.

    python scripts/checks/loops.py speech/*.jsonl --clips 10000 --keep FOLDER --without-speech noise/*.flac

Clips of 0.3 to 30 s are cut at random places from the recordings (audio files, folders or manifests). A loop is a
phrase that a text repeats at least four times in a row, or at least three times if it has three words or more, unless
the transcripts of the clip's recordings repeat it too. Prints JSON: clips, texts with loops, texts with repeats that
were said, minutes without speech, words there, and words per ten minutes. Clips with loops are written to FOLDER.
Status 1 if there was a loop, or more than one word in ten minutes.
"""

from __future__ import annotations

import argparse
import json
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
from focusasr.data.manifest import read_utterances  # noqa: E402
from focusasr.decoding.whisper_prompts import repeats, words_of  # noqa: E402
from focusasr.runtime.console import progress_bar  # noqa: E402

SHORTEST_SECONDS, LONGEST_SECONDS = 0.3, 30.0
DIGITS = {word: str(digit) for digit, word in enumerate("zero one two three four five six seven eight nine".split())}


def plain(text: str) -> list[str]:
    """Return the words of a text without case and punctuation, with single digits as such."""
    return [DIGITS.get(word, word) for word in words_of(text)]


def recordings(paths: list[str]) -> list[tuple[Any, str]]:
    """Return the audio of manifests and the audio files, with transcripts or empty texts."""
    found: list[tuple[Any, str]] = []
    for path in paths:
        if path.endswith(".jsonl"):
            found += [(one.source, one.text) for _, one in read_utterances(Path(path), text_required=False)]
        else:
            found.append((Path(path), ""))
    return found


def cuts(sources: list[tuple[Any, str]], count: int, seed: int) -> Iterator[tuple[np.ndarray, list[str]]]:
    """Yield clips of random length from random places of recordings, joined if one is too short, and their words."""
    chance = np.random.default_rng(seed)
    for _ in range(count):
        length = round(chance.uniform(SHORTEST_SECONDS, LONGEST_SECONDS) * SAMPLE_RATE_HZ)
        samples, words = np.zeros(0, np.float32), []
        while len(samples) < length:
            source, text = sources[chance.integers(len(sources))]
            samples = np.concatenate([samples, load(source)])
            words += plain(text)
        start = int(chance.integers(max(1, len(samples) - length)))
        yield samples[start : start + length], words


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
    said: list[dict[str, Any]] = []
    texts, seconds = [], 0.0
    with progress_bar(clips, "transcribing") as advance:
        for number, (samples, words) in enumerate(cuts(sources, clips, given.seed)):
            text = recognizer.transcribe(samples).text
            if found := repeats(plain(text)):
                really = f" {' '.join(found)} " in f" {' '.join(words)} "
                (said if really else loops).append({"repeats": " ".join(found), "text": text, "clip": number})
                if given.keep and not really:
                    given.keep.mkdir(parents=True, exist_ok=True)
                    soundfile.write(given.keep / f"{number}.wav", samples, SAMPLE_RATE_HZ)
            advance(1, len(samples) / SAMPLE_RATE_HZ)
    for source, _ in quiet:
        samples = load(source)
        seconds += len(samples) / SAMPLE_RATE_HZ
        texts += [recognizer.transcribe(samples).text.strip()]
    invented = sum(len(text.split()) for text in texts)
    rate = 600 * invented / seconds if seconds else 0.0
    shown = {"clips": clips, "loops": loops, "said": said, "minutes": round(seconds / 60, 1), "words": invented}
    print(json.dumps({**shown, "words_per_ten_minutes": round(rate, 2), "texts": [text for text in texts if text]}))
    return int(bool(loops) or rate > 1)


if __name__ == "__main__":
    sys.exit(main())
