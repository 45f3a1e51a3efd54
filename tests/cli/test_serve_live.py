"""The WebSocket of the server as a process: live texts, every limit, and clients that vanish."""

from __future__ import annotations

import io
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import focusasr
from tests.helpers.http_server import Server, wait_for

for library in ("starlette", "uvicorn", "python_multipart", "websockets"):
    pytest.importorskip(library, reason=f"the server needs the extra serve: {library}")

from websockets.exceptions import ConnectionClosed  # noqa: E402
from websockets.sync.client import ClientConnection, connect  # noqa: E402

SAMPLE = Path(__file__).resolve().parents[1] / "data" / "sample.flac"
KEY = "a key for tests"
RATE = 16_000
END = json.dumps({"type": "end"})


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    running = Server("--max-requests", 2, "--max-client-requests", 2, key=KEY)
    yield running
    assert running.end() == 0


@pytest.fixture(scope="module")
def recognizer() -> focusasr.Recognizer:
    return focusasr.load(device="cpu")


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    """Return the sample twice, with a pause, as 16-bit samples."""
    samples, rate = soundfile.read(SAMPLE, dtype="int16")
    assert rate == RATE
    return np.concatenate([samples, np.zeros(2 * rate, np.int16), samples])


def opened(server: Server, **options: Any) -> ClientConnection:
    return connect(f"ws://127.0.0.1:{server.port}/v1/listen", open_timeout=30, **options)


@contextmanager
def started(server: Server, **settings: Any) -> Iterator[ClientConnection]:
    """Open a session with the key."""
    with opened(server) as connection:
        connection.send(json.dumps({"api_key": KEY, **settings}))
        yield connection


def send(connection: ClientConnection, data: bytes, piece: int = 30_000) -> None:
    for at in range(0, len(data), piece):
        connection.send(data[at : at + piece])


def rest(connection: ClientConnection) -> tuple[list[dict[str, Any]], int]:
    """Return all messages up to the end, and the close code."""
    messages: list[dict[str, Any]] = []
    try:
        while True:
            messages.append(json.loads(connection.recv(timeout=60)))
    except ConnectionClosed as closed:
        assert closed.rcvd is not None
        return messages, closed.rcvd.code


@pytest.mark.parametrize("kind", ["raw", "wav"])
def test_final_texts_are_those_of_transcribe(
    server: Server, speech: np.ndarray, recognizer: focusasr.Recognizer, kind: str
) -> None:
    data = speech.tobytes()
    if kind == "wav":
        packed = io.BytesIO()
        soundfile.write(packed, speech, RATE, format="WAV")
        data = packed.getvalue()
    with started(server) as connection:
        send(connection, data)
        connection.send(END)
        messages, code = rest(connection)
    *texts, done = messages
    assert code == 1000 and done == {"type": "done", "seconds": round(len(speech) / RATE, 3)}
    finals = [text for text in texts if text["type"] == "final"]
    assert len(finals) == 2
    for text in finals:
        cut = speech[round(text["start"] * RATE) : round(text["end"] * RATE)].astype(np.float32) / 32768
        assert text["text"] == recognizer.transcribe(cut).text != ""


def test_texts_come_while_audio_is_sent(server: Server, speech: np.ndarray) -> None:
    with started(server, rate=RATE) as connection:
        first = json.loads(_first_while_sending(connection, speech))
        assert first["type"] == "partial" and first["text"] and 0 <= first["start"] < first["end"]


def _first_while_sending(connection: ClientConnection, speech: np.ndarray) -> str:
    for at in range(0, len(speech), 1600):
        connection.send(speech[at : at + 1600].tobytes())
        try:
            return str(connection.recv(timeout=0.1))
        except TimeoutError:
            continue
    raise AssertionError("no text before the end")


def test_openers_that_cannot_be_are_refused(server: Server) -> None:
    cases: list[tuple[Any, int]] = [
        ("no json", 4422),
        (b"\x00\x00", 4422),
        (json.dumps({"api_key": "wrong"}), 4401),
        (json.dumps({}), 4401),
        (json.dumps({"api_key": KEY, "volume": 3}), 4422),
        (json.dumps({"api_key": KEY, "rate": 7}), 4422),
        (json.dumps({"api_key": KEY, "rate": "fast"}), 4422),
    ]
    for first, expected in cases:
        with opened(server) as connection:
            connection.send(first)
            messages, code = rest(connection)
        assert (code, messages[-1]["type"]) == (expected, "error"), first
        assert len(messages[-1]["message"].splitlines()) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"language": "klingon"}, b"\x00" * 3200),
        ({}, "hello"),
        ({}, b"RIFF" + bytes(200_000)),
        ({"channel": 1}, b"\x00" * 3200),
    ],
)
def test_data_that_cannot_be_is_refused(server: Server, settings: dict[str, Any], message: Any) -> None:
    with started(server, **settings) as connection:
        connection.send(message)
        messages, code = rest(connection)
    assert (code, messages[-1]["type"]) == (4422, "error")
    wait_for(lambda: server.metric("requests_under_way") == 0)


def test_key_may_come_as_a_header_and_pages_of_other_sites_are_refused(server: Server) -> None:
    header = {"Authorization": f"Bearer {KEY}"}
    with opened(server, additional_headers=header) as connection:
        connection.send("{}")
        connection.send(END)
        assert rest(connection) == ([{"type": "done", "seconds": 0.0}], 1000)
    with opened(server, additional_headers=header, origin="https://example.org") as connection:
        assert rest(connection)[1] == 4403


def test_slow_clients_are_refused() -> None:
    strict = Server("--upload-seconds", 2, "--header-seconds", 2)
    with opened(strict) as silent:
        assert rest(silent)[1] == 4408
    with started(strict) as slow:
        thread = threading.Thread(target=_drip, args=(slow,))
        thread.start()
        assert rest(slow)[1] == 4408
        thread.join()
    wait_for(lambda: strict.metric("requests_under_way") == 0)
    assert strict.end() == 0


def _drip(connection: ClientConnection) -> None:
    """Send next to nothing, again and again."""
    try:
        for _ in range(100):
            connection.send(bytes(2))
            time.sleep(0.1)
    except ConnectionClosed:
        pass


def test_too_many_sessions_are_refused_until_one_ends(server: Server, speech: np.ndarray) -> None:
    with started(server) as first, started(server) as second:
        wait_for(lambda: server.metric("requests_under_way") == 2)
        with started(server) as third:
            assert rest(third)[1] == 4429
        for connection in (first, second):
            connection.send(END)
            assert rest(connection)[1] == 1000
    wait_for(lambda: server.metric("requests_under_way") == 0)


def test_vanished_clients_leave_nothing_behind(server: Server, speech: np.ndarray) -> None:
    wait_for(lambda: server.metric("requests_under_way") == 0)
    before = server.descriptors()
    for _ in range(3):
        with started(server) as connection:
            send(connection, speech.tobytes())
            wait_for(lambda: server.metric("requests_under_way") == 1)
            connection.socket.shutdown(socket.SHUT_RDWR)
        wait_for(lambda: server.metric("requests_under_way") == 0)
    wait_for(lambda: server.descriptors() <= before)


def test_audio_is_limited(speech: np.ndarray) -> None:
    strict = Server("--max-audio-seconds", 3)
    with opened(strict) as connection:
        connection.send("{}")
        send(connection, speech.tobytes())
        assert rest(connection)[1] == 4413
    assert strict.end() == 0


def test_sigterm_sends_the_last_text(speech: np.ndarray) -> None:
    running = Server()
    with opened(running) as connection:
        connection.send("{}")
        send(connection, speech[: 4 * RATE].tobytes())
        assert json.loads(connection.recv(timeout=60))["type"] == "partial"
        ended: list[int] = []
        thread = threading.Thread(target=lambda: ended.append(running.end()))
        thread.start()
        messages, code = rest(connection)
        thread.join()
    assert ended == [0] and code == 1001
    assert [one["type"] for one in messages[-2:]] == ["final", "done"] and messages[-2]["text"]
