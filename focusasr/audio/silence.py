"""Silence detection by level and, for faint audio, by voice activity."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from focusasr.audio.load import rechunk
from focusasr.audio.mel_stream import FRAMES_PER_SECOND, HOP_SAMPLES, LOWEST_DB
from focusasr.audio.segmentation import runs
from focusasr.audio.vad import FRAME_SAMPLES, detector, whole_frames

GROUP_SAMPLES = 32 * FRAME_SAMPLES  # per detector call

NOTHING_DB, NOTHING_BELOW_DB = -100.0, 60.0  # silence is below this level, or this far below the loudest frame, in dB
FAINT_DB, FAINT_BELOW_DB = -55.0, 30.0  # the same for faint audio, which is silence unless it is speech
SPEECH_THRESHOLD = 0.3  # speech probability above which faint audio may be speech
WORTH_ASKING = 1 * FRAMES_PER_SECOND  # shortest faint run that voice activity detection decides
LONG_FRAMES = 3 * FRAMES_PER_SECOND  # shortest silence that is skipped at the edges of a window
MARGIN_FRAMES = FRAMES_PER_SECOND // 2  # kept of a skipped silence
LEAST_SPEECH = 8  # shortest speech, in detector frames, 0.26 s: less is a click


class Silence:
    """Silent runs of a recording, for window-by-window decoding; positions are 10 ms frames.

    `nothing` (F,) marks silence by level. `faint` (F,), which includes it, marks silence unless `speech` (F,) is true;
    `speech` is computed once, when a result first depends on it.
    """

    def __init__(
        self, nothing: np.ndarray, faint: np.ndarray | None = None, speech: Callable[[], np.ndarray] | None = None
    ) -> None:
        self._nothing, self._faint = nothing, nothing if faint is None else faint
        self._speech = speech
        self._faint_runs, self._sure_runs = _Runs(self._faint), _Runs(nothing)

    @functools.cached_property
    def _judged_runs(self) -> _Runs:
        assert self._speech is not None
        return _Runs(self._nothing | (self._faint & ~self._speech()))

    def _around(self, frame: int, least: int, end: int | None = None) -> tuple[int, int] | None:
        """Return the silence around a frame; None if it is absent, or shorter than `least` and before `end`."""
        faint = self._faint_runs.around(frame)
        if faint is None or not (faint[1] - faint[0] >= least or (end is not None and faint[1] >= end)):
            return None
        doubtful = _Runs(~self._nothing[slice(*faint)]).longest
        worth = min(WORTH_ASKING, len(self._faint))
        return (self._judged_runs if doubtful >= worth else self._sure_runs).around(frame)

    def begin(self, seek: int, end: int) -> int:
        """Return the next frame to decode from `seek`, after a long silence; `end` if only silence follows."""
        around = self._around(seek, LONG_FRAMES, end)
        if around is None:
            return seek
        if around[1] >= end:
            return end
        return around[1] - MARGIN_FRAMES if around[1] - seek >= LONG_FRAMES else seek

    def stop(self, seek: int, stop: int) -> int:
        """Return the end of a window from `seek` to `stop` without a long silence at its end."""
        around = self._around(stop - 1, LONG_FRAMES)
        if around is None or stop - around[0] < LONG_FRAMES or around[0] <= seek:
            return stop
        return around[0] + MARGIN_FRAMES

    def shrink(self, start: int, end: int) -> tuple[int, int]:
        """Return a span without silence of 0.5 s or more at its edges; unchanged if nothing would be left."""
        opening, closing = self._around(start, MARGIN_FRAMES), self._around(max(0, end - 1), MARGIN_FRAMES)
        begin = opening[1] if opening and opening[1] - opening[0] >= MARGIN_FRAMES else start
        stop = closing[0] if closing and closing[1] - closing[0] >= MARGIN_FRAMES else end
        return (begin, stop) if begin < stop else (start, end)


class _Runs:
    """The runs of true values (F,)."""

    def __init__(self, values: np.ndarray) -> None:
        self._starts, self._stops = runs(values)

    @property
    def longest(self) -> int:
        """Return the length of the longest run."""
        return int((self._stops - self._starts).max(initial=0))

    def around(self, frame: int) -> tuple[int, int] | None:
        """Return start and stop of the run that contains a frame; None without one."""
        place = int(np.searchsorted(self._starts, frame, side="right")) - 1
        inside = place >= 0 and frame < self._stops[place]
        return (int(self._starts[place]), int(self._stops[place])) if inside else None


def find_silence(levels: np.ndarray, blocks: Callable[[], Iterable[np.ndarray]]) -> Silence:
    """Return the silence of a recording with levels (F,), in dBFS.

    `blocks` returns its samples at 16 kHz; they are read only if a faint run may be speech.
    """
    loudest = levels.max(initial=LOWEST_DB)
    nothing = levels < max(NOTHING_DB, loudest - NOTHING_BELOW_DB)
    faint = levels < max(FAINT_DB, loudest - FAINT_BELOW_DB)
    return Silence(nothing, faint, lambda: _speech(blocks(), len(levels)))


def _speech(blocks: Iterable[np.ndarray], frames: int) -> np.ndarray:
    """Return which of `frames` 10 ms frames may be speech."""
    found = np.concatenate([np.zeros(1, bool), *_judged(blocks, SPEECH_THRESHOLD)])[1:]
    middles = (np.arange(frames) * HOP_SAMPLES + HOP_SAMPLES // 2) // FRAME_SAMPLES
    return found[np.minimum(middles, len(found) - 1)]


def _judged(blocks: Iterable[np.ndarray], threshold: float) -> Iterator[np.ndarray]:
    detect = detector(threshold)
    for group in rechunk(blocks, GROUP_SAMPLES):
        yield detect(whole_frames(group))


def first_speech(blocks: Iterable[np.ndarray], threshold: float) -> int | None:
    """Return the first 10 ms frame of speech; None without speech. Later blocks are not read."""
    held, before = np.zeros(0, bool), 0
    for speech in _judged(blocks, threshold):
        held = np.concatenate((held, speech))
        starts, stops = runs(held)
        long = starts[stops - starts >= LEAST_SPEECH]
        if len(long):
            return (before + int(long[0])) * FRAME_SAMPLES // HOP_SAMPLES
        before, held = before + max(0, len(held) - LEAST_SPEECH), held[-LEAST_SPEECH:]
    return None
