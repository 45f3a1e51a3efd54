"""Word times moved to the edges of sound, without the pauses that attention includes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from focusasr.audio.mel_stream import FRAMES_PER_SECOND
from focusasr.audio.segmentation import runs
from focusasr.transcription.result import Segment

LOUD = 0.2  # share of the decibels between the quietest and the loudest frame near a segment: louder frames are speech
LEAST_RANGE_DB = 20.0  # minimum of that difference: in louder noise pauses do not stand out from speech
AROUND_FRAMES = 2 * FRAMES_PER_SECOND  # context in which the quietest level around a segment is measured
PAUSE_FRAMES = 25  # shortest pause between words; a closure before a p, t or k is shorter
CLICK_FRAMES = 4  # a shorter sound is no word
REACH_FRAMES = 30  # longest extension of a word after the end that attention found


def with_edges(segments: Sequence[Segment], levels: np.ndarray, start_seconds: float = 0.0) -> list[Segment]:
    """Return segments with words that start and end with their sound; `levels` (F,) are those of 10 ms frames.

    A word only shrinks, or grows by up to 0.3 s towards the next one. A word without loud frames is not changed.
    """
    result = []
    for place, segment in enumerate(segments):
        following = next((other.words[0]["start"] for other in segments[place + 1 :] if other.words), None)
        words = _trimmed(segment.words or [], levels, start_seconds, following)
        edges = {"words": words, "start": words[0]["start"], "end": words[-1]["end"]} if words else {}
        result.append(replace(segment, **edges))
    return result


def _trimmed(
    words: Sequence[dict[str, Any]], levels: np.ndarray, start_seconds: float, following: float | None
) -> list[dict[str, Any]]:
    """Return the words of a segment, moved to their sound; `following` is the start of the next segment's words."""
    if not words:
        return []
    frames = [
        (_frame(word["start"] - start_seconds, len(levels)), _frame(word["end"] - start_seconds, len(levels)))
        for word in words
    ]
    near = levels[max(0, frames[0][0] - AROUND_FRAMES) : frames[-1][1] + AROUND_FRAMES]
    own = levels[frames[0][0] : frames[-1][1]]
    if not len(own) or own.max() - near.min() < LEAST_RANGE_DB:
        return list(words)
    floor = max(near.min(), own.max() - 60.0)
    loud = levels >= floor + LOUD * (own.max() - floor)
    limit = len(levels) if following is None else _frame(following - start_seconds, len(levels))
    result: list[dict[str, Any]] = []
    groups = _groups([bool(loud[start:end].any()) for start, end in frames])
    for place, (first, behind) in enumerate(groups):
        start, end = frames[first][0], frames[behind - 1][1]
        island = _island(loud[start:end], place == 0, place == len(groups) - 1)
        if island is None:
            result += words[first:behind]
            continue
        begin, stop = start + island[0], start + island[1]
        if stop == end:
            beyond = frames[behind][0] if behind < len(frames) else limit
            stop = _onward(loud, end, min(beyond, end + REACH_FRAMES))
        times = [start_seconds + frame / FRAMES_PER_SECOND for frame in (begin, stop)]
        edges = (
            words[first]["start"] if begin == start else times[0],
            words[behind - 1]["end"] if stop == end else times[1],
        )
        result += _shared(words[first:behind], *edges)
    return result


def _groups(sounding: Sequence[bool]) -> list[tuple[int, int]]:
    """Return ranges of words (from, to) that share one sound: silent words at the edges join their neighbor.

    They share the neighbor's sound and the pause next to it.
    """
    if not any(sounding):
        return [(place, place + 1) for place in range(len(sounding))]
    first = list(sounding).index(True)
    last = len(sounding) - 1 - list(sounding)[::-1].index(True)
    if first == last:
        return [(0, len(sounding))]
    return [(0, first + 1), *((place, place + 1) for place in range(first + 1, last)), (last, len(sounding))]


def _shared(words: Sequence[dict[str, Any]], start: float, end: float) -> list[dict[str, Any]]:
    """Divide the time from `start` to `end` among words by their length."""
    ends = np.cumsum([len(word["word"]) for word in words])
    edges = [start, *(start + (end - start) * ends[:-1] / ends[-1]), end]
    return [
        {**word, "start": round(float(begin), 2), "end": round(float(stop), 2)}
        for word, begin, stop in zip(words, edges, edges[1:], strict=False)
    ]


def _frame(seconds: float, frames: int) -> int:
    return min(max(0, round(seconds * FRAMES_PER_SECOND)), frames)


def _island(loud: np.ndarray, first: bool, last: bool) -> tuple[int, int] | None:
    """Return the first and last frame of a word's sound; None if no frame is loud.

    If pauses split it, a segment's first word keeps the last sound, its last word the first one, others the longest.
    """
    starts, stops = runs(loud)
    if not len(starts):
        return None
    parted = np.flatnonzero(starts[1:] - stops[:-1] >= PAUSE_FRAMES)
    islands = [
        (int(starts[begin]), int(stops[end]))
        for begin, end in zip([0, *(parted + 1)], [*parted, len(starts) - 1], strict=True)
    ]
    long = [island for island in islands if island[1] - island[0] >= CLICK_FRAMES] or islands
    if first != last:
        return long[-1] if first else long[0]
    return max(long, key=lambda island: island[1] - island[0])


def _onward(loud: np.ndarray, end: int, limit: int) -> int:
    """Return the end of the sound that is loud before `end`, at most `limit`."""
    quiet = np.flatnonzero(~loud[end:limit])
    return end + int(quiet[0]) if len(quiet) else max(end, limit)
