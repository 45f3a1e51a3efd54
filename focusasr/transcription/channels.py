"""Separate transcription of a recording's channels, merged by time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

from focusasr.audio.integrity import AudioError
from focusasr.audio.load import channel_count
from focusasr.audio.source import Source
from focusasr.runtime.libraries import LibraryError
from focusasr.transcription.result import Outcome, Transcript, numbered


def channels_of(source: Source) -> list[Source]:
    """Return one source per channel of a recording, or the recording itself if it cannot be read."""
    try:
        return [replace(source, channel=channel) for channel in range(channel_count(source))]
    except (AudioError, LibraryError):
        return [source]


def by_channel(sources: Sequence[Source], transcribe: Callable[[list[Source]], Iterator[Outcome]]) -> Iterator[Outcome]:
    """Yield one outcome per source, in order, merged from the outcomes that `transcribe` yields for its channels."""
    groups = [channels_of(source) for source in sources]
    outcomes = transcribe([channel for group in groups for channel in group])
    for source, group in zip(sources, groups, strict=True):
        yield joined(source, list(islice(outcomes, len(group))))


def joined(source: Source, outcomes: Sequence[Outcome]) -> Outcome:
    """Return the outcome of a recording from those of its channels: segments sorted by time, each with its channel.

    If a channel fails, the outcome has its error. It has a transcript only if every channel has one.
    """
    failed = next((outcome for outcome in outcomes if outcome.error is not None), None)
    transcripts = [outcome.transcript for outcome in outcomes]
    whole = None if any(one is None for one in transcripts) else _by_time(one for one in transcripts if one)
    return Outcome(
        source,
        whole,
        failed.error if failed else None,
        max(outcome.audio_seconds for outcome in outcomes),
        sum(outcome.tokens for outcome in outcomes),
        sum(outcome.passes for outcome in outcomes),
        failed.trace if failed else "",
        failed.kind if failed else Outcome.kind,
    )


def _by_time(transcripts: Iterable[Transcript]) -> Transcript:
    languages: list[str | None] = []
    segments = []
    for channel, transcript in enumerate(transcripts):
        languages += [transcript.language] if transcript.segments else []
        segments += [replace(segment, channel=channel) for segment in transcript.segments]
    segments = numbered(segment for segment in segments if segment.text.strip())
    text = " ".join(segment.text.strip() for segment in segments)
    return Transcript(text, segments, next(iter(languages), None))
