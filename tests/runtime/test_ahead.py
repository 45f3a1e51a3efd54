"""Tests of iteration in a thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from focusasr.runtime.ahead import read_ahead


def test_all_items_come_in_order() -> None:
    assert list(read_ahead(iter(range(100)), 3)) == list(range(100))
    assert not list(read_ahead(iter(()), 1))


def test_an_error_comes_after_the_items_before_it() -> None:
    def failing() -> Iterator[int]:
        yield 1
        raise ValueError("2 is broken")

    items = read_ahead(failing(), 5)
    assert next(items) == 1
    with pytest.raises(ValueError, match="2 is broken"):
        next(items)


def test_another_thread_reads_some_items_before_they_are_asked_for() -> None:
    read: list[int] = []
    enough = threading.Event()

    def numbers() -> Iterator[int]:
        for number in range(100):
            read.append(number)
            if len(read) == 5:
                enough.set()
            yield number

    items = read_ahead(numbers(), 3)
    assert next(items) == 0
    assert enough.wait(10)  # one is given, three wait, one waits for room
    time.sleep(0.05)
    assert read == list(range(5))


@pytest.mark.parametrize("most", (1, 4))
def test_the_thread_ends_with_its_consumer(most: int) -> None:
    left = threading.Event()

    def endless() -> Iterator[int]:
        try:
            while True:
                yield 0
        finally:
            left.set()

    items = read_ahead(endless(), most)
    next(items)
    items.close()  # type: ignore[attr-defined]
    assert left.wait(10)
