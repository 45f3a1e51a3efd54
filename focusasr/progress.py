"""Progress on stderr: bars on a terminal, nothing elsewhere, and never a word on stdout."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

stderr = Console(stderr=True)


def shown_on_stderr() -> dict[str, Any]:
    """Return how a bar is shown: on a terminal only, and stdout left alone unless it is a terminal too."""
    shared = sys.stdout.isatty()  # then results are printed above the bar
    alone = os.environ.get("RANK", "0") == "0"  # of several processes, one shows
    return {
        "console": stderr,
        "disable": not (stderr.is_terminal and alone),
        "transient": True,
        "redirect_stdout": shared,
    }


@contextmanager
def progress_bar(total: int, what: str) -> Iterator[Any]:
    """Show `what` on stderr while files are heard; yields a function told (files done, seconds of audio)."""
    began, heard = time.perf_counter(), 0.0
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total} files"))
    with Progress(*columns, TimeElapsedColumn(), **shown_on_stderr()) as bar:
        task = bar.add_task(what, total=total)

        def tell(files: int, seconds: float) -> None:
            nonlocal heard
            heard += seconds
            speed = heard / (time.perf_counter() - began)
            bar.update(task, advance=files, description=f"{what}: {heard:.0f} s of sound, {speed:.0f}x real time")

        yield tell


@contextmanager
def file_bar(what: str) -> Iterator[Any]:
    """Show on stderr how many files are done; yields a function told (done, in all)."""
    columns = (TextColumn(what), BarColumn(), TextColumn("{task.completed}/{task.total}"), TimeRemainingColumn())
    with Progress(*columns, **shown_on_stderr()) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
