"""A server in a process of its own, and requests to it as a client sends them."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PATH = "/v1/audio/transcriptions"
BOUNDARY = "a-boundary"
END_SECONDS = 30.0


class Server:
    """A server in a process of its own."""

    def __init__(self, *options: object, key: str | None = None) -> None:
        places = [str(ROOT)]
        for library in ("starlette", "websockets"):
            found = find_spec(library)
            assert found is not None and found.origin is not None
            places.append(str(Path(found.origin).parents[1]))
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places), "OMP_NUM_THREADS": "1"}
        if key is not None:
            environment["FOCUSASR_API_KEY"] = key
        command = [sys.executable, "-m", "focusasr", "serve", "--port", "0", "--device", "cpu", "--threads", "1"]
        self.process = subprocess.Popen(
            [*command, *map(str, options)], env=environment, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stderr is not None
        line = self.process.stderr.readline()
        address = re.search(r"http://127\.0\.0\.1:(\d+)", line)
        assert address, line + self.process.stderr.read()
        self.port, self.key = int(address[1]), key

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None, local: str = "127.0.0.1"
    ) -> tuple[int, bytes, dict[str, str]]:
        """Send one request; return its status, body and headers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60, source_address=(local, 0))
        sent = {**({"Authorization": f"Bearer {self.key}"} if self.key else {}), **(headers or {})}
        with contextlib.closing(connection):
            connection.request(method, path, body, sent)
            answer = connection.getresponse()
            return answer.status, answer.read(), {name.lower(): value for name, value in answer.getheaders()}

    def send(self, content: bytes = b"", path: str = PATH, name: str = "clip.flac", **fields: str) -> tuple[int, Any]:
        """Send a recording; return the status and what the JSON of the answer holds, or its text."""
        status, body, headers = self.ask("POST", path, form(content, name, **fields), FORM)
        return status, json.loads(body) if headers["content-type"] == "application/json" else body.decode()

    def metric(self, name: str) -> float:
        """Return one figure of /metrics, 0 where there is none."""
        text = self.ask("GET", "/metrics")[1].decode()
        found = re.search(rf"^focusasr_{re.escape(name)} (\S+)$", text, re.M)
        return float(found[1]) if found else 0.0

    def descriptors(self) -> int:
        """Return how many files the process has open."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def end(self) -> int:
        """Ask it to end, and return its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(END_SECONDS)


FORM = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


def form(content: bytes | None, name: str = "clip.flac", **fields: str) -> bytes:
    """Return a form with a recording; `granularity` stands for OpenAI's field of that meaning."""
    parts = [
        (f'name="{key}"'.replace("granularity", "timestamp_granularities[]"), fields[key].encode()) for key in fields
    ]
    if content is not None:
        parts.append((f'name="file"; filename="{name}"', content))
    lines = [f"--{BOUNDARY}\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + body for head, body in parts]
    return b"\r\n".join([*lines, f"--{BOUNDARY}--\r\n".encode()])


def wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait until something is so, or fail."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@contextlib.contextmanager
def half_an_upload(server: Server, clip: bytes, local: str = "127.0.0.1") -> Iterator[socket.socket]:
    """Hold a request open whose body has not come yet."""
    body = form(clip)
    head = f"POST {PATH} HTTP/1.1\r\nHost: here\r\nContent-Type: {FORM['Content-Type']}\r\n"
    key = f"Authorization: Bearer {server.key}\r\n" if server.key else ""
    with socket.create_connection(("127.0.0.1", server.port), source_address=(local, 0)) as connection:
        connection.sendall(f"{head}{key}Content-Length: {len(body)}\r\n\r\n".encode() + body[: len(body) // 2])
        yield connection
