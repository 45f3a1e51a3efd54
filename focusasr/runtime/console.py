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
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


TIME_WIDTH = len("0:00:00")
BESIDE_WIDTH = len(" ━━━━━━━━ 100% 0:00:00 gone 0:00:00 left")


@functools.cache
def stderr() -> Console:
    """Return rich's view of stderr."""
    from rich.console import Console

    return Console(stderr=True)


def warn(line: str) -> None:
    """Print one line on stderr, above the bar where there is one."""
    print(line, file=sys.stderr, flush=True)


@functools.cache
def warn_once(line: str) -> None:
    """Print one line on stderr, and never again in this process: of a recording that is read several times."""
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
    return sys.stderr.isatty() and os.environ.get("RANK", "0") == "0"


@contextmanager
def progress_bar(
    files: int, what: str, seconds: Callable[[], float | None] = lambda: None
) -> Iterator[Callable[[int, float], None]]:
    """Show `what` on stderr while files are heard; yields a function told (files done, seconds of audio).

    `seconds` tells the length of all sound, or None where nobody knows; it is asked only where a bar is shown, which
    then shows the time left. Else the bar counts files.
    """
    if not shows():
        yield lambda files, seconds: None
        return
    whole = seconds()
    began, heard, done = time.perf_counter(), 0.0, 0
    with _bar(what, whole or files) as show:

        def tell(more_files: int, more_seconds: float) -> None:
            nonlocal heard, done
            heard, done = heard + more_seconds, done + more_files
            speed = heard / (time.perf_counter() - began)
            count, fast = f"{done}/{files}", f"{speed:.0f}x real time"
            fuller = (
                f"{count} files, {heard:.0f} s of sound, {fast}",
                f"{count} files, {fast}",
                f"{count} files",
                count,
            )
            show(heard if whole else done, whole or files, fuller)

        tell(0, 0.0)
        yield tell


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
