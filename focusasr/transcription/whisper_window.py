"""Windows of a long recording: timestamps, prompt history and next position."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

from focusasr.audio.mel_stream import FRAMES_PER_SECOND
from focusasr.audio.silence import Silence
from focusasr.audio.source import Source
from focusasr.decoding.whisper_prompts import DecodingResult
from focusasr.runtime.errors import InputError
from focusasr.text.whisper_tokenizer import WhisperTokenizer
from focusasr.transcription.result import Segment, as_segments
from focusasr.whisper_config import SECONDS_PER_TIMESTAMP, LongformConfig

FRAMES_PER_TIMESTAMP = 2
SLOW_FRAMES = FRAMES_PER_SECOND  # a window that advances by less is slow; after several, each advances further
SLOW_ALLOWED = 2  # consecutive slow windows without a larger step


class MelWindow(NamedTuple):
    """A window of `frames` mel frames from `seek` on."""

    seek: int
    frames: int
    full_frames: int = 0  # of a full window; this and the next are for word times
    content_frames: int = 0  # of the recording

    @property
    def start(self) -> float:
        """Return the time of the first frame, in seconds."""
        return self.seek / FRAMES_PER_SECOND

    @property
    def seconds(self) -> float:
        """Return the length in seconds."""
        return self.frames / FRAMES_PER_SECOND

    @property
    def full_end(self) -> float:
        """Return the end of a full window, in seconds."""
        return (self.seek + self.full_frames) / FRAMES_PER_SECOND


class Stretch(NamedTuple):
    """The result of a window: its segments, the next frame, and whether its last word is known to end there."""

    segments: list[Segment]
    next_seek: int
    closed: bool


class Step(NamedTuple):
    """A window's segments, the next frame, and whether the next window's prompt excludes the text so far."""

    segments: list[Segment]
    next_seek: int
    forget: bool = False

    @classmethod
    def known(cls, noted: list[Any]) -> Step:
        """Return the step that `noted` was made from."""
        segments, next_seek, forget = noted
        return cls(as_segments(segments), next_seek, forget)

    def noted(self) -> list[Any]:
        """Return the step as JSON values for the cache."""
        return [[asdict(segment) for segment in self.segments], self.next_seek, self.forget]


@dataclass
class PromptHistory:
    """The text of one recording so far, and the part of it that may be the next prompt."""

    initial: list[int]  # tokens of the initial prompt
    room: int  # maximum number of prompt tokens
    tokens: list[int] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    known_from: int = 0  # first token of the prompt, counted with the initial prompt
    last_speech: float = 0.0
    slow: int = 0  # consecutive windows that advanced by less than SLOW_FRAMES

    def seek_after(self, window: MelWindow, next_seek: int) -> int:
        """Return the next frame: `next_seek`, limited to the window, and later after several slow windows.

        This prevents an endless loop: timestamps, words and silence rules may each request the same audio again.
        """
        step = min(next_seek - window.seek, window.frames)
        self.slow = self.slow + 1 if step < min(SLOW_FRAMES, window.frames) else 0
        least = max(1, (self.slow - SLOW_ALLOWED) * SLOW_FRAMES // 2)
        return window.seek + max(step, min(least, window.frames))

    def before(self, carry: bool) -> list[int]:
        """Return the prompt tokens of the next window."""
        if not carry:
            return [*self.initial, *self.tokens][self.known_from :]
        kept = self.room - len(self.initial)
        return [*self.initial, *self.tokens[max(0, self.known_from - len(self.initial)) :][-kept:]]

    def add(self, segments: list[Segment]) -> list[Segment]:
        """Append a window's segments and return them, numbered.

        Segments without text or length keep only their position.
        """
        before = len(self.segments)
        for segment in segments:
            if segment.start == segment.end or not segment.text.strip():
                segment = replace(segment, text="", tokens=[], words=[])
            self.segments.append(replace(segment, id=len(self.segments)))
            self.tokens += segment.tokens
        return self.segments[before:]

    def forget(self) -> None:
        """Exclude the text so far from later prompts."""
        self.known_from = len(self.initial) + len(self.tokens)


def split(window: MelWindow, answer: DecodingResult, tokenizer: WhisperTokenizer) -> Stretch:
    """Split a window's text at pairs of timestamps, and find the next frame.

    A text that ends with a single timestamp, or has no pairs, is complete: the next window follows this one. Otherwise
    the audio after the last pair is decoded again.
    """
    tokens = answer.tokens
    times = [token >= tokenizer.timestamp_begin for token in tokens]
    closed = times[-2:] == [False, True]
    cuts = [place for place in range(1, len(tokens)) if times[place - 1] and times[place]]
    if not cuts:
        seconds = window.seconds
        last = next((token for token in reversed(tokens) if token >= tokenizer.timestamp_begin), None)
        if last is not None and last != tokenizer.timestamp_begin:
            seconds = (last - tokenizer.timestamp_begin) * SECONDS_PER_TIMESTAMP
        whole = _segment(window, answer, tokenizer, tokens, (window.start, window.start + seconds))
        return Stretch([whole], window.seek + window.frames, closed)
    if closed:
        cuts.append(len(tokens))
    segments = []
    for first, last in zip([0, *cuts], cuts, strict=False):
        piece = tokens[first:last]
        start, end = (
            window.start + (token - tokenizer.timestamp_begin) * SECONDS_PER_TIMESTAMP
            for token in (piece[0], piece[-1])
        )
        segments.append(_segment(window, answer, tokenizer, piece, (start, end)))
    if closed:
        return Stretch(segments, window.seek + window.frames, closed)
    last_time = tokens[cuts[-1] - 1] - tokenizer.timestamp_begin
    return Stretch(segments, window.seek + last_time * FRAMES_PER_TIMESTAMP, closed)


def _segment(
    window: MelWindow, answer: DecodingResult, tokenizer: WhisperTokenizer, tokens: list[int], span: tuple[float, float]
) -> Segment:
    return Segment(
        id=0,
        seek=window.seek,
        start=span[0],
        end=span[1],
        text=tokenizer.decode_exactly([token for token in tokens if token < tokenizer.end]),
        tokens=tokens,
        temperature=answer.temperature,
        avg_logprob=answer.avg_logprob,
        compression_ratio=answer.compression_ratio,
        no_speech_prob=answer.no_speech_prob,
    )


def behind_end(source: Source, longform: LongformConfig, seconds: float) -> InputError:
    """Return the error for clips that are all after the end of a recording of this many seconds."""
    asked = longform.clip_timestamps
    return InputError(f"{source.name}: --clip-timestamps {asked} are after its end, {seconds:.2f} s")


def shrunk(segment: Segment, silence: Silence) -> Segment:
    """Return a segment without silence at its start and end."""
    frames = [round(seconds * FRAMES_PER_SECOND) for seconds in (segment.start, segment.end)]
    start, end = silence.shrink(*frames)
    return replace(
        segment,
        start=segment.start if start == frames[0] else start / FRAMES_PER_SECOND,
        end=segment.end if end == frames[1] else end / FRAMES_PER_SECOND,
    )


def clips(seconds: list[float], frames: int) -> list[tuple[int, int]]:
    """Return the clips as frames (from, to): pairs of times, the last one up to the recording's end."""
    points = [round(second * FRAMES_PER_SECOND) for second in seconds] or [0]
    if len(points) % 2:
        points.append(frames)
    return [(start, min(end, frames)) for start, end in zip(points[::2], points[1::2], strict=True)]
