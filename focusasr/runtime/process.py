"""Streams, Ctrl-C, fast start and fast exit of the process.

Files are written atomically, so the program may end between any two instructions. A KeyboardInterrupt can be lost in
libraries that swallow it, in waiting joins or in workers; so a separate thread ends the process, also during a long
computation in the main thread. SIGTERM is handled like Ctrl-C.
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

CLOSED_PIPE = 141  # exit status as in the shell: 128 + SIGPIPE

INTERRUPTED = 128 + signal.SIGINT  # exit status as in the shell
LONGEST_EXIT_SECONDS = 1.5  # time limit of the cleanup

_promises = ["what is written is whole; give the same command again"]


class Closed(io.TextIOWrapper):
    """A closed stdout: it occupies the file descriptor, so that no other file gets it, and rejects writes."""

    def write(self, text: str, /) -> int:
        """Raise InputError."""
        raise InputError("stdout is closed, so the result goes nowhere; leave it open, or send it to /dev/null")


def debugging() -> bool:
    """Return whether --debug asks for tracebacks."""
    return "--debug" in sys.argv


def open_streams() -> None:
    """Replace closed streams, and escape characters that a stream's encoding lacks instead of failing."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            kind = Closed if name == "stdout" else io.TextIOWrapper
            setattr(sys, name, kind(open(os.devnull, "wb"), encoding="utf-8"))  # noqa: SIM115 - open until the process ends
        elif stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")
        elif stream.errors == "surrogateescape":  # in the C locale
            codecs.register_error("focusasr", _bytes_or_escapes)
            stream.reconfigure(errors="focusasr")


def _bytes_or_escapes(error: UnicodeError) -> tuple[str | bytes, int]:
    """Write undecodable bytes of file names unchanged, and characters that an encoding lacks as escapes."""
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.backslashreplace_errors(error)


@contextmanager
def loading() -> Iterator[None]:
    """Disable garbage collection while modules and a model are loaded, and exempt their objects from it later.

    Collections that find nothing take a sixth of the time of `import torch`.
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
    """End this process after its exit functions, without the interpreter's teardown of PyTorch.

    The teardown would load another 130 MB of its libraries and take tenths of a second.
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
    """Set the message printed on Ctrl-C from now on: which results are safe, and how to resume."""
    _promises[:] = [safe]


def what_is_safe() -> str:
    """Return the message for Ctrl-C."""
    return f"interrupted; {_promises[0]}"


def answer_interrupts() -> None:
    """End this process on Ctrl-C from now on, and on SIGTERM, which batch systems and containers send.

    Ignored signals stay ignored, as Ctrl-C is in the background of a shell script.
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
    """Undo `answer_interrupts`, for a program with its own handling."""
    if threading.current_thread() is not threading.main_thread():
        return
    signal.set_wakeup_fd(-1)
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
        if signal.getsignal(number) is _pause:
            signal.signal(number, handler)


@contextlib.contextmanager
def block_sigint() -> Iterator[None]:
    """Block Ctrl-C in processes started in this block; their parent ends them."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # it would lift the block if it started within
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _pause(*_: object) -> None:
    """Pause the main thread while the process ends: else it would report missing children and files."""
    while True:
        with contextlib.suppress(BaseException):  # errors from other signals, such as PyTorch's about its workers
            time.sleep(LONGEST_EXIT_SECONDS)


def _watch(reader: socket.socket, writer: socket.socket, answered: Collection[int]) -> None:
    while (number := reader.recv(1)[0]) not in answered:
        pass
    status = 128 + number  # as in the shell
    threading.Timer(LONGEST_EXIT_SECONDS, _leave, (status,)).start()  # in case the main thread holds a lock
    _kill_children()
    discard_asides()
    with contextlib.suppress(Exception):
        atexit._run_exitfuncs()  # such as multiprocessing's, which removes semaphores
        sys.stdout.flush()
    _leave(status)


def _leave(status: int) -> None:
    """Print the message once, as the last output, since bars are redrawn below earlier lines."""
    with contextlib.suppress(Exception):
        line = what_is_safe()
        _promises.clear()
        if os.environ.get("RANK", "0") == "0":  # only the main process prints
            shown_again = "\n\x1b[?25h" if sys.stderr.isatty() else ""  # show the cursor, which a bar hides
            os.write(2, f"{shown_again}focusasr: {line}\n".encode())
    os._exit(status)


def _kill_children() -> None:
    """Kill all child processes except multiprocessing's resource tracker, which cleans up afterwards."""
    import psutil

    with contextlib.suppress(psutil.Error):
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if "resource_tracker" not in " ".join(child.cmdline()):
                    child.kill()
