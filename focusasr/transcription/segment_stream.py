"""Segments of a recording from a thread that decodes ahead."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from focusasr.runtime.errors import InputError
from focusasr.transcription.result import Segment


class _Closed(Exception):
    """The consumer has closed the stream."""


class SegmentStream(Iterator[Segment]):
    """The segments of a recording as they are decoded; `result` is the whole transcript.

    `close` ends the work early, and so does dropping the iterator or leaving its `with` block.
    """

    def __init__(self, work: Callable[[Callable[[Sequence[Segment]], object], Callable[[float], object]], Any]) -> None:
        self._coming: queue.SimpleQueue[Segment | Any] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._end: Any = None  # the result or the error
        arguments = (work, self._coming, self._closed)  # not this object, so that it can be dropped
        self._thread = threading.Thread(target=_decode, args=arguments, daemon=True, name="focusasr segments")
        self._thread.start()

    def __next__(self) -> Segment:
        """Return the next segment; raises the errors of `transcribe`."""
        if self._end is None:
            item = self._coming.get()
            if isinstance(item, Segment):
                return item
            self._end = item
        if isinstance(self._end, BaseException) and not isinstance(self._end, _Closed):
            raise self._end
        raise StopIteration

    @property
    def result(self) -> Any:
        """The whole result; waits for the end and drops unread segments."""
        for _ in self:
            pass
        if isinstance(self._end, BaseException):
            raise InputError("segments: closed before the end. Take the result before closing.")
        return self._end

    def close(self) -> None:
        """End the work after the batch in progress."""
        self._closed.set()

    def __enter__(self) -> SegmentStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self._closed.set()


def _decode(
    work: Callable[[Callable[[Sequence[Segment]], object], Callable[[float], object]], Any],
    coming: queue.SimpleQueue[Segment | Any],
    closed: threading.Event,
) -> None:
    def progress(seconds: float) -> None:
        if closed.is_set():
            raise _Closed

    def found(segments: Sequence[Segment]) -> None:
        progress(0.0)
        for segment in segments:
            coming.put(segment)

    try:
        progress(0.0)
        coming.put(work(found, progress))
    except BaseException as error:
        coming.put(error)
