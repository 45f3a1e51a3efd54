"""Segments, transcripts and outcomes."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from focusasr.audio.integrity import CutOff
from focusasr.audio.source import Source
from focusasr.runtime.errors import InputError
from focusasr.runtime.libraries import LibraryError


@dataclass(frozen=True)
class Segment:
    """A stretch of a recording and its text, with Whisper's names.

    `start` and `end` are seconds, `seek` a mel frame (10 ms). `words`, where word times were asked for, is a list of
    {word, start, end, probability}; `subtitle_words` are such words for subtitles alone, of segments that are too long
    to be one. `channel` is its channel, where channels are transcribed separately.
    """

    id: int
    seek: int
    start: float
    end: float
    text: str
    tokens: list[int]
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float
    words: list[dict[str, Any]] | None = None
    subtitle_words: list[dict[str, Any]] | None = None
    channel: int | None = None

    @property
    def shown(self) -> Segment:
        """Return the segment as people read it: with its channel before its text, if it has one."""
        if self.channel is None:
            return self
        mark = f"[{self.channel}] "
        words, subtitle_words = (
            given and [{**given[0], "word": f" {mark}{given[0]['word'].lstrip()}"}, *given[1:]]
            for given in (self.words, self.subtitle_words)
        )
        text = f" {mark}{self.text.lstrip()}"
        return replace(self, text=text, words=words, subtitle_words=subtitle_words, channel=None)


@dataclass(frozen=True)
class Transcript:
    """The text of one recording, whole and in segments."""

    text: str
    segments: list[Segment]
    language: str | None

    @property
    def avg_logprob(self) -> float:
        """Return the mean log probability of a token and of each segment's end; 0 where there is no text."""
        weights = [len(segment.tokens) + 1 for segment in self.segments]
        total = sum(weight * one.avg_logprob for weight, one in zip(weights, self.segments, strict=True))
        return total / max(1, sum(weights))


@dataclass(frozen=True)
class Outcome:
    """What became of one source: its transcript, or why there is none, or both where it is cut off.

    `trace` is the traceback of the error, for --debug.
    """

    source: Source
    transcript: Transcript | None
    error: str | None
    audio_seconds: float
    tokens: int = 0  # that the decoder wrote, ends included, and passes that it took; 0 where nobody counted
    passes: int = 0
    trace: str = ""
    kind: type[Exception] = InputError  # of the error

    def but(self, error: Exception) -> Outcome:
        """Return what became of the source if this went wrong; of one that is cut off, what was heard is kept."""
        kept = self.transcript if isinstance(error, (CutOff, LibraryError)) and self.audio_seconds else None
        trace = "".join(traceback.format_exception(error))
        return replace(self, transcript=kept, error=str(error), trace=trace, kind=type(error))


def as_segments(known: Iterable[dict[str, Any]]) -> list[Segment]:
    """Return segments from what `dataclasses.asdict` made of them."""

    return [Segment(**segment) for segment in known]


def within(segment: Segment, seconds: float) -> Segment:
    """Return a segment that ends, with its words, within a recording of so many seconds."""
    if segment.end <= seconds and all(word["end"] <= seconds for word in segment.words or ()):
        return segment
    words = [{**word, **{edge: min(word[edge], seconds) for edge in ("start", "end")}} for word in segment.words or ()]
    return replace(
        segment,
        start=min(segment.start, seconds),
        end=min(segment.end, seconds),
        words=None if segment.words is None else words,
    )


SegmentsFound = Callable[[Source, "str | None", Sequence[Segment]], object]  # a source, its language, its next segments


def ignore(source: Source, language: str | None, segments: Sequence[Segment]) -> None:
    """Use no segment before the transcript is complete."""
