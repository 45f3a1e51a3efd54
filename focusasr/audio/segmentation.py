"""Segmentation of long recordings at pauses, without losing speech."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from focusasr.audio.load import rechunk, to_samples
from focusasr.audio.vad import FRAME_SAMPLES, FRAMES_PER_SECOND, detector, whole_frames
from focusasr.config import SAMPLE_RATE_HZ, VadConfig

GROUP_FRAMES = 32  # frames per detector call, 1.024 s, at the same positions for any block sizes

PAUSE_FRAMES = 3  # shortest pause for a cut, about 0.1 s
EARLY_SECONDS = 5.0  # of a segment after which `EARLY_SILENCE_FRAMES` end it, for live text
EARLY_SILENCE_FRAMES = round(0.4 * FRAMES_PER_SECOND)


@dataclass(frozen=True)
class AudioSegment:
    """A segment of a recording: its start, exact to the sample, and its samples (N,) float32 at 16 kHz."""

    start_seconds: float
    waveform: np.ndarray


def split_at_pauses(
    blocks: Iterable[np.ndarray], max_seconds: float = 20.0, vad: VadConfig = VadConfig(), whole: bool = True
) -> Iterator[AudioSegment]:
    """Yield the segments of a recording that comes as blocks (n,) float32 at 16 kHz; lazily, in bounded memory.

    A recording of at most `max_seconds` (1 or more) is one segment if `whole`; one of 0 samples has none. A longer one
    is cut in the middle of pauses, or at the quietest point if speech has no pause. Long silence is dropped except for
    a padding next to speech, and so is speech that is shorter than the minimum of `vad`. Segments are in order, never
    overlap, and depend on the samples alone, not on the block sizes. Memory holds about `max_seconds` and one block.
    """
    limit_samples = to_samples(max_seconds, SAMPLE_RATE_HZ)
    if limit_samples < SAMPLE_RATE_HZ:
        raise ValueError(f"max_seconds is {max_seconds}; expected: 1 or more")
    blocks = iter(blocks)
    head, samples = [], 0
    while samples <= limit_samples and (block := next(blocks, None)) is not None:
        head.append(block)
        samples += len(block)
    if samples > limit_samples or (samples and not whole):
        cutter = PauseCutter(max_seconds, vad)
        for group in rechunk(itertools.chain(head, blocks), GROUP_FRAMES * FRAME_SAMPLES):
            yield from cutter.add(group)
        yield from cutter.end()
    elif samples:
        yield AudioSegment(0.0, np.concatenate(head))


def merge_segments(pieces: Iterable[AudioSegment], max_seconds: float) -> Iterator[AudioSegment]:
    """Join neighboring segments up to `max_seconds`, with silence between them to keep their times."""
    limit_samples = to_samples(max_seconds, SAMPLE_RATE_HZ)
    held: AudioSegment | None = None
    for piece in pieces:
        if held is not None:
            gap = to_samples(piece.start_seconds - held.start_seconds, SAMPLE_RATE_HZ) - len(held.waveform)
            if len(held.waveform) + gap + len(piece.waveform) <= limit_samples:
                quiet = np.zeros(gap, np.float32)
                held = replace(held, waveform=np.concatenate([held.waveform, quiet, piece.waveform]))
                continue
            yield held
        held = piece
    if held is not None:
        yield held


def runs(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return starts and stops of the runs of true values (N,), in order."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], values, [False]))))
    return edges[::2], edges[1::2]


class PauseCutter:
    """Segmentation of a recording that comes in groups of samples; holds the samples of the open segment.

    With `early`, a segment of some length ends at the next short pause.
    """

    def __init__(self, max_seconds: float, vad: VadConfig, early: bool = False) -> None:
        self._lengths = _Lengths.of(max_seconds, vad, early)
        self._detect = detector(vad.vad_threshold)
        self._waveform, self._speech = np.zeros(0, np.float32), np.zeros(0, bool)
        self._origin = 0  # their first sample in the recording

    def add(self, group: np.ndarray) -> Iterator[AudioSegment]:
        """Yield the segments that the next samples (n * 512,) complete; only the last group may be shorter."""
        self._waveform = np.concatenate([self._waveform, group])
        self._speech = np.concatenate([self._speech, self._detect(whole_frames(group))])
        return self._complete(ended=False)

    def end(self) -> Iterator[AudioSegment]:
        """Yield the segments that the end of the recording completes."""
        return self._complete(ended=True)

    @property
    def open(self) -> AudioSegment | None:
        """Return the open segment, from its padding before speech up to now; None in silence."""
        start, voiced = self._bounds()
        if not len(voiced):
            return None
        at = start * FRAME_SAMPLES
        return AudioSegment((self._origin + at) / SAMPLE_RATE_HZ, self._waveform[at:])

    @property
    def spoken_samples(self) -> int:
        """Return the number of samples from the start of the open segment to the end of its last speech."""
        start, voiced = self._bounds()
        return (int(voiced[-1]) + 1 - start) * FRAME_SAMPLES if len(voiced) else 0

    @property
    def voiced_samples(self) -> int:
        """Return the number of samples of speech in the open segment."""
        return int(self._speech.sum()) * FRAME_SAMPLES

    def last_pause(self, after: int) -> int | None:
        """Return the middle of the last pause within speech, in samples from the start of the open segment.

        None if there is no pause after the sample `after`.
        """
        start, voiced = self._bounds()
        voiced = voiced[voiced >= start + after // FRAME_SAMPLES]
        places = np.flatnonzero(np.diff(voiced) > PAUSE_FRAMES)
        if not len(places):
            return None
        middle = int(voiced[places[-1]] + voiced[places[-1] + 1] + 1) // 2
        return (middle - start) * FRAME_SAMPLES

    def _bounds(self) -> tuple[int, np.ndarray]:
        """Return the first frame of the open segment, with its padding, and the frames of its speech."""
        voiced = np.flatnonzero(self._speech)
        return max(0, int(voiced[0]) - self._lengths.padding) if len(voiced) else 0, voiced

    def _complete(self, ended: bool) -> Iterator[AudioSegment]:
        while len(self._speech) and (span := _decide(self._speech, self._waveform, self._lengths, ended)):
            if span.stop > span.start:
                at = span.start * FRAME_SAMPLES
                piece = self._waveform[at : span.stop * FRAME_SAMPLES].copy()
                yield AudioSegment((self._origin + at) / SAMPLE_RATE_HZ, piece)
            self._waveform, self._speech = self._waveform[span.stop * FRAME_SAMPLES :], self._speech[span.stop :]
            self._origin += span.stop * FRAME_SAMPLES


class _Lengths(NamedTuple):
    """Lengths that decide where segments end, in frames."""

    limit: int  # of a segment
    early: int  # of a segment after which a short silence ends it
    padding: int  # kept on both sides of speech, for soft onsets and ends
    silence: int  # that ends a segment
    speech: int  # shortest that is kept

    @classmethod
    def of(cls, max_seconds: float, vad: VadConfig, early: bool) -> _Lengths:
        """Return the lengths for settings."""
        limit = to_samples(max_seconds, SAMPLE_RATE_HZ) // FRAME_SAMPLES
        each = vad.vad_speech_pad_ms, vad.vad_min_silence_duration_ms, vad.vad_min_speech_duration_ms
        padding, silence, speech = (round(ms / 1000 * FRAMES_PER_SECOND) for ms in each)
        soon = round(EARLY_SECONDS * FRAMES_PER_SECOND) if early else limit
        return cls(limit, soon, min(padding, silence // 2, limit // 2), silence, speech)


class _Span(NamedTuple):
    """The next segment, in frames; empty if there is only silence to drop."""

    start: int
    stop: int


def _decide(speech: np.ndarray, waveform: np.ndarray, lengths: _Lengths, ended: bool) -> _Span | None:
    """Return the first segment of the held frames; None if it needs more frames.

    `speech` (n,) marks frames of speech. The segment starts a padding before the first of them and ends a padding
    after the last one before a long silence (a short one after `early` frames), or at the best cut within `limit`
    frames. Speech that is too short is dropped with its end.
    """
    limit, early, most_padding, least_silence, least_speech = lengths
    voiced = np.flatnonzero(speech)
    if not len(voiced):
        silent = len(speech) if ended else max(0, len(speech) - most_padding)
        return _Span(silent, silent) if silent else None
    start = max(0, int(voiced[0]) - most_padding)
    following = np.append(voiced[1:], len(speech) + (least_silence if ended else 0))
    silence = np.where(voiced < start + early, least_silence, min(least_silence, EARLY_SILENCE_FRAMES))
    ends = np.flatnonzero(following - voiced > silence)  # speech runs before a long silence or the end
    if len(ends) and (last := int(voiced[ends[0]])) < start + limit:
        if last + 1 - voiced[0] < least_speech:
            return _Span(last + 1, last + 1)
        padding = min(most_padding, int(silence[ends[0]]) // 2)
        return _Span(start, min(last + 1 + padding, start + limit, len(speech)))
    if len(speech) < start + limit:
        return None
    return _Span(start, start + _best_cut(speech[start : start + limit], waveform[start * FRAME_SAMPLES :]))


def _best_cut(speech: np.ndarray, waveform: np.ndarray) -> int:
    """Return the frame at which to cut a full window (W,), at least 1.

    It is the middle of the longest pause in the second half, or else in the first; without a pause, the quietest
    0.2 s in the last third.
    """
    half = len(speech) // 2
    for begin, end in ((half, len(speech)), (0, half)):
        pause_start, pause_frames = _longest_pause(speech[begin:end])
        middle = begin + pause_start + (pause_frames + 1) // 2
        if pause_frames >= PAUSE_FRAMES and speech[:middle].any():
            return middle
    begin = len(speech) * 2 // 3
    frames = whole_frames(waveform[: len(speech) * FRAME_SAMPLES]).reshape(-1, FRAME_SAMPLES)[begin:]
    loudness = np.convolve(np.square(frames).mean(axis=1), np.ones(5), mode="same")
    return begin + int(np.argmin(loudness[2:-2])) + 2


def _longest_pause(speech: np.ndarray) -> tuple[int, int]:
    """Return start and length of the longest run of frames without speech; of equal runs the last."""
    starts, stops = runs(~speech)
    lengths = stops - starts
    if not len(starts):
        return 0, 0
    longest = len(lengths) - 1 - int(np.argmax(lengths[::-1]))
    return int(starts[longest]), int(lengths[longest])
