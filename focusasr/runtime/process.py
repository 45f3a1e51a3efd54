"""The process: its streams, Ctrl-C, fast start and exit.

All files are whole or absent, so a program may end between any two instructions. A KeyboardInterrupt would have to
find its way past libraries that swallow it, joins that wait and workers that print it; here a thread of its own ends
the process, also while a long computation keeps the main one busy. SIGTERM is answered as Ctrl-C is.
"""

from __future__ import annotations

import atexit
import codecs
import contextlib
import gc
import io
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import NoReturn

from focusasr.runtime.errors import InputError
from focusasr.runtime.files import discard_asides

CLOSED_PIPE = 141  # as the shell has it: 128 + SIGPIPE

INTERRUPTED = 128 + signal.SIGINT  # the status, as the shell has it
LONGEST_EXIT_SECONDS = 1.5  # for leaving in good order

_promises = ["what is written is whole; give the same command again"]


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


def exit_now(status: int) -> NoReturn:
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


def on_interrupt_message(safe: str) -> None:
    """Set what is said on Ctrl-C from now on: what is safe and how to go on."""
    _promises[:] = [safe]


def what_is_safe() -> str:
    """Return the line for the user."""
    return f"interrupted; {_promises[0]}"


def answer_interrupts() -> None:
    """From now on Ctrl-C ends this process, and so does SIGTERM, which batch systems and containers send.

    What is ignored stays so, as Ctrl-C is in the background of a shell script.
    """
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    answered = [number for number, handler in usual.items() if signal.getsignal(number) == handler]
    if not answered:
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    for number in answered:
        signal.signal(number, _pause)
    threading.Thread(target=_watch, args=(reader, writer, answered), daemon=True).start()


def restore_interrupts() -> None:
    """Undo `answer_interrupts`, for a program that ends in its own way."""
    if threading.current_thread() is not threading.main_thread():
        return
    signal.set_wakeup_fd(-1)
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
        if signal.getsignal(number) is _pause:
            signal.signal(number, handler)


@contextlib.contextmanager
def block_sigint() -> Iterator[None]:
    """Start processes that Ctrl-C does not reach: it is their parent's, which ends them."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # which lifts the block where it starts within
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _pause(*_: object) -> None:
    """Hold the main thread still while the process ends: it would complain of children and files that are gone."""
    while True:
        with contextlib.suppress(BaseException):  # another signal's word, such as PyTorch's of its workers' end
            time.sleep(LONGEST_EXIT_SECONDS)


def _watch(reader: socket.socket, writer: socket.socket, answered: Collection[int]) -> None:
    while (number := reader.recv(1)[0]) not in answered:
        pass
    status = 128 + number  # as the shell has it
    threading.Timer(LONGEST_EXIT_SECONDS, _leave, (status,)).start()  # whatever the main thread holds locked
    _kill_children()
    discard_asides()
    with contextlib.suppress(Exception):
        atexit._run_exitfuncs()  # such as multiprocessing's, which has semaphores to remove
        sys.stdout.flush()
    _leave(status)


def _leave(status: int) -> None:
    """Say the line, once, as the last thing, since bars are drawn anew below what is said before."""
    with contextlib.suppress(Exception):
        line = what_is_safe()
        _promises.clear()
        if os.environ.get("RANK", "0") == "0":  # of several processes, one speaks
            shown_again = "\n\x1b[?25h" if sys.stderr.isatty() else ""  # the cursor, which a bar hides
            os.write(2, f"{shown_again}focusasr: {line}\n".encode())
    os._exit(status)


def _kill_children() -> None:
    """End them all but the one that multiprocessing has for cleaning up when we are gone."""
    import psutil

    with contextlib.suppress(psutil.Error):
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if "resource_tracker" not in " ".join(child.cmdline()):
                    child.kill()
