"""Live transcription over a WebSocket, `/v1/listen`: audio in, partial and final texts out.

The client first sends a text message, a JSON object with any of: `rate` (Hz of raw samples, default 16000), `language`,
`prompt`, `channel` (of a WAV file), `api_key` (for browsers, which cannot send the header). Then it sends binary
messages of any size: raw 16-bit little-endian mono samples, or a 16-bit WAV file. The text message `{"type": "end"}`
ends the recording.

The server sends JSON objects as `focusasr listen --json` prints them: `{"type": "partial" | "final", "start": seconds,
"end": seconds, "text": text}`. Partial texts replace each other until the final one of their segment. After the last
final text come `{"type": "done", "seconds": seconds}` and close code 1000, or 1001 if the server ends. Errors come as
`{"type": "error", "message": line}`, and their close code is 4000 plus the HTTP status: 4401 for a wrong key, 4408
for a client that is too slow, 4413 for too much audio, 4422 for invalid data, 4429 and 4503 for too many requests.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from typing import Any

import numpy as np
from starlette.websockets import WebSocket, WebSocketDisconnect

from focusasr.cli.live_audio import PcmStream
from focusasr.cli.server import Server
from focusasr.cli.server_queue import Abandoned, Refused, in_time
from focusasr.config import HIGHEST_RATE_HZ, LOWEST_RATE_HZ, SAMPLE_RATE_HZ
from focusasr.transcription.live import LiveText, LiveTranscriber

MESSAGES_AHEAD = 8  # of audio that wait for the recognizer; further ones wait in the network
LEAST_BYTES = 16_000  # of audio within the time limit of an upload: half a second at 16 kHz
FIELDS = ("api_key", "channel", "language", "prompt", "rate")
NORMAL, GOING_AWAY, PRIVATE = 1000, 1001, 4000  # close codes; private ones are above
LONGEST_REASON = 120  # bytes of UTF-8, in a close frame


class LiveEndpoint:
    """The endpoint of live sessions."""

    def __init__(self, server: Server) -> None:
        self._server = server

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one session; in any case its socket is closed and its place is freed."""
        socket = WebSocket(scope, receive, in_time(send, self._server.config.upload_seconds))
        answers = self._server.metrics.answers
        try:
            await socket.accept()
            await self._server.live.run(self._session(socket))
            answers[200] += 1
        except (WebSocketDisconnect, Abandoned):
            answers[499] += 1
        except Exception as error:
            refusal = Refused.of(error)
            answers[refusal.status] += 1
            with suppress(Exception):  # the client may be gone
                await socket.send_json({"type": "error", "message": refusal.message})
                reason = refusal.message.encode()[:LONGEST_REASON].decode(errors="ignore")
                await socket.close(PRIVATE + refusal.status, reason)

    async def _session(self, socket: WebSocket) -> None:
        server = self._server
        server.check_origin(socket)
        try:
            settings = _settings(await asyncio.wait_for(socket.receive(), server.config.header_seconds))
        except asyncio.TimeoutError:
            raise _too_slow(server.config.header_seconds) from None
        server.check_key(socket, settings.pop("api_key", ""))
        with server.gate.admitted(socket.client.host if socket.client else "unknown"):
            await _Session(server, socket, settings).run()


def _settings(message: Any) -> dict[str, Any]:
    """Return the settings in the first message; Refused if it has invalid ones."""
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", NORMAL))
    try:
        given = json.loads(message.get("text") or "")
    except ValueError:
        given = None
    if not isinstance(given, dict) or not set(given) <= set(FIELDS):
        raise Refused(422, f"the first message must be a JSON object with any of {', '.join(FIELDS)}.")
    kinds = {"rate": int, "channel": int}
    for name, value in given.items():
        if type(value) is not kinds.get(name, str):
            expected = "a whole number" if name in kinds else "text"
            raise Refused(422, f"{name} must be {expected}.", name)
    if not LOWEST_RATE_HZ <= given.get("rate", SAMPLE_RATE_HZ) <= HIGHEST_RATE_HZ:
        raise Refused(422, f"rate must be {LOWEST_RATE_HZ} to {HIGHEST_RATE_HZ} Hz.", "rate")
    if given.get("channel", 0) < 0:
        raise Refused(422, "channel must be at least 0.", "channel")
    return given


class _Session:
    """One live recording: a task receives its audio, and a thread transcribes it."""

    def __init__(self, server: Server, socket: WebSocket, settings: dict[str, Any]) -> None:
        self._server, self._socket = server, socket
        channel = settings.pop("channel", server.recording.get("channel"))
        self._pcm = PcmStream("the audio", settings.pop("rate", SAMPLE_RATE_HZ), channel)
        self._options = {{"prompt": "initial_prompt"}.get(name, name): value for name, value in settings.items()}
        self._live: LiveTranscriber | None = None
        self._incoming: asyncio.Queue[bytes | Exception | None] = asyncio.Queue(MESSAGES_AHEAD)
        self._seconds, self._ended = 0.0, False

    async def run(self) -> None:
        """Transcribe until the client or the server ends the recording."""
        receiving = asyncio.ensure_future(self._receive())
        try:
            while not self._ended:
                for text in await self._compute(await self._waiting()):
                    await self._socket.send_json(text.to_dict())
            await self._socket.send_json({"type": "done", "seconds": round(self._seconds, 3)})
            await self._socket.close(GOING_AWAY if self._server.live.ending.is_set() else NORMAL)
        finally:
            receiving.cancel()

    async def _waiting(self) -> bytes:
        """Return all audio that waits, at least one message, and note the end."""
        parts = [await self._incoming.get()]
        while not self._incoming.empty():
            parts.append(self._incoming.get_nowait())
        if error := next((part for part in parts if isinstance(part, Exception)), None):
            raise error
        self._ended = None in parts
        return b"".join(part for part in parts if isinstance(part, bytes))

    async def _compute(self, data: bytes) -> list[LiveText]:
        return await asyncio.get_running_loop().run_in_executor(self._server.live.pool, self._texts, data)

    def _texts(self, data: bytes) -> list[LiveText]:
        """Return the texts that the next bytes complete; runs in a thread."""
        if self._live is None:
            self._live = self._server.recognizer.live(**self._options)
        samples = self._pcm.feed(data)
        if self._ended:
            samples = np.concatenate([samples, self._pcm.end()])
        seconds = len(samples) / SAMPLE_RATE_HZ
        self._seconds += seconds
        if self._seconds > self._server.config.max_audio_seconds:
            raise self._server.too_long()
        with self._server.metrics.working() as add:
            add(seconds)
            texts = list(self._live.feed(samples))
            return [*texts, *self._live.end()] if self._ended else texts

    async def _receive(self) -> None:
        """Put the audio of each message into the queue, then None or an error.

        The time limit is that of waiting for a client, not for the recognizer.
        """
        limit = self._server.config.upload_seconds
        ending = asyncio.ensure_future(self._server.live.ending.wait())
        message: asyncio.Future[Any] = ending
        clock, left, fresh = asyncio.get_running_loop().time, limit, 0
        try:
            while True:
                begin, message = clock(), asyncio.ensure_future(self._socket.receive())
                await asyncio.wait({message, ending}, timeout=max(0.0, left), return_when=asyncio.FIRST_COMPLETED)
                if not message.done():
                    await self._incoming.put(None if ending.done() else _too_slow(limit))
                    return
                content = _content(message.result())
                left, fresh = left - (clock() - begin), fresh + len(content or b"")
                if fresh >= LEAST_BYTES:
                    left, fresh = limit, 0
                await self._incoming.put(content)
        except Exception as error:
            await self._incoming.put(error)
        finally:
            message.cancel()
            ending.cancel()


def _content(message: Any) -> bytes | None:
    """Return the audio in a message, or None for the end of the recording."""
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", NORMAL))
    if message.get("bytes") is not None:
        return bytes(message["bytes"])
    with suppress(ValueError):
        if json.loads(message["text"]) == {"type": "end"}:
            return None
    raise Refused(422, 'a text message must be {"type": "end"}. Send audio as binary messages.')


def _too_slow(seconds: float) -> Refused:
    return Refused(408, f"too little audio within {seconds:g} s. Send it in real time.")
