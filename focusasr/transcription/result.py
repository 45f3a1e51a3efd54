"""Segments, transcripts and outcomes."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from focusasr.audio.integrity import AudioError, CutOff
from focusasr.audio.source import Source
from focusasr.runtime.errors import InputError
from focusasr.runtime.libraries import LibraryError


@dataclass(frozen=True)
class Segment:
    """A segment of a recording and its text, with Whisper's names.

    `start` and `end` are seconds, `seek` a mel frame (10 ms). `words`, if word times were requested, is a list of
    {word, start, end, probability}. `subtitle_words` are such words for subtitles only, of segments that are too long
    for one. `channel` is set if channels are transcribed separately.
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
        """Return the segment for people to read: if it has a channel, the text starts with it."""
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
        """Return the mean log probability of all tokens and segment ends; 0 if there is no text."""
        weights = [len(segment.tokens) + 1 for segment in self.segments]
        total = sum(weight * one.avg_logprob for weight, one in zip(weights, self.segments, strict=True))
        return total / max(1, sum(weights))


@dataclass(frozen=True)
class Outcome:
    """The result of one source: its transcript, an error, or both if the source is truncated.

    `trace` is the traceback of the error, for --debug.
    """

    source: Source
    transcript: Transcript | None
    error: str | None
    audio_seconds: float
    tokens: int = 0  # written by the decoder, ends included; tokens and passes are 0 if not counted
    passes: int = 0
    trace: str = ""
    kind: type[Exception] = InputError  # class of the error

    def exception(self, partial: object = None) -> Exception:
        """Return the error as an exception, with the result for the beginning of a truncated recording."""
        kinds = (AudioError, LibraryError, MemoryError)
        error: Any = (self.kind if issubclass(self.kind, kinds) else InputError)(self.error)
        error.partial = partial
        return error

    def but(self, error: Exception) -> Outcome:
        """Return the outcome with this error; the transcript is kept after CutOff and LibraryError."""
        kept = self.transcript if isinstance(error, (CutOff, LibraryError)) and self.audio_seconds else None
        trace = "".join(traceback.format_exception(error))
        return replace(self, transcript=kept, error=str(error), trace=trace, kind=type(error))


def numbered(segments: Iterable[Segment], first: int = 0) -> list[Segment]:
    """Return segments in the order of their times, numbered from `first`."""
    ordered = sorted(segments, key=lambda segment: (segment.start, segment.end))
    return [replace(segment, id=number) for number, segment in enumerate(ordered, start=first)]


def as_segments(known: Iterable[dict[str, Any]]) -> list[Segment]:
    """Return segments from the result of `dataclasses.asdict`."""
    return [Segment(**segment) for segment in known]


def within(segment: Segment, seconds: float) -> Segment:
    """Return a segment limited, with its words, to a recording of this many seconds."""
    if segment.end <= seconds and all(word["end"] <= seconds for word in segment.words or ()):
        return segment
    words = [{**word, **{edge: min(word[edge], seconds) for edge in ("start", "end")}} for word in segment.words or ()]
    return replace(
        segment,
        start=min(segment.start, seconds),
        end=min(segment.end, seconds),
        words=None if segment.words is None else words,
    )


SegmentsFound = Callable[[Source, "str | None", Sequence[Segment]], object]  # source, language, next segments


def ignore(source: Source, language: str | None, segments: Sequence[Segment]) -> None:
    """Ignore segments until the transcript is complete."""
