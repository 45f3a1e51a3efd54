"""Starting and leaving fast: what a command loads, it keeps, so nobody need look through it or take it apart."""

from __future__ import annotations

import atexit
import codecs
import gc
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from focusasr.settings import InputError

CLOSED_PIPE = 141  # as the shell has it: 128 + SIGPIPE


class Closed(io.TextIOWrapper):
    """A stdout that was closed: it holds the place of the file, so that no other gets it, and takes no result."""

    def write(self, text: str, /) -> int:
        """Refuse."""
        raise InputError("stdout is closed, so the result goes nowhere; leave it open, or send it to /dev/null")


def debugging() -> bool:
    """Return whether tracebacks are asked for."""
    return "--debug" in sys.argv


def open_streams() -> None:
    """Put something where a stream was closed, and let no character that a stream's encoding lacks end the work."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            kind = Closed if name == "stdout" else io.TextIOWrapper
            setattr(sys, name, kind(open(os.devnull, "wb"), encoding="utf-8"))  # noqa: SIM115 - as long as the process
        elif stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")
        elif stream.errors == "surrogateescape":  # of the C locale
            codecs.register_error("focusasr", _bytes_or_escapes)
            stream.reconfigure(errors="focusasr")


def _bytes_or_escapes(error: UnicodeError) -> tuple[str | bytes, int]:
    """Write a file name's bytes that are no text as they are, and what an encoding lacks as its escape."""
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.backslashreplace_errors(error)


@contextmanager
def loading() -> Iterator[None]:
    """Collect no garbage while modules and a model are loaded, and leave out of later collections what they made.

    A sixth of the time of `import torch` goes into collections that find nothing.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()


def leave(status: int) -> NoReturn:
    """End this process: what was promised for its end is done, but PyTorch is not taken apart.

    That would touch another 130 MB of its libraries, and takes tenths of a second.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            status = status or CLOSED_PIPE
        except OSError:
            status = status or 1
    os._exit(status)
