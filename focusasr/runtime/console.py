"""Messages and progress bars on stderr: bars on a terminal only, and never a word on stdout.

Rich draws the bars, and is imported only where there are some to draw.
"""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


TIME_WIDTH = len("0:00:00")
LINE_SECONDS = 60.0  # between lines of progress where there is no terminal
BESIDE_WIDTH = len(" ━━━━━━━━ 100% 0:00:00 gone 0:00:00 left")


@functools.cache
def stderr() -> Console:
    """Return rich's view of stderr."""
    from rich.console import Console

    return Console(stderr=True)


_collected: ContextVar[list[str] | None] = ContextVar("collected", default=None)
_printed_once: set[str] = set()


def warn(line: str) -> None:
    """Print one line on stderr, above the bar where there is one; within `collect_warnings` it is kept instead."""
    lines = _collected.get()
    if lines is None:
        print(line, file=sys.stderr, flush=True)
    else:
        lines.append(line.removeprefix("focusasr: "))


@contextmanager
def collect_warnings() -> Iterator[list[str]]:
    """Yield a list of the lines that this thread would print on stderr in the block."""
    lines: list[str] = []
    token = _collected.set(lines)
    try:
        yield lines
    finally:
        _collected.reset(token)


def warn_once(line: str) -> None:
    """Print one line on stderr, or keep it, if it was not before: of a recording that is read several times."""
    lines = _collected.get()
    if line.removeprefix("focusasr: ") not in (_printed_once if lines is None else lines):
        if lines is None:
            _printed_once.add(line.removeprefix("focusasr: "))
        warn(line)


def note(*lines: str) -> None:
    """Print lines on stderr where somebody looks on: what is written where, which a script knows."""
    for line in lines if shows() else ():
        warn(line)


def shown_on_stderr() -> dict[str, Any]:
    """Return how a bar is shown: on a terminal only, and stdout left alone unless it is a terminal too."""
    shared = sys.stdout.isatty()  # then results are printed above the bar
    return {"console": stderr(), "disable": not shows(), "transient": True, "redirect_stdout": shared}


def shows() -> bool:
    """Return whether there is a terminal to show progress on; of several processes, one shows."""
    return sys.stderr.isatty() and is_main()


def is_main() -> bool:
    """Return whether this process speaks for all: of several, one does."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def progress_bar(
    files: int, what: str, seconds: Callable[[], float | None] = lambda: None
) -> Iterator[Callable[[int, float], None]]:
    """Show `what` on stderr while files are read; yields a function that is given (files done, seconds of audio).

    A terminal shows a bar, anything else a line each minute. `seconds` returns the length of all sound, or None where
    that is unknown; it is asked only where something is shown. A bar then has the time left, else it counts files.
    """
    if not shows():
        yield _lines(files, what, seconds)
        return
    whole = seconds()
    began, heard, done = time.perf_counter(), 0.0, 0
    with _bar(what, whole or files) as show:

        def tell(more_files: int, more_seconds: float) -> None:
            nonlocal heard, done
            heard, done = heard + more_seconds, done + more_files
            count, fast = f"{done}/{files}", _speed(heard, began)
            fuller = (
                f"{count} files, {_sound(heard, whole)}, {fast}",
                f"{count} files, {fast}",
                f"{count} files",
                count,
            )
            show(heard if whole else done, whole or files, fuller)

        tell(0, 0.0)
        yield tell


def _lines(files: int, what: str, seconds: Callable[[], float | None]) -> Callable[[int, float], None]:
    """Return what counts progress as a line each minute, for a log; nothing is printed of what is done sooner."""
    began = last = time.perf_counter()
    heard, done = 0.0, 0
    whole = functools.cache(seconds)

    def tell(more_files: int, more_seconds: float) -> None:
        nonlocal heard, done, last
        heard, done = heard + more_seconds, done + more_files
        now = time.perf_counter()
        if now - last >= LINE_SECONDS and done < files and is_main():
            last = now
            warn(f"focusasr: {what}: {done}/{files} files, {_sound(heard, whole())}, {_speed(heard, began)}")

    return tell


def _sound(heard: float, whole: float | None) -> str:
    """Return how much sound was read, of all where that is known: in minutes, or in seconds if it is little."""
    unit, name = (60, "min") if max(heard, whole or 0.0) >= 120 else (1, "s")
    of = "" if whole is None else f" of {whole / unit:.0f}"
    return f"{heard / unit:.0f}{of} {name} of sound"


def _speed(heard: float, began: float) -> str:
    return f"{heard / max(1e-9, time.perf_counter() - began):.0f}x real time"


@contextmanager
def file_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show on stderr how many files are done; yields a function told (done, in all)."""
    if not shows():
        yield lambda done, total: None
        return
    with _bar(what, None) as show:
        yield lambda done, total: show(done, total, (f"{done}/{total} files", f"{done}/{total}"))


@contextmanager
def _bar(what: str, total: float | None) -> Iterator[Callable[[float, float, Sequence[str]], None]]:
    """Show what is done, a bar, its percentage, and the times gone and left, all whole at any usual width.

    Yields a function told (completed, total, how it may be said): the first of these that leaves the bar room is shown.
    """
    from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.table import Column

    def fixed(kind: type[ProgressColumn]) -> ProgressColumn:
        return kind(table_column=Column(no_wrap=True, min_width=TIME_WIDTH))

    times = (fixed(TimeElapsedColumn), TextColumn("gone"), fixed(TimeRemainingColumn), TextColumn("left"))
    columns = (TextColumn("{task.description}"), BarColumn(None), TextColumn("{task.percentage:>3.0f}%"), *times)
    with Progress(*columns, **shown_on_stderr(), expand=True) as bar:
        task = bar.add_task(what, total=total)

        def show(completed: float, total: float, fuller: Sequence[str]) -> None:
            ways = (*(f"{what}: {way}" for way in fuller), fuller[-1])
            room = stderr().width - BESIDE_WIDTH
            bar.update(
                task, completed=completed, total=total, description=next((w for w in ways if len(w) <= room), ways[-1])
            )

        yield show


def pluralize(number: int, thing: str) -> str:
    """Return a number and its thing, in the plural where it is not one."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"
