"""Threads that take turns: one at a time, in order, and items that several of them share."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from focusasr.runtime.turns import Turns


def together(count: int, act: Callable[[int], object]) -> list[object]:
    """Run an action in so many threads that begin at the same time; return the results or errors in order."""
    barrier, results = threading.Barrier(count), [object()] * count

    def run(index: int) -> None:
        barrier.wait()
        try:
            results[index] = act(index)
        except Exception as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    return results


def test_one_thread_computes_at_a_time() -> None:
    turns, inside, most = Turns(), 0, 0

    def act(index: int) -> None:
        nonlocal inside, most
        for _ in range(20):
            with turns.turn(), turns.turn():
                inside += 1
                most = max(most, inside)
                time.sleep(0.0005)
                inside -= 1

    together(6, act)
    assert (most, inside) == (1, 0)


def test_items_of_all_threads_are_computed_together() -> None:
    turns, sizes = Turns(), list[int]()

    def work(items: list[int]) -> list[int]:
        sizes.append(len(items))
        return [2 * item for item in items]

    def act(index: int) -> int:
        with turns.turn():
            time.sleep(0.001)
            return int(turns.share("key", index, work))

    assert together(8, act) == [2 * index for index in range(8)]
    assert sum(sizes) == 8 and max(sizes) >= 4


def test_batch_is_bounded_and_other_keys_stay_apart() -> None:
    turns, lists = Turns(most=3), list[list[int]]()

    def work(items: list[int]) -> list[int]:
        lists.append(items)
        return items

    def act(index: int) -> int:
        total = 0
        for _ in range(5):
            with turns.turn():
                total += int(turns.share(index % 2, index, work))
        return total

    assert together(8, act) == [5 * index for index in range(8)]
    assert max(map(len, lists)) <= 3 and all(len({item % 2 for item in one}) == 1 for one in lists)


def test_failure_of_one_item_is_its_own() -> None:
    turns = Turns()

    def work(items: list[int]) -> list[int]:
        if 3 in items:
            raise MemoryError("three")
        return items

    def act(index: int) -> int:
        with turns.turn():
            return int(turns.share("key", index, work))

    results = together(6, act)
    assert isinstance(results.pop(3), MemoryError) and results == [0, 1, 2, 4, 5]


def test_wait_for_others_is_short() -> None:
    """A thread that never shares, again and again, holds nobody up for longer than its own turns."""
    turns, stop = Turns(), threading.Event()

    def busy() -> None:
        while not stop.is_set():
            with turns.turn():
                time.sleep(0.01)

    threads = [threading.Thread(target=busy) for _ in range(2)]
    for thread in threads:
        thread.start()
    begin = time.monotonic()
    with turns.turn():
        assert turns.share("key", 1, list) == 1
    passed = time.monotonic() - begin
    stop.set()
    for thread in threads:
        thread.join(5)
    assert passed < 1.0


def test_passing_on_lets_the_others_go_first() -> None:
    turns, order = Turns(), list[str]()

    def other() -> None:
        with turns.turn():
            order.append("other")

    thread = threading.Thread(target=other)
    with turns.turn():
        turns.pass_on()  # nobody waits
        thread.start()
        while not turns._queue:
            time.sleep(0.001)
        turns.pass_on()
        order.append("first")
    thread.join(5)
    assert order == ["other", "first"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_turn_ends_with_an_error(error: type[BaseException]) -> None:
    turns = Turns()
    with pytest.raises(error), turns.turn():
        raise error

    def act(index: int) -> int:
        with turns.turn():
            return index

    assert together(2, act) == [0, 1]
