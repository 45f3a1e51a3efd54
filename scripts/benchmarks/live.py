"""Latency of `focusasr listen` on a recording in simulated real time.

    python scripts/benchmarks/live.py tests/data/sample.flac [--model NAME] [--repeat 6]

Prints JSON: latency in seconds, median and 95th percentile, of partial words (from the end of a word to the first text
that shows any word in its place), of words (to the first text that shows this word), of stable words (to the first text
from which it is shown always) and of final texts (from the end of a segment), the shares of partial words and of words
within 0.3 s, corrections per word, and the share of one core. Only computing takes time: waiting and other processes do
not count. Case and punctuation of words are ignored.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import focusasr  # noqa: E402
from focusasr.audio.load import load  # noqa: E402
from focusasr.config import SAMPLE_RATE_HZ  # noqa: E402
from focusasr.transcription.live import LiveText, LiveTranscriber  # noqa: E402

BLOCK = SAMPLE_RATE_HZ // 20
NEAR = 2  # places by which a word may move in the text
PAUSE_SECONDS = 1.5  # between two repetitions

Seen = tuple[float, LiveText]  # when a text came, in seconds of the recording's time


class Clock:
    """Real time in which only this process computes: waiting is skipped, and other processes do not count."""

    def __init__(self) -> None:
        self._skipped = -time.process_time()

    def __call__(self) -> float:
        """Return the seconds since the start."""
        return time.process_time() + self._skipped

    def wait_until(self, seconds: float) -> None:
        """Skip the time until then, if it is not over."""
        self._skipped += max(0.0, seconds - self())


def play(live: LiveTranscriber, samples: np.ndarray) -> tuple[list[Seen], float]:
    """Return the texts of samples played in real time, and the share of one core."""
    clock, begin, seen = Clock(), time.process_time(), list[Seen]()
    live._clock, live._counted = clock, 0.0
    for at in range(0, len(samples), BLOCK):
        clock.wait_until((at + BLOCK) / SAMPLE_RATE_HZ)
        seen += [(clock(), text) for text in live.feed(samples[at : at + BLOCK])]
    seen += [(clock(), text) for text in live.end()]
    return seen, (time.process_time() - begin) / clock()


def by_segment(seen: list[Seen]) -> list[list[Seen]]:
    """Return the texts of each segment, the final one last."""
    segments: list[list[Seen]] = [[]]
    for one in seen:
        segments[-1].append(one)
        if one[1].final:
            segments.append([])
    return segments[:-1]


def words_of(text: LiveText) -> list[str]:
    """Return the words of a text without case and punctuation."""
    return [word for word in (re.sub(r"[^\w']", "", part.lower()) for part in text.text.split()) if word]


def word_latencies(segment: list[Seen]) -> tuple[list[float], ...]:
    """Return the seconds from the end of each final word until its place was filled, it was shown, and it stayed."""
    final = segment[-1][1]
    spoken = [(word["end"], word["word"]) for part in final.segments for word in part.words or ()]
    shown = [(when, words_of(text)) for when, text in segment]
    filled, first, stable = [], [], []
    for place, (end, word) in enumerate((end, *words_of(replace(final, text=word))[:1]) for end, word in spoken):
        has = [word in words[max(0, place - NEAR) : place + NEAR + 1] for _, words in shown]
        has[-1] = True
        filled.append(next((when for when, words in shown if len(words) > place), shown[-1][0]) - end)
        last_without = max((index for index, there in enumerate(has) if not there), default=-1)
        first.append(shown[has.index(True)][0] - end)
        stable.append(shown[last_without + 1][0] - end)
    return filled, first, stable


def corrections(segment: list[Seen]) -> int:
    """Return the number of words that were shown and later changed or removed."""
    texts = [words_of(text) for _, text in segment]
    return sum(
        before[place] != after[place : place + 1][0] if place < len(after) else True
        for before, after in itertools.pairwise(texts)
        for place in range(len(before))
    )


def main() -> None:
    """Play the file and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("file")
    parser.add_argument("--model")
    parser.add_argument("--repeat", type=int, default=1)
    given = parser.parse_args()
    recognizer = focusasr.load(given.model, "cpu", threads=1, word_timestamps=True)
    pause = np.zeros(round(PAUSE_SECONDS * SAMPLE_RATE_HZ), np.float32)
    samples = np.concatenate([load(given.file), pause] * given.repeat)
    recognizer.transcribe(samples[: 2 * SAMPLE_RATE_HZ])  # what is loaded at first use
    seen, share = play(recognizer.live(), samples)
    segments = by_segment(seen)
    found = [word_latencies(segment) for segment in segments]
    filled, words, stable = ([latency for lists in found for latency in lists[kind]] for kind in range(3))
    finals = [segment[-1][0] - segment[-1][1].end for segment in segments]
    figures: dict[str, object] = {"words": len(words)}
    for name, latencies in {"partial": filled, "word": words, "stable": stable, "final": finals}.items():
        figures[f"{name}_latency"] = [round(float(value), 2) for value in np.percentile(latencies, [50, 95])]
    for name, latencies in {"partial": filled, "word": words}.items():
        figures[f"{name}_within_300_ms"] = round(float(np.mean(np.array(latencies) <= 0.3)), 2)
    figures["corrections_per_word"] = round(sum(map(corrections, segments)) / len(words), 2)
    figures["core_share"] = round(share, 2)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
