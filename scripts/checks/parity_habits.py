"""Parity of decoding, long recordings, word times and files, as counts of differences.

The random models and the comparisons are those of the tests, which report each case separately.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

Line = tuple[str, str, int]  # what, against what, how many differ


def compare_search() -> Iterator[Line]:
    """Compare the texts of two inputs and two models, greedily and with five beams."""
    from tests.decoding.test_beam_search import both

    for name, options in (("greedy", {}), ("5 beams", {"beam_size": 5})):
        pairs = [pair for seed in (0, 1) for pair in zip(*both(seed, [0, 1], **options), strict=True)]
        wrong = sum(ours.tokens != theirs.tokens for ours, theirs in pairs)
        tokens = sum(len(ours.tokens) for ours, _ in pairs)
        yield f"{len(pairs)} texts of {tokens} tokens, {name}", "openai-whisper", wrong


def compare_longform(folder: Path) -> Iterator[Line]:
    """Compare the whole result on 70 s of audio, with and without word times."""
    import soundfile

    from tests.transcription.test_whisper import GREEDY, MULTILINGUAL, Source, chirps, recognize, theirs

    path = folder / "chirps.wav"
    soundfile.write(path, chirps(70.0).numpy(), 16_000, subtype="FLOAT")
    for name, options in (("", {}), (" with word times", {"word_timestamps": True, "language": "en"})):
        ours = recognize(Source(str(path)), MULTILINGUAL, **GREEDY, **options)["segments"]
        expected = theirs(Source(str(path)), MULTILINGUAL, **options)["segments"]
        wrong = sum(_written(one) != _written(other) for one, other in zip(ours, expected, strict=True))
        yield f"{len(ours)} segments of 70 s of sound{name}", "openai-whisper", wrong


def _written(segment: dict) -> tuple:
    words = [(word["word"], word["start"], word["end"]) for word in segment.get("words", [])]
    return (*(segment[name] for name in ("id", "seek", "start", "end", "text", "tokens", "temperature")), words)


def compare_files(folder: Path) -> Iterator[Line]:
    """Compare the bytes of output files of synthetic words, with all settings of subtitles."""
    from tests.transcription.test_subtitles import FORMATS, OPTIONS, OutputConfig, make_transcript, render, theirs

    with _inside(folder):
        cases = [
            (make_transcript(seed, timed), suffix, options)
            for seed in range(3)
            for timed in (True, False)
            for suffix in FORMATS
            for options in OPTIONS
        ]
        wrong = sum(
            render(transcript, suffix, OutputConfig(**options)).encode() != theirs(transcript, suffix, options)
            for transcript, suffix, options in cases
        )
    yield f"bytes of {len(cases)} files in {len(FORMATS)} formats", "openai-whisper", wrong


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def compare_habits(folder: Path) -> Iterator[Line]:
    """Yield all lines."""
    yield from compare_search()
    yield from compare_longform(folder)
    yield from compare_files(folder)
