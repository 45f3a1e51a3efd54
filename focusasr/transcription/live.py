"""Live transcription: partial text of the current segment, final text after a pause."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from focusasr.audio.segmentation import PauseCutter
from focusasr.audio.source import MemoryAudio, Source
from focusasr.audio.vad import FRAME_SAMPLES
from focusasr.config import NATIVE_SEGMENT_SECONDS, SAMPLE_RATE_HZ, VadConfig
from focusasr.runtime.console import collect_warnings
from focusasr.runtime.errors import InputError
from focusasr.transcription.loaded_model import LoadedModel
from focusasr.transcription.options import Options
from focusasr.transcription.result import Segment, Transcript

GROUP_SAMPLES = 4 * FRAME_SAMPLES  # 128 ms: block size of the voice activity detection
LEAST_SECONDS = 0.25  # of speech in a partial text
PARTIAL_SECONDS = 0.1  # least new audio between two partial texts
COMPUTING_SHARE = 0.24  # of one core for voice activity detection and all texts, on average
DEBT_SHARE = 0.5  # of the computing time earned that pays for final texts, so that partial texts continue
BURST_SECONDS = 1.0  # computing time that may be saved up
SETTLED_SECONDS = 3.0  # of audio after which a partial text keeps its words before a pause
MOST_SECONDS = 30.0  # of a segment: a window of Whisper models
NAME = "live audio"  # in messages
LAST_WORD_SECONDS = 0.3  # of silence after speech, which may complete its last word

Transcribe = Callable[[np.ndarray, "Transcript | None", bool], Transcript]


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

    def to_dict(self) -> dict[str, Any]:
        """Return {type, start, end, text} for JSON; the type is partial or final."""
        times = {"start": round(self.start, 3), "end": round(self.end, 3)}
        return {"type": "final" if self.final else "partial", **times, "text": self.text}


@dataclass
class _Open:
    """The partial text of the open segment: words that are settled, and the transcript of the audio after them."""

    start: float = -1.0  # seconds
    settled: str = ""
    samples: int = 0  # that are settled
    rest: Transcript | None = None
    shown: float = 0.0  # end of the audio that the last text covers, in seconds

    @property
    def text(self) -> str:
        """The whole partial text; a sentence that continues loses the full stop before it."""
        rest = self.rest.text.strip() if self.rest else ""
        return f"{self.settled.rstrip('.') if rest[:1].islower() else self.settled} {rest}".strip()


class LiveTranscriber:
    """Transcriber of a stream of samples.

    `transcribe` returns the transcript of samples (N,) at 16 kHz. It also gets the transcript of their beginning, if
    that is known and may save time, and whether the text is final. A final text is exactly its result for the segment.
    A segment of some seconds ends at the next short pause, so that its final text appears soon. A partial text is
    computed from the audio after the last pause, as often as the processor share allows. `turn` surrounds other
    computations.
    """

    def __init__(
        self,
        transcribe: Transcribe,
        max_seconds: float = 20.0,
        vad: VadConfig = VadConfig(),
        clock: Callable[[], float] = time.perf_counter,
        turn: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._transcribe, self._clock, self._turn = transcribe, clock, turn
        self._cutter = PauseCutter(max_seconds, vad, early=True)
        self._waiting = np.zeros(0, np.float32)  # less than a group
        self._open = _Open()
        self._allowance, self._counted = 0.0, clock()  # computing time left, in seconds, at a time of the clock
        self._debt = 0.0  # computing time of final texts that is not yet taken from the allowance

    def feed(self, samples: np.ndarray) -> Iterator[LiveText]:
        """Yield the texts that the next samples (n,), float32 at 16 kHz, complete, and at most one partial text.

        InputError for other samples, which change nothing.
        """
        samples = MemoryAudio.of(samples).content  # type: ignore[assignment]
        if not isinstance(samples, np.ndarray) or not np.isfinite(samples).all():
            raise InputError("audio: expected finite samples (n,) in float32.")
        waiting = np.concatenate([self._waiting, samples])
        whole = len(waiting) // GROUP_SAMPLES * GROUP_SAMPLES
        self._waiting = waiting[whole:]
        for at in range(0, whole, GROUP_SAMPLES):
            yield from self._finals(waiting[at : at + GROUP_SAMPLES])
        yield from self._partial()

    def end(self) -> Iterator[LiveText]:
        """Yield the texts that are complete at the end of the recording."""
        if len(self._waiting):
            yield from self._finals(self._waiting)
            self._waiting = self._waiting[:0]
        yield from self._finals(None)

    def _finals(self, group: np.ndarray | None) -> Iterator[LiveText]:
        """Yield the texts of the segments that the next group, or the end, completes."""
        with self._turn():
            begin = self._clock()
            pieces = list(self._cutter.end() if group is None else self._cutter.add(group))
            self._spend(self._clock() - begin)
        for piece in pieces:
            transcript = self._computed(piece.waveform, None, last=True)
            end = piece.start_seconds + len(piece.waveform) / SAMPLE_RATE_HZ
            moved = tuple(_moved(segment, piece.start_seconds) for segment in transcript.segments)
            yield LiveText(piece.start_seconds, end, transcript.text.strip(), True, moved, transcript.language)

    def _partial(self) -> Iterator[LiveText]:
        piece = self._cutter.open
        enough = self._cutter.voiced_samples >= LEAST_SECONDS * SAMPLE_RATE_HZ
        affordable = self._may_compute()
        if piece is None or not enough or not (affordable or self._open.start != piece.start_seconds):
            return  # the first text of a segment is always computed
        waveform = np.concatenate([piece.waveform, self._waiting])
        end = piece.start_seconds + len(waveform) / SAMPLE_RATE_HZ
        state = self._open
        if state.start != piece.start_seconds:
            state = self._open = _Open(piece.start_seconds)
        spoken = piece.start_seconds + self._cutter.spoken_samples / SAMPLE_RATE_HZ + LAST_WORD_SECONDS
        if end < state.shown + PARTIAL_SECONDS or state.shown >= spoken:
            return
        self._settle(waveform)
        state.rest, state.shown = self._computed(waveform[state.samples :], state.rest), end
        yield LiveText(piece.start_seconds, end, state.text, False)

    def _settle(self, waveform: np.ndarray) -> None:
        """Keep the words before the last pause, if there is much audio after those kept so far."""
        state = self._open
        if len(waveform) - state.samples < SETTLED_SECONDS * SAMPLE_RATE_HZ:
            return
        pause = self._cutter.last_pause(state.samples)
        if pause is not None:
            state.rest = self._computed(waveform[state.samples : pause], state.rest)
            state.settled, state.samples, state.rest = state.text, pause, None

    def _may_compute(self) -> bool:
        """Return whether the share of computing time allows another text."""
        now = self._clock()
        earned = COMPUTING_SHARE * (now - self._counted)
        paid = min(self._debt, earned * DEBT_SHARE)
        self._debt -= paid
        self._allowance, self._counted = min(self._allowance + earned - paid, BURST_SECONDS), now
        return self._allowance >= 0

    def _computed(self, samples: np.ndarray, before: Transcript | None, last: bool = False) -> Transcript:
        begin = self._clock()
        transcript = self._transcribe(samples, before, last)
        self._spend(self._clock() - begin, last)
        return transcript

    def _spend(self, seconds: float, last: bool = False) -> None:
        """Take computing time from the allowance; that of a final text little by little."""
        if last:
            self._debt += seconds
        else:
            self._allowance -= seconds


def live_transcriber(
    model: LoadedModel, options: Options, turn: Callable[[], AbstractContextManager[None]] = nullcontext
) -> LiveTranscriber:
    """Return a live transcriber that uses a model, by turns with other threads.

    Partial texts are greedy, which a draft makes faster, and have no word times.
    """
    quick = replace(
        options,
        decoding=replace(options.decoding, word_timestamps=False),
        search=replace(options.search, beam_size=None),
        names=options.names | {"beam_size"},
    )
    with turn():
        final, partial = model.recognizer(options, subtitles=True), model.recognizer(quick)

    def transcribe(samples: np.ndarray, before: Transcript | None, last: bool) -> Transcript:
        loaded = final if last else partial
        with turn(), collect_warnings():
            loaded.recognizer.draft = draft_of(before)
            (outcome,) = loaded.shared([Source(NAME, memory=MemoryAudio(samples))], lambda *_: None)
        if outcome.transcript is None:
            raise outcome.exception()
        return outcome.transcript

    config = options.decoding
    longest = min(config.max_segment_seconds or NATIVE_SEGMENT_SECONDS, MOST_SECONDS)
    return LiveTranscriber(transcribe, longest, config, turn=turn)


def draft_of(transcript: Transcript | None) -> list[int]:
    """Return the tokens of a transcript, as a draft for the text of longer audio."""
    return [token for segment in transcript.segments for token in segment.tokens] if transcript else []


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
