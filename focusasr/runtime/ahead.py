"""Iteration in a thread, ahead of its consumer."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeVar

Item = TypeVar("Item")


class _End(NamedTuple):
    """The end of the items, and the error that ended them, if any."""

    error: BaseException | None


def read_ahead(items: Iterator[Item], most: int) -> Iterator[Item]:
    """Yield items that a thread takes from an iterator in advance, at most `most` at a time; it raises their errors."""
    coming: queue.Queue[Any] = queue.Queue(most)
    closed = threading.Event()
    threading.Thread(target=_read, args=(items, coming, closed), daemon=True, name="focusasr ahead").start()
    try:
        while not isinstance(item := coming.get(), _End):
            yield item
        if item.error is not None:
            raise item.error
    finally:
        closed.set()
        with contextlib.suppress(queue.Empty):  # the thread may wait for room
            while True:
                coming.get_nowait()


def _read(items: Iterator[Item], coming: queue.Queue[Any], closed: threading.Event) -> None:
    error: BaseException | None = None
    try:
        for item in items:
            coming.put(item)
            if closed.is_set():
                return
    except BaseException as found:
        error = found
    coming.put(_End(error))
