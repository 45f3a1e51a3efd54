"""Where to go on when a window's words look invented: behind the silence around them, as openai/whisper does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from focusasr.features import FRAMES_PER_SECOND
from focusasr.output import Segment
from focusasr.segment_words import last_word_end, looks_invented

EDGE_SECONDS = 2.0  # so near to a window's edge counts as silence beyond it


class Bounds(NamedTuple):
    """A window in frames and in seconds, and the recording's length."""

    seek: int
    frames: int
    full_frames: int  # of a whole window
    content_frames: int

    @property
    def start(self) -> float:
        """Return the time of the first frame, in seconds."""
        return self.seek / FRAMES_PER_SECOND

    @property
    def full_end(self) -> float:
        """Return the time at which a whole window would end."""
        return (self.seek + self.full_frames) / FRAMES_PER_SECOND


class Kept(NamedTuple):
    """The segments that stay, and the frame to go on from; None where nothing stays and it is read again."""

    segments: list[Segment] | None
    next_seek: int


def without_inventions(
    segments: list[Segment], bounds: Bounds, kept: Kept, last_speech: float, threshold: float
) -> Kept:
    """Return what stays of a window's segments, and where to go on.

    A window that begins with invented words after a silence above `threshold` seconds is read again from their
    start; invented words between silences are dropped with all after them. `kept` is what would stay otherwise.
    """
    first = next((segment for segment in segments if segment.words), None)
    if first is not None and looks_invented(first) and first.start - bounds.start > threshold:
        return Kept(None, bounds.seek + round((first.start - bounds.start) * FRAMES_PER_SECOND))
    speech_end = last_speech
    for place, segment in enumerate(segments):
        if not segment.words:
            continue
        if looks_invented(segment) and _is_alone(segments, place, bounds, speech_end, threshold):
            seek = round(max(bounds.start + 1, segment.start) * FRAMES_PER_SECOND)
            if bounds.content_frames / FRAMES_PER_SECOND - segment.end < threshold:
                seek = bounds.content_frames
            return Kept(segments[:place], seek)
        speech_end = segment.end
    return kept


def _is_alone(segments: Sequence[Segment], place: int, bounds: Bounds, speech_end: float, threshold: float) -> bool:
    """Return whether there is silence, an edge or another invention on both sides of a segment."""
    segment = segments[place]
    following = next((other for other in segments[place + 1 :] if other.words), None)
    window_end = bounds.start + bounds.frames / FRAMES_PER_SECOND
    next_start = following.words[0]["start"] if following is not None and following.words else window_end
    before = (
        segment.start - speech_end > threshold
        or segment.start < threshold
        or segment.start - bounds.start < EDGE_SECONDS
    )
    after = (
        next_start - segment.end > threshold
        or looks_invented(following)
        or bounds.full_end - segment.end < EDGE_SECONDS
    )
    return before and after


def seek_after_words(segments: Sequence[Segment], bounds: Bounds, next_seek: int, threshold: float | None) -> int:
    """Return the frame to go on from where a window's end was not closed: behind its last word.

    With a `threshold`, only where more seconds of a whole window remain; else behind the window.
    """
    end = last_word_end(segments)
    if end is None or end <= bounds.start:
        return next_seek
    if threshold is not None and bounds.full_end - end <= threshold:
        return bounds.seek + bounds.frames
    return round(end * FRAMES_PER_SECOND)
