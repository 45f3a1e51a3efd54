"""Limits of the server as a process: size, length, number and speed of requests."""

from __future__ import annotations

import contextlib
import io
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.helpers.http_server import FORM, PATH, Server, form, half_an_upload, wait_for

for library in ("starlette", "uvicorn", "python_multipart", "websockets"):
    pytest.importorskip(library, reason=f"the server needs the extra serve: {library}")

SAMPLE = Path(__file__).resolve().parents[1] / "data" / "sample.flac"


@pytest.fixture(scope="module")
def strict() -> Iterator[Server]:
    """Return a server with low limits."""
    limits = ["--max-upload-mb", 0.5, "--max-audio-seconds", 6, "--upload-seconds", 2, "--header-seconds", 1.5]
    running = Server(*limits, "--max-requests", 2, "--max-client-requests", 1)
    yield running
    assert running.end() == 0


@pytest.fixture(scope="module")
def clip() -> bytes:
    return SAMPLE.read_bytes()


def test_upload_that_is_too_large_is_refused(strict: Server) -> None:
    assert strict.send(bytes(600_000))[0] == 413
    chunks = iter([form(bytes(2_000_000))[start : start + 65_536] for start in range(0, 2_000_000, 65_536)])
    assert strict.ask("POST", PATH, chunks, FORM)[0] == 413


@pytest.mark.parametrize("kind", ["FLAC", "OGG", "MP3"])
def test_recording_that_is_too_long_is_refused(strict: Server, kind: str) -> None:
    packed = io.BytesIO()
    soundfile.write(packed, np.zeros(8 * 16_000, np.float32), 16_000, format=kind)
    status, answer = strict.send(packed.getvalue(), name="long")
    assert (status, answer["error"]["param"]) == (413, "file")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has all of 127.0.0.0/8")
def test_too_many_requests_are_refused_until_there_is_room(strict: Server, clip: bytes) -> None:
    under_way = "requests_under_way"
    with half_an_upload(strict, clip):
        wait_for(lambda: strict.metric(under_way) == 1)
        status, _, headers = strict.ask("POST", PATH, form(clip), FORM)
        assert status == 429 and int(headers["retry-after"]) >= 1
        with half_an_upload(strict, clip, "127.0.0.2"):
            wait_for(lambda: strict.metric(under_way) == 2)
            status, _, headers = strict.ask("POST", PATH, form(clip), FORM, local="127.0.0.3")
            assert status == 503 and int(headers["retry-after"]) >= 1
    wait_for(lambda: strict.metric(under_way) == 0)
    assert strict.send(clip)[0] == 200


def test_upload_that_is_too_slow_is_refused(strict: Server, clip: bytes) -> None:
    wait_for(lambda: strict.metric("requests_under_way") == 0)
    with half_an_upload(strict, clip) as connection:
        connection.settimeout(30)
        assert connection.recv(1000).startswith(b"HTTP/1.1 408")
    wait_for(lambda: strict.metric("requests_under_way") == 0)


def answer_of(connection: socket.socket) -> bytes:
    """Return all that comes until the server closes the connection."""
    connection.settimeout(30)
    parts = []
    while part := connection.recv(10_000):
        parts.append(part)
    return b"".join(parts)


@pytest.mark.parametrize("start", [b"", b"POST / HT", b"GET /health HTTP/1.1\r\nHost: here\r\nX-Slow: "])
def test_head_that_is_too_slow_is_refused(strict: Server, start: bytes) -> None:
    with socket.create_connection(("127.0.0.1", strict.port)) as connection:
        connection.sendall(start)
        assert answer_of(connection).startswith(b"HTTP/1.1 408")


def test_connection_without_another_request_is_closed(strict: Server) -> None:
    """Neither a second head that drips, nor a body that nobody reads, keeps a connection open."""
    head = b"GET /health HTTP/1.1\r\nHost: here\r\n"
    for second in (b"GET /hea", b""):
        body = b"" if second else b"Content-Length: 1000\r\n"
        with socket.create_connection(("127.0.0.1", strict.port)) as connection:
            connection.sendall(head + body + b"\r\n" + second)
            answer = answer_of(connection)
        assert answer.startswith(b"HTTP/1.1 200") and (b"HTTP/1.1 408" in answer) == bool(second)


def test_half_open_connections_hold_up_nobody(strict: Server, clip: bytes) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(100):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", strict.port)))
            connection.sendall(b"POST /v1/audio/tr")
        assert strict.send(clip)[0] == 200
