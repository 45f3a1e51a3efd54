"""Word times for the segments of Whisper models, and removal of hallucinations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from focusasr.audio.mel_stream import FRAMES_PER_SECOND
from focusasr.transcription.result import Segment
from focusasr.transcription.whisper_window import MelWindow
from focusasr.whisper_config import LongformConfig

if TYPE_CHECKING:
    from focusasr.decoding.dtw_alignment import TimedWord

SENTENCE_ENDS = ".。!！?？"
LONGEST_MEDIAN_SECONDS = 0.7
MARKS = "\"'“¿([{-\"'.。,，!！?？:：”)]}、"
SHORT_SECONDS, LONG_SECONDS, UNLIKELY = 0.133, 2.0, 0.15

Word = dict[str, Any]

# the segments to keep, None if the audio is to be decoded again, and the next frame
Kept = tuple[list[Segment] | None, int]

EDGE_SECONDS = 2.0  # edges this close to a window's edge count as next to silence


def median_seconds(words: Sequence[TimedWord]) -> float:
    """Return the median length of words, ignoring those without length; twice as long is too long."""
    durations = [word.end - word.start for word in words if word.end != word.start]
    return min(LONGEST_MEDIAN_SECONDS, float(np.median(durations)) if durations else 0.0)


def shorten_at_ends(words: list[TimedWord], longest: float) -> None:
    """Shorten, in place, words above `longest` seconds at the end of a sentence or after one: they include a pause."""
    for before, word in pairwise(words):
        if word.end - word.start > longest:
            if word.word in SENTENCE_ENDS:
                word.end = word.start + longest
            elif before.word in SENTENCE_ENDS:
                word.start = word.end - longest


def join_marks(words: list[TimedWord], before: str, after: str) -> None:
    """Join, in place, punctuation marks with the following or previous word; joined marks keep no text or tokens."""
    following = len(words) - 1
    for place in range(len(words) - 2, -1, -1):
        mark = words[place]
        if mark.word.startswith(" ") and mark.word.strip() in before:
            _join(mark, words[following], words[following])
        else:
            following = place
    previous = 0
    for place in range(1, len(words)):
        mark = words[place]
        if not words[previous].word.endswith(" ") and mark.word in after:
            _join(words[previous], mark, words[previous])
        else:
            previous = place


def _join(first: TimedWord, second: TimedWord, kept: TimedWord) -> None:
    word, tokens = first.word + second.word, first.tokens + second.tokens
    for one in (first, second):
        one.word, one.tokens = "", []
    kept.word, kept.tokens = word, tokens


def with_words(
    segments: list[Segment], texts: list[list[int]], words: list[TimedWord], last_speech: float, config: LongformConfig
) -> list[Segment]:
    """Return the segments of a window with their words; `texts` are their text tokens, `words` those of all segments.

    `last_speech` is the end of the last word before the window, in seconds.
    """
    median = median_seconds(words)
    shorten_at_ends(words, 2 * median)
    join_marks(words, config.prepend_punctuations, config.append_punctuations)
    offset = segments[0].seek / FRAMES_PER_SECOND
    waiting = iter(words)
    result = []
    for segment, text in zip(segments, texts, strict=True):
        own = _taken(waiting, len(text), offset)
        if own:
            segment = _edged(segment, own, median, last_speech)
            last_speech = segment.end
        result.append(replace(segment, words=own))
    return result


def _taken(words: Iterator[TimedWord], tokens: int, offset: float) -> list[Word]:
    """Take words with this many tokens and return them in Whisper's format, times rounded to 10 ms."""
    taken: list[Word] = []
    while tokens > 0 and (word := next(words, None)) is not None:
        tokens -= len(word.tokens)
        if word.word:
            start, end = (round(float(offset + time), 2) for time in (word.start, word.end))
            taken.append({"word": word.word, "start": start, "end": end, "probability": float(word.probability)})
    return taken


def _edged(segment: Segment, words: list[Word], median: float, last_speech: float) -> Segment:
    """Return the segment from its first to its last word; overlong words at its edges are shortened, in place."""
    first, last, longest = words[0], words[-1], 2 * median
    second = words[1] if len(words) > 1 else None
    slow = first["end"] - first["start"] > longest
    slow_pair = second is not None and second["end"] - first["start"] > 2 * longest
    if first["end"] - last_speech > 4 * median and (slow or slow_pair):  # the first words after a pause
        if second is not None and second["end"] - second["start"] > longest:
            first["end"] = second["start"] = max(second["end"] / 2, second["end"] - longest)
        first["start"] = max(0, first["end"] - longest)
    start, end = segment.start, segment.end
    if start < first["end"] and start - 0.5 > first["start"]:
        first["start"] = max(0, min(first["end"] - median, start))
    else:
        start = first["start"]
    if end > last["start"] and end + 0.5 < last["end"]:
        last["end"] = max(last["start"] + median, end)
    else:
        end = last["end"]
    return replace(segment, start=start, end=end)


def last_word_end(segments: Sequence[Segment]) -> float | None:
    """Return the end of the last word, or of the last segment if there is no word; None without segments."""
    words = (word for segment in reversed(segments) for word in reversed(segment.words or []))
    last = next(words, None)
    if last is not None:
        return last["end"]
    return segments[-1].end if segments else None


def is_hallucination(segment: Segment | None) -> bool:
    """Return whether most of a segment's first words are very unlikely, very short or very long."""
    if segment is None or not segment.words:
        return False
    words = [word for word in segment.words if word["word"] not in MARKS][:8]
    score = sum(_oddity(word) for word in words)
    return score >= 3 or score + 0.01 >= len(words)


def _oddity(word: Word) -> float:
    seconds = word["end"] - word["start"]
    unlikely = 1.0 if word["probability"] < UNLIKELY else 0.0
    return unlikely + max(0.0, SHORT_SECONDS - seconds) * 15 + max(0.0, seconds - LONG_SECONDS)


def drop_hallucinations(
    segments: list[Segment], window: MelWindow, kept: Kept, last_speech: float, threshold: float
) -> Kept:
    """Return a window's segments without hallucinations, and the next frame.

    If a window begins with a hallucination after a silence above `threshold` seconds, it is decoded again from its
    start. A hallucination between silences is dropped, with all segments after it. `kept` is the result if there is
    none.
    """
    first = next((segment for segment in segments if segment.words), None)
    if first is not None and is_hallucination(first) and first.start - window.start > threshold:
        return None, window.seek + round((first.start - window.start) * FRAMES_PER_SECOND)
    speech_end = last_speech
    for place, segment in enumerate(segments):
        if not segment.words:
            continue
        if is_hallucination(segment) and _is_alone(segments, place, window, speech_end, threshold):
            seek = round(max(window.start + 1, segment.start) * FRAMES_PER_SECOND)
            if window.content_frames / FRAMES_PER_SECOND - segment.end < threshold:
                seek = window.content_frames
            return segments[:place], seek
        speech_end = segment.end
    return kept


def _is_alone(segments: Sequence[Segment], place: int, window: MelWindow, speech_end: float, threshold: float) -> bool:
    """Return whether there is silence, an edge or another hallucination on both sides of a segment."""
    segment = segments[place]
    following = next((other for other in segments[place + 1 :] if other.words), None)
    window_end = window.start + window.seconds
    next_start = following.words[0]["start"] if following is not None and following.words else window_end
    before = (
        segment.start - speech_end > threshold
        or segment.start < threshold
        or segment.start - window.start < EDGE_SECONDS
    )
    after = (
        next_start - segment.end > threshold
        or is_hallucination(following)
        or window.full_end - segment.end < EDGE_SECONDS
    )
    return before and after


def seek_after_words(segments: Sequence[Segment], window: MelWindow, next_seek: int, threshold: float | None) -> int:
    """Return the next frame for a window without a closing timestamp: the end of its last word.

    With a `threshold`, only if more seconds of a full window remain, else the end of the window.
    """
    end = last_word_end(segments)
    if end is None or end <= window.start:
        return next_seek
    if threshold is not None and window.full_end - end <= threshold:
        return window.seek + window.frames
    return round(end * FRAMES_PER_SECOND)
