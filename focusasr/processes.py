"""Several processes on one job, as torchrun or accelerate launch start them: who does what, and what comes together.

The engine is accelerate on torch.distributed; a program that was started alone never loads it here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar

from focusasr.settings import InputError

ROUND = 32  # files per process between two gatherings: results come as the work goes on

Thing = TypeVar("Thing")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Processes:
    """This process among those of the job."""

    rank: int = 0
    count: int = 1

    @property
    def main(self) -> bool:
        """Return whether this is the one that prints and writes."""
        return self.rank == 0

    def share(self, things: Sequence[Thing]) -> Sequence[Thing]:
        """Return this process's part: every `count`-th thing."""
        return things[self.rank :: self.count]

    def gather(self, mine: list[Result]) -> list[list[Result]]:
        """Return what each process brought, by rank; every process must call it."""
        if self.count == 1:
            return [mine]
        from accelerate.utils import gather_object

        return gather_object([mine])

    def in_order(
        self, things: Sequence[Thing], work: Callable[[Sequence[Thing]], Iterator[Result]]
    ) -> Iterator[Result]:
        """Yield the result of every thing, in the order given, in every process; each works on its share."""
        if self.count == 1:
            yield from work(things)
            return
        for start in range(0, len(things), ROUND * self.count):
            several = things[start : start + ROUND * self.count]
            parts = self.gather(list(work(self.share(several))))
            for index in range(len(several)):
                yield parts[index % self.count][index // self.count]


def join_processes(device: Any) -> tuple[Processes, Any]:
    """Return this process among those of the job, and the device that is its own; alone, `device` as it is."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return Processes(), device
    from accelerate import PartialState

    state = PartialState(cpu=device.type == "cpu")
    return Processes(state.process_index, state.num_processes), device if device.type == "cpu" else state.device


def leave(processes: Processes) -> None:
    """End the connection to the other processes, once all are done."""
    if processes.count > 1:
        from accelerate import PartialState

        PartialState().wait_for_everyone()
        PartialState().destroy_process_group()


@contextmanager
def peers_watched(remedy: str) -> Iterator[None]:
    """Turn the failure of a sister process into one line with a remedy, in place of the transport's own words."""
    try:
        yield
    except RuntimeError as error:
        words = str(error).lower()
        if not any(sign in words for sign in ("gloo", "nccl", "connection closed by peer", "connection reset")):
            raise
        raise InputError(f"a sister process has ended, so this one ends too; {remedy}") from None


def flat(parts: list[list[Result]]) -> list[Result]:
    """Return the parts of all processes one after the other."""
    return list(chain.from_iterable(parts))
