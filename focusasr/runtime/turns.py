"""Threads that compute by turns and share work."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

MOST_TOGETHER = 16
WAIT_SECONDS = 0.1  # longest wait for items of other threads, while these compute


class _Item:
    """The part of one thread in a shared computation."""

    def __init__(self, key: Hashable, content: Any, work: Callable[[list[Any]], list[Any]]) -> None:
        self.key, self.content, self.work = key, content, work
        self.latest = time.monotonic() + WAIT_SECONDS
        self.done = False
        self.result: Any = None
        self.error: BaseException | None = None


class Turns:
    """Lets one thread at a time compute, in order of arrival, and computes similar items of several threads together.

    A thread that shares an item waits while others have their turns, until all of them wait or have left, `most` items
    are together, or a tenth of a second is over. The processor is never idle meanwhile.
    """

    def __init__(self, most: int = MOST_TOGETHER) -> None:
        self._most = most
        self._changed = threading.Condition()
        self._queue: deque[object] = deque()
        self._taken = False
        self._inside = 0  # threads that have, or wait for, a turn
        self._items: list[_Item] = []
        self._own = threading.local()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for a turn and keep it in this block; a turn within a turn is the same one."""
        if getattr(self._own, "inside", False):
            yield
            return
        with self._changed:
            self._inside += 1
            self._begin()
        self._own.inside = True
        try:
            yield
        finally:
            self._own.inside = False
            with self._changed:
                self._inside -= 1
                self._end()

    def pass_on(self) -> None:
        """Let the threads that wait for a turn have theirs first."""
        with self._changed:
            if self._queue and getattr(self._own, "inside", False):
                self._end()
                self._begin()

    def share(self, key: Hashable, content: Any, work: Callable[[list[Any]], list[Any]]) -> Any:
        """Return the result of `content`: its place in `work` of a list with items of other threads under this key.

        The thread must have its turn, which others may take meanwhile. If a list fails, its items are tried alone.
        """
        mine = _Item(key, content, work)
        with self._changed:
            self._items.append(mine)
            while not mine.done:
                like = [item for item in self._items if item.key == key][: self._most]
                all_wait = len(self._items) == self._inside
                if all_wait or len(like) == self._most or time.monotonic() >= mine.latest:
                    self._items = [item for item in self._items if item not in like]
                    self._changed.release()
                    try:
                        _compute(like)
                    finally:
                        self._changed.acquire()
                else:
                    self._end()
                    left = max(0.0, mine.latest - time.monotonic())
                    self._changed.wait_for(lambda: mine.done or self._stalled(), left)
                    self._begin()
        if mine.error is not None:
            raise mine.error
        return mine.result

    def _stalled(self) -> bool:
        """Return whether no thread has or wants a turn, since all wait for their items."""
        return not self._taken and not self._queue and len(self._items) == self._inside

    def _begin(self) -> None:
        ticket = object()
        self._queue.append(ticket)
        self._changed.wait_for(lambda: not self._taken and self._queue[0] is ticket)
        self._queue.popleft()
        self._taken = True

    def _end(self) -> None:
        self._taken = False
        self._changed.notify_all()


def _compute(items: list[_Item]) -> None:
    """Set the result or error of each item, together if possible."""
    try:
        results = items[0].work([item.content for item in items])
        for item, result in zip(items, results, strict=True):
            item.result = result
    except BaseException as error:
        if len(items) == 1:
            items[0].error = error
        else:
            for item in items:
                _compute([item])
    for item in items:
        item.done = True
