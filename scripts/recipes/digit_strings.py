"""Join single digits of FSDD to strings, as dev and test sets.

    scripts/recipes/digit_strings.py data/fsdd data/digit_strings

writes FOLDER/dev.jsonl and test.jsonl of 100 strings each, of 3 to 12 digits by one speaker, sampled with replacement
from the same split with a fixed seed, with pauses up to 0.4 s.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import numpy as np
import soundfile

from focusasr.audio.load import load
from focusasr.config import SAMPLE_RATE_HZ
from focusasr.data.manifest import Utterance, read_manifest, write_manifest
from focusasr.training.batching import join

STRINGS = 100
SHORTEST, LONGEST = 3, 12


def write_strings(
    digits: list[Utterance], goals: list[float], manifest: Path, seed: int, in_seconds: bool = False
) -> None:
    """Join digits of one speaker, sampled with replacement, until each string has its goal: digits, or seconds of
    speech.

    The audio is written to a folder next to the manifest, with the same name.
    """
    choose, gaps = random.Random(seed), np.random.default_rng(seed)
    speakers = sorted({str(digit.extra["speaker"]) for digit in digits})
    utterances = []
    folder = manifest.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    for number, goal in enumerate(goals):
        speaker = choose.choice(speakers)
        own, said, reached = [digit for digit in digits if digit.extra["speaker"] == speaker], [], 0.0
        while reached < goal:
            said.append(choose.choice(own))
            reached += (said[-1].duration or 0.0) if in_seconds else 1
        sound = join([load(d.source) for d in said], gaps)
        path = folder / f"{number:03}.flac"
        soundfile.write(path, sound, SAMPLE_RATE_HZ)
        text = " ".join(digit.text for digit in said)
        utterances.append(
            Utterance(path.relative_to(manifest.parent), text, 0.0, len(sound) / SAMPLE_RATE_HZ, {"speaker": speaker})
        )
    write_manifest(manifest, utterances)


def main() -> None:
    """Write both sets."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", 1)[0])
    parser.add_argument("fsdd", type=Path, help="holds dev.jsonl and test.jsonl with the speakers' names")
    parser.add_argument("output", type=Path, help="folder for both manifests and their audio")
    given = parser.parse_args()
    for seed, split in enumerate(("dev", "test")):
        draw = random.Random(seed)
        counts = [float(draw.randint(SHORTEST, LONGEST)) for _ in range(STRINGS)]
        write_strings(read_manifest(given.fsdd / f"{split}.jsonl"), counts, given.output / f"{split}.jsonl", seed)


if __name__ == "__main__":
    main()
