"""Live transcription: partial text of the current segment, final text after a pause."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from focusasr.audio.segmentation import PauseCutter
from focusasr.audio.vad import FRAME_SAMPLES
from focusasr.config import SAMPLE_RATE_HZ
from focusasr.transcription.result import Segment, Transcript

GROUP_SAMPLES = 4 * FRAME_SAMPLES  # 128 ms: block size of the voice activity detection
PARTIAL_SECONDS = 0.2  # of new audio between two partial texts
IDLE_SHARE = 3.0  # idle time after a partial text, as a multiple of its computing time: at most a quarter of one core


@dataclass(frozen=True)
class LiveText:
    """The text of a segment from `start` to `end` seconds: partial while it is spoken, then `final`.

    A final text has the transcript's segments, with times from the start of the recording.
    """

    start: float
    end: float
    text: str
    final: bool
    segments: tuple[Segment, ...] = ()
    language: str | None = None


class LiveTranscriber:
    """Transcriber of a stream of samples.

    `transcribe` returns the transcript of samples (N,) at 16 kHz. A final text is exactly its result for the segment.
    """

    def __init__(
        self,
        transcribe: Callable[[np.ndarray], Transcript],
        max_seconds: float = 20.0,
        vad_threshold: float = 0.5,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._transcribe, self._clock = transcribe, clock
        self._cutter = PauseCutter(max_seconds, vad_threshold)
        self._waiting = np.zeros(0, np.float32)  # less than a group
        self._rest_until = 0.0
        self._shown = 0.0  # seconds of the recording that the last partial text covers

    def feed(self, samples: np.ndarray) -> Iterator[LiveText]:
        """Yield the texts that the next samples (n,), float32 at 16 kHz, complete, and at most one partial text."""
        waiting = np.concatenate([self._waiting, samples])
        whole = len(waiting) // GROUP_SAMPLES * GROUP_SAMPLES
        self._waiting = waiting[whole:]
        for at in range(0, whole, GROUP_SAMPLES):
            yield from self._finals(self._cutter.add(waiting[at : at + GROUP_SAMPLES]))
        yield from self._partial()

    def end(self) -> Iterator[LiveText]:
        """Yield the texts that are complete at the end of the recording."""
        if len(self._waiting):
            yield from self._finals(self._cutter.add(self._waiting))
            self._waiting = self._waiting[:0]
        yield from self._finals(self._cutter.end())

    def _finals(self, pieces: Iterator[Any]) -> Iterator[LiveText]:
        for piece in pieces:
            transcript = self._transcribe(piece.waveform)
            end = piece.start_seconds + len(piece.waveform) / SAMPLE_RATE_HZ
            moved = tuple(_moved(segment, piece.start_seconds) for segment in transcript.segments)
            yield LiveText(piece.start_seconds, end, transcript.text.strip(), True, moved, transcript.language)

    def _partial(self) -> Iterator[LiveText]:
        piece, begin = self._cutter.open, self._clock()
        if piece is None or begin < self._rest_until:
            return
        waveform = np.concatenate([piece.waveform, self._waiting])
        end = piece.start_seconds + len(waveform) / SAMPLE_RATE_HZ
        if end < self._shown + PARTIAL_SECONDS:
            return
        text = self._transcribe(waveform).text.strip()
        now = self._clock()
        self._rest_until, self._shown = now + IDLE_SHARE * (now - begin), end
        yield LiveText(piece.start_seconds, end, text, False)


def _moved(segment: Segment, seconds: float) -> Segment:
    """Return a segment with its times increased by `seconds`."""

    def later(words: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
        times = ("start", "end")
        return words and [{**word, **{name: round(word[name] + seconds, 3) for name in times}} for word in words]

    return replace(
        segment,
        seek=segment.seek + round(100 * seconds),
        start=round(segment.start + seconds, 3),
        end=round(segment.end + seconds, 3),
        words=later(segment.words),
        subtitle_words=later(segment.subtitle_words),
    )
