"""Extract segments without speech from recordings, for `--noise-folder`.

    scripts/recipes/cut_noise.py data/noise data/an4/train.jsonl data/kathleen/train.jsonl

Segments before the first and after the last speech of each utterance, 0.4 s away from it, become FLAC files if they
are long enough.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import soundfile

from focusasr.audio.load import load
from focusasr.audio.vad import FRAME_SAMPLES, FRAMES_PER_SECOND, speech_frames
from focusasr.config import SAMPLE_RATE_HZ
from focusasr.data.manifest import read_manifest

SHORTEST_SECONDS = 0.2
PADDING_FRAMES = round(0.4 * FRAMES_PER_SECOND)  # left out on both sides of speech
THRESHOLD = 0.3  # of the pause finder: what may be speech is none of ours


def stretches(waveform: np.ndarray) -> list[np.ndarray]:
    """Return the segments before and after the speech of a waveform (N,), if it has speech."""
    spoken = np.flatnonzero(speech_frames(waveform, THRESHOLD))
    if not len(spoken):
        return []
    first, last = (spoken[0] - PADDING_FRAMES) * FRAME_SAMPLES, (spoken[-1] + 1 + PADDING_FRAMES) * FRAME_SAMPLES
    parts = waveform[: max(0, first)], waveform[last:]
    return [part for part in parts if len(part) >= SHORTEST_SECONDS * SAMPLE_RATE_HZ and part.any()]


def main() -> None:
    """Cut, write, count."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", 1)[0])
    parser.add_argument("output", type=Path, help="folder for the stretches")
    parser.add_argument("manifests", type=Path, nargs="+", help="recordings to cut")
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    count, seconds = 0, 0.0
    for path in given.manifests:
        for utterance in read_manifest(path):
            waveform = load(utterance.source)
            for part in stretches(waveform):
                soundfile.write(given.output / f"{count:05}.flac", part, SAMPLE_RATE_HZ)
                count, seconds = count + 1, seconds + len(part) / SAMPLE_RATE_HZ
    print(f"{count} stretches, {seconds / 60:.1f} minutes")


if __name__ == "__main__":
    main()
