"""A process of its own that reads files one by one under limits of time and memory, and says how each ended."""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import json
import resource
import subprocess
import sys
import time
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

HANG_SECONDS = 10.0
MEGABYTE = 2**20


class Ending(NamedTuple):
    """How one reading ended: what it gave, or the line that refused it, or the traceback of anything else."""

    gave: Any
    refused: str | None
    broke: str | None
    seconds: float
    peak_megabytes: float  # of the process so far, above what it had before its first reading


def guarded(
    reader: str, paths: Iterable[str | Path], seconds: float = HANG_SECONDS, megabytes: int = 512
) -> list[Ending]:
    """Read each path with `reader`, "module:function"; AssertionError names the path at which the process ended."""
    names = [str(path) for path in paths]
    command = [sys.executable, __file__, reader, str(seconds), str(megabytes)]
    done = subprocess.run(command, input=json.dumps(names).encode(), capture_output=True)
    endings = [Ending(**json.loads(line)) for line in done.stdout.splitlines()]
    if len(endings) < len(names):
        raise AssertionError(f"{names[len(endings)]!r} hung or killed its reader:\n{done.stderr.decode()[-2000:]}")
    noise = [line for line in done.stderr.decode().splitlines() if not line.startswith("focusasr: ")]  # no warnings
    assert not noise, "\n".join(noise)[-2000:]
    return endings


def hoard(path: str) -> int:
    """Be a reader that wants 128 MiB, to see the limit at work."""
    return len(bytes(128 * MEGABYTE))


def main(reader: str, seconds: float, megabytes: int) -> None:
    """Read what standard input names, and write one line of JSON for each."""
    module, _, name = reader.partition(":")
    read = getattr(importlib.import_module(module), name)
    from focusasr.runtime.errors import InputError

    faulthandler.enable()
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + megabytes * MEGABYTE,) * 2)
    before = _peak_megabytes()
    for path in json.load(sys.stdin):
        ending: dict[str, Any] = dict.fromkeys(("gave", "refused", "broke"))
        faulthandler.dump_traceback_later(seconds, exit=True)  # even where the main thread is deep in a decoder
        began = time.perf_counter()
        try:
            ending["gave"] = read(path)
        except InputError as error:
            ending["refused"] = str(error)
        except BaseException:
            ending["broke"] = traceback.format_exc()
        faulthandler.cancel_dump_traceback_later()
        figures = {"seconds": time.perf_counter() - began, "peak_megabytes": _peak_megabytes() - before}
        print(json.dumps({**ending, **figures}), flush=True)


def _peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]))
