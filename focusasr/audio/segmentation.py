"""Where long recordings are cut: at pauses, into pieces that fit, silence left out and speech never."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from focusasr.audio.load import rechunk, to_samples
from focusasr.audio.vad import FRAME_SAMPLES, FRAMES_PER_SECOND, detector, whole_frames
from focusasr.config import SAMPLE_RATE_HZ

GROUP_FRAMES = 32  # frames judged in one call, 1.024 s; groups lie where they lie however the sound comes in

PADDING_FRAMES = round(0.4 * FRAMES_PER_SECOND)  # kept on both sides of speech: soft beginnings and ends
SILENCE_FRAMES = round(1.0 * FRAMES_PER_SECOND)  # a pause this long ends a piece; beyond the padding it is left out
PAUSE_FRAMES = 3  # about 0.1 s: the shortest pause worth a cut


@dataclass(frozen=True)
class AudioSegment:
    """A stretch of a recording: where it starts, exact to the sample, and its samples (N,) float32 at 16 kHz."""

    start_seconds: float
    waveform: np.ndarray


def split_at_pauses(
    blocks: Iterable[np.ndarray], max_seconds: float = 20.0, vad_threshold: float = 0.5, whole: bool = True
) -> Iterator[AudioSegment]:
    """Yield the pieces of a recording that comes as blocks (n,) float32 at 16 kHz; lazily, in bounded memory.

    A recording of at most `max_seconds` (1 or more) is one piece, if it may stay `whole`; one of 0 samples is none.
    Any other is cut in the middle of pauses into pieces of at most `max_seconds`, at the quietest point where speech
    makes no pause, and silence of a second or more is left out, up to 0.4 s beside speech. Pieces come in order and
    never overlap, and they depend on the samples alone, not on how these are split into blocks. About `max_seconds`
    and one block are held at a time.
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
        yield from _cut_long(itertools.chain(head, blocks), PauseCutter(max_seconds, vad_threshold))
    elif samples:
        yield AudioSegment(0.0, np.concatenate(head))


def merge_segments(pieces: Iterable[AudioSegment], max_seconds: float) -> Iterator[AudioSegment]:
    """Join neighbors while they fit into `max_seconds`, with silence between them, so that times stay true."""
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


class PauseCutter:
    """Cuts a recording that comes in groups of samples, and holds what is in no segment yet."""

    def __init__(self, max_seconds: float, vad_threshold: float) -> None:
        self._limit = to_samples(max_seconds, SAMPLE_RATE_HZ) // FRAME_SAMPLES
        self._detect = detector(vad_threshold)
        self._waveform, self._speech = np.zeros(0, np.float32), np.zeros(0, bool)
        self._origin = 0  # sample of the recording at which they begin

    def add(self, group: np.ndarray) -> Iterator[AudioSegment]:
        """Yield the segments that are complete with the next samples (n * 512,); only the last n need not be whole."""
        self._waveform = np.concatenate([self._waveform, group])
        self._speech = np.concatenate([self._speech, self._detect(whole_frames(group))])
        return self._complete(ended=False)

    def end(self) -> Iterator[AudioSegment]:
        """Yield the segments that the end of the recording completes."""
        return self._complete(ended=True)

    @property
    def open(self) -> AudioSegment | None:
        """The segment under way, from a little before its first speech up to now; None in silence."""
        voiced = np.flatnonzero(self._speech)
        if not len(voiced):
            return None
        at = max(0, int(voiced[0]) - PADDING_FRAMES) * FRAME_SAMPLES
        return AudioSegment((self._origin + at) / SAMPLE_RATE_HZ, self._waveform[at:])

    def _complete(self, ended: bool) -> Iterator[AudioSegment]:
        while len(self._speech) and (span := _decide(self._speech, self._waveform, self._limit, ended)):
            if span.stop > span.start:
                at = span.start * FRAME_SAMPLES
                piece = self._waveform[at : span.stop * FRAME_SAMPLES].copy()
                yield AudioSegment((self._origin + at) / SAMPLE_RATE_HZ, piece)
            self._waveform, self._speech = self._waveform[span.stop * FRAME_SAMPLES :], self._speech[span.stop :]
            self._origin += span.stop * FRAME_SAMPLES


def _cut_long(blocks: Iterable[np.ndarray], cutter: PauseCutter) -> Iterator[AudioSegment]:
    for group in rechunk(blocks, GROUP_FRAMES * FRAME_SAMPLES):
        yield from cutter.add(group)
    yield from cutter.end()


class _Span(NamedTuple):
    """The next piece, in frames; empty where there is only silence to forget."""

    start: int
    stop: int


def _decide(speech: np.ndarray, waveform: np.ndarray, limit: int, ended: bool) -> _Span | None:
    """Return the first piece among the frames held, None where more must be heard first.

    `speech` (n,) tells which frames are; the piece begins a padding before the first of them and ends a padding
    behind the last one before a long silence, or at the best cut within `limit` frames.
    """
    voiced = np.flatnonzero(speech)
    if not len(voiced):
        silent = len(speech) if ended else max(0, len(speech) - PADDING_FRAMES)
        return _Span(silent, silent) if silent else None
    start = max(0, int(voiced[0]) - PADDING_FRAMES)
    following = np.append(voiced[1:], len(speech) + (SILENCE_FRAMES if ended else 0))
    last = voiced[following - voiced > SILENCE_FRAMES]  # of each stretch that a long silence or the end ends
    if len(last) and last[0] < start + limit:
        return _Span(start, min(int(last[0]) + 1 + PADDING_FRAMES, start + limit, len(speech)))
    if len(speech) < start + limit:
        return None
    return _Span(start, start + _best_cut(speech[start : start + limit], waveform[start * FRAME_SAMPLES :]))


def _best_cut(speech: np.ndarray, waveform: np.ndarray) -> int:
    """Return the frame at which to cut a full window (W,): always after at least one frame.

    The middle of the longest pause in the second half, or else in the first; without any pause, the quietest fifth
    of a second in the last third.
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
    """Return where the longest run of frames without speech starts, and its length; the last one where two tie."""
    edges = np.flatnonzero(np.diff(np.concatenate([[True], speech, [True]])))
    starts, lengths = edges[::2], edges[1::2] - edges[::2]
    if not len(starts):
        return 0, 0
    longest = len(lengths) - 1 - int(np.argmax(lengths[::-1]))
    return int(starts[longest]), int(lengths[longest])
