"""Messages and progress bars on stderr: bars on terminals only, nothing on stdout.

Rich draws the bars and is imported only for them.
"""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


TIME_WIDTH = len("0:00:00")
LINE_SECONDS = 60.0  # between lines of progress without a terminal
BESIDE_WIDTH = len(" ━━━━━━━━ 100% 0:00:00 gone 0:00:00 left")


@functools.cache
def stderr() -> Console:
    """Return rich's console for stderr."""
    from rich.console import Console

    return Console(stderr=True)


_collected: ContextVar[list[str] | None] = ContextVar("collected", default=None)
_printed_once: set[str] = set()


def warn(line: str) -> None:
    """Print one line on stderr, above a bar if there is one; within `collect_warnings`, collect it instead."""
    lines = _collected.get()
    if lines is None:
        print(line, file=sys.stderr, flush=True)
    else:
        lines.append(line.removeprefix("focusasr: "))


@contextmanager
def collect_warnings() -> Iterator[list[str]]:
    """Yield a list that collects this thread's warnings in the block, instead of printing them."""
    lines: list[str] = []
    token = _collected.set(lines)
    try:
        yield lines
    finally:
        _collected.reset(token)


def warn_once(line: str) -> None:
    """Print or collect a line unless that was done before, for recordings that are read several times."""
    lines = _collected.get()
    if line.removeprefix("focusasr: ") not in (_printed_once if lines is None else lines):
        if lines is None:
            _printed_once.add(line.removeprefix("focusasr: "))
        warn(line)


def note(*lines: str) -> None:
    """Print lines on stderr if it is a terminal, such as output paths, which a script knows."""
    for line in lines if shows() else ():
        warn(line)


def shows() -> bool:
    """Return whether this process shows progress: the main one, on a terminal."""
    return sys.stderr.isatty() and is_main()


def is_main() -> bool:
    """Return whether this is the main process of the job, which prints."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def progress_bar(
    files: int, what: str, seconds: Callable[[], float | None] = lambda: None
) -> Iterator[Callable[[int, float], None]]:
    """Show progress of `what` on stderr; yields a function to call with (files done, seconds of audio).

    A terminal shows a bar, anything else a line per minute. `seconds` returns the total duration, or None if it is
    unknown, and is called only if progress is shown. With it, the bar shows the time left, else it counts files.
    """
    began, heard, done = time.perf_counter(), 0.0, 0
    last, whole = began, functools.cache(seconds)

    def tell(more_files: int, more_seconds: float) -> None:
        nonlocal heard, done, last
        heard, done = heard + more_seconds, done + more_files
        count, now = f"{done}/{files}", time.perf_counter()
        fast = f"{heard / max(1e-9, now - began):.0f}x real time"
        if show:
            most = f"{count} files, {_sound(heard, whole())}, {fast}"
            fuller = (most, f"{count} files, {fast}", f"{count} files", count)
            show(heard if whole() else done, whole() or files, fuller)
        elif now - last >= LINE_SECONDS and done < files and is_main():
            last = now
            warn(f"focusasr: {what}: {count} files, {_sound(heard, whole())}, {fast}")

    with _bar(what, whole() or files) if shows() else nullcontext() as show:
        tell(0, 0.0)
        yield tell


def _sound(heard: float, whole: float | None) -> str:
    """Return the amount of audio read, and of all audio if known, in minutes, or in seconds below two minutes."""
    unit, name = (60, "min") if max(heard, whole or 0.0) >= 120 else (1, "s")
    of = "" if whole is None else f" of {whole / unit:.0f}"
    return f"{heard / unit:.0f}{of} {name} of sound"


@contextmanager
def file_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show the number of files done on stderr; yields a function to call with (done, total)."""
    if not shows():
        yield lambda done, total: None
        return
    with _bar(what, None) as show:
        yield lambda done, total: show(done, total, (f"{done}/{total} files", f"{done}/{total}"))


@contextmanager
def _bar(what: str, total: float | None) -> Iterator[Callable[[float, float, Sequence[str]], None]]:
    """Show a description, a bar, its percentage, elapsed and remaining time, none of them wrapped.

    Yields a function to call with (completed, total, descriptions): the first description that fits next to the bar is
    shown.
    """
    from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.table import Column

    def fixed(kind: type[ProgressColumn]) -> ProgressColumn:
        return kind(table_column=Column(no_wrap=True, min_width=TIME_WIDTH))

    times = (fixed(TimeElapsedColumn), TextColumn("gone"), fixed(TimeRemainingColumn), TextColumn("left"))
    columns = (TextColumn("{task.description}"), BarColumn(None), TextColumn("{task.percentage:>3.0f}%"), *times)
    shared = sys.stdout.isatty()  # results are then printed above the bar
    with Progress(*columns, console=stderr(), transient=True, redirect_stdout=shared, expand=True) as bar:
        task = bar.add_task(what, total=total)

        def show(completed: float, total: float, fuller: Sequence[str]) -> None:
            ways = (*(f"{what}: {way}" for way in fuller), fuller[-1])
            room = stderr().width - BESIDE_WIDTH
            bar.update(
                task, completed=completed, total=total, description=next((w for w in ways if len(w) <= room), ways[-1])
            )

        yield show


def percent(ratio: float, places: int = 1) -> str:
    """Return a ratio as text in percent."""
    return f"{100 * ratio:.{places}f} %"


def pluralize(number: int, thing: str) -> str:
    """Return a number and its noun, in the plural unless it is 1."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"
