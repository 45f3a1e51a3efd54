"""Load on `focusasr serve` by good and by misbehaving clients.

    python scripts/checks/serve_load.py --seconds 300 --clients 8
    python scripts/checks/serve_load.py --seconds 60 --all-good -- --max-batch 1
    python scripts/checks/serve_load.py --seconds 60 --all-good --port 8001 --pid 1234

Half of the clients send corrupt recordings, incomplete uploads or slow uploads, or close the connection before the
answer, unless `--all-good`. Options after `--` are those of `focusasr serve`; `--port` and `--pid` are those of another
server with OpenAI's interface. Prints JSON: requests, failures of good clients, latencies in seconds, seconds of audio
per second and per second of computing (with --all-good), memory in megabytes. Status 1 if a good client failed or if
memory grew by more than 10 %.
"""

from __future__ import annotations

import argparse
import itertools
import json
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import soundfile

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.helpers.http_server import FORM, PATH, Server, form  # noqa: E402

CLIPS = [ROOT / "tests" / "data" / name for name in ("sample.flac", "jfk.flac")]  # 4.3 s and 11 s
SECONDS = [soundfile.info(path).duration for path in CLIPS]
MOST_GROWTH = 1.1
WARM_UP_SHARE = 0.2  # of the time, before memory is measured first


class Other(Server):
    """A running server with OpenAI's interface."""

    def __init__(self, port: int, pid: int) -> None:
        self.port, self.key = port, None
        self.process = psutil.Process(pid)

    def end(self) -> int:
        """Leave it running."""
        return 0


class Load:
    """Clients of a server until a set time, and the results of their requests."""

    def __init__(self, server: Server, seconds: float) -> None:
        self.server = server
        self.clips = [path.read_bytes() for path in CLIPS]
        self.clip = self.clips[0]
        self.expected = [self.send(clip)[1]["text"] for clip in self.clips]
        self.end = time.monotonic() + seconds
        self.latencies: list[float] = []
        self.audio_seconds = 0.0
        self.failures: list[str] = []
        self.bad = 0

    def send(self, clip: bytes) -> tuple[int, Any]:
        """Send a recording; return the status and the answer."""
        return self.server.send(clip, model="whisper-1")

    def good(self) -> None:
        """Send recordings, one after the other, and compare their texts."""
        for index in itertools.cycle(range(len(self.clips))):
            if time.monotonic() >= self.end:
                return
            start = time.perf_counter()
            try:
                status, answer = self.send(self.clips[index])
            except OSError as error:
                self.failures.append(str(error))
                continue
            self.latencies.append(time.perf_counter() - start)
            self.audio_seconds += SECONDS[index]
            if status != 200 or answer["text"] != self.expected[index]:
                self.failures.append(f"{status} {answer}")

    def misbehaving(self) -> None:
        """Send invalid requests, one after the other."""
        kinds = (self.corrupt, self.cut_off, self.slow, self.leave)
        for kind in itertools.cycle(kinds):
            if time.monotonic() >= self.end:
                return
            self.bad += 1
            kind()

    def corrupt(self) -> None:
        """Send a truncated recording."""
        status, _ = self.send(self.clip[: len(self.clip) // 2])
        assert status == 422 or isinstance(self.server, Other)

    def cut_off(self) -> None:
        """Send half of an upload and close."""
        self.partly(len(form(self.clip)) // 2, 0.0)

    def slow(self) -> None:
        """Send a tenth of an upload, wait, and close."""
        self.partly(len(form(self.clip)) // 10, 1.0)

    def leave(self) -> None:
        """Send everything and close before the answer."""
        self.partly(len(form(self.clip)), 0.0)

    def partly(self, count: int, wait_seconds: float) -> None:
        """Send the first bytes of a request, wait, and close."""
        body = form(self.clip)
        head = f"POST {PATH} HTTP/1.1\r\nHost: here\r\nContent-Type: {FORM['Content-Type']}\r\n"
        with socket.create_connection(("127.0.0.1", self.server.port)) as connection:
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[:count])
            time.sleep(wait_seconds)


def main() -> int:
    """Run the clients and print their results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--all-good", action="store_true")
    parser.add_argument("--port", type=int)
    parser.add_argument("--pid", type=int)
    parser.add_argument("options", nargs="*")
    given = parser.parse_args()
    server = Other(given.port, given.pid) if given.port else Server("--max-client-requests", 32, *given.options)
    load = Load(server, given.seconds)
    kinds = [load.good if given.all_good or index % 2 else load.misbehaving for index in range(given.clients)]
    threads = [threading.Thread(target=kind) for kind in kinds]
    for thread in threads:
        thread.start()
    process = psutil.Process(server.process.pid)
    computed = -sum(process.cpu_times()[:2])
    time.sleep(WARM_UP_SHARE * given.seconds)
    before = process.memory_info().rss
    for thread in threads:
        thread.join()
    computed += sum(process.cpu_times()[:2])
    after, descriptors = process.memory_info().rss, server.descriptors()
    p50, p95, p99 = np.percentile(load.latencies, [50, 95, 99])
    figures = {
        "good": len(load.latencies),
        "failures": load.failures[:10],
        "misbehaving": load.bad,
        "latency_seconds": {"p50": round(p50, 3), "p95": round(p95, 3), "p99": round(p99, 3)},
        "throughput": round(load.audio_seconds / given.seconds, 2),
        "audio_per_cpu_second": round(load.audio_seconds / computed, 2),
        "memory_mb": [round(before / 1e6, 1), round(after / 1e6, 1)],
        "open_files": descriptors,
        "exit_status": server.end(),
    }
    print(json.dumps(figures))
    return int(bool(load.failures) or after > MOST_GROWTH * before)


if __name__ == "__main__":
    sys.exit(main())
