"""Ctrl-C ends a process wherever it is, with one line, and takes with it what it was writing and who worked for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from focusasr.runtime.process import block_sigint

DEFAULT = "what is written is whole; give the same command again"
START = """
import signal, sys, time
from pathlib import Path
from focusasr.runtime.files import written_aside
from focusasr.runtime.process import answer_interrupts, on_interrupt_message
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background has it ignored
answer_interrupts()
def ready():
    print("ready", file=sys.stderr, flush=True)
"""
BUSY = {
    "in Python": "ready()\nwhile True: pass",
    "in a long computation": "import hashlib\nready()\nhashlib.pbkdf2_hmac('sha256', b'', b'', 10 ** 9)",
    "where exceptions are swallowed": "ready()\nwhile True:\n try: time.sleep(60)\n except BaseException: pass",
    "in an import": "Path('slow.py').write_text('ready()\\ntime.sleep(60)')\nimport builtins\nbuiltins.ready = ready\n"
    "builtins.time = time\nsys.path.insert(0, '')\nimport slow",
    "writing to who does not read": "ready()\nwhile True: print('x' * 99999)",
}


def interrupted(code: str, signal_number: int = signal.SIGINT) -> tuple[int, str, float]:
    """Run code until it is ready, interrupt it; return its status, what it then says, and how long it took."""
    command = [sys.executable, "-c", START + code]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None and process.stderr.readline() == "ready\n"
    time.sleep(0.05)
    began = time.perf_counter()
    process.send_signal(signal_number)
    process.wait(timeout=30)
    seconds = time.perf_counter() - began
    return process.returncode, process.communicate()[1], seconds


@pytest.mark.parametrize("place", BUSY)
def test_it_is_answered_anywhere(place: str) -> None:
    status, said, seconds = interrupted(BUSY[place])
    assert (status, said) == (130, f"focusasr: interrupted; {DEFAULT}\n")
    assert seconds < 2


def test_what_batch_systems_send_is_answered_likewise() -> None:
    promised = 'on_interrupt_message("step 7 is whole")\n'
    status, said, _ = interrupted(promised + BUSY["where exceptions are swallowed"], signal.SIGTERM)
    assert (status, said) == (143, "focusasr: interrupted; step 7 is whole\n")
    ignored = "signal.signal(signal.SIGINT, signal.SIG_IGN)\nanswer_interrupts()\n"  # as behind nohup and &
    assert interrupted(ignored + BUSY["in Python"], signal.SIGTERM)[0] == 143


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_it_takes_along_what_was_being_written_and_the_children(tmp_path: Path) -> None:
    status, said, _ = interrupted(f"""
on_interrupt_message("2 of 3 things are done")
import subprocess
with written_aside(Path({str(tmp_path / "text.txt")!r})) as aside:
    aside.write_text("half")
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    Path({str(tmp_path / "child")!r}).write_text(str(child.pid))
    ready()
    child.wait()
    print("the main thread goes on", file=sys.stderr)
""")
    assert (status, said) == (130, "focusasr: interrupted; 2 of 3 things are done\n")
    assert [path.name for path in tmp_path.iterdir()] == ["child"]
    child = int((tmp_path / "child").read_text())
    until = time.monotonic() + 10  # on a busy machine it needs a moment to end what was told to
    while (alive := lives(child)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not alive


def test_of_several_processes_one_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert interrupted(BUSY["in Python"])[:2] == (130, "")


def test_what_is_ignored_stays_so() -> None:
    code = (
        "import os, signal; from focusasr.runtime.process import answer_interrupts; "
        "signal.signal(signal.SIGINT, signal.SIG_IGN); answer_interrupts(); "
        "os.kill(os.getpid(), signal.SIGINT); print('on')"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout, result.stderr) == (0, "on\n", "")


def test_the_shield_holds_when_multiprocessing_starts_its_helper() -> None:
    code = (
        "import multiprocessing, signal; from focusasr.runtime.process import block_sigint\n"
        "with block_sigint():\n    lock = multiprocessing.get_context('spawn').Lock()\n"
        "    print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))\n"
        "print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.stdout == "True\nFalse\n", result.stderr


def test_children_that_are_shielded_hear_nothing_of_it() -> None:
    code = "import os, signal; os.kill(os.getpid(), signal.SIGINT); print('on')"
    with block_sigint():
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout, result.stderr) == (0, "on\n", "")
    with pytest.raises(KeyboardInterrupt):  # and here it is heard again
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
        finally:
            signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("wait", [0.0, 0.3])
def test_the_command_answers_while_its_libraries_are_loaded(sample: Path, wait: float) -> None:
    code = START + "ready()\nfrom focusasr.__main__ import program\nprogram()"
    command = [sys.executable, "-c", code, "transcribe", str(sample)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None and process.stderr.readline() == "ready\n"
    time.sleep(wait)
    process.send_signal(signal.SIGINT)
    out, said = process.communicate(timeout=30)
    assert (process.returncode, out, said) == (130, "", f"focusasr: interrupted; {DEFAULT}\n")
