"""Ctrl-C ends the process at once, wherever it is, and says in one line what is safe; so does SIGTERM.

All files are whole or absent, so a program may end between any two instructions. A KeyboardInterrupt would have to
find its way past libraries that swallow it, joins that wait and workers that print it; here a thread of its own ends
the process, also while a long computation keeps the main one busy.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Collection, Iterator

from focusasr.files import discard_asides

INTERRUPTED = 128 + signal.SIGINT  # the status, as the shell has it
LONGEST_SECONDS = 1.5  # for leaving in good order

_promises = ["what is written is whole; give the same command again"]


def promise(safe: str) -> None:
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


@contextlib.contextmanager
def shielded() -> Iterator[None]:
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
            time.sleep(LONGEST_SECONDS)


def _watch(reader: socket.socket, writer: socket.socket, answered: Collection[int]) -> None:
    while (number := reader.recv(1)[0]) not in answered:
        pass
    status = 128 + number  # as the shell has it
    threading.Timer(LONGEST_SECONDS, _leave, (status,)).start()  # whatever the main thread holds locked
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
